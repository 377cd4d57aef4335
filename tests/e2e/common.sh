# shellcheck shell=bash
# What the end-to-end tests share. Sourced, never run. CTest sets the environment; by hand, the
# executable of preset cpu is used.
#   ATOLL          the executable
#   ATOLL_SOURCE   the repository
#   ATOLL_ALL      not empty: sweeps take all their cases instead of a part of them
#   ATOLL_FAULT_LIBRARY   to be preloaded under ranks, for faults at exact calls of MPI (mpi_fault.cpp)
#   ATOLL_MUTATED_RUN     the program with a plan that is wrong on one rank (mutated_run.cpp)
set -euo pipefail

ATOLL_SOURCE="${ATOLL_SOURCE:-$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)}"
ATOLL="${ATOLL:-$ATOLL_SOURCE/build/cpu/app/atoll}"
[[ -x "$ATOLL" ]] || {
  printf 'no executable at %s: build preset cpu, or set ATOLL\n' "$ATOLL" >&2
  exit 1
}
# shellcheck source-path=SCRIPTDIR source=../../jobs/launcher.sh
source "$ATOLL_SOURCE/jobs/launcher.sh"
allow_root
shared_machine_options mpirun
mpirun_flags=("${launcher_options[@]}")

# Seconds that one command may take; a hang is a failure like any other.
command_limit=120

work="$(mktemp -d "${TMPDIR:-/tmp}/atoll-e2e.XXXXXX")"
trap 'rm -rf "$work"' EXIT
# shellcheck disable=SC2034  # read by the scripts that source this one
sample="$ATOLL_SOURCE/tests/data/sample-model"
# shellcheck disable=SC2034
fault_library="${ATOLL_FAULT_LIBRARY:-$ATOLL_SOURCE/build/cpu/tests/libmpi_fault.so}"

all="${ATOLL_ALL:-}"
# shellcheck disable=SC2034
all_sweeps=$((${#all} > 0))

num_passed=0
num_failed=0
passed() { num_passed=$((num_passed + 1)); }
failed() {
  num_failed=$((num_failed + 1))
  printf 'FAILED: %s\n' "$*"
}
# shellcheck disable=SC2120  # folders are given by scripts that source this one
# show_output [FOLDER]: prints the end of what the last command there said, for a failure's context.
show_output() { tail -n 12 "${1:-$work}/stdout" "${1:-$work}/stderr" 2>/dev/null | sed 's/^/    /' || true; }

# Last line of every script: the count, and the exit code.
finish() {
  printf '%d checks passed, %d failed\n' "$num_passed" "$num_failed"
  ((num_failed == 0 && num_passed > 0))
}

# capture COMMAND...: runs it under the limit; sets `code`, fills $work/stdout and $work/stderr.
capture() {
  code=0
  timeout --kill-after=5 "$command_limit" "$@" >"$work/stdout" 2>"$work/stderr" </dev/null || code=$?
}

# atoll_on RANKS ARGUMENTS...: the same under mpirun.
atoll_on() {
  local ranks="$1"
  shift
  capture mpirun "${mpirun_flags[@]}" -n "$ranks" "$ATOLL" "$@"
}

# await_suspended JOB: waits until a fault has stopped ranks of this mpirun; sets `suspended` to them.
await_suspended() {
  for _ in {1..600}; do
    suspended="$(pgrep -P "$1" --runstates T || true)"
    [[ -z "$suspended" ]] || return 0
    sleep 0.05
  done
  failed "no rank suspended itself"
  suspended="$1" # for the signals that were meant for it
}

# succeeds WHAT: the last captured command ended with 0.
succeeds() {
  if ((code == 0)); then
    passed
    return 0
  fi
  failed "$1: exit code $code"
  show_output
  return 1
}

# same WHAT FILE FILE: equal bytes.
same() {
  if cmp -s "$2" "$3"; then
    passed
  else
    failed "$1: $(cmp "$2" "$3" 2>&1 | sed "s|$work/||g" || true)"
  fi
}

# json_check WHAT FILE...: runs the Python on stdin with `lines`, the parsed lines of each file (a
# .json file is one value). An assertion that fails is a failed check.
json_check() {
  local what="$1" program
  shift
  program="$(cat)"
  if python3 - "$program" "$@" >"$work/check" 2>&1 <<'EOF'; then
import json, math, sys

program, *paths = sys.argv[1:]
def parsed(path):
    with open(path, encoding="utf-8") as file:
        return json.load(file) if path.endswith(".json") else [json.loads(line) for line in file]
lines = [parsed(path) for path in paths]
exec(program)
EOF
    passed
  else
    failed "$what: $(tail -n 3 "$work/check")"
  fi
}

import_sample() { # OUTPUT
  capture "$ATOLL" import "$sample" --output "$1"
  succeeds "import of the sample model"
}

# refused WHAT CODE PATTERN: the last captured command ended with CODE (several: "1|2") and a message
# on stderr that matches the extended regular expression, in any case, and nothing crashed.
refused() {
  local what="$1" expected="$2" pattern="$3" problem=""
  if ((code == 124 || code == 137)); then
    problem="hung"
  elif [[ ! "|$expected|" == *"|$code|"* ]]; then
    problem="exit code $code, expected $expected"
  elif grep -qE 'terminate called|Segmentation|Signal: |AddressSanitizer|core dumped|HDF5-DIAG' \
    "$work/stderr" "$work/stdout"; then
    problem="crashed, or showed a library's stack trace"
  elif ! grep -qiE -- "$pattern" "$work/stderr"; then
    problem="no message about '$pattern'"
  elif (($(grep -c '^atoll: ' "$work/stderr") != 1)); then
    problem="not exactly one message that starts with 'atoll: '"
  fi
  if [[ -z "$problem" ]]; then
    passed
  else
    failed "$what: $problem"
    show_output
  fi
}

# need_benchmarks: sets `build`, the folder that the executable was built in; skips the test where the
# benchmarks were not built there.
need_benchmarks() {
  build="$(cd "$(dirname "$ATOLL")/.." && pwd)"
  [[ -x "$build/perf/layers_bench" ]] || {
    printf 'skipped: no %s (benchmarks are not built)\n' "$build/perf/layers_bench"
    exit 77
  }
}
