package kube

import (
	"fmt"
	"net"
	"strconv"

	corev1 "k8s.io/api/core/v1"
)

// relayPort is the port that the guide's management server serves agents on.
const relayPort = 9900

// RelayAddress is host:port of a LoadBalancer Service's grpc port; empty as
// long as it has no address. problem says why it will never have one.
func RelayAddress(service *corev1.Service) (address, problem string) {
	if service.Spec.Type != corev1.ServiceTypeLoadBalancer {
		return "", fmt.Sprintf("is of type %s, which gets no address from outside", service.Spec.Type)
	}
	port := int32(0)
	for _, p := range service.Spec.Ports {
		if p.Port == relayPort || p.Name == "grpc" {
			port = p.Port
			break
		}
	}
	if port == 0 {
		return "", fmt.Sprintf("has no port %d and none named grpc", relayPort)
	}
	for _, ingress := range service.Status.LoadBalancer.Ingress {
		host := ingress.IP
		if host == "" {
			host = ingress.Hostname
		}
		if host != "" {
			return net.JoinHostPort(host, strconv.Itoa(int(port))), ""
		}
	}
	return "", ""
}
