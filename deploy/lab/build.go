package main

import (
	"os"

	"github.com/spf13/cobra"

	"github.com/relaypki/relaypki/deploy/lab/internal/programs"
)

func (l *lab) buildCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "build",
		Short: "Build what is missing and start nothing",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			repo, err := repository()
			if err != nil {
				return err
			}
			shop, err := programs.Open(repo)
			if err != nil {
				return err
			}
			show := newScreen(os.Stdout)
			if _, _, err := obtain(cmd.Context(), shop, show); err != nil {
				return err
			}
			show.line("all that the lab needs is there")
			return nil
		},
	}
}
