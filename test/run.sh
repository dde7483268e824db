#!/usr/bin/env bash
# Every test, on real servers, with the race detector. The lab's servers are
# built first if need be, with progress, so that no test waits for a compiler.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '== %s\n' "$*"; }

say "the lab's servers, the programs"
make servers bin

say "tests of the relay stand-in"
(cd deploy/lab/standin && go test -race -count=1 ./...)

say "tests of the worker that the soak test kills"
go test -race -count=1 -tags soak ./worker -run TestEffectOf

say "tests; those of the activities on the API servers of a lab"
lab=$(mktemp -d)
trap 'bin/lab clean --dir "$lab" && rm -rf "$lab"' EXIT
make lab LAB="$lab" CLUSTERS="cluster1 cluster2"
RELAYPKI_TEST_SITE="$lab/worker/site.yaml" go test -race -count=1 -timeout 20m $(go list ./... | grep -v /test/e2e)
bin/lab down --dir "$lab"

say "tests of many runs of a root's rotation and of an emergency, in which the race detector has nothing to find"
go test -count=1 -timeout 20m ./workflows -run 'TestRotateRoot|TestMembersJoin|TestEmergencyGoesOn|TestEmergencyIsContinued'

say "end-to-end tests, which bring up labs of their own"
go test -race -count=1 -timeout 80m -v ./test/e2e
