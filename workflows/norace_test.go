//go:build !race

package workflows

const raced = false
