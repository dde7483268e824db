package main

import (
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/emptypb"
)

// The stand-in's own stream protocol: two streams per agent that carry nothing.
// What matters is that they are open, and that opening them takes mutual TLS.
const serviceName = "relaypki.standin.v1.Relay"

// clusterHeader carries the name that the agent was given as common.cluster.
const clusterHeader = "relaypki-cluster"

var streams = []string{"Pull", "Push"}

func method(stream string) string { return "/" + serviceName + "/" + stream }

// serviceDesc serves both streams with handle.
func serviceDesc(handle func(name string, s grpc.ServerStream) error) *grpc.ServiceDesc {
	d := &grpc.ServiceDesc{ServiceName: serviceName, HandlerType: (*any)(nil)}
	for _, name := range streams {
		d.Streams = append(d.Streams, grpc.StreamDesc{
			StreamName:    name,
			ServerStreams: true,
			ClientStreams: true,
			Handler:       func(_ any, s grpc.ServerStream) error { return handle(name, s) },
		})
	}
	return d
}

func clientStreamDesc(name string) *grpc.StreamDesc {
	return &grpc.StreamDesc{StreamName: name, ServerStreams: true, ClientStreams: true}
}

// receive reads s until it ends; the error says how.
func receive(s interface{ RecvMsg(any) error }) error {
	for {
		if err := s.RecvMsg(&emptypb.Empty{}); err != nil {
			return err
		}
	}
}
