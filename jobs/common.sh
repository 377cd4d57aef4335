# shellcheck shell=bash
# What the scripts share. Sourced, never run: `source "$(dirname "${BASH_SOURCE[0]}")/common.sh"`.

# The repository, wherever the script was called from.
repository="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

say() { printf '== %s\n' "$*"; }

# A failure: one message, exit code 1.
die() {
  printf '%s: %s\n' "$(basename "$0")" "$*" >&2
  exit 1
}

# Prints the comment at the head of a script, which is its --help.
print_head_comment() { sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$1"; }

# Configures once and builds what has changed. Arguments: preset, then targets (none: everything).
build_preset() {
  local preset="$1"
  shift
  local folder="$repository/build/$preset" targets=()
  (($# == 0)) || targets=(--target "$@")
  if [[ ! -f "$folder/build.ninja" ]]; then
    (cd "$repository" && cmake --preset "$preset") ||
      die "cannot configure preset $preset (see CMake's message above)"
  fi
  cmake --build "$folder" --parallel "$(nproc)" "${targets[@]}" ||
    die "the build of preset $preset failed (see the first error above)"
}

# mpirun for ranks that may outnumber the cores of one machine.
#   --oversubscribe         more ranks than cores are meant
#   --bind-to none          ranks of two jobs do not pile up on the first cores
#   mpi_yield_when_idle     a waiting rank leaves its core to one that computes
mpirun_here() {
  if ((EUID == 0)); then  # Open MPI refuses root unless told; containers have no other user
    export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
  fi
  mpirun --oversubscribe --bind-to none --mca mpi_yield_when_idle 1 "$@"
}
