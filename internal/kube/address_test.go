package kube

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
)

func TestRelayAddress(t *testing.T) {
	balancer := corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer, Ports: []corev1.ServicePort{{Name: "healthcheck", Port: 8090}, {Name: "grpc", Port: 9900}}}
	with := func(ingress ...corev1.LoadBalancerIngress) corev1.ServiceStatus {
		return corev1.ServiceStatus{LoadBalancer: corev1.LoadBalancerStatus{Ingress: ingress}}
	}
	for _, c := range []struct {
		name    string
		service corev1.Service
		want    string
		problem bool
	}{
		{"none yet", corev1.Service{Spec: balancer}, "", false},
		{"entry without address", corev1.Service{Spec: balancer, Status: with(corev1.LoadBalancerIngress{})}, "", false},
		{"IPv4", corev1.Service{Spec: balancer, Status: with(corev1.LoadBalancerIngress{IP: "10.0.0.1"})}, "10.0.0.1:9900", false},
		{"IPv6", corev1.Service{Spec: balancer, Status: with(corev1.LoadBalancerIngress{IP: "fd00::1"})}, "[fd00::1]:9900", false},
		{"hostname", corev1.Service{Spec: balancer, Status: with(corev1.LoadBalancerIngress{Hostname: "lb.example.com"})}, "lb.example.com:9900", false},
		{"another port named grpc", corev1.Service{Spec: corev1.ServiceSpec{Type: balancer.Type, Ports: []corev1.ServicePort{{Name: "grpc", Port: 443}}}, Status: with(corev1.LoadBalancerIngress{IP: "10.0.0.1"})}, "10.0.0.1:443", false},
		{"ClusterIP", corev1.Service{Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeClusterIP, Ports: balancer.Ports}}, "", true},
		{"no port", corev1.Service{Spec: corev1.ServiceSpec{Type: balancer.Type}}, "", true},
	} {
		got, problem := RelayAddress(&c.service)
		if got != c.want || (problem != "") != c.problem {
			t.Errorf("%s: %q, problem %q", c.name, got, problem)
		}
	}
}
