//go:build race

package rotation

// raced says that the race detector is on. It makes a walk many times as slow, and
// has nothing to find in one: a walker has one goroutine.
const raced = true
