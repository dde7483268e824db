package helm

import (
	"fmt"
	"strings"

	release "helm.sh/helm/v4/pkg/release/v1"
	"sigs.k8s.io/yaml"

	ours "github.com/relaypki/relaypki/internal/kube"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/shell"
	"github.com/relaypki/relaypki/internal/site"
)

// LaterAddress stands in values for the management server's address as long as
// there is none, in a plan alone; see ChartInput.Management.
const LaterAddress = "$" + addressVariable

const addressVariable = "RELAY_ADDRESS"

// byHand stands for the digest of a release that a plan's commands make with a
// value that was not known then.
const byHand = "by-hand"

// commands install or upgrade the release by hand, with the label by which it
// is ours. The site file's values may be secret, so they are not among those
// shown: a comment says where to take them from.
func (a *Activities) commands(c *site.Cluster, in ChartInput, source site.ChartConfig, last *release.Release, what deed, digest string) []string {
	var all []string
	var variables []string
	text, err := yaml.Marshal(orEmpty(in.Values))
	if err != nil {
		return nil
	}
	if in.Management != "" && strings.Contains(string(text), LaterAddress) {
		all = append(all, a.addressCommands(in)...)
		variables = append(variables, addressVariable)
		digest = byHand
	}
	if what == heal {
		all = append(all, "# It was left unfinished; without that revision Helm goes on from the one before.",
			ours.Kubectl(c, "-n", in.Namespace, "delete", "secret", fmt.Sprintf("sh.helm.release.v1.%s.v%d", in.Release, last.Version)))
	}
	if len(c.Config.ChartValues[in.Chart]) > 0 {
		all = append(all, fmt.Sprintf("# The worker's site file has chartValues of %s for this cluster, which are not shown: add them in a file, with -f before the one here.", in.Chart))
	}
	args := []string{"helm", "upgrade", "--install", in.Release}
	switch {
	case source.Path != "":
		all = append(all, "# The chart is at this path on the worker's machine.")
		args = append(args, source.Path)
	case source.Repo != "":
		args = append(args, source.Chart, "--repo", source.Repo)
	default:
		args = append(args, source.OCI)
	}
	version := in.Version
	if version == "" {
		version = source.Version
	}
	if version != "" && source.Path == "" {
		args = append(args, "--version", version)
	}
	labels := ours.Labels(in.Mesh)
	args = append(args, "--kube-context", ours.Context(c), "--namespace", in.Namespace, "--create-namespace", "--reset-values",
		"--labels", strings.Join([]string{labelDigest + "=" + digest, ours.LabelManagedBy + "=" + labels[ours.LabelManagedBy], ours.LabelMesh + "=" + in.Mesh}, ","),
		"--wait", "--timeout", "10m", "-f", "-")
	return append(all, shell.Expanded(shell.Join(args...), string(text), variables...))
}

// addressCommands wait for the management server's address and keep it.
func (a *Activities) addressCommands(in ChartInput) []string {
	management := &site.Cluster{Name: in.Management}
	if config, err := a.Clients.Config.Cluster(in.Management); err == nil {
		management.Config = config
	}
	const ingress = ".status.loadBalancer.ingress"
	return []string{
		ours.Kubectl(management, "-n", in.ManagementNamespace, "wait", "--for=jsonpath={"+ingress+"}", "--timeout=5m", "service/"+mesh.ServerDeployment),
		fmt.Sprintf(`%s="$(%s):9900"`, addressVariable, ours.Kubectl(management, "-n", in.ManagementNamespace, "get", "service", mesh.ServerDeployment,
			"-o", "jsonpath={"+ingress+"[0].ip}{"+ingress+"[0].hostname}")),
	}
}
