package kube

import (
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"

	"github.com/relaypki/relaypki/internal/shell"
	"github.com/relaypki/relaypki/internal/site"
)

// Context is the cluster's kubeconfig context, in the worker's kubeconfig.
func Context(c *site.Cluster) string {
	if c.Config.Context == "" { // a worker inside the cluster
		return c.Name
	}
	return c.Config.Context
}

// Kubectl is a kubectl command for the cluster.
func Kubectl(c *site.Cluster, args ...string) string {
	return shell.Join(append([]string{"kubectl", "--context", Context(c)}, args...)...)
}

// applyCommand applies an object by hand just as Apply does, so that Apply
// finds nothing to do afterwards. It is empty for an object that holds a secret.
func applyCommand(c *site.Cluster, want *unstructured.Unstructured) string {
	if want.GetKind() == "Secret" && !public(want) {
		return ""
	}
	want = want.DeepCopy()
	want.SetResourceVersion("")
	text, err := yaml.Marshal(want.Object)
	if err != nil {
		return ""
	}
	return shell.Input(serverSide(c), string(text))
}

func serverSide(c *site.Cluster) string {
	return Kubectl(c, "apply", "--server-side", "--force-conflicts", "--field-manager="+site.FieldManager, "-f", "-")
}

// public says that a Secret holds certificates and nothing else.
func public(secret *unstructured.Unstructured) bool {
	data, _, err := unstructured.NestedStringMap(secret.Object, "data")
	if err != nil || len(data) == 0 {
		return false
	}
	for _, encoded := range data {
		text, err := base64.StdEncoding.DecodeString(encoded)
		if err != nil || !certificates(text) {
			return false
		}
	}
	return true
}

func certificates(text []byte) bool {
	found := false
	for {
		block, rest := pem.Decode(text)
		if block == nil {
			return found && len(text) == 0
		}
		if _, err := x509.ParseCertificate(block.Bytes); err != nil || block.Type != "CERTIFICATE" {
			return false
		}
		found, text = true, rest
	}
}

// Encoded makes of a command's output what a Secret holds.
func Encoded(command string) string { return command + ` | tr -d '\n' | base64 | tr -d '\n'` }

// SecretCommands make a Secret of ours by hand with a value that is shown
// nowhere: encoded is a command that prints it in base64.
func SecretCommands(c *site.Cluster, mesh, namespace, name, key, encoded string) []string {
	object := map[string]any{
		"apiVersion": "v1", "kind": "Secret", "type": "Opaque",
		"metadata": map[string]any{"name": name, "namespace": namespace, "labels": Labels(mesh)},
		"data":     map[string]any{key: "$value"},
	}
	text, err := yaml.Marshal(object)
	if err != nil {
		return nil
	}
	return []string{`value="$(` + encoded + `)"`, shell.Expanded(serverSide(c), string(text), "value")}
}
