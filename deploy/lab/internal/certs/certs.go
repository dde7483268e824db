// Package certs makes the lab's own certificates: of its control planes, its
// etcd and its Vault. They have nothing to do with the certificates that the
// procedures issue.
package certs

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/relaypki/relaypki/deploy/lab/internal/world"
)

const (
	lifetime = 10 * 365 * 24 * time.Hour
	// renewBefore is how long before its end a leaf is made again.
	renewBefore = 30 * 24 * time.Hour
)

// Pair is a certificate and its key, as files.
type Pair struct{ Cert, Key string }

// At is the pair of that name in a directory.
func At(dir, name string) Pair {
	return Pair{Cert: filepath.Join(dir, name+".crt"), Key: filepath.Join(dir, name+".key")}
}

// CA makes the certificate authority in dir (ca.crt, ca.key) unless it is there.
func CA(dir, commonName string) (Pair, error) {
	pair := At(dir, "ca")
	if _, err := os.Stat(pair.Cert); err == nil {
		return pair, nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return pair, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return pair, err
	}
	template, err := newTemplate(pkix.Name{CommonName: commonName})
	if err != nil {
		return pair, err
	}
	template.IsCA, template.BasicConstraintsValid = true, true
	template.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature
	return pair, write(pair, template, template, key, key)
}

// Leaf makes a certificate of the CA for 127.0.0.1, localhost and the given DNS
// names, for servers and clients alike, unless a good one is there.
func Leaf(ca Pair, dir, name string, subject pkix.Name, dnsNames ...string) (Pair, error) {
	pair := At(dir, name)
	if cert, err := readCert(pair.Cert); err == nil && time.Now().Add(renewBefore).Before(cert.NotAfter) {
		return pair, nil
	}
	parent, err := readCert(ca.Cert)
	if err != nil {
		return pair, err
	}
	signer, err := readKey(ca.Key)
	if err != nil {
		return pair, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return pair, err
	}
	template, err := newTemplate(subject)
	if err != nil {
		return pair, err
	}
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	template.DNSNames = append([]string{"localhost"}, dnsNames...)
	template.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)}
	return pair, write(pair, template, parent, key, signer)
}

// KeyPair makes a bare key pair (name.key, name.pub) unless it is there.
func KeyPair(dir, name string) (private, public string, err error) {
	private, public = filepath.Join(dir, name+".key"), filepath.Join(dir, name+".pub")
	if _, err := os.Stat(public); err == nil {
		return private, public, nil
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return "", "", err
	}
	der, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		return "", "", err
	}
	if err := writeKey(private, key); err != nil {
		return "", "", err
	}
	return private, public, world.WriteFile(public, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), 0o644)
}

func newTemplate(subject pkix.Name) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, err
	}
	return &x509.Certificate{
		SerialNumber: serial,
		Subject:      subject,
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(lifetime),
	}, nil
}

// write puts the key first: a certificate that is there has its key.
func write(pair Pair, template, parent *x509.Certificate, key *ecdsa.PrivateKey, signer crypto.Signer) error {
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		return err
	}
	if err := writeKey(pair.Key, key); err != nil {
		return err
	}
	return world.WriteFile(pair.Cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644)
}

func writeKey(path string, key *ecdsa.PrivateKey) error {
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return err
	}
	return world.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), 0o600)
}

func readCert(path string) (*x509.Certificate, error) {
	block, err := readPEM(path)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(block)
}

func readKey(path string) (*ecdsa.PrivateKey, error) {
	block, err := readPEM(path)
	if err != nil {
		return nil, err
	}
	return x509.ParseECPrivateKey(block)
}

func readPEM(path string) ([]byte, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(data)
	if block == nil {
		return nil, fmt.Errorf("%s: no PEM block", path)
	}
	return block.Bytes, nil
}
