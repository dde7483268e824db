//go:build !race

package rotation

const raced = false
