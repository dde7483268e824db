package e2e

import (
	"os"
	"testing"
)

func TestRotateRootByHand(t *testing.T) {
	w, _ := rotationWorld(t, rootSpec("keyPairOnly"))
	script, errOut := w.command(t, 0, "rotate", "root", "demo", "--plan", "-o", "commands")
	os.WriteFile("/tmp/w/hplan-script.sh", []byte(script), 0o600)
	t.Log(errOut)
	for _, width := range []string{"80", "110"} {
		os.Setenv("COLUMNS", width)
		out, _ := w.command(t, 0, "rotate", "root", "demo", "--plan")
		os.WriteFile("/tmp/w/hplan-plan-"+width+".txt", []byte(out), 0o600)
	}
	watched := w.watchHandshakes(t)
	w.runByHand(t, "", script)
	t.Log(watched.ended(t).problems(0))
}
