//go:build race

package workflows

// raced says that the race detector is on. It makes a run whose handshakes are all
// computed after each event many times as slow, and has nothing to find in one: the
// coroutines of a workflow take turns.
const raced = true
