package kube

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	authv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/restmapper"
	"k8s.io/client-go/tools/clientcmd/api"

	"github.com/relaypki/relaypki/deploy/lab/internal/world"
)

// The worker's identity in every cluster, as deploy/rbac makes it.
const (
	workerNamespace = "relaypki"
	workerAccount   = "relaypki-worker"
)

// Manifest is the file with the worker's rights in this cluster.
func (p *Plane) Manifest(repo string) string {
	name := "workload.yaml"
	if p.Cluster == world.Management {
		name = "management.yaml"
	}
	return filepath.Join(repo, "deploy", "rbac", name)
}

// AdmitWorker applies the worker's rights and mints its token, unless the
// stored one is good for a while yet.
func (p *Plane) AdmitWorker(ctx context.Context, repo string) error {
	if err := p.apply(ctx, p.Manifest(repo)); err != nil {
		return err
	}
	client, err := p.Client()
	if err != nil {
		return err
	}
	return p.mintToken(ctx, client)
}

// apply applies every document of a file, server-side.
func (p *Plane) apply(ctx context.Context, path string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("the worker's rights in %s: %w", p.Cluster, err)
	}
	config, err := p.Config()
	if err != nil {
		return err
	}
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		return err
	}
	set, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	mapper := restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(set.Discovery()))
	documents := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(data), 4096)
	for {
		var object unstructured.Unstructured
		if err := documents.Decode(&object); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		if len(object.Object) == 0 {
			continue
		}
		gvk := object.GroupVersionKind()
		what := fmt.Sprintf("%s %s of %s in cluster %s", gvk.Kind, object.GetName(), path, p.Cluster)
		mapping, err := mapper.RESTMapping(gvk.GroupKind(), gvk.Version)
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		var resource dynamic.ResourceInterface = client.Resource(mapping.Resource)
		if ns := object.GetNamespace(); ns != "" {
			resource = client.Resource(mapping.Resource).Namespace(ns)
		}
		if _, err := resource.Apply(ctx, object.GetName(), &object, metav1.ApplyOptions{FieldManager: "relaypki-lab", Force: true}); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
	}
}

const (
	tokenLife = 365 * 24 * time.Hour
	// tokenLeft is how much of it a stored token must have left.
	tokenLeft = 30 * 24 * time.Hour
)

func (p *Plane) tokenFile() string { return p.path("worker.token") }

// mintToken stores a token of the worker's ServiceAccount.
func (p *Plane) mintToken(ctx context.Context, client kubernetes.Interface) error {
	accounts := client.CoreV1().ServiceAccounts(workerNamespace)
	account, err := accounts.Get(ctx, workerAccount, metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("the worker's ServiceAccount in %s, which %s should have made: %w", p.Cluster, "deploy/rbac", err)
	}
	if old, err := os.ReadFile(p.tokenFile()); err == nil && goodToken(string(old), string(account.UID), time.Now().Add(tokenLeft)) {
		return nil
	}
	seconds := int64(tokenLife / time.Second)
	answer, err := accounts.CreateToken(ctx, workerAccount, &authv1.TokenRequest{
		Spec: authv1.TokenRequestSpec{ExpirationSeconds: &seconds},
	}, metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("token of the worker's ServiceAccount in %s: %w", p.Cluster, err)
	}
	return world.WriteFile(p.tokenFile(), []byte(answer.Status.Token), 0o600)
}

// goodToken tells whether a token is the account's and valid until then. The
// file is the lab's own: its signature is not looked at.
func goodToken(token, uid string, until time.Time) bool {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return false
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return false
	}
	var claims struct {
		Expires    int64 `json:"exp"`
		Kubernetes struct {
			ServiceAccount struct {
				UID string `json:"uid"`
			} `json:"serviceaccount"`
		} `json:"kubernetes.io"`
	}
	if err := json.Unmarshal(payload, &claims); err != nil {
		return false
	}
	return claims.Kubernetes.ServiceAccount.UID == uid && time.Unix(claims.Expires, 0).After(until)
}

// AddWorker adds the worker's context of this cluster.
func (p *Plane) AddWorker(config *api.Config) error {
	token, err := os.ReadFile(p.tokenFile())
	if err != nil {
		return err
	}
	return p.context(config, workerAccount, Credential{Token: string(token)})
}
