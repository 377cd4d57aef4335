#!/usr/bin/env bash
# Runs a command on one host of the cluster, from inside it. This is what mpirun calls in place of ssh.
#
#   host.sh [--state FOLDER] [--exec] HOST CMD...
#
# FOLDER is the cluster's state, $ATOLL_CLUSTER_STATE unless given. --exec: CMD is a program and its
# arguments; else the words are joined and given to a shell, as ssh does. `head` is where the caller is.
set -euo pipefail

if [[ "${1:-}" == --state ]]; then
  ATOLL_CLUSTER_STATE="$2"
  shift 2
fi
export ATOLL_CLUSTER_STATE
as_given=false
while [[ "${1:-}" == -* ]]; do # ssh's own options mean nothing here
  [[ "$1" != --exec ]] || as_given=true
  shift
done
host="$1"
shift
state="$ATOLL_CLUSTER_STATE"
hosts="" cores=0 slurm=""
# shellcheck source=/dev/null  # written by up
source "$state/settings"

# Open MPI and UCX on these hosts: TCP over eth0 between them, shared memory inside one; sessions in
# the host's own /dev/shm, which is gone with it. Whatever the caller has set stands.
defaults=(
  OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
  OMPI_MCA_orte_tmpdir_base=/dev/shm
  OMPI_MCA_oob_tcp_if_include=eth0 OMPI_MCA_btl_tcp_if_include=eth0
  OMPI_MCA_pml=ucx OMPI_MCA_opal_common_ucx_tls=any OMPI_MCA_opal_common_ucx_devices=any
  OMPI_MCA_rmaps_base_oversubscribe=1 OMPI_MCA_mpi_yield_when_idle=1
  OMPI_MCA_hwloc_base_binding_policy=none
  UCX_NET_DEVICES=eth0
)
for assignment in "${defaults[@]}"; do
  variable="${assignment%%=*}"
  [[ -n "${!variable+set}" ]] || export "${assignment?}"
done
[[ "$slurm" != yes ]] || export SLURM_CONF="$state/slurm.conf"

if [[ "$host" == head ]]; then
  cd "$ATOLL_CLUSTER_FOLDER" # entering a mount namespace leads to its root
  exec "$@"
fi
[[ -f "$state/hosts/$host" ]] || {
  printf 'cluster: no host %s; there are h1 to h%s\n' "$host" "$hosts" >&2
  exit 2
}
read -r process <"$state/hosts/$host"
pin=()
if ((cores > 0)); then
  machine="$(nproc --all)"
  first=$(((${host#h} - 1) * cores))
  list=""
  for ((core = first; core < first + cores; ++core)); do list+="${list:+,}$((core % machine))"; done
  pin=(taskset --cpu-list "$list")
fi
$as_given || set -- sh -c "$*"
# shellcheck disable=SC2016  # the words are the inner shell's
exec "${pin[@]}" nsenter --target "$process" --net --uts --ipc --mount \
  bash -c 'cd "$1" && shift && exec "$@"' bash "$PWD" "$@"
