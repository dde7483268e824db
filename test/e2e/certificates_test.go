package e2e

import (
	"encoding/json"
	"encoding/pem"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/relaypki/relaypki/internal/inventory"
)

// inventoried is a row of `relaypki inventory -o json`.
type inventoried struct {
	Kind, Cluster, Object, Key, Subject, Serial, Issuer, SubjectKeyID, AuthorityKeyID, Standing, Served, Fingerprint string
	Generation                                                                                                       int
	NotAfter                                                                                                         time.Time
}

// byOpenSSL is what openssl says of a certificate.
func byOpenSSL(t *testing.T, block []byte) map[string]string {
	t.Helper()
	cmd := exec.Command("openssl", "x509", "-noout", "-fingerprint", "-sha256", "-serial", "-enddate", "-ext", "subjectKeyIdentifier,authorityKeyIdentifier")
	cmd.Stdin = strings.NewReader(string(block))
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("openssl: %v", err)
	}
	said, last := map[string]string{}, ""
	for line := range strings.SplitSeq(string(out), "\n") {
		if name, value, ok := strings.Cut(line, "="); ok {
			said[strings.ToLower(name)] = value
		} else if strings.HasPrefix(line, "X509v3") {
			last = line
		} else if value := strings.TrimPrefix(strings.TrimSpace(line), "keyid:"); value != "" && last != "" {
			said[strings.Fields(last)[1]] = strings.ToLower(value)
		}
	}
	return said
}

// The inventory of a mesh in the middle of a rotation of its root is what openssl finds
// in the Secrets and in Vault: no entry more, none less, and each one as it says.
func TestInventoryInARootRotation(t *testing.T) {
	w, _ := rotationWorld(t, rootSpec("restartOnly"))
	r := w.rotatingRoot(t)
	r.begin(t)
	r.until(t, "pivot") // everybody has the bridged chain and trusts both roots
	shadow := w.clusters[0]
	w.sh(t, fmt.Sprintf(`kubectl --context %s -n gloo-mesh get secret relay-client-tls-secret -o jsonpath='{.data.ca\.crt}' | base64 -d | kubectl --context %[1]s -n gloo-mesh create secret generic shadow --from-file=root.pem=/dev/stdin`, shadow))

	want := map[string]map[string]string{} // what openssl says, by place and fingerprint
	note := func(place string, text string) {
		for rest := []byte(text); ; {
			var block *pem.Block
			if block, rest = pem.Decode(rest); block == nil {
				return
			}
			said := byOpenSSL(t, pem.EncodeToMemory(block))
			want[place+"|"+strings.ToLower(strings.ReplaceAll(said["sha256 fingerprint"], ":", ""))] = said
		}
	}
	for _, mount := range []string{"pki", "pki_relay"} {
		for id := range strings.FieldsSeq(w.sh(t, "vault list -format=json "+mount+"/issuers | tr -d '[],\"'")) {
			note("Vault|"+mount, w.sh(t, "vault read -field=certificate "+mount+"/issuer/"+id))
		}
	}
	for _, cluster := range w.all() {
		secrets := []string{"relay-client-tls-secret", "relay-root-tls-secret"}
		if cluster == management {
			secrets = []string{"relay-server-tls-secret"}
		}
		if cluster == shadow {
			secrets = append(secrets, "shadow")
		}
		for _, secret := range secrets {
			for _, key := range []string{"tls.crt", "ca.crt", "root.pem"} {
				text := w.sh(t, fmt.Sprintf(`kubectl --context %s -n gloo-mesh get secret %s --ignore-not-found -o jsonpath='{.data.%s}' | base64 -d`, cluster, secret, strings.ReplaceAll(key, ".", `\.`)))
				note(cluster+"|Secret gloo-mesh/"+secret+"|"+key, text)
			}
		}
	}

	report := filepath.Join(t.TempDir(), "report.html")
	began := time.Now()
	out, errOut, code := w.relaypki(t, "inventory", "demo", "-o", "json", "--html", report)
	took := time.Since(began)
	var document struct {
		Result struct {
			Rotation    string
			Items       []inventoried
			Forecast    []inventory.Forecast
			Drift       []inventory.Drift
			Unreachable []inventory.Unlooked
			Unsearched  []inventory.Unsearched
		}
	}
	if err := json.Unmarshal([]byte(out), &document); err != nil {
		t.Fatalf("%v, exit code %d:\n%s\n%s", err, code, out, errOut)
	}
	v := document.Result
	t.Logf("%d entries in %s", len(v.Items), took.Round(time.Millisecond))
	if code != 0 || len(v.Unreachable) > 0 || !strings.Contains(fmt.Sprint(v.Unsearched), "consumers.yaml") { // the lab's worker may not list all namespaces
		t.Errorf("exit code %d, unreachable %+v, unsearched %+v\n%s", code, v.Unreachable, v.Unsearched, errOut)
	}
	found := map[string]bool{}
	for _, i := range v.Items {
		place := i.Cluster + "|" + i.Object + "|" + i.Key
		if i.Cluster == "" {
			mount, _, _ := strings.Cut(i.Object, "/")
			place = "Vault|" + mount
		}
		said, ok := want[place+"|"+i.Fingerprint]
		if !ok {
			t.Errorf("there is no such certificate: %+v", i)
			continue
		}
		found[place+"|"+i.Fingerprint] = true
		ends, err := time.Parse("Jan _2 15:04:05 2006 MST", said["notafter"])
		if err != nil {
			t.Fatal(err)
		}
		serial := strings.ToLower(said["serial"])
		if strings.TrimLeft(strings.ReplaceAll(i.Serial, ":", ""), "0") != strings.TrimLeft(serial, "0") || !i.NotAfter.Equal(ends) ||
			i.SubjectKeyID != said["Subject"] || i.AuthorityKeyID != said["Authority"] && said["Authority"] != "" {
			t.Errorf("%+v, openssl says %v", i, said)
		}
	}
	for place := range want {
		if !found[place] {
			t.Errorf("not in the inventory: %s", place)
		}
	}

	// Everybody has been issued by the new intermediate, which is the next one.
	next := w.issuer(t, "relay-intermediate-g2")
	leaves, bridges, trusted := 0, 0, map[string][]int{}
	for _, i := range v.Items {
		switch inventory.Kind(i.Kind) {
		case inventory.ServerLeaf, inventory.ClientLeaf:
			leaves++
			if i.Generation != 2 || i.Standing != string(inventory.Next) || i.Issuer != "relay-intermediate-g2" {
				t.Errorf("a leaf: %+v", i)
			}
			if i.Kind == string(inventory.ServerLeaf) && i.Served != string(inventory.Same) {
				t.Errorf("the server serves: %+v", i)
			}
		case inventory.Bridge:
			bridges++
			if i.Issuer != "relay-root-g1" || i.Generation != 2 {
				t.Errorf("a bridge: %+v", i)
			}
		case inventory.Intermediate:
			if (i.Generation == 2) != (i.SubjectKeyID == byOpenSSL(t, w.pem(t, next.id))["Subject"]) {
				t.Errorf("an intermediate: %+v", i)
			}
		case inventory.TrustStore:
			if strings.HasSuffix(i.Object, "/relay-root-tls-secret") {
				trusted[i.Cluster] = append(trusted[i.Cluster], i.Generation)
			}
		case inventory.Consumer:
			if i.Cluster != shadow || i.Object != "Secret gloo-mesh/shadow" {
				t.Errorf("a consumer: %+v", i)
			}
			found["consumer"] = true
		}
	}
	if leaves != len(w.all()) || bridges != 1+len(w.all()) || !found["consumer"] || v.Rotation == "" {
		t.Errorf("%d leaves, %d bridges of %d members, a consumer: %v, under way: %q", leaves, bridges, len(w.all()), found["consumer"], v.Rotation)
	}
	for cluster, generations := range trusted {
		if slices.Sort(generations); !slices.Equal(generations, []int{1, 2}) {
			t.Errorf("%s trusts the generations %v", cluster, generations)
		}
	}
	if len(v.Drift) > 0 {
		t.Errorf("drift: %+v", v.Drift)
	}
	for _, f := range v.Forecast {
		if f.Late {
			t.Errorf("late: %+v", f)
		}
	}
	if text, err := os.ReadFile(report); err != nil || !strings.Contains(string(text), "relay-bridge-g2") {
		t.Errorf("the report: %v", err)
	}
	if keep := os.Getenv("RELAYPKI_TEST_REPORT"); keep != "" {
		w.sh(t, "cp "+report+" "+keep+"/report-e2e.html")
	}
	w.noSecrets(t)
}
