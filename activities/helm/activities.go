// Package helm has the activities that install and uninstall charts.
package helm

import (
	"sync"

	"github.com/relaypki/relaypki/internal/procedure"
	"github.com/relaypki/relaypki/internal/site"
)

// Activities holds what the activities need. Its exported methods are the activities.
type Activities struct {
	Clients *site.Clients

	// busy has a lock for each release that Helm is at work on. Helm cannot be
	// interrupted: an attempt that was given up may still be at it, and the next
	// one waits for it.
	busy sync.Map
	// charts are those that were loaded last.
	charts shelf
}

// UninstallInput names a release to uninstall.
type UninstallInput struct {
	// Mesh is whose release it must be.
	Mesh      string `json:"mesh"`
	Context   string `json:"context"`
	Release   string `json:"release"`
	Namespace string `json:"namespace"`
	// Secrets are those that the release's own programs make beside it: the value
	// of each one's label app.kubernetes.io/managed-by, by name.
	Secrets map[string]string `json:"secrets,omitempty"`
	Mode    procedure.Mode    `json:"mode"`
}

// ChartInput describes a release.
type ChartInput struct {
	// Mesh is whose release it is to be.
	Mesh      string `json:"mesh"`
	Context   string `json:"context"`
	Release   string `json:"release"`
	Namespace string `json:"namespace"`
	// Chart is a name in the site file; Version overrides the site's.
	Chart   string         `json:"chart"`
	Version string         `json:"version,omitempty"`
	Values  map[string]any `json:"values,omitempty"`
	// AcceptDeployment names a Deployment whose presence without a release of
	// ours means that somebody else installed this; it is then left alone.
	AcceptDeployment string `json:"acceptDeployment,omitempty"`
	// AcceptCRD names a CustomResourceDefinition of the chart: where a release of
	// the same name in another namespace has brought it, it is left to that one.
	AcceptCRD string `json:"acceptCRD,omitempty"`
	// Never fails, permanently, instead of installing.
	Never bool `json:"never,omitempty"`
	// Management is the cluster whose Service, in ManagementNamespace, will have
	// the address that LaterAddress stands for; in a plan only.
	Management          string         `json:"management,omitempty"`
	ManagementNamespace string         `json:"managementNamespace,omitempty"`
	Mode                procedure.Mode `json:"mode"`
}
