package vault

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"

	vaultapi "github.com/hashicorp/vault/api"

	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/procedure"
	"github.com/relaypki/relaypki/internal/site"
)

// SnapshotInput names the Vault, and the file's name without a directory.
type SnapshotInput struct {
	Vault string         `json:"vault"`
	File  string         `json:"file"`
	Mode  procedure.Mode `json:"mode"`
}

// SnapshotResult is where the snapshot is.
type SnapshotResult struct {
	procedure.Outcome
	Path string `json:"path"`
}

// TakeSnapshot takes a snapshot of a Vault on integrated storage, into the
// directory that the site file names; one that is there already is left. It is
// all of Vault's storage, encrypted as Vault keeps it, and readable to the
// worker's user alone. Without such a Vault or directory it is a Preflight
// error.
func (a *Activities) TakeSnapshot(ctx context.Context, in SnapshotInput) (SnapshotResult, error) {
	config, err := a.Clients.Config.Vault(in.Vault)
	if err != nil {
		return SnapshotResult{}, err
	}
	if in.File == "" || in.File != filepath.Base(in.File) || in.File[0] == '.' {
		return SnapshotResult{}, failure.Permanent(failure.InvalidInput, "Vault %q: %q is no name for a snapshot's file", in.Vault, in.File)
	}
	if config.SnapshotDir == "" {
		return SnapshotResult{}, failure.Permanent(failure.Preflight, "Vault %q: the site file names no directory for snapshots. Set vaults[].snapshotDir there and restart the worker, or take the snapshot yourself and set rotation.snapshot: word", in.Vault)
	}
	result := SnapshotResult{Path: filepath.Join(config.SnapshotDir, in.File)}
	if info, err := os.Stat(result.Path); err == nil {
		result.Detail = fmt.Sprintf("%s, %d bytes", result.Path, info.Size())
		return result, nil
	}
	s, err := a.sessionFor(ctx, in.Mode, in.Vault, site.Operate)
	if err != nil {
		return SnapshotResult{}, err
	}
	result.Changed(procedure.Create, "vault snapshot "+result.Path, "all of Vault's storage, encrypted")
	if !in.Mode.Writes() {
		result.By(in.Mode, s.command("operator raft snapshot save", result.Path))
		return result, nil
	}
	client, err := a.Clients.VaultUnhurried(ctx, in.Vault, site.Operate)
	if err != nil {
		return SnapshotResult{}, err
	}
	size, err := s.save(ctx, client, result.Path)
	if err != nil {
		return SnapshotResult{}, err
	}
	result.Detail = fmt.Sprintf("%s, %d bytes", result.Path, size)
	return result, nil
}

// save writes the snapshot beside where it belongs, and moves it there once it
// is whole.
func (s session) save(ctx context.Context, client *vaultapi.Client, path string) (int64, error) {
	onDisk := func(err error) error {
		return failure.Permanent(failure.Preflight, "Vault %q: the snapshot cannot be written: %v. Correct vaults[].snapshotDir in the site file, or what is wrong there; or take the snapshot yourself and set rotation.snapshot: word", s.vault, err)
	}
	dir, name := filepath.Split(path)
	// What a killed worker has left; one that still writes finds its file gone.
	left, err := filepath.Glob(filepath.Join(dir, "."+name+".*"))
	if err != nil {
		return 0, onDisk(err)
	}
	for _, file := range left {
		if err := os.Remove(file); err != nil && !errors.Is(err, os.ErrNotExist) {
			return 0, onDisk(err)
		}
	}
	file, err := os.CreateTemp(dir, "."+name+".*") // mode 0600
	if err != nil {
		return 0, onDisk(err)
	}
	defer os.Remove(file.Name())
	defer file.Close()
	if err := client.Sys().RaftSnapshotWithContext(ctx, file); err != nil {
		var onFile *os.PathError
		if errors.As(err, &onFile) {
			return 0, onDisk(err)
		}
		return 0, s.noSnapshot(err)
	}
	if err := file.Sync(); err != nil {
		return 0, onDisk(err)
	}
	info, err := file.Stat()
	if err != nil {
		return 0, onDisk(err)
	}
	if err := os.Rename(file.Name(), path); err != nil {
		return 0, onDisk(err)
	}
	return info.Size(), nil
}

func (s session) noSnapshot(err error) error {
	var response *vaultapi.ResponseError
	switch {
	case errors.Is(err, vaultapi.ErrIncompleteSnapshot):
		return failure.Transient(failure.Unavailable, "Vault %q: the snapshot is not whole: it has no seal at its end. Vault's log says more; the address in the site file must lead to the active node", s.vault)
	// There is no such path without integrated storage.
	case errors.As(err, &response) && (response.StatusCode == http.StatusNotFound || response.StatusCode == http.StatusBadRequest):
		return failure.Permanent(failure.Preflight, "Vault %q: it takes no snapshots (%d: %s): it is not on integrated storage (raft). Save its storage in its own way, and set rotation.snapshot: word", s.vault, response.StatusCode, site.VaultReason(response))
	}
	return s.failed(err, "take a snapshot")
}
