package procedure

import (
	"slices"
	"strings"
	"time"

	"github.com/relaypki/relaypki/internal/rotation"
)

// Workflow types of what is done again and again.
const (
	MaintainMesh   = "MaintainMesh"
	ApplySchedules = "ApplySchedules"
)

// MaintainResult is the result of MaintainMesh. The next look of the schedule
// starts from it.
type MaintainResult struct {
	Mesh string `json:"mesh"`
	// Decisions are one for each kind of certificate, with why.
	Decisions []rotation.Decision `json:"decisions"`
	// Started are the workflows that were started and were not waited for; Running
	// those that were to be started and are at work already.
	Started []string `json:"started,omitempty"`
	Running []string `json:"running,omitempty"`
	// Warned is what people were told of what still holds, or has held a day ago.
	Warned []Told `json:"warned,omitempty"`
	// Waiting is the procedure on the mesh's CAs that waits for a person.
	Waiting *Waiting `json:"waiting,omitempty"`
}

// Waiting is a procedure that waits for a person.
type Waiting struct {
	Workflow string `json:"workflow"`
	For      string `json:"for"`
	// Since is when a look has first found it waiting for this, Reminded when
	// people were last told so.
	Since    time.Time `json:"since"`
	Reminded time.Time `json:"reminded,omitzero"`
}

// SchedulesResult is the result of ApplySchedules.
type SchedulesResult struct {
	Mesh    string `json:"mesh"`
	Changed bool   `json:"changed"`
	Steps   []Step `json:"steps"`
}

// ID is the workflow id of a procedure of which a mesh has one at a time, whoever
// starts it: a second start of it finds the first.
func ID(name, mesh string) string {
	return idPrefixes[name] + mesh
}

// idPrefixes are what those ids begin with.
var idPrefixes = map[string]string{
	SetupMesh:               "setup-",
	AdoptMesh:               "adopt-",
	RotateLeafCertificates:  "rotate-leaf-",
	RotateIntermediateCA:    "rotate-intermediate-",
	RotateRootCA:            "rotate-root-",
	EmergencyReissue:        "emergency-",
	RotateIssuerCredentials: "rotate-credentials-",
	ApplySchedules:          "schedules-",
}

// IDs are all those ids of a mesh, in order.
func IDs(mesh string) []string {
	ids := make([]string, 0, len(idPrefixes))
	for _, prefix := range idPrefixes {
		ids = append(ids, prefix+mesh)
	}
	slices.Sort(ids)
	return ids
}

// MeshOf is the mesh in an id that ID has made; empty in any other.
func MeshOf(id string) string {
	for _, prefix := range idPrefixes {
		if mesh, ok := strings.CutPrefix(id, prefix); ok {
			return mesh
		}
	}
	return ""
}
