package e2e

import "testing"

// Last, as its file's name has it: after every other test of this world.
func TestNoSecretsInDemo(t *testing.T) { demoWorld(t).noSecrets(t) }
