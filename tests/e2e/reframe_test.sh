#!/usr/bin/env bash
# The ReFrame tests of jobs/reframe on a virtual cluster, where reframe (PyPI's reframe-hpc) is on PATH.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
if ! reframe="$(command -v reframe)"; then
  printf 'skipped: no reframe here (python3 -m venv V && V/bin/pip install reframe-hpc, and V/bin on PATH)\n'
  exit 77
fi
# shellcheck source-path=SCRIPTDIR source=cluster_jobs.sh
source "$(dirname "${BASH_SOURCE[0]}")/cluster_jobs.sh"
cd "$work"
capture "$cluster" up 2
succeeds "up" || finish
capture "$cluster" on head "$reframe" -C "$jobs/reframe/virtual_cluster.py" -c "$jobs/reframe/atoll_checks.py" \
  --prefix "$work/reframe" -r -S atoll="$ATOLL"
succeeds "reframe -r" || true
if grep -q 'Ran 2/2 test case(s) from 2 check(s) (0 failure' "$work/stdout"; then passed; else failed "reframe: $(tail -n 5 "$work/stdout")"; fi
capture "$cluster" down
succeeds "down" || true
finish
