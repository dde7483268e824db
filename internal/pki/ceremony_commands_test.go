package pki_test

import (
	"crypto/x509"
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/relaypki/relaypki/internal/pki"
	"github.com/relaypki/relaypki/internal/pki/pkitest"
)

// The commands of the README make what is accepted.
func TestTheReadmesCeremony(t *testing.T) {
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, text, begins := strings.Cut(string(readme), "<!-- ceremony: begin -->\n```sh\n")
	text, _, ends := strings.Cut(text, "```\n<!-- ceremony: end -->")
	if !begins || !ends {
		t.Fatal("the README has no ceremony")
	}
	dir, now := t.TempDir(), time.Now()
	r1 := pkitest.Root(t, "Example Root", func(c *x509.Certificate) { c.NotBefore, c.NotAfter = now.AddDate(-1, 0, 0), now.AddDate(10, 0, 0) })
	key, err := x509.MarshalECPrivateKey(r1.Key)
	if err != nil {
		t.Fatal(err)
	}
	csr, csrPEM := pkitest.CSR(t, pkitest.Key(t), relaySubject)
	for name, text := range map[string]string{
		"old-root.pem": string(pki.EncodeChain(r1.Cert)), "old-root.key": string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: key})), "asked.csr": csrPEM,
		// In the place of the program: it prints the CSR, and takes the answer.
		"relaypki": "#!/bin/sh\nif [ \"$1\" = csr ]; then cat asked.csr; else cp \"$3\" handed-in.pem; fi\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	command := exec.CommandContext(t.Context(), "bash", "-euo", "pipefail", "-c", text)
	command.Dir, command.Env = dir, append(os.Environ(), "PATH="+dir+":"+os.Getenv("PATH"))
	if out, err := command.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	signed, err := os.ReadFile(filepath.Join(dir, "handed-in.pem"))
	if err != nil {
		t.Fatal(err)
	}
	certificates, err := pki.ParseSigned(signed)
	if err != nil {
		t.Fatal(err)
	}
	found, problems := pki.CheckNewRoot(csr, certificates, pki.NewRootWant{Old: r1.Cert, At: time.Now(), MinLife: minLife})
	for _, p := range problems {
		t.Error(p)
	}
	if found.Bridge == nil || r1.Cert.NotAfter.Sub(found.Bridge.NotAfter) > 48*time.Hour {
		t.Errorf("the bridge does not last as long as it could: %v", found.Bridge)
	}
}
