package e2e

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// What Go's TLS accepts, OpenSSL must accept too: the chains in the Secrets,
// and a handshake with the management server as each agent makes it.
func TestOpenSSL(t *testing.T) {
	w := demoWorld(t)
	dir := t.TempDir()
	secret := func(context, name, key string) string {
		file := filepath.Join(dir, context+"-"+name+"-"+strings.ReplaceAll(key, ".", "-"))
		w.sh(t, fmt.Sprintf(`kubectl --context %s -n gloo-mesh get secret %s -o jsonpath='{.data.%s}' | base64 -d > %s`,
			context, name, strings.ReplaceAll(key, ".", `\.`), file))
		return file
	}
	serverTrust := secret(management, "relay-server-tls-secret", "ca.crt")
	serverChain := secret(management, "relay-server-tls-secret", "tls.crt")
	address := w.forward(t)
	for _, c := range w.clusters {
		chain := secret(c, "relay-client-tls-secret", "tls.crt")
		key := secret(c, "relay-client-tls-secret", "tls.key")
		trust := secret(c, "relay-root-tls-secret", "ca.crt")
		w.sh(t, fmt.Sprintf(`openssl verify -x509_strict -purpose sslclient -CAfile %s -untrusted %s %s`, serverTrust, chain, chain))
		w.sh(t, fmt.Sprintf(`openssl verify -x509_strict -purpose sslserver -verify_hostname gloo-mesh-mgmt-server-ca.gloo-mesh -CAfile %s -untrusted %s %s`, trust, serverChain, serverChain))
		// With TLS 1.2 the client's handshake ends after the server has judged
		// its certificate; with 1.3 the server's word comes after it.
		for _, version := range []string{"-tls1_2", "-tls1_3"} {
			out := w.sh(t, fmt.Sprintf(`(sleep 1; echo Q) | openssl s_client %s -connect %s -servername gloo-mesh-mgmt-server.gloo-mesh -alpn h2 -verify_return_error -CAfile %s -cert %s -cert_chain %s -key %s 2>&1`,
				version, address, trust, chain, chain, key))
			if !strings.Contains(out, "Verify return code: 0 (ok)") || strings.Contains(out, "alert") {
				t.Errorf("openssl s_client %s as %s:\n%s", version, c, out)
			}
		}
		// And the harness can see a refusal: no client certificate.
		out, err := run(w.env, "bash", "-c", fmt.Sprintf(`(sleep 1; echo Q) | openssl s_client -tls1_2 -connect %s -servername gloo-mesh-mgmt-server.gloo-mesh -alpn h2 -CAfile %s 2>&1`, address, trust))
		if err == nil || !strings.Contains(out, "alert") {
			t.Errorf("the server lets in a client without a certificate:\n%s", out)
		}
	}
}

// A root asked for 187600 h lives so long: the guide's own commands get one
// that dies after 32 days.
func TestRootLivesAsLongAsAsked(t *testing.T) {
	w := demoWorld(t)
	out := w.sh(t, `vault read -field=certificate pki/issuer/relay-root-g1 | openssl x509 -noout -startdate -enddate -subject`)
	date := func(which string) time.Time {
		m := regexp.MustCompile(which + `=(.*)`).FindStringSubmatch(out)
		if m == nil {
			t.Fatalf("openssl prints no %s:\n%s", which, out)
		}
		at, err := time.Parse("Jan _2 15:04:05 2006 MST", m[1])
		if err != nil {
			t.Fatal(err)
		}
		return at
	}
	lives := date("notAfter").Sub(date("notBefore"))
	if off := lives - 187600*time.Hour; off < -5*time.Minute || off > 5*time.Minute {
		t.Errorf("the root lives %s, asked for 187600h", lives)
	}
	if !strings.Contains(out, "Solo.io Root CA") || !strings.Contains(out, "O = solo.io") {
		t.Errorf("the root is not the one asked for:\n%s", out)
	}
}

// forward opens the management server's port 9900 by kubectl, as the guide
// does for its metrics, and returns the local address.
func (w *world) forward(t *testing.T) string {
	t.Helper()
	cmd := exec.Command("bash", "-c", `exec kubectl --context mgmt -n gloo-mesh port-forward deploy/gloo-mesh-mgmt-server :9900`)
	cmd.Env = os.Environ()
	for k, v := range w.env {
		cmd.Env = append(cmd.Env, k+"="+v)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	line, err := bufio.NewReader(out).ReadString('\n')
	m := regexp.MustCompile(`127\.0\.0\.1:(\d+)`).FindString(line)
	if err != nil || m == "" {
		t.Fatalf("kubectl port-forward: %q, %v", line, err)
	}
	return m
}
