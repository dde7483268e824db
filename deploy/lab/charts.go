package main

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/relaypki/relaypki/deploy/lab/internal/programs"
	"github.com/relaypki/relaypki/deploy/lab/internal/world"
)

// chartModules are the charts that are in a module of their makers'.
var chartModules = map[string]struct {
	nested string // the nested module that requires it
	module string
	path   string // of the chart in the module
}{
	"cert-manager": {"deploy/lab/servers/certmanager", "github.com/cert-manager/cert-manager", "deploy/charts/cert-manager"},
	"vault":        {"deploy/lab/servers/vaultchart", "github.com/hashicorp/vault-helm", "."},
}

// copyCharts puts the charts into the state directory. cert-manager's has no
// version in its module: the release process sets it, and so do we.
func copyCharts(ctx context.Context, w *world.World, shop *programs.Shop) error {
	for _, chart := range charts {
		source, version := chartSource(shop.Repo, chart), ""
		if from, ok := chartModules[chart]; ok {
			dir, v, err := shop.ModuleDir(ctx, from.nested, from.module)
			if err != nil {
				return err
			}
			source, version = filepath.Join(dir, from.path), v
		}
		if err := copyChart(source, w.Path("charts", chart), version); err != nil {
			return fmt.Errorf("chart %s: %w", chart, err)
		}
	}
	return nil
}

// copyChart copies a chart, without its tests; a version v0.0.0 becomes the
// given one. Files that went away in the source go away in the copy.
func copyChart(source, target, version string) error {
	wanted := map[string]bool{}
	err := filepath.WalkDir(source, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(source, path)
		if err != nil {
			return err
		}
		if d.IsDir() {
			if rel == "tests" || rel == "test" || rel == ".github" {
				return filepath.SkipDir
			}
			return nil
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if rel == "Chart.yaml" {
			data = []byte(strings.ReplaceAll(string(data), "ersion: v0.0.0", "ersion: "+version))
		}
		wanted[rel] = true
		return world.WriteFile(filepath.Join(target, rel), data, 0o644)
	})
	if err != nil {
		return err
	}
	return filepath.WalkDir(target, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(target, path)
		if err != nil || wanted[rel] {
			return err
		}
		return os.Remove(path)
	})
}
