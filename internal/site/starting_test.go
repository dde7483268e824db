package site_test

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"

	"github.com/relaypki/relaypki/internal/site"
)

// What an API server refuses because it has only just started is asked once more when
// it is ready, and succeeds; what it refuses when it is ready stays refused.
func TestAnAPIServerThatStarts(t *testing.T) {
	for _, test := range []struct {
		name string
		// notReady is how often it is not; refused how many requests it refuses.
		notReady, refused int
		readyz            int // its answer afterwards
		granted           bool
		asked             int
	}{
		{"it has the roles by the time it is ready", 3, 1, http.StatusOK, true, 2},
		{"it was ready a moment later", 0, 1, http.StatusOK, true, 2},
		{"it does not let anybody ask", 0, 1, http.StatusForbidden, true, 2},
		{"it refuses", 1, 1000, http.StatusOK, false, 2},
		{"it is not ready in time", 1000, 1000, http.StatusOK, false, 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			var mu sync.Mutex
			asked, probes := 0, 0
			var bodies []string
			server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				mu.Lock()
				defer mu.Unlock()
				if r.Header.Get("Authorization") != "Bearer secret" {
					t.Errorf("%s was asked without the credential", r.URL.Path)
				}
				if r.URL.Path == "/prefix/readyz" {
					probes++
					if probes <= test.notReady {
						w.WriteHeader(http.StatusInternalServerError)
						return
					}
					w.WriteHeader(test.readyz)
					return
				}
				asked++
				body, err := io.ReadAll(r.Body)
				if err != nil {
					t.Error(err)
				}
				bodies = append(bodies, string(body))
				w.Header().Set("Content-Type", "application/json")
				if asked <= test.refused {
					w.WriteHeader(http.StatusForbidden)
					_ = json.NewEncoder(w).Encode(apierrors.NewForbidden(corev1.Resource("secrets"), "s", nil).Status())
					return
				}
				_ = json.NewEncoder(w).Encode(corev1.Secret{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Secret"}})
			}))
			defer server.Close()
			path := filepath.Join(t.TempDir(), "kubeconfig")
			config := api.NewConfig()
			config.Clusters["a"] = &api.Cluster{Server: server.URL + "/prefix", InsecureSkipTLSVerify: true}
			config.AuthInfos["a"] = &api.AuthInfo{Token: "secret"}
			config.Contexts["a"] = &api.Context{Cluster: "a", AuthInfo: "a"}
			if err := clientcmd.WriteToFile(*config, path); err != nil {
				t.Fatal(err)
			}
			c, err := site.NewClients(site.Config{Kubeconfig: path, Clusters: []site.ClusterConfig{{Name: "a", Context: "a"}}}, zap.NewNop()).Cluster("a")
			if err != nil {
				t.Fatal(err)
			}
			ctx := t.Context()
			if test.notReady > 100 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, 3*time.Second)
				defer cancel()
			}
			_, err = c.Kube.CoreV1().Secrets("n").Create(ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "s"}}, metav1.CreateOptions{})
			if test.granted && err != nil || !test.granted && !apierrors.IsForbidden(err) {
				t.Errorf("%v, want it granted: %v", err, test.granted)
			}
			if asked != test.asked || bodies[0] == "" || bodies[asked-1] != bodies[0] {
				t.Errorf("asked %d times, want %d, with %q", asked, test.asked, bodies)
			}
		})
	}
}
