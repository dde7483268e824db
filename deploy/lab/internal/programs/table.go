package programs

// Program is something the lab can build: one main package of a nested module.
type Program struct {
	// Name of the file in the cache.
	Name string
	// Module is the nested module's directory, relative to the repository.
	Module string
	// Package to build, seen from Module.
	Package string
	Tags    string
	LDFlags string
	// Seconds and MB are what a cold build costs on two cores: time, and
	// size of the program.
	Seconds, MB int
	// Later marks what only people need: it is built after everything runs.
	Later bool
}

// Table is everything the lab builds, in the order of building: what the rest
// waits for longest first.
var Table = []Program{
	{Name: "lab-kube", Module: "deploy/lab/servers/kube", Package: ".", Seconds: 360, MB: 139,
		LDFlags: "-X k8s.io/component-base/version.gitVersion=v1.37.2 -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=37"},
	// Upstream's minimal variant: without the plugins and storages of clouds and
	// databases, which are half of the compiling. pki, approle, jwt, cert and
	// raft are in it; the kubernetes auth method is a plugin of its own.
	{Name: "vault", Module: "deploy/lab/servers/vault", Package: "github.com/hashicorp/vault", Tags: "minimal", Seconds: 240, MB: 150},
	{Name: "vault-plugin-auth-kubernetes", Module: "deploy/lab/servers/vaultkubernetes", Package: "github.com/hashicorp/vault-plugin-auth-kubernetes/cmd/vault-plugin-auth-kubernetes", Seconds: 120, MB: 45},
	{Name: "lab-temporal", Module: "deploy/lab/servers/temporal", Package: ".", Seconds: 300, MB: 130},
	{Name: "kwok", Module: "deploy/lab/servers/kwok", Package: "sigs.k8s.io/kwok/cmd/kwok", Seconds: 90, MB: 80},
	{Name: "lab-cert-manager", Module: "deploy/lab/servers/certmanager", Package: ".", Seconds: 90, MB: 75},
	{Name: "relay-standin", Module: "deploy/lab/standin", Package: ".", Seconds: 30, MB: 30},
	{Name: "temporal", Module: "deploy/lab/servers/temporalcli", Package: "github.com/temporalio/cli/cmd/temporal", Seconds: 240, MB: 120, Later: true},
}

// Tool is a command the lab runs. It comes from the variable
// RELAYPKI_LAB_<NAME>, else from PATH if it is there in a fitting version, else
// from a Program.
type Tool struct {
	Name string
	// Program that has it, and the arguments that choose it there.
	Program string
	Args    []string
	// VersionArgs make a program on PATH print its version; without them PATH
	// is not looked at.
	VersionArgs []string
	// From (inclusive) and Below (exclusive) bound the versions that fit.
	From, Below string
}

// Tools is every command the lab runs.
var Tools = []Tool{
	// A Kubernetes component has to be the same minor version as the others;
	// kubectl may be one off (the version skew policy). Kubernetes 1.37 is
	// tested with etcd 3.6 and 3.7.
	{Name: "etcd", Program: "lab-kube", Args: []string{"etcd"}, VersionArgs: []string{"--version"}, From: "3.6.0", Below: "3.8.0"},
	{Name: "kube-apiserver", Program: "lab-kube", Args: []string{"kube-apiserver"}, VersionArgs: []string{"--version"}, From: "1.37.0", Below: "1.38.0"},
	{Name: "kube-controller-manager", Program: "lab-kube", Args: []string{"kube-controller-manager"}, VersionArgs: []string{"--version"}, From: "1.37.0", Below: "1.38.0"},
	{Name: "kube-scheduler", Program: "lab-kube", Args: []string{"kube-scheduler"}, VersionArgs: []string{"--version"}, From: "1.37.0", Below: "1.38.0"},
	{Name: "kubectl", Program: "lab-kube", Args: []string{"kubectl"}, VersionArgs: []string{"version", "--client"}, From: "1.36.0", Below: "1.39.0"},
	// What was measured of Vault's PKI was measured on 1.21.
	{Name: "vault", Program: "vault", VersionArgs: []string{"version"}, From: "1.21.0", Below: "1.22.0"},
	{Name: "vault-plugin-auth-kubernetes", Program: "vault-plugin-auth-kubernetes"},
	{Name: "kwok", Program: "kwok", VersionArgs: []string{"--version"}, From: "0.8.0", Below: "0.9.0"},
	{Name: "temporal", Program: "temporal", VersionArgs: []string{"--version"}, From: "1.5.0", Below: "2.0.0"},
	{Name: "temporal-server", Program: "lab-temporal"},
	{Name: "cert-manager", Program: "lab-cert-manager"},
	{Name: "relay-standin", Program: "relay-standin"},
}

// Find is the table's entry of that name.
func Find(name string) (Program, bool) {
	for _, p := range Table {
		if p.Name == name {
			return p, true
		}
	}
	return Program{}, false
}
