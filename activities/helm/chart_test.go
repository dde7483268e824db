package helm

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	chart "helm.sh/helm/v4/pkg/chart/v2"

	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/site"
)

// Helm's own client against a repository: what is not there will not come by
// waiting, what cannot be reached may.
func TestLoadFromRepository(t *testing.T) {
	t.Setenv("HELM_CACHE_HOME", t.TempDir())
	repository := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/charts/index.yaml" {
			http.NotFound(w, r)
			return
		}
		fmt.Fprint(w, `{apiVersion: v1, entries: {gloo-platform: [{apiVersion: v2, name: gloo-platform, version: 2.12.0, urls: [gloo-platform-2.12.0.tgz]}]}}`)
	}))
	t.Cleanup(repository.Close)
	closed := httptest.NewServer(http.NotFoundHandler())
	closed.Close()
	for name, test := range map[string]struct {
		source    site.ChartConfig
		kind      failure.Kind
		permanent bool
		words     string
	}{
		"another version":  {site.ChartConfig{Repo: repository.URL + "/charts", Chart: "gloo-platform", Version: "9.9.9"}, failure.Preflight, true, "there is no gloo-platform of " + repository.URL + "/charts in version 9.9.9"},
		"another name":     {site.ChartConfig{Repo: repository.URL + "/charts", Chart: "gloo"}, failure.Preflight, true, "there is no gloo of"},
		"no repository":    {site.ChartConfig{Repo: repository.URL, Chart: "gloo-platform"}, failure.Preflight, true, "404"},
		"a file is gone":   {site.ChartConfig{Repo: repository.URL + "/charts", Chart: "gloo-platform"}, failure.Preflight, true, "404"},
		"nobody answers":   {site.ChartConfig{Repo: closed.URL, Chart: "gloo-platform"}, failure.Unavailable, false, "cannot be fetched"},
		"a path of nobody": {site.ChartConfig{Path: "/nowhere/gloo"}, failure.Preflight, true, "/nowhere/gloo"},
	} {
		test.source.Name = "gloo-platform"
		_, err := new(shelf).load(context.Background(), test.source, "")
		if failure.KindOf(err) != test.kind || failure.IsPermanent(err) != test.permanent || !strings.Contains(err.Error(), test.words) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A chart is loaded once, until its files are others; Helm gets one of its own.
func TestShelf(t *testing.T) {
	dir := t.TempDir()
	write := func(description string) {
		text := "apiVersion: v2\nname: a\nversion: 1.0.0\ndescription: " + description + "\n"
		if err := os.WriteFile(filepath.Join(dir, "Chart.yaml"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("first")
	var s shelf
	source := site.ChartConfig{Name: "a", Path: dir}
	get := func(from func(context.Context, site.ChartConfig, string) (*chart.Chart, error)) *chart.Chart {
		c, err := from(context.Background(), source, "")
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	first := get(s.load)
	if get(s.load) != first {
		t.Error("loaded again although nothing has changed")
	}
	if get(s.fresh) == first {
		t.Error("Helm gets the one that others read")
	}
	write("second, which is longer")
	if second := get(s.load); second.Metadata.Description != "second, which is longer" {
		t.Errorf("after a change: %s", second.Metadata.Description)
	}
	if _, err := s.load(context.Background(), source, "2.0.0"); failure.KindOf(err) != failure.Preflight {
		t.Errorf("another version than the path has: %v", err)
	}
}
