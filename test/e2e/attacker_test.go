package e2e

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/emptypb"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/relaypki/relaypki/internal/pki"
)

// This file is who an emergency is for: somebody who holds what is compromised, and
// uses it, as an agent and as the management server.

// The name that agents ask of the server's certificate.
const serverName = "gloo-mesh-mgmt-server.gloo-mesh"

// attacker is somebody with a certificate that everybody accepts, and its key.
type attacker struct {
	w *world
	// what is compromised.
	what string
	pair tls.Certificate
	// serves is the server's name if the certificate is good for it.
	serves string
}

// stolenLeaf is a copy of what a cluster's Secret has now.
func (w *world) stolenLeaf(t *testing.T, cluster string) attacker {
	t.Helper()
	_, name := leafOf(cluster)
	secret, err := w.cluster(t, cluster).kube.CoreV1().Secrets("gloo-mesh").Get(t.Context(), name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(secret.Data["tls.crt"], secret.Data["tls.key"])
	if err != nil {
		t.Fatal(err)
	}
	return attacker{w: w, what: "leaf", pair: pair}
}

// stolenIntermediate signs for the attacker what none of our roles would: a
// certificate that is the agent's and the server's at once. The key of the
// intermediate never leaves Vault; who has it can do the same.
func (w *world) stolenIntermediate(t *testing.T, generation int) attacker {
	t.Helper()
	key := newKey(t)
	issuer := w.issuer(t, fmt.Sprintf("relay-intermediate-g%d", generation))
	answer := w.write(t, "pki_relay/issuer/"+issuer.id+"/sign-verbatim", map[string]any{
		"csr": request(t, key, "cluster1", serverName), "ttl": "24h", "key_usage": "DigitalSignature", "ext_key_usage": "ServerAuth,ClientAuth"})
	leaf := certificate(t, []byte(answer["certificate"].(string)))
	return attacker{w: w, what: "intermediate", serves: serverName,
		pair: tls.Certificate{Certificate: [][]byte{leaf.Raw, issuer.certificate.Raw}, PrivateKey: key, Leaf: leaf}}
}

// stolenRoot signs an intermediate of the attacker's own, which nobody knows of.
func (w *world) stolenRoot(t *testing.T, generation int) attacker {
	t.Helper()
	caKey, key := newKey(t), newKey(t)
	answer := w.write(t, fmt.Sprintf("pki/issuer/relay-root-g%d/sign-intermediate", generation), map[string]any{
		"csr": request(t, caKey), "common_name": "gloo-mesh-mgmt-server-ca", "ttl": "720h", "format": "pem"})
	ca := certificate(t, []byte(answer["certificate"].(string)))
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "cluster1"}, DNSNames: []string{"cluster1", serverName},
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(24 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, ca, &key.PublicKey, caKey)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return attacker{w: w, what: "root", serves: serverName,
		pair: tls.Certificate{Certificate: [][]byte{leaf.Raw, ca.Raw}, PrivateKey: key, Leaf: leaf}}
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// request is one to sign a certificate for a key, with these names.
func request(t *testing.T, key *ecdsa.PrivateKey, dnsNames ...string) string {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "gloo-mesh-mgmt-server-ca"}, DNSNames: dnsNames}, key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
}

// config is how the attacker dials: whoever answers, and whatever CAs it says it
// accepts, it gets to see the certificate.
func (a attacker) config() *tls.Config {
	return &tls.Config{InsecureSkipVerify: true, ServerName: serverName, NextProtos: []string{"h2"},
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &a.pair, nil }}
}

// dials shakes hands with the management server. A nil error is that it was accepted:
// with TLS 1.3 only a byte of the server's shows that.
func (a attacker) dials(ctx context.Context, address string) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	conn, err := (&tls.Dialer{Config: a.config()}).DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	if err := conn.SetReadDeadline(deadline); err != nil {
		return err
	}
	_, err = conn.Read(make([]byte, 1))
	return err
}

// refused says that the server has judged, and not that nobody was there.
func refused(err error) bool {
	return err != nil && strings.Contains(err.Error(), "remote error: tls: ")
}

// stream opens a stream as an agent does, and returns what says how it ended.
func (a attacker) stream(ctx context.Context, address string) (ended <-chan error, err error) {
	conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(credentials.NewTLS(a.config())), grpc.WithAuthority(serverName))
	if err != nil {
		return nil, err
	}
	// As in the stand-in, which has no other streams.
	stream, err := conn.NewStream(metadata.AppendToOutgoingContext(ctx, "relaypki-cluster", "cluster1"),
		&grpc.StreamDesc{StreamName: "Pull", ServerStreams: true, ClientStreams: true}, "/relaypki.standin.v1.Relay/Pull")
	if err == nil {
		if header, headerErr := stream.Header(); headerErr != nil || header == nil {
			err = errors.Join(headerErr, stream.RecvMsg(&emptypb.Empty{}))
		}
	}
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	over := make(chan error, 1)
	go func() {
		defer conn.Close()
		over <- stream.RecvMsg(&emptypb.Empty{}) // it carries nothing, until it ends
	}()
	return over, nil
}

// fools are the agents that would take the attacker for the management server, by the
// trust that they have stored, with all CA certificates of the mesh at hand, which
// are no secret.
func (a attacker) fools(t *testing.T) []string {
	t.Helper()
	others := x509.NewCertPool()
	for _, der := range a.pair.Certificate[1:] {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		others.AddCert(c)
	}
	for _, mount := range []string{"pki", "pki_relay"} {
		for _, id := range list(t, a.w.vault(t), mount+"/issuers") {
			text, _ := a.w.read(t, mount+"/issuer/"+id)["certificate"].(string)
			others.AddCert(certificate(t, []byte(text)))
		}
	}
	var fooled []string
	for _, cluster := range a.w.clusters {
		_, anchors := a.w.secret(t, cluster)
		if !ownTrust(cluster) {
			anchors = a.w.bundle(t, cluster)
		}
		roots := x509.NewCertPool()
		for _, anchor := range anchors {
			roots.AddCert(anchor)
		}
		usage := x509.ExtKeyUsageServerAuth
		if a.serves == "" {
			usage = x509.ExtKeyUsageAny
		}
		if _, err := a.pair.Leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: others, DNSName: a.serves, KeyUsages: []x509.ExtKeyUsage{usage}}); err == nil {
			fooled = append(fooled, cluster)
		}
	}
	return fooled
}

// intrusion is an attacker at work: it has a stream open from before, opens another as
// soon as that is cut, and shakes hands all the time.
type intrusion struct {
	attacker
	stop context.CancelFunc
	done chan struct{}

	mu sync.Mutex
	// accepted is when the last handshake began that was accepted, refusals those
	// since then.
	accepted time.Time
	refusals []refusal
	// cut is when its stream was cut last, open says that it has one.
	cut  time.Time
	open bool
}

// intrudes has an attacker begin. It is accepted, everywhere, or nothing would be shown.
func (a attacker) intrudes(t *testing.T) *intrusion {
	t.Helper()
	address := a.w.relayAddress(t)
	ctx, cancel := context.WithCancel(context.Background())
	i := &intrusion{attacker: a, stop: cancel, done: make(chan struct{})}
	t.Cleanup(cancel)
	// A server may just be restarting.
	eventually(t, 30*time.Second, func() error { return a.dials(ctx, address) })
	if fooled := a.fools(t); len(fooled) != len(a.w.clusters) {
		t.Fatalf("%s: of all agents only %q take it for the server before: nothing would be shown", a, fooled)
	}
	var ended <-chan error
	eventually(t, 30*time.Second, func() (err error) {
		ended, err = a.stream(ctx, address)
		return err
	})
	i.open = true
	go func() {
		defer close(i.done)
		ticker := time.NewTicker(100 * time.Millisecond)
		defer ticker.Stop()
		for ctx.Err() == nil {
			began := time.Now()
			err := a.dials(ctx, address)
			i.mu.Lock()
			switch {
			case err == nil:
				i.accepted, i.refusals = began, nil
			case refused(err):
				i.refusals = append(i.refusals, refusal{began, a.what, err.Error()})
			}
			i.mu.Unlock()
			if ended == nil && err == nil {
				if ended, err = a.stream(ctx, address); err == nil {
					i.mu.Lock()
					i.open = true
					i.mu.Unlock()
				}
			}
			select {
			case <-ctx.Done():
			case <-ended:
				if ctx.Err() != nil {
					break // its own doing
				}
				i.mu.Lock()
				i.cut, i.open = time.Now(), false
				i.mu.Unlock()
				ended = nil
			case <-ticker.C:
			}
		}
	}()
	t.Cleanup(func() { cancel(); <-i.done })
	return i
}

func (a attacker) String() string {
	return fmt.Sprintf("the attacker with the %s (%s)", a.what, pki.Name(a.pair.Leaf))
}

// ended stops the attacker, after a verdict on a handshake that it has begun since, and
// returns when it was last accepted, and what it was refused since.
func (i *intrusion) ended(t *testing.T) (accepted time.Time, refusals []refusal) {
	t.Helper()
	since := time.Now()
	eventually(t, 30*time.Second, func() error {
		i.mu.Lock()
		defer i.mu.Unlock()
		if i.accepted.After(since) || len(i.refusals) > 0 && i.refusals[len(i.refusals)-1].at.After(since) {
			return nil
		}
		return fmt.Errorf("%s got no verdict since %s", i.attacker, since.Format("15:04:05"))
	})
	i.stop()
	<-i.done
	return i.accepted, i.refusals
}
