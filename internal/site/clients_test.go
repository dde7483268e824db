package site_test

import (
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"

	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/site"
)

// A credential that is renewed in the kubeconfig is used from then on, and a
// context that is missing is named; neither takes a restart of the worker.
func TestKubeconfigIsReadAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "kubeconfig")
	write := func(context, token string) {
		t.Helper()
		config := api.NewConfig()
		config.Clusters["a"] = &api.Cluster{Server: "https://127.0.0.1:1"}
		config.AuthInfos["a"] = &api.AuthInfo{Token: token}
		config.Contexts[context] = &api.Context{Cluster: "a", AuthInfo: "a"}
		if err := clientcmd.WriteToFile(*config, path); err != nil {
			t.Fatal(err)
		}
		// Two writes within one tick of the clock are not told apart by it.
		at := time.Now().Add(time.Duration(len(token)) * time.Second)
		if err := os.Chtimes(path, at, at); err != nil {
			t.Fatal(err)
		}
	}
	clients := site.NewClients(site.Config{Kubeconfig: path, Clusters: []site.ClusterConfig{{Name: "a", Context: "a"}}}, zap.NewNop())
	write("b", "1")
	if _, err := clients.Cluster("a"); failure.KindOf(err) != failure.Preflight || !strings.Contains(err.Error(), `context "a" does not exist`) {
		t.Errorf("without the context: %v", err)
	}
	write("a", "22")
	first, err := clients.Cluster("a")
	if err != nil || first.REST.BearerToken != "22" {
		t.Fatalf("with the context: %+v, %v", first, err)
	}
	if again, err := clients.Cluster("a"); err != nil || again != first {
		t.Errorf("the clients were made again without a change (%v)", err)
	}
	write("a", "333")
	if renewed, err := clients.Cluster("a"); err != nil || renewed.REST.BearerToken != "333" {
		t.Errorf("after the credential was renewed: %v", err)
	}
}

func TestExpired(t *testing.T) {
	certFile, keyFile, pem := clientCertificate(t) // for an hour
	jwt := func(claims string) string {
		return "e30." + base64.RawURLEncoding.EncodeToString([]byte(claims)) + ".c2ln"
	}
	tomorrow := time.Now().Add(24 * time.Hour)
	for name, test := range map[string]struct {
		user *api.AuthInfo
		want string
	}{
		"a token":                             {&api.AuthInfo{Token: jwt(`{"exp":1000000000}`)}, "its token expired at 2001-09-09T01:46:40Z"},
		"a token in a file":                   {&api.AuthInfo{TokenFile: file(t, "token", jwt(`{"exp":1000000000}`)+"\n")}, "its token expired at 2001-09-09T01:46:40Z"},
		"a certificate":                       {&api.AuthInfo{ClientCertificateData: []byte(pem), ClientKey: keyFile}, "its client certificate expired at "},
		"a certificate in a file":             {&api.AuthInfo{ClientCertificate: certFile, ClientKey: keyFile}, "its client certificate expired at "},
		"a token that is good":                {&api.AuthInfo{Token: jwt(fmt.Sprintf(`{"exp":%d}`, tomorrow.Unix()+60))}, ""},
		"a token that never expires":          {&api.AuthInfo{Token: jwt(`{}`)}, ""},
		"a token that says nothing of itself": {&api.AuthInfo{Token: "opaque"}, ""},
		"none":                                {&api.AuthInfo{}, ""},
	} {
		config := api.NewConfig()
		config.Clusters["a"] = &api.Cluster{Server: "https://127.0.0.1:1"}
		config.AuthInfos["a"] = test.user
		config.Contexts["a"] = &api.Context{Cluster: "a", AuthInfo: "a"}
		rest, err := clientcmd.NewDefaultClientConfig(*config, &clientcmd.ConfigOverrides{CurrentContext: "a"}).ClientConfig()
		if err != nil {
			t.Fatal(err)
		}
		got := (&site.Cluster{REST: rest}).Expired(tomorrow)
		if got != test.want && (test.want == "" || !strings.HasPrefix(got, test.want)) {
			t.Errorf("%s: %q, want %q", name, got, test.want)
		}
	}
}
