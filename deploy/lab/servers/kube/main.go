// Program lab-kube is a Kubernetes control plane in one file: etcd,
// kube-apiserver, kube-controller-manager, kube-scheduler and kubectl as they
// are upstream, chosen by the first argument or by the name it is called by.
// Linked together they share most of their code, which more than halves what
// the lab has to link, store and keep in the page cache.
package main

import (
	"fmt"
	"os"
	"path/filepath"
	_ "time/tzdata" // time zones of CronJobs, as upstream

	"github.com/spf13/cobra"
	"go.etcd.io/etcd/server/v3/etcdmain"
	_ "k8s.io/client-go/plugin/pkg/client/auth" // kubectl's credential plugins
	"k8s.io/component-base/cli"
	_ "k8s.io/component-base/logs/json/register"
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	_ "k8s.io/component-base/metrics/prometheus/version"
	kubectl "k8s.io/kubectl/pkg/cmd"
	kubectlutil "k8s.io/kubectl/pkg/cmd/util"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllermanager "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
)

func main() {
	name := filepath.Base(os.Args[0])
	if !known(name) {
		if len(os.Args) < 2 || !known(os.Args[1]) {
			fmt.Fprintln(os.Stderr, "usage: lab-kube etcd|kube-apiserver|kube-controller-manager|kube-scheduler|kubectl [argument...]")
			os.Exit(2)
		}
		// Every program reads os.Args itself: leave it as if it had been
		// called by its own name.
		name, os.Args = os.Args[1], os.Args[1:]
	}
	switch name {
	case "etcd":
		etcdmain.Main(os.Args)
	case "kubectl":
		if err := cli.RunNoErrOutput(kubectl.NewDefaultKubectlCommand()); err != nil {
			kubectlutil.CheckErr(err)
		}
	default:
		os.Exit(cli.Run(server(name)))
	}
}

func known(name string) bool {
	switch name {
	case "etcd", "kubectl", "kube-apiserver", "kube-controller-manager", "kube-scheduler":
		return true
	}
	return false
}

// server builds a command only when asked for it: building registers feature
// gates and metrics in process-wide tables that the others would share.
func server(name string) *cobra.Command {
	switch name {
	case "kube-apiserver":
		return apiserver.NewAPIServerCommand()
	case "kube-controller-manager":
		return controllermanager.NewControllerManagerCommand()
	case "kube-scheduler":
		return scheduler.NewSchedulerCommand()
	}
	return nil
}
