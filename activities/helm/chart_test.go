package helm

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

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
		_, err := load(context.Background(), test.source, "")
		if failure.KindOf(err) != test.kind || failure.IsPermanent(err) != test.permanent || !strings.Contains(err.Error(), test.words) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
