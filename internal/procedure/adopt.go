package procedure

// AdoptResult is the result of AdoptMesh, which takes what SetupMesh takes.
type AdoptResult struct {
	Mesh string `json:"mesh"`
	// Changed says whether anything was taken over, or would be.
	Changed bool `json:"changed"`
	// Plan says that nothing was: the steps have what would be.
	Plan  bool   `json:"plan,omitempty"`
	Steps []Step `json:"steps"`
}
