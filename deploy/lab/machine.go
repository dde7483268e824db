package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// firstLine is the first line that a command prints, or that it is missing.
func firstLine(name string, args ...string) string {
	out, err := exec.Command(name, args...).Output()
	if err != nil {
		return "not found: " + err.Error()
	}
	line, _, _ := strings.Cut(string(out), "\n")
	return line
}

// freeDisk is the free space, in GB, where path is or would be.
func freeDisk(path string) float64 {
	for {
		var fs syscall.Statfs_t
		if err := syscall.Statfs(path, &fs); err == nil {
			return float64(fs.Bavail) * float64(fs.Bsize) / 1e9
		}
		if path == filepath.Dir(path) {
			return 0
		}
		path = filepath.Dir(path)
	}
}

// available is the memory, in GB, that programs may still take.
func available() float64 {
	data, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0
	}
	for _, line := range strings.Split(string(data), "\n") {
		if rest, ok := strings.CutPrefix(line, "MemAvailable:"); ok {
			kb, _ := strconv.ParseFloat(strings.Fields(rest)[0], 64)
			return kb / 1e6
		}
	}
	return 0
}
