package workflows

import (
	"testing"

	"github.com/relaypki/relaypki/internal/check"
)

// What the management cluster's look offers for an agent is taken back by what that
// agent's cluster says.
func TestNoRestartIsOfferedWhereNoAgentRuns(t *testing.T) {
	for _, c := range []struct {
		agent  check.Status
		offers int
	}{{check.Pass, 1}, {check.Fail, 0}} {
		p := newPatient()
		p.finds["mgmt"] = [][]check.Finding{{found(check.AgentsConnected, "cluster1", check.Fail, restart1)}}
		agent := found(check.RelayAgent, "cluster1", c.agent)
		agent.Message = "0 of 1 replicas are available"
		p.finds["cluster1"] = [][]check.Finding{{agent}}
		if result := p.diagnose(t, `{"mesh":"demo"}`); len(result.Offered) != c.offers {
			t.Errorf("with relay-agent %s it offers %+v", c.agent, result.Offered)
		}
	}
}
