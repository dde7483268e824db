package podhost

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"go.uber.org/zap"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"
)

const tokenLifetime = time.Hour

// credentials writes a kubeconfig with a token of the Pod's ServiceAccount,
// bound to the Pod as a kubelet's projected tokens are, and keeps the token
// fresh until ctx ends.
func (h *host) credentials(ctx context.Context, pod *corev1.Pod, dir string) (kubeconfig string, err error) {
	tokenFile := filepath.Join(dir, "token")
	renew := func() error { return h.writeToken(ctx, pod, tokenFile) }
	if err := renew(); err != nil {
		return "", err
	}
	go func() {
		next := tokenLifetime / 2
		for {
			select {
			case <-ctx.Done():
				return
			case <-time.After(next):
			}
			next = tokenLifetime / 2
			if err := renew(); err != nil {
				h.Log.Warn("token not renewed yet", zap.String("pod", pod.Name), zap.Error(err))
				next = 10 * time.Second
			}
		}
	}()

	config := api.NewConfig()
	config.Clusters[h.Cluster] = &api.Cluster{
		Server:                   h.Admin.Host,
		CertificateAuthority:     h.Admin.CAFile,
		CertificateAuthorityData: h.Admin.CAData,
	}
	config.AuthInfos["pod"] = &api.AuthInfo{TokenFile: tokenFile}
	config.Contexts[h.Cluster] = &api.Context{Cluster: h.Cluster, AuthInfo: "pod", Namespace: pod.Namespace}
	config.CurrentContext = h.Cluster
	kubeconfig = filepath.Join(dir, "kubeconfig")
	return kubeconfig, clientcmd.WriteToFile(*config, kubeconfig)
}

func (h *host) writeToken(ctx context.Context, pod *corev1.Pod, path string) error {
	account := pod.Spec.ServiceAccountName
	request, err := h.k.CoreV1().ServiceAccounts(pod.Namespace).CreateToken(ctx, account, &authenticationv1.TokenRequest{
		Spec: authenticationv1.TokenRequestSpec{
			ExpirationSeconds: new(int64(tokenLifetime.Seconds())),
			BoundObjectRef:    &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: pod.Name, UID: pod.UID},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("failed to fetch token of ServiceAccount %s/%s: %w", pod.Namespace, account, err)
	}
	// Written beside and renamed: the process may read at any time.
	if err := os.WriteFile(path+".new", []byte(request.Status.Token), 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}
