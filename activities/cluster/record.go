package cluster

import (
	"context"
	"encoding/json"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/kube"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/procedure"
)

// Keys of the membership ConfigMap.
const (
	keySpec     = "mesh.json"
	keyComplete = "complete"
)

func recordName(meshName string) string { return "relaypki-mesh-" + meshName }

// RecordMesh stores the accepted spec, guarded by the ConfigMap's
// resourceVersion. A spec that is recorded as complete stays so when the same
// spec is recorded again at the start of a later run.
func (a *Activities) RecordMesh(ctx context.Context, in RecordMeshInput) (procedure.Outcome, error) {
	var out procedure.Outcome
	s := in.Spec
	c, err := a.Clients.Cluster(s.Management.Context)
	if err != nil {
		return out, err
	}
	text, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return out, failure.Permanent(failure.InvalidInput, "the spec cannot be written as JSON: %v", err)
	}
	live, err := kube.Get(ctx, c, "ConfigMap", s.Management.Namespace, recordName(s.Mesh))
	if err != nil {
		return out, err
	}
	version := ""
	if live != nil {
		version = live.GetResourceVersion()
		var have corev1.ConfigMap
		if err := kube.Into(live, &have); err != nil {
			return out, err
		}
		if !in.Complete && have.Data[keySpec] == string(text) && have.Data[keyComplete] == "true" {
			in.Complete = true
		}
	}
	want, err := kube.Unstructured(&corev1.ConfigMap{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "ConfigMap"},
		ObjectMeta: metav1.ObjectMeta{Name: recordName(s.Mesh), Namespace: s.Management.Namespace, Labels: kube.Labels(s.Mesh), ResourceVersion: version},
		Data:       map[string]string{keySpec: string(text), keyComplete: strconv.FormatBool(in.Complete)},
	})
	if err != nil {
		return out, err
	}
	_, err = kube.Apply(ctx, c, want, in.Mode, &out)
	return out, err
}

// ReadMesh reads a mesh's record. A missing one is no error: Found is false.
func (a *Activities) ReadMesh(ctx context.Context, in ReadMeshInput) (MeshRecord, error) {
	var record MeshRecord
	if in.Management == "" {
		in.Management = a.Clients.Config.Management
	}
	if in.Management == "" {
		in.Management = mesh.Spec{}.WithDefaults().Management.Context
	}
	if in.Namespace == "" {
		in.Namespace = mesh.Spec{}.WithDefaults().Namespace
	}
	c, err := a.Clients.Cluster(in.Management)
	if err != nil {
		return record, err
	}
	live, err := kube.Get(ctx, c, "ConfigMap", in.Namespace, recordName(in.Mesh))
	if err != nil || live == nil {
		return record, err
	}
	var have corev1.ConfigMap
	if err := kube.Into(live, &have); err != nil {
		return record, err
	}
	// Tolerant: a newer version of relaypki may have written fields that this
	// one does not know.
	if err := json.Unmarshal([]byte(have.Data[keySpec]), &record.Spec); err != nil {
		return record, failure.Permanent(failure.Conflict, "cluster %q: %s has no readable %s: %v. Run SetupMesh again with the mesh's spec",
			c.Name, kube.Name("ConfigMap", in.Namespace, recordName(in.Mesh)), keySpec, err)
	}
	record.Found = true
	record.Complete = have.Data[keyComplete] == "true"
	return record, nil
}
