package site

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/relaypki/relaypki/internal/failure"
)

const (
	// serviceAgain is when a Service without an address is asked again.
	serviceAgain = 3 * time.Second
	// serviceWithin bounds one look at a Service, well within a heartbeat's time.
	serviceWithin = 5 * time.Second
)

// VaultConfig is the configuration of the named Vault with Address and
// ClusterAddress filled in: from the site file or, for a Vault that names a
// Service, from that Service's load balancer. As long as there is no such
// address the error is NotReady, which is worth another try. What has been
// found is kept until the worker restarts.
func (c *Clients) VaultConfig(ctx context.Context, name string) (VaultConfig, error) {
	config, err := c.Config.Vault(name)
	if err != nil {
		return VaultConfig{}, err
	}
	if config.Address == "" && config.Service != nil {
		if config.Address, err = c.discover(ctx, name, *config.Service); err != nil {
			return VaultConfig{}, err
		}
	}
	if config.ClusterAddress == "" {
		config.ClusterAddress = config.Address
	}
	return config, nil
}

func (c *Clients) discover(ctx context.Context, vault string, at VaultService) (string, error) {
	c.mu.Lock()
	found := c.discovered[vault]
	c.mu.Unlock()
	if found != "" {
		return found, nil
	}
	cluster, err := c.Cluster(at.Cluster)
	if err != nil {
		return "", err
	}
	where := fmt.Sprintf("Vault %q: cluster %q: Service %s/%s", vault, at.Cluster, at.Namespace, at.Name)
	look, cancel := context.WithTimeout(ctx, serviceWithin)
	defer cancel()
	service, err := cluster.Kube.CoreV1().Services(at.Namespace).Get(look, at.Name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return "", failure.Waiting(serviceAgain, "%s is not there yet", where)
	case apierrors.IsForbidden(err), apierrors.IsUnauthorized(err):
		return "", failure.Permanent(failure.Denied, "%s: the worker may not read it. Apply the part relaypki-vault of deploy/rbac/management.yaml there, or give this Vault an address in the site file", where)
	case errors.Is(err, context.Canceled):
		return "", err
	case err != nil:
		return "", failure.Transient(failure.Unavailable, "%s: cannot be read: %s", where, innermost(err))
	}
	found, problem := serviceURL(service, at)
	switch {
	case problem != "":
		return "", failure.Permanent(failure.Preflight, "%s %s. Correct the Service, or give this Vault an address in the site file", where, problem)
	case found == "":
		return "", failure.Waiting(serviceAgain, "%s has no address yet; its load balancer is still being made", where)
	}
	c.mu.Lock()
	c.discovered[vault] = found
	c.mu.Unlock()
	return found, nil
}

// serviceURL is where a LoadBalancer Service is reached from outside; empty as
// long as it has no address. problem says why it will never have one.
func serviceURL(service *corev1.Service, at VaultService) (url, problem string) {
	if service.Spec.Type != corev1.ServiceTypeLoadBalancer {
		return "", fmt.Sprintf("is of type %s, which gets no address from outside", service.Spec.Type)
	}
	served := false
	for _, p := range service.Spec.Ports {
		served = served || int(p.Port) == at.Port
	}
	if !served {
		return "", fmt.Sprintf("has no port %d", at.Port)
	}
	for _, ingress := range service.Status.LoadBalancer.Ingress {
		host := ingress.IP
		if host == "" {
			host = ingress.Hostname
		}
		if host != "" {
			return at.Scheme + "://" + net.JoinHostPort(host, strconv.Itoa(at.Port)), ""
		}
	}
	return "", ""
}
