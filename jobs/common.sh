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

# shellcheck source-path=SCRIPTDIR source=launcher.sh
source "$repository/jobs/launcher.sh"

# mpirun for ranks that may outnumber the cores of one machine.
mpirun_here() {
  local launcher_options
  allow_root
  shared_machine_options mpirun
  mpirun "${launcher_options[@]}" "$@"
}
