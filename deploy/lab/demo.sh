#!/usr/bin/env bash
# The demo: a lab, a worker, a mesh, and the proof that it works.
#   demo.sh STATE_DIRECTORY "WORKLOAD CLUSTERS" INPUT
set -euo pipefail
cd "$(dirname "$0")/../.."
lab=$1 clusters=$2 mesh=$3

bin/lab up --dir "$lab" --clusters "$clusters" --worker bin/relaypki-worker
ln -sfn "$PWD/bin/relaypki" "$lab/bin/relaypki"
source "$lab/env"
relaypki setup -f "$mesh"
name=$(sed -n 's/^mesh: *//p' "$mesh")
cat <<EOF

The relay is proved healthy. Everything stays up; what to try next:
  source $lab/env
  relaypki status                              what has run
  relaypki verify $name                         look at the mesh again
  kubectl --context mgmt get certificates -A   the certificates
  make down                                    stop all of it

Temporal UI: $RELAYPKI_UI
EOF
