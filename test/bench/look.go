package main

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/relaypki/relaypki/internal/procedure"
)

// looked is how long it takes to look at so many clusters, by the procedure that
// does, or by the script.
type looked struct {
	clusters int
	took     map[string]time.Duration
	checks   int // of a diagnosis
	items    int // of an inventory
}

// byLook is the script with the guide's commands.
const byLook = "look.sh"

// looks measures, for every number of clusters, a verification, a diagnosis and an
// inventory of a mesh that is well, and the guide's commands for the same.
func (b *bench) looks(ctx context.Context, numbers []int) ([]looked, error) {
	var all []looked
	for _, n := range numbers {
		if b.stands != n {
			if err := b.clean(ctx); err != nil {
				return nil, err
			}
			if _, err := b.setup(ctx, b.places[0], b.spec(workloads(n), true), true); err != nil {
				return nil, err
			}
			b.stands = n
		}
		// Its schedules would look at the mesh in the middle of a measurement.
		if err := b.cleanTemporal(ctx); err != nil {
			return nil, err
		}
		l, err := b.look(ctx, n)
		if err != nil {
			return nil, fmt.Errorf("%d clusters: %w", n, err)
		}
		all = append(all, l)
	}
	return all, nil
}

func (b *bench) look(ctx context.Context, n int) (looked, error) {
	l := looked{clusters: n, took: map[string]time.Duration{}}
	w, err := b.startWorker(ctx, filepath.Join(b.repo, "bin", "relaypki-worker"), b.places[0])
	if err != nil {
		return l, err
	}
	defer w.stop()
	var diagnosis procedure.DiagnoseResult
	var inventory procedure.InventoryResult
	for _, way := range []struct {
		name          string
		input, result any
	}{
		{procedure.VerifyMesh, procedure.VerifyInput{Mesh: meshName}, nil},
		{procedure.DiagnoseMesh, procedure.DiagnoseInput{Mesh: meshName}, &diagnosis},
		{procedure.Inventory, procedure.InventoryInput{Mesh: meshName}, &inventory},
	} {
		if l.took[way.name], _, err = clocked(func() error {
			run, err := b.start(ctx, way.name, way.input)
			if err != nil {
				return err
			}
			return run.Get(ctx, way.result)
		}); err != nil {
			return l, fmt.Errorf("%s: %w", way.name, err)
		}
		say("%s, %d clusters: %s", way.name, n, l.took[way.name].Round(time.Millisecond))
	}
	for _, f := range diagnosis.Findings {
		return l, fmt.Errorf("a mesh that is well has a finding: %s, %s: %s", f.Cluster, f.Check, f.Message)
	}
	l.checks, l.items = diagnosis.Checks, len(inventory.Items)
	l.took[byLook], err = b.script(ctx, b.places[0], byLook, workloads(n))
	say("%s, %d clusters: %s", byLook, n, l.took[byLook].Round(time.Millisecond))
	return l, err
}

func (t tables) look(b *strings.Builder) {
	fmt.Fprintf(b, `
A mesh that is well, looked at: the guide's commands to verify and to troubleshoot, one after the other and read by nobody; a
verification; a diagnosis; and an inventory. The workflows shake hands in the place of every agent.

| clusters | script | verify | diagnose (%s) | inventory (%s) | script / diagnose | checks of the diagnosis | entries of the inventory |
|---:|---:|---:|---:|---:|---:|---:|---:|
`, aimLook, aimLook)
	for _, l := range t.looked {
		fmt.Fprintf(b, "| %d | %s | %s | %s | %s | %.1f | %d | %d |\n", l.clusters, seconds(l.took[byLook]), seconds(l.took[procedure.VerifyMesh]), seconds(l.took[procedure.DiagnoseMesh]),
			seconds(l.took[procedure.Inventory]), ratio(l.took[byLook], l.took[procedure.DiagnoseMesh]), l.checks, l.items)
	}
}
