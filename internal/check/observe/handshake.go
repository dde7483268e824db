package observe

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"time"

	"github.com/relaypki/relaypki/internal/check"
)

// handshakeTimeout bounds a handshake through a port-forward, the verdict
// included.
const handshakeTimeout = 10 * time.Second

// loaded reads what a server has in use by a handshake without a credential:
// its chain, and its trust as the acceptable CA names of its request. The
// server refuses in the end, which is expected, and its log says so.
func loaded(ctx context.Context, conn net.Conn, serverName string) (check.Loaded, error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	var seen check.Loaded
	client := tls.Client(conn, &tls.Config{
		ServerName: serverName,
		NextProtos: []string{"h2"},
		// What it shows is judged afterwards, whatever it is: nothing is sent.
		InsecureSkipVerify: true,
		VerifyConnection: func(state tls.ConnectionState) error {
			seen.Chain = state.PeerCertificates
			return nil
		},
		GetClientCertificate: func(request *tls.CertificateRequestInfo) (*tls.Certificate, error) {
			seen.AsksForCertificate = true
			seen.AcceptableCAs = request.AcceptableCAs
			return &tls.Certificate{}, nil
		},
	})
	defer client.Close()
	err := client.HandshakeContext(ctx)
	if len(seen.Chain) > 0 {
		return seen, nil
	}
	if err == nil {
		err = errors.New("the server showed no certificate")
	}
	return check.Loaded{}, err
}

// handshake makes one fresh full mTLS handshake in the agent's place and waits
// for the server's verdict: in TLS 1.3 the client's part is done before the
// server has judged the client's certificate, so only a byte of the server's
// (its HTTP/2 SETTINGS) proves acceptance.
func handshake(ctx context.Context, conn net.Conn, serverName string, own tls.Certificate, trust *x509.CertPool) (resumed bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	client := tls.Client(conn, &tls.Config{
		ServerName: serverName,
		NextProtos: []string{"h2"},
		RootCAs:    trust,
		// Not GetClientCertificate: like the agent, send none to a server whose
		// acceptable CAs do not fit.
		Certificates:           []tls.Certificate{own},
		SessionTicketsDisabled: true,
	})
	defer client.Close()
	if err := client.HandshakeContext(ctx); err != nil {
		return false, err
	}
	resumed = client.ConnectionState().DidResume
	deadline, _ := ctx.Deadline()
	if err := client.SetReadDeadline(deadline); err != nil {
		return resumed, err
	}
	_, err = client.Read(make([]byte, 1))
	if errors.Is(err, io.EOF) {
		err = errors.New("the server closed the connection without a word")
	}
	return resumed, err
}
