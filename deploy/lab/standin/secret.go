package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	coreinformers "k8s.io/client-go/informers/core/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
)

// syncTimeout bounds the first read of a Secret. A Role that does not allow it
// shows up as this timeout, with the text that the guide shows.
const syncTimeout = 10 * time.Second

var (
	errNotSynced = errors.New("Timeout: failed waiting for *v1.Secret Informer to sync")
	errNotFound  = errors.New("not found")
)

// watchSecret reads one Secret and from then on calls changed whenever its
// data changes, until ctx ends. It lists and watches by name, so that a Role
// with resourceNames is enough. The error is errNotSynced or errNotFound.
func watchSecret(ctx context.Context, k kubernetes.Interface, namespace, name string, changed func(*corev1.Secret)) (*corev1.Secret, error) {
	informer := coreinformers.NewFilteredSecretInformer(k, namespace, 0, cache.Indexers{}, func(o *metav1.ListOptions) {
		o.FieldSelector = fields.OneTermEqualSelector("metadata.name", name).String()
	})
	if changed != nil {
		_, err := informer.AddEventHandler(cache.ResourceEventHandlerDetailedFuncs{
			AddFunc: func(obj any, isInInitialList bool) {
				if s, ok := obj.(*corev1.Secret); ok && s.Name == name && !isInInitialList {
					changed(s)
				}
			},
			UpdateFunc: func(_, obj any) {
				if s, ok := obj.(*corev1.Secret); ok && s.Name == name {
					changed(s)
				}
			},
		})
		if err != nil {
			return nil, err
		}
	}
	go informer.Run(ctx.Done())
	syncCtx, cancel := context.WithTimeout(ctx, syncTimeout)
	defer cancel()
	if !cache.WaitForCacheSync(syncCtx.Done(), informer.HasSynced) {
		return nil, errNotSynced
	}
	obj, ok, err := informer.GetStore().GetByKey(namespace + "/" + name)
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, errNotFound
	}
	return obj.(*corev1.Secret), nil
}

// keyPair is the certificate chain and key of a kubernetes.io/tls Secret.
func keyPair(s *corev1.Secret) (*tls.Certificate, error) {
	pair, err := tls.X509KeyPair(s.Data[corev1.TLSCertKey], s.Data[corev1.TLSPrivateKeyKey])
	if err != nil {
		return nil, fmt.Errorf("Secret %q: %w", s.Name, err)
	}
	return &pair, nil
}

// trustAnchors are the certificates under key ca.crt.
func trustAnchors(s *corev1.Secret) (*x509.CertPool, error) {
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(s.Data["ca.crt"]) {
		return nil, fmt.Errorf("Secret %q: no certificate under key ca.crt", s.Name)
	}
	return pool, nil
}

// serials are those of the certificates in a PEM text, for the log: so it says what
// is trusted, which names do not where a CA has a bridge to it.
func serials(text []byte) []string {
	var out []string
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		if c, err := x509.ParseCertificate(block.Bytes); err == nil {
			out = append(out, fmt.Sprintf("%x", c.SerialNumber))
		}
	}
	return out
}
