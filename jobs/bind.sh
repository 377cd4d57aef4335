#!/usr/bin/env bash
# Binds a rank to its GPU, to the network card nearest to that GPU, and to the cores of its NUMA node,
# says so on stderr, and runs a command: mpirun ... jobs/bind.sh atoll run ...
#
# The rank's number on its node chooses among the GPUs that Slurm gave (CUDA_VISIBLE_DEVICES) or all. A
# list that names none, and a container's NVIDIA_VISIBLE_DEVICES=void, hide them all, also from Atoll.
# Distance between GPU and card is the number of PCI bridges between them, from sysfs; cards equally
# near are shared out in order. What the caller has set (UCX_NET_DEVICES) stands; without GPUs or cards
# nothing is set. ATOLL_SYSFS: sysfs, /sys unless set.
set -euo pipefail
sysfs="${ATOLL_SYSFS:-/sys}"
# The names that launchers have for the two: Open MPI's mpirun, PMIx, Hydra, PALS, srun.
first_of() { # NAME...: the value of the first that is set, else 0
  local name
  for name in "$@"; do
    if [[ -n "${!name:-}" ]]; then echo "${!name}" && return; fi
  done
  echo 0
}
rank="$(first_of OMPI_COMM_WORLD_RANK PMIX_RANK PMI_RANK PALS_RANKID SLURM_PROCID)"
local_rank="$(first_of OMPI_COMM_WORLD_LOCAL_RANK MPI_LOCALRANKID PALS_LOCAL_RANKID SLURM_LOCALID)"

# gpu_addresses, gpu_ids: PCI address and UUID of each GPU that may be used, in PCI order, which is
# made CUDA's order as well. nvidia-smi knows of those that Slurm hides; sysfs does not.
find_gpus() {
  local address uuid device
  gpu_addresses=() gpu_ids=()
  if command -v nvidia-smi >/dev/null; then
    while IFS=', ' read -r address uuid; do
      address="${address,,}"
      # Without its driver nvidia-smi writes why in place of a list.
      [[ "$address" =~ ^[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]$ ]] || continue
      gpu_addresses+=("${address:(-12)}") # nvidia-smi writes eight digits of the domain, sysfs four
      gpu_ids+=("$uuid")
    done < <(nvidia-smi --query-gpu=pci.bus_id,uuid --format=csv,noheader 2>/dev/null | sort)
  fi
  ((${#gpu_addresses[@]} == 0)) || return 0
  for device in "$sysfs"/bus/pci/devices/*; do
    [[ "$(cat "$device/vendor" 2>/dev/null)" == 0x10de ]] || continue
    [[ "$(cat "$device/class")" == 0x030[02]* ]] || continue # VGA or 3D controller, not audio or USB
    gpu_addresses+=("${device##*/}")
    gpu_ids+=(unknown)
  done
}

# is_gpu NAME: CUDA would find a GPU of this name, as far as the GPUs that were found tell.
is_gpu() {
  local id
  [[ "$1" =~ ^([0-9]+|GPU-.*|MIG-.*)$ ]] || return 1
  if ((${#gpu_addresses[@]} == 0)) || [[ "$1" == MIG-* ]]; then return 0; fi
  if [[ "$1" =~ ^[0-9]+$ ]]; then
    ((10#$1 < ${#gpu_addresses[@]}))
    return
  fi
  for id in "${gpu_ids[@]}"; do
    [[ "$id" != unknown && "$id" != "$1"* ]] || return 0
  done
  return 1
}

# hidden_by: what hides all GPUs from this job, as NAME=VALUE; given_gpus: the names that CUDA takes of
# CUDA_VISIBLE_DEVICES, which are those before the first that is none.
read_given_gpus() {
  local name entry entries=()
  hidden_by="" given_gpus=()
  if [[ -v CUDA_VISIBLE_DEVICES ]]; then
    IFS=, read -ra entries <<<"${CUDA_VISIBLE_DEVICES//[[:space:]]/}"
    for entry in "${entries[@]}"; do
      is_gpu "$entry" || break
      if [[ "$entry" =~ ^[0-9]+$ ]]; then entry=$((10#$entry)); fi
      given_gpus+=("$entry")
    done
    ((${#given_gpus[@]} > 0)) || hidden_by="CUDA_VISIBLE_DEVICES=$CUDA_VISIBLE_DEVICES"
    return 0
  fi
  for name in NVIDIA_VISIBLE_DEVICES ROCR_VISIBLE_DEVICES; do
    [[ -v "$name" ]] || continue
    case "${!name}" in
      "" | void | none | -1 | NoDevFiles) hidden_by="$name=${!name}" ;;
    esac
  done
}

# own_gpu: index of this rank's GPU among those found; visible: its name for CUDA.
choose_gpu() {
  local i
  own_gpu="" visible=""
  [[ -z "$hidden_by" ]] && ((${#gpu_addresses[@]} > 0)) || return 0
  if ((${#given_gpus[@]} == 0)); then
    own_gpu=$((local_rank % ${#gpu_addresses[@]}))
    visible="$own_gpu"
    return
  fi
  visible="${given_gpus[local_rank % ${#given_gpus[@]}]}"
  if [[ "$visible" =~ ^[0-9]+$ ]]; then
    ((visible >= ${#gpu_addresses[@]})) || own_gpu="$visible"
    return
  fi
  for i in "${!gpu_ids[@]}"; do
    [[ "${gpu_ids[i]}" != "$visible"* ]] || own_gpu="$i"
  done
}

find_nics() { # nics, nic_paths: active InfiniBand or RoCE ports
  local port device state
  nics=() nic_paths=()
  for port in "$sysfs"/class/infiniband/*/ports/*; do
    state="$(cat "$port/state" 2>/dev/null)" || continue
    [[ "$state" == *ACTIVE* ]] || continue
    device="${port%/ports/*}"
    nics+=("${device##*/}:${port##*/}")
    nic_paths+=("$(readlink -f "$device/device")")
  done
}

# distance PATH PATH: PCI bridges on the way; a hundred more through another root.
distance() {
  local a b common=0
  IFS=/ read -ra a <<<"${1#*/devices/}"
  IFS=/ read -ra b <<<"${2#*/devices/}"
  while [[ -n "${a[common]:-}" && "${a[common]}" == "${b[common]:-}" ]]; do common=$((common + 1)); done
  echo $((${#a[@]} + ${#b[@]} - 2 * common + (common == 0 ? 100 : 0)))
}

nearest_nics() { # PATH of a GPU: indices of the nearest cards, nearest distance first
  local i d best=1000000 near=()
  for i in "${!nics[@]}"; do
    d="$(distance "$1" "${nic_paths[i]}")"
    if ((d < best)); then best="$d" near=(); fi
    if ((d == best)); then near+=("$i"); fi
  done
  echo "$best ${near[*]}"
}

gpu_path() { readlink -f "$sysfs/bus/pci/devices/${gpu_addresses[$1]}" || true; }

choose_nic() { # own_nic, nic_distance: for own_gpu
  local i mine turn=0 near
  mine="$(nearest_nics "$(gpu_path "$own_gpu")")"
  for ((i = 0; i < own_gpu; ++i)); do
    [[ "$(nearest_nics "$(gpu_path "$i")")" != "$mine" ]] || turn=$((turn + 1))
  done
  read -ra near <<<"$mine"
  nic_distance="${near[0]}"
  near=("${near[@]:1}")
  own_nic="${nics[near[turn % ${#near[@]}]]}"
}

find_gpus
read_given_gpus
choose_gpu
find_nics
gpu_text=none nic_text="chosen by MPI" cores="" cores_text=any
if [[ -n "$hidden_by" ]]; then
  export CUDA_VISIBLE_DEVICES="${CUDA_VISIBLE_DEVICES-}"
  gpu_text="none ($hidden_by)"
fi
if [[ -n "$visible" ]]; then
  export CUDA_DEVICE_ORDER=PCI_BUS_ID CUDA_VISIBLE_DEVICES="$visible"
  gpu_text="$visible"
fi
if [[ -n "$own_gpu" ]]; then
  gpu_text+=" (${gpu_addresses[own_gpu]})"
  cores="$(cat "$(gpu_path "$own_gpu")/local_cpulist" 2>/dev/null || true)"
fi
if [[ -n "${UCX_NET_DEVICES:-}" ]]; then
  nic_text="$UCX_NET_DEVICES (as given)"
elif ((${#nics[@]} > 0)) && [[ -n "$own_gpu" ]]; then
  choose_nic
  export UCX_NET_DEVICES="$own_nic"
  nic_text="$own_nic (distance $nic_distance)"
fi
# The cores may be outside what Slurm allows; then they stay as they are.
if [[ -n "$cores" ]] && taskset --cpu-list --pid "$cores" $$ >/dev/null 2>&1; then cores_text="$cores"; fi
printf 'bind: rank %s on %s: GPU %s, NIC %s, cores %s\n' "$rank" "$(hostname)" "$gpu_text" "$nic_text" \
  "$cores_text" >&2
exec "$@"
