package e2e

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	sitefile "github.com/relaypki/relaypki/internal/site"
)

// elsewhere are commands of the README that are run by something else.
var elsewhere = map[string]string{
	"make demo":       "TestDemo",
	"make test":       "whoever runs this test",
	"source .lab/env": "every test: their environment is what it exports",
}

// ceremony is what people do with a root that the demo has not; TestTheReadmesCeremony
// (internal/pki) runs it.
var ceremony = regexp.MustCompile(`(?s)<!-- ceremony: begin -->.*<!-- ceremony: end -->`)

// Every command in the README's sh blocks works as it stands there, after a
// make demo.
func TestReadme(t *testing.T) {
	w := demoWorld(t)
	data, err := os.ReadFile(filepath.Join(repository, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	if data = ceremony.ReplaceAll(data, nil); strings.Contains(string(data), "openssl genpkey") {
		t.Error("the ceremony is not where it was")
	}
	ran := 0
	for _, block := range regexp.MustCompile("(?s)\n```sh\n(.*?)\n```").FindAllStringSubmatch(string(data), -1) {
		for _, line := range strings.Split(block[1], "\n") {
			command, _, _ := strings.Cut(line, " #")
			command = strings.TrimSpace(command)
			if _, ok := elsewhere[command]; ok || command == "" {
				continue
			}
			t.Run(command, func(t *testing.T) { w.sh(t, command) })
			ran++
		}
	}
	if ran < 5 {
		t.Errorf("only %d commands were found in the README", ran)
	}
	site := regexp.MustCompile("(?s)```yaml\n(.*?)```").FindStringSubmatch(string(data))
	if site == nil {
		t.Fatal("the README has no site file")
	}
	path := filepath.Join(t.TempDir(), "site.yaml")
	if err := os.WriteFile(path, []byte(regexp.MustCompile(`(?m)^   `).ReplaceAllString(site[1], "")), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := sitefile.Load(path); err != nil {
		t.Errorf("the README's site file: %v", err)
	}
	for _, link := range regexp.MustCompile(`\]\(([^)#]+)\)`).FindAllStringSubmatch(string(data), -1) {
		if _, err := os.Stat(filepath.Join(repository, link[1])); err != nil {
			t.Errorf("the README points to %s, which is not there", link[1])
		}
	}
}
