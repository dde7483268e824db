#!/usr/bin/env bash
# Static checks of every module in the tree, and of the workflows' determinism.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '== %s\n' "$*"; }

say "gofmt"
unformatted=$(git ls-files -z '*.go' | xargs -0 gofmt -l)
if [ -n "$unformatted" ]; then
	printf 'not formatted; run gofmt -w on:\n%s\n' "$unformatted"
	exit 1
fi

say "go.mod is tidy"
go mod tidy -diff

say "go vet"
go vet ./...
go vet -tags soak ./worker

say "staticcheck"
tool=$(cd test/staticcheck && go build -o "${TMPDIR:-/tmp}/relaypki-staticcheck" honnef.co/go/tools/cmd/staticcheck && echo "${TMPDIR:-/tmp}/relaypki-staticcheck")
"$tool" ./...
"$tool" -tags soak ./worker

say "workflowcheck"
go tool workflowcheck -config workflows/workflowcheck.yaml ./workflows/...

say "go vet, staticcheck: deploy/lab/standin"
(cd deploy/lab/standin && go vet ./... && "$tool" ./...)

say "skipped: staticcheck of deploy/lab/servers (it would read Kubernetes from source for a quarter of an hour); vet of vault, kwok, vaultchart and temporalcli there, which have no Go code of ours"
# The mains of the lab's servers are small, what they import is not: staticcheck
# reads all of it from source, Kubernetes for a quarter of an hour. So vet alone.
for module in deploy/lab/servers/kube deploy/lab/servers/certmanager deploy/lab/servers/temporal; do
	say "go vet: $module"
	(cd "$module" && go vet ./...)
done
