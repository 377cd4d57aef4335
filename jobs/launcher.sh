#!/usr/bin/env bash
# What starts ranks, and the options that each takes: Open MPI's mpirun, MPICH's (Hydra, also Intel's), srun.
# The only place of scripts, tests and builds that knows them. Sourced for its functions, or run:
#
#   jobs/launcher.sh --shared-machine [MPIRUN]   options, one a line, for ranks that may outnumber the cores
#                                                of one machine, of MPIRUN (mpirun unless given)
set -euo pipefail

# launcher_kind MPIRUN: prints openmpi, hydra, or other.
launcher_kind() {
  case "$("$1" --version 2>/dev/null | head -n 3)" in
    *"Open MPI"* | *OpenRTE*) echo openmpi ;;
    *HYDRA* | *Hydra* | *"Intel(R) MPI"*) echo hydra ;;
    *) echo other ;;
  esac
}

# What a library wants to be told where there is no user but root, as in containers.
allow_root() {
  if ((EUID == 0)); then export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1; fi
}

# shared_machine_options [MPIRUN]: sets `launcher_options`. Open MPI's:
#   --oversubscribe         more ranks than cores are meant
#   --bind-to none          ranks of two jobs do not pile up on the first cores
#   mpi_yield_when_idle     a waiting rank leaves its core to one that computes
# Hydra does so by itself, but for the last, which Atoll asks MPICH for.
shared_machine_options() {
  launcher_options=()
  [[ "$(launcher_kind "${1:-mpirun}")" != openmpi ]] ||
    launcher_options=(--oversubscribe --bind-to none --mca mpi_yield_when_idle 1)
}

# chosen_launcher: what is to start the ranks of a job: $ATOLL_LAUNCHER, else mpirun where there is one,
# else srun.
chosen_launcher() {
  if [[ -n "${ATOLL_LAUNCHER:-}" ]]; then
    echo "$ATOLL_LAUNCHER"
  elif command -v mpirun >/dev/null || ! command -v srun >/dev/null; then
    echo mpirun
  else
    echo srun
  fi
}

# pmi_of EXECUTABLE: what srun is to speak with the MPI library that the program loads. Open MPI takes PMIx,
# MPICH's own PMI is that of Slurm's pmi2.
pmi_of() {
  local wanted=pmix offered
  if ldd "$1" 2>/dev/null | grep -qE 'libmpich\.so|libmpi\.so\.12'; then wanted=pmi2; fi
  if ldd "$1" 2>/dev/null | grep -q 'libmpi_cray'; then wanted=cray_shasta; fi
  offered="$(srun --mpi=list 2>&1 | tr -d ' \t')"
  if grep -qx "$wanted" <<<"$offered"; then echo "--mpi=$wanted"; fi
}

# job_options LAUNCHER EXECUTABLE: sets `launcher_options` of a job, whose cores jobs/bind.sh chooses:
# $ATOLL_MPIRUN or $ATOLL_SRUN, where set.
job_options() {
  case "${1##*/}" in
    srun)
      read -ra launcher_options <<<"${ATOLL_SRUN-$(pmi_of "$2")}"
      # The first rank to end with "to be resumed" must not have the others killed at once; those that are
      # stopped or cut off would keep the step for ever. The step before may not be gone yet.
      launcher_options+=(--kill-on-bad-exit=0 --wait=15 --overlap)
      ;;
    *) read -ra launcher_options <<<"${ATOLL_MPIRUN:---bind-to none}" ;;
  esac
}

# shellcheck disable=SC2034  # placement_options is for the scripts that source this one
# ranks_on LAUNCHER FILE NODE:RANKS...: sets `placement_options`, for so many ranks on each of these nodes;
# FILE is written where the launcher wants a list in a file.
ranks_on() {
  local launcher="$1" file="$2" node rank IFS=,
  shift 2
  if [[ "${launcher##*/}" == srun ]]; then
    for node in "$@"; do
      for ((rank = 0; rank < ${node#*:}; ++rank)); do echo "${node%:*}"; done
    done >"$file"
    export SLURM_HOSTFILE="$file"
    placement_options=(--nodes="$#" --distribution=arbitrary)
  elif [[ "$(launcher_kind "$launcher")" == hydra ]]; then
    placement_options=(-hosts "$*")
  else
    placement_options=(--host "$*")
  fi
}

if [[ "${BASH_SOURCE[0]}" == "$0" ]]; then
  case "${1:-}" in
    --shared-machine)
      shared_machine_options "${2:-mpirun}"
      ((${#launcher_options[@]} == 0)) || printf '%s\n' "${launcher_options[@]}"
      ;;
    *)
      sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
      [[ "${1:-}" == --help || "${1:-}" == -h ]] || exit 2
      ;;
  esac
fi
