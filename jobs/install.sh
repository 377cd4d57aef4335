#!/usr/bin/env bash
# Installs what Atoll needs on Debian 12 and its relatives, as root or with sudo. Silent and quick
# when everything is there already. Elsewhere (a cluster with modules) it only says what is needed.
#
#   jobs/install.sh [--mpi openmpi|mpich] [--cluster] [--fuzz]
#
#   --mpi       which MPI library, with the parallel HDF5 that was built with it. Unless given: the one that
#               is installed, openmpi where both or none are. Both may be side by side: preset cpu takes the
#               system's default, cpu-mpich MPICH
#   --cluster   also what jobs/cluster/cluster needs
#   --fuzz      also the compiler of preset fuzz
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

packages=(
  cmake ninja-build g++ ccache                 # build
  libdnnl-dev                                  # GEMMs
  libcli11-dev libfmt-dev nlohmann-json3-dev libxxhash-dev
  libpcre2-dev libutf8proc-dev                 # tokenizers
  libgtest-dev libbenchmark-dev hdf5-tools     # tests and benchmarks
  libboost-context-dev                         # fibers of the emulated CUDA device in the tests
  python3 procps                               # tables of the job scripts, processes in tests
  python3-matplotlib                           # plots of perf/harness
  python3-jinja2 python3-jsonschema            # chats, and the tests of io/schemas
)

wrong_use() {
  printf 'install.sh: %s; see --help\n' "$*" >&2
  exit 2
}

mpi=""
while (($# > 0)); do
  option="$1"
  shift
  case "$option" in
    --mpi)
      (($# > 0)) || wrong_use "--mpi takes openmpi or mpich"
      mpi="$1"
      shift
      ;;
    --cluster) packages+=(iproute2 slurmctld slurmd slurm-client munge) ;;  # links; a Slurm of one's own
    --fuzz) packages+=(clang libclang-rt-dev) ;;
    -h | --help)
      print_head_comment "${BASH_SOURCE[0]}"
      exit 0
      ;;
    *) wrong_use "unknown option $option" ;;
  esac
done
is_installed() { [[ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" == installed ]]; }
if [[ -z "$mpi" ]]; then
  mpi=openmpi
  if is_installed libmpich-dev && ! is_installed libopenmpi-dev; then mpi=mpich; fi
fi
case "$mpi" in # ranks and messages; model files, written in parallel through the same library
  openmpi) packages+=(openmpi-bin libopenmpi-dev libhdf5-openmpi-dev) ;;
  mpich) packages+=(mpich libmpich-dev libhdf5-mpich-dev) ;;
  *) wrong_use "--mpi takes openmpi or mpich, not \"$mpi\"" ;;
esac

if ! command -v apt-get >/dev/null || ! command -v dpkg-query >/dev/null; then
  printf '%s\n' "install.sh: no apt on this system; if the build misses something, provide what" \
    "these Debian packages hold: ${packages[*]}" >&2
  exit 0
fi

missing=()
installed=" $(dpkg-query -W -f '${db:Status-Status}:${Package} ' "${packages[@]}" 2>/dev/null || true)"
for package in "${packages[@]}"; do
  [[ "$installed" == *" installed:$package "* ]] || missing+=("$package")
done
((${#missing[@]} > 0)) || exit 0

as_root=()
if ((EUID != 0)); then
  command -v sudo >/dev/null || die "cannot install ${missing[*]} (neither root nor sudo here);" \
    "ask an administrator to run: apt-get install ${missing[*]}"
  as_root=(sudo)
fi

log="$(mktemp)"
trap 'rm -f "$log"' EXIT
apt() {  # dpkg's lock may be held for minutes by a system that has just started
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get -q -y -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 "$@" >>"$log" 2>&1
}
update_lists() {  # the lock of the package lists has no timeout option of its own
  local attempt
  for attempt in {1..12}; do
    if apt update; then return 0; fi
    tail -n 3 "$log" | grep -q 'Could not get lock' || return 1
    [[ "$attempt" == 12 ]] || sleep 10
  done
  return 1
}

say "installing ${missing[*]}"
# Package lists may be absent (fresh images) or too old for the archive: then update and try again.
if ! apt install --no-install-recommends "${missing[@]}"; then
  if ! update_lists || ! apt install --no-install-recommends "${missing[@]}"; then
    tail -n 20 "$log" >&2
    die "apt-get could not install ${missing[*]} (its last lines are above);" \
      "check the network and /etc/apt/sources.list"
  fi
fi
