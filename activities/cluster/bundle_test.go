package cluster

import (
	"crypto/x509"
	"encoding/base64"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/pki"
	"github.com/relaypki/relaypki/internal/pki/pkitest"
	"github.com/relaypki/relaypki/internal/procedure"
	"github.com/relaypki/relaypki/internal/site"
)

func TestChangedTrust(t *testing.T) {
	old, next, other := pkitest.Root(t, "root"), pkitest.Root(t, "root G2"), pkitest.Root(t, "theirs")
	bridge := old.Cross(t, next).Cert
	anew := next.Cross(t, next).Cert // the same key, self-signed once more
	r1, r2, x := old.Cert, next.Cert, other.Cert
	list := func(cs ...*x509.Certificate) []*x509.Certificate { return cs }
	for name, c := range map[string]struct {
		have, add, drop, want []*x509.Certificate
		detail                string
	}{
		"adds at the end":                               {list(r1, x), list(r2), nil, list(r1, x, r2), "adds " + pki.Name(r2)},
		"there already":                                 {list(r1, r2), list(r2), nil, list(r1, r2), ""},
		"there already, and not the last":               {list(r2, x, r1), list(r2), nil, list(r2, x, r1), ""},
		"another of that key is not it":                 {list(r1, anew), list(r2), nil, list(r1, anew, r2), "adds " + pki.Name(r2)},
		"drops, and leaves what is somebody else's":     {list(x, r1, r2), nil, list(r1), list(x, r2), "drops " + pki.Name(r1)},
		"drops every one of that key":                   {list(r1, r2, anew, bridge), nil, list(r2), list(r1), "drops " + pki.Name(r2) + " and " + pki.Name(anew) + " and " + pki.Name(bridge)},
		"dropped already":                               {list(r2), nil, list(r1), list(r2), ""},
		"one of that key takes the place of another":    {list(r1, bridge), list(r2), list(bridge), list(r1, r2), "adds " + pki.Name(r2) + ", drops " + pki.Name(bridge)},
		"that again":                                    {list(r1, r2), list(r2), list(bridge), list(r1, r2), ""},
		"that again, wherever it is":                    {list(r2, x), list(r2), list(bridge), list(r2, x), ""},
		"one for another":                               {list(r1), list(r2), list(r1), list(r2), "adds " + pki.Name(r2) + ", drops " + pki.Name(r1)},
		"a root of the same name and another key stays": {list(r1, r2), nil, list(pkitest.Root(t, "root").Cert), list(r1, r2), ""},
		"nothing is left":                               {list(r1), nil, list(r1), nil, "drops " + pki.Name(r1)},
	} {
		got := changedTrust(c.have, c.add, c.drop)
		if !sameCertificates(got, c.want) {
			t.Errorf("%s: %s, want %s", name, anchorNames(got), anchorNames(c.want))
		}
		if detail := trustDetail(c.have, got); detail != c.detail {
			t.Errorf("%s: %q, want %q", name, detail, c.detail)
		}
	}
}

func TestLabChangeTrust(t *testing.T) {
	a, env, spec := lab(t)
	old, next := pkitest.Root(t, "root"), pkitest.Root(t, "root G2")
	text := func(cs ...*x509.Certificate) string { return string(pki.EncodeChain(cs...)) }
	in := ChangeTrustInput{Mesh: spec.Mesh, Context: "cluster1", Namespace: spec.Namespace, AddPEM: []string{text(next.Cert)}, Mode: procedure.Apply}
	c, err := a.Clients.Cluster("cluster1")
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Kube.CoreV1().Secrets(spec.Namespace).Delete(t.Context(), mesh.RootSecretName, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
		t.Fatal(err)
	}
	for _, mode := range []procedure.Mode{procedure.Apply, procedure.Plan} {
		in.Mode = mode
		if _, err := call[procedure.Outcome](t, env, a.ChangeTrust, in); failure.KindOf(err) != failure.Preflight || !failure.IsPermanent(err) {
			t.Errorf("%s, and there is none: %v", mode, err)
		}
	}
	must[procedure.Outcome](t, env, a.CopyRootSecret, CopyRootSecretInput{Mesh: spec.Mesh, Context: "cluster1", Namespace: spec.Namespace, RootPEM: text(old.Cert), Mode: procedure.Apply})
	stored := func() []*x509.Certificate {
		t.Helper()
		secret, err := c.Kube.CoreV1().Secrets(spec.Namespace).Get(t.Context(), mesh.RootSecretName, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		chain, err := pki.ParseChain(secret.Data[rootKey])
		if err != nil {
			t.Fatal(err)
		}
		return chain
	}

	in.Mode = procedure.Plan
	would := must[procedure.Outcome](t, env, a.ChangeTrust, in)
	if len(would.Changes) != 1 || would.Changes[0].Detail != "adds "+pki.Name(next.Cert) || len(would.Changes[0].Commands) != 1 || !strings.Contains(would.Changes[0].Commands[0], "kubectl --context cluster1 apply --server-side") {
		t.Errorf("%+v", would)
	}
	if now := stored(); !sameCertificates(now, []*x509.Certificate{old.Cert}) {
		t.Errorf("a plan has written %s", anchorNames(now))
	}
	in.Mode = procedure.Apply
	if did := must[procedure.Outcome](t, env, a.ChangeTrust, in); len(did.Changes) != 1 || did.Changes[0].Verb != procedure.Update {
		t.Errorf("%+v", did)
	}
	if now := stored(); !sameCertificates(now, []*x509.Certificate{old.Cert, next.Cert}) {
		t.Errorf("holds %s", anchorNames(now))
	}
	version := objectVersion(t, a, "cluster1", "Secret", spec.Namespace, mesh.RootSecretName)
	if again := must[procedure.Outcome](t, env, a.ChangeTrust, in); len(again.Changes) > 0 || again.Detail != "holds "+anchorNames(stored()) {
		t.Errorf("again: %+v", again)
	}
	if now := objectVersion(t, a, "cluster1", "Secret", spec.Namespace, mesh.RootSecretName); now != version {
		t.Error("the same again was written")
	}

	empty := in
	empty.AddPEM, empty.DropPEM = nil, []string{text(old.Cert), text(next.Cert)}
	if _, err := call[procedure.Outcome](t, env, a.ChangeTrust, empty); failure.KindOf(err) != failure.Mismatch || !strings.Contains(failure.Message(err), "nothing would be left") {
		t.Errorf("all dropped: %v", err)
	}
	leaf := in
	leaf.AddPEM = []string{text(old.Leaf(t, []string{"cluster1"}).Cert)}
	if _, err := call[procedure.Outcome](t, env, a.ChangeTrust, leaf); failure.KindOf(err) != failure.InvalidInput {
		t.Errorf("a leaf as an anchor: %v", err)
	}

	// Whoever changes it at the same time is not undone: each is there at the end.
	var all sync.WaitGroup
	conflicts := make(chan error, 100)
	added := []*x509.Certificate{old.Cert, next.Cert}
	for range 4 {
		root := pkitest.Root(t, "another").Cert
		added = append(added, root)
		mine := in
		mine.AddPEM = []string{text(root)}
		all.Go(func() {
			for {
				_, err := environment(a).ExecuteActivity(a.ChangeTrust, mine)
				if failure.KindOf(err) != failure.Conflict || failure.IsPermanent(err) {
					if err != nil {
						t.Error(err)
					}
					return
				}
				conflicts <- err
			}
		})
	}
	all.Wait()
	now := stored()
	for _, root := range added {
		if !slices.ContainsFunc(now, root.Equal) {
			t.Errorf("%s was put in and is lost", pki.Name(root))
		}
	}
	t.Logf("%d conflicts", len(conflicts))
}

// The trust with roots that are still to be made, written by hand once they are there,
// is what the activities would write.
func TestTrustByHand(t *testing.T) {
	old, next := pkitest.Root(t, "root").Cert, pkitest.Root(t, "root G2").Cert
	const printedBy = "vault read -field=certificate pki/issuer/relay-root-g2"
	change := ChangeTrustInput{Mesh: "demo", Namespace: "gloo-mesh", AddPrintedBy: printedBy}
	first := CopyRootSecretInput{Mesh: "demo", Namespace: "gloo-mesh", ClientSecret: "relay-client-tls-secret"}
	standby := first
	standby.AddPrintedBy = printedBy
	added := standby
	added.RootPEM = string(pki.EncodeChain(old))
	c := &site.Cluster{Name: "cluster1"}
	for name, by := range map[string]struct {
		commands []string
		want     []*x509.Certificate
	}{
		"beside another": {trustCommands(c, change, []*x509.Certificate{old}), []*x509.Certificate{old, next}},
		"alone":          {trustCommands(c, change, nil), []*x509.Certificate{next}},
		"the first root": {rootCommands(c, first), []*x509.Certificate{old}},
		"the first root and the one that stands by":   {rootCommands(c, standby), []*x509.Certificate{old, next}},
		"one that stands by, beside the root at work": {rootCommands(c, added), []*x509.Certificate{old, next}},
	} {
		dir := t.TempDir()
		for name, text := range map[string]string{
			"kubectl": "#!/bin/sh\nif [ \"$5\" = get ]; then\n[ \"$*\" = '--context cluster1 -n gloo-mesh get secret relay-client-tls-secret -o jsonpath={.data.ca\\.crt}' ] && printf %s '" +
				base64.StdEncoding.EncodeToString(pki.EncodeChain(old)) + "'\nelse\ncat > " + dir + "/object\nfi\n",
			"vault": "#!/bin/sh\n[ \"$*\" = \"read -field=certificate pki/issuer/relay-root-g2\" ] && printf %s '" + strings.TrimSpace(string(pki.EncodeChain(next))) + "'\n",
		} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o700); err != nil {
				t.Fatal(err)
			}
		}
		commands := strings.Join(by.commands, "\n")
		cmd := exec.CommandContext(t.Context(), "bash", "-c", "set -euo pipefail\n"+commands)
		cmd.Env = []string{"PATH=" + dir + ":" + os.Getenv("PATH")}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s\n%s", name, err, out, commands)
		}
		text, err := os.ReadFile(filepath.Join(dir, "object"))
		if err != nil {
			t.Fatal(err)
		}
		var secret corev1.Secret
		if err := yaml.UnmarshalStrict(text, &secret); err != nil {
			t.Fatal(err)
		}
		if want := string(pki.EncodeChain(by.want...)); string(secret.Data[rootKey]) != want || secret.Name != mesh.RootSecretName || secret.Labels["relaypki.io/mesh"] != "demo" {
			t.Errorf("%s: the Secret is\n%s\nwith\n%s", name, text, secret.Data[rootKey])
		}
	}
}
