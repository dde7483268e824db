// Package world is what a lab remembers between runs: its clusters, and the
// ports and addresses chosen for them once.
package world

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"time"
)

// Management is the name of the management cluster of every lab.
const Management = "mgmt"

// RelayPort is where LoadBalancer Services of the relay listen, on the
// cluster's own loopback address.
const RelayPort = 9900

// World is the lab's memory, kept in lab.json of its state directory.
type World struct {
	// Dir is the state directory, absolute.
	Dir string `json:"-"`
	// Workloads are the workload clusters, in the order they were added.
	Workloads []string `json:"workloads"`
	// Ports by use: "vault", "mgmt-apiserver", ...
	Ports map[string]int `json:"ports"`
	// Addresses are the loopback addresses of the LoadBalancer Services, by cluster.
	Addresses map[string]string `json:"addresses"`
	// LBDelay is how long a LoadBalancer Service waits for its address.
	LBDelay time.Duration `json:"lbDelay"`
	// LBHostname lists the clusters whose LoadBalancer Services get a host
	// name instead of an IP.
	LBHostname []string `json:"lbHostname,omitempty"`
}

// Open reads the memory of the lab in dir; a directory without one is a new lab.
func Open(dir string) (*World, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	w := &World{Dir: abs, Ports: map[string]int{}, Addresses: map[string]string{}, LBDelay: 2 * time.Second}
	data, err := os.ReadFile(w.Path("lab.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return w, nil
	}
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(data, w); err != nil {
		return nil, fmt.Errorf("%s: %w; `lab clean` forgets this lab", w.Path("lab.json"), err)
	}
	return w, nil
}

// Save writes the memory.
func (w *World) Save() error {
	data, err := json.MarshalIndent(w, "", "  ")
	if err != nil {
		return err
	}
	return WriteFile(w.Path("lab.json"), append(data, '\n'), 0o644)
}

// Path is a path inside the state directory.
func (w *World) Path(elem ...string) string {
	return filepath.Join(append([]string{w.Dir}, elem...)...)
}

// Log is the log file of a part.
func (w *World) Log(part string) string { return w.Path("logs", part+".log") }

// Clusters are all clusters, the management cluster first.
func (w *World) Clusters() []string { return append([]string{Management}, w.Workloads...) }

// Addr is the loopback address and port of a use.
func (w *World) Addr(use string) string {
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(w.Ports[use]))
}

// URL is the https address of a use.
func (w *World) URL(use string) string { return "https://" + w.Addr(use) }

// A cluster's name becomes a DNS name, a file name and a kubeconfig context.
var clusterName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$`)

// Add adds the workload clusters that are not there yet.
func (w *World) Add(names []string) error {
	known := map[string]bool{Management: true}
	for _, name := range w.Workloads {
		known[name] = true
	}
	asked := map[string]bool{}
	for _, name := range names {
		switch {
		case !clusterName.MatchString(name):
			return fmt.Errorf("cluster name %q: want at most 40 of a-z, 0-9 and '-', beginning and ending with a letter or digit", name)
		case name == Management:
			return fmt.Errorf("cluster name %q is the management cluster's: it is always there, leave it out", name)
		case asked[name]:
			return fmt.Errorf("cluster name %q is given twice", name)
		}
		asked[name] = true
		if !known[name] {
			w.Workloads = append(w.Workloads, name)
		}
	}
	return nil
}

// use is a port to be chosen: the usual number is taken if it is free.
type use struct {
	name  string
	usual int
}

func (w *World) uses() []use {
	uses := []use{
		{"etcd", 2379}, {"etcd-peer", 2380},
		{"vault", 8200}, {"vault-cluster", 8201},
		{"temporal", 7233}, {"temporal-ui", 8233}, {"temporal-http", 7243},
		{"worker", 9464},
	}
	for i, cluster := range w.Clusters() {
		uses = append(uses,
			use{cluster + "-apiserver", 6443 + i},
			use{cluster + "-kubelet", 10350 + i},
			use{cluster + "-webhook", 10260 + 100*i},
		)
	}
	return uses
}

// Assign chooses a port for every use and an address for every cluster that
// has none. Choices of other labs on this machine, running or not, are left
// alone: the registry file remembers them.
func (w *World) Assign(registry string) error {
	return withRegistry(registry, func(taken map[string]string) error {
		// A probe of its own for every candidate, and all held to the end, so
		// that nobody else gets a port between the choice and its record.
		var held []net.Listener
		defer func() {
			for _, l := range held {
				l.Close()
			}
		}()
		free := func(addr string) bool {
			if owner, ok := taken[addr]; ok && owner != w.Dir {
				return false
			}
			l, err := net.Listen("tcp", addr)
			if err != nil {
				return false
			}
			held = append(held, l)
			return true
		}
		mine := map[int]bool{}
		for _, port := range w.Ports {
			mine[port] = true
		}
		// Other ports are sought below the kernel's ephemeral range, where an
		// outgoing connection could sit on them at the next start.
		next := 20000 + int(hash(w.Dir)%8000)
		for _, u := range w.uses() {
			if w.Ports[u.name] != 0 {
				continue
			}
			port := u.usual
			for mine[port] || !free(local(port)) {
				if next++; next >= 32000 {
					return fmt.Errorf("no free port for %s below 32000", u.name)
				}
				port = next
			}
			w.Ports[u.name], mine[port] = port, true
			taken[local(port)] = w.Dir
		}
		for i, cluster := range w.Clusters() {
			if w.Addresses[cluster] != "" {
				continue
			}
			block := hash(w.Dir)
			for try := 0; ; try++ {
				if try == 250 {
					return fmt.Errorf("no loopback address with port %d free for cluster %s", RelayPort, cluster)
				}
				ip := fmt.Sprintf("127.%d.%d.1", 1+(int(block%254)+try)%254, 1+i%254)
				if addr := fmt.Sprintf("%s:%d", ip, RelayPort); free(addr) {
					w.Addresses[cluster] = ip
					taken[addr] = w.Dir
					break
				}
			}
		}
		return nil
	})
}

// Release gives the lab's ports and addresses back.
func (w *World) Release(registry string) error {
	return withRegistry(registry, func(taken map[string]string) error {
		for addr, dir := range taken {
			if dir == w.Dir {
				delete(taken, addr)
			}
		}
		return nil
	})
}

func local(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

func hash(s string) uint32 {
	h := fnv.New32a()
	h.Write([]byte(s))
	return h.Sum32()
}

// withRegistry runs change on the registry (address to state directory) under
// its lock. Labs whose directory is gone are dropped from it.
func withRegistry(path string, change func(map[string]string) error) error {
	unlock, err := Lock(path + ".lock")
	if err != nil {
		return err
	}
	defer unlock()
	taken := map[string]string{}
	if data, err := os.ReadFile(path); err == nil {
		if err := json.Unmarshal(data, &taken); err != nil {
			return fmt.Errorf("%s: %w; remove that file", path, err)
		}
	}
	for addr, dir := range taken {
		if _, err := os.Stat(filepath.Join(dir, "lab.json")); errors.Is(err, fs.ErrNotExist) {
			delete(taken, addr)
		}
	}
	if err := change(taken); err != nil {
		return err
	}
	data, err := json.MarshalIndent(taken, "", "  ")
	if err != nil {
		return err
	}
	return WriteFile(path, data, 0o644)
}
