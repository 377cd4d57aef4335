#!/usr/bin/env bash
# Installs what the peers in this folder need, as root or with sudo, on Debian 12: PyTorch and mpi4py
# for the system's Python. Neither the program nor its tests need them. Elsewhere it only says what is
# needed; any Python that has both works (set ATOLL_PEER_PYTHON to it).
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=../../jobs/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/../../jobs/common.sh"

python="${ATOLL_PEER_PYTHON:-/usr/bin/python3}"
has_both() { "$python" -c 'import torch, mpi4py' 2>/dev/null; }
if has_both; then
  say "$python has PyTorch and mpi4py"
  exit 0
fi
command -v apt-get >/dev/null || die "no apt on this system; install PyTorch and mpi4py (built for" \
  "the MPI in use) for some Python and set ATOLL_PEER_PYTHON to it"
as_root=()
((EUID == 0)) || as_root=(sudo)
"${as_root[@]}" apt-get -q update
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -y install --no-install-recommends \
  python3-torch python3-mpi4py python3-numpy
has_both || die "$python still lacks PyTorch or mpi4py (see apt's messages above)"
say "$python has PyTorch and mpi4py"
