package cluster

import (
	"slices"
	"testing"

	authorization "k8s.io/api/authorization/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/relaypki/relaypki/internal/site"
)

// What the rules of a namespace give is not asked for again; whatever else is,
// one by one, and that answer counts. The API server is a fake: no real one of
// the lab has an authorizer that cannot list its rules.
func TestDeniedTo(t *testing.T) {
	asked := []permission{
		{verbs: "get patch", resource: "secrets", namespace: "gloo-mesh", names: []string{"root"}},
		{verbs: "list", group: "apps", resource: "deployments", namespace: "gloo-mesh"},
		{verbs: "create", resource: "pods/portforward", namespace: "gloo-mesh"},
		{verbs: "get", resource: "namespaces", names: []string{"gloo-mesh"}},
		{verbs: "get", path: "/openid/v1/jwks"},
	}
	const namespaces, jwks, get, patch = "get namespaces gloo-mesh", "get /openid/v1/jwks", "get secrets root in namespace gloo-mesh", "patch secrets root in namespace gloo-mesh"
	const list, forward = "list deployments in namespace gloo-mesh", "create pods/portforward in namespace gloo-mesh"
	all := []string{namespaces, jwks, get, patch, list, forward}
	secrets := authorization.ResourceRule{Verbs: []string{"get", "patch"}, APIGroups: []string{""}, Resources: []string{"secrets"}, ResourceNames: []string{"root", "other"}}
	deployments := authorization.ResourceRule{Verbs: []string{"*"}, APIGroups: []string{"apps"}, Resources: []string{"*"}}
	tests := map[string]struct {
		rules      []authorization.ResourceRule
		incomplete bool
		forbidden  bool
		denied     []string
		reviewed   []string
		want       []string
	}{
		"the rules give all of the namespace": {
			rules:    []authorization.ResourceRule{secrets, deployments, {Verbs: []string{"create"}, APIGroups: []string{""}, Resources: []string{"pods/portforward"}}},
			reviewed: []string{namespaces, jwks},
		},
		"what they do not give is asked for, and given": {
			rules: []authorization.ResourceRule{secrets, deployments}, reviewed: []string{namespaces, jwks, forward},
		},
		"and denied": {
			rules: []authorization.ResourceRule{secrets, deployments}, reviewed: []string{namespaces, jwks, forward},
			denied: []string{forward, jwks}, want: []string{forward, jwks},
		},
		"another name, another group": {
			rules: []authorization.ResourceRule{
				{Verbs: []string{"get", "patch"}, APIGroups: []string{""}, Resources: []string{"secrets"}, ResourceNames: []string{"other"}},
				{Verbs: []string{"list"}, APIGroups: []string{""}, Resources: []string{"deployments"}},
			},
			reviewed: all,
		},
		"a Role gives nothing that is of no namespace": {
			rules:    []authorization.ResourceRule{{Verbs: []string{"*"}, APIGroups: []string{"*"}, Resources: []string{"*"}}},
			reviewed: []string{namespaces, jwks}, denied: []string{namespaces}, want: []string{namespaces},
		},
		"some rules cannot be listed":       {rules: []authorization.ResourceRule{secrets, deployments}, incomplete: true, reviewed: all, denied: []string{get}, want: []string{get}},
		"the rules may not be asked for":    {forbidden: true, reviewed: all, denied: []string{list}, want: []string{list}},
		"there are no rules, yet all is so": {reviewed: all},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var reviewed []string
			texts := map[authorization.ResourceAttributes]string{}
			for _, p := range asked {
				for _, verb := range []string{"get", "patch", "list", "create"} {
					for _, name := range append(slices.Clone(p.names), "") {
						if text, spec := p.review(verb, name); spec.ResourceAttributes != nil {
							texts[*spec.ResourceAttributes] = text
						}
					}
				}
			}
			client := fake.NewClientset()
			client.PrependReactor("create", "selfsubjectrulesreviews", func(clienttesting.Action) (bool, runtime.Object, error) {
				if tt.forbidden {
					return true, nil, apierrors.NewForbidden(schema.GroupResource{Resource: "selfsubjectrulesreviews"}, "", nil)
				}
				return true, &authorization.SelfSubjectRulesReview{Status: authorization.SubjectRulesReviewStatus{ResourceRules: tt.rules, Incomplete: tt.incomplete}}, nil
			})
			answers := make(chan string, len(all))
			client.PrependReactor("create", "selfsubjectaccessreviews", func(a clienttesting.Action) (bool, runtime.Object, error) {
				review := a.(clienttesting.CreateAction).GetObject().(*authorization.SelfSubjectAccessReview)
				text := jwks
				if review.Spec.ResourceAttributes != nil {
					text = texts[*review.Spec.ResourceAttributes]
				}
				answers <- text
				review.Status.Allowed = !slices.Contains(tt.denied, text)
				return true, review, nil
			})
			got, err := deniedTo(t.Context(), &site.Cluster{Name: "cluster1", Kube: client}, asked)
			if err != nil {
				t.Fatal(err)
			}
			close(answers)
			for text := range answers {
				reviewed = append(reviewed, text)
			}
			slices.Sort(reviewed)
			slices.Sort(tt.reviewed)
			if !slices.Equal(reviewed, tt.reviewed) {
				t.Errorf("asked one by one: %q, want %q", reviewed, tt.reviewed)
			}
			slices.Sort(tt.want)
			if !slices.Equal(got, tt.want) {
				t.Errorf("denied: %q, want %q", got, tt.want)
			}
		})
	}
}
