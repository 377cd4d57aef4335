#!/usr/bin/env bash
# Installs, builds and runs every test: all of preset cpu, then the unit and multi-rank tests of
# preset cpu-asan (address and undefined-behaviour sanitizers), with --all those of several ranks with MPICH, those of the CUDA backend where nvcc is
# found (label gpu needs a GPU, label emulated none), then the fuzz targets for some
# seconds each, where clang can be had. Fails when any test fails.
#
#   tests/run.sh [--quick | --all] [ctest option...]
#
#   --quick        preset cpu only, without the end-to-end tests
#   --all          sweeps in full length: more runs killed, more layouts, a minute of each fuzz target
#   ctest option   handed on, e.g. -R exchange
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=../jobs/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/../jobs/common.sh"

quick=false
fuzz_seconds=10
if (($# > 0)); then
  case "$1" in
    --quick)
      quick=true
      shift
      ;;
    --all)
      export ATOLL_ALL=1
      fuzz_seconds=60
      shift
      ;;
    -h | --help)
      print_head_comment "${BASH_SOURCE[0]}"
      exit 0
      ;;
  esac
fi
when_none=error
(($# == 0)) || when_none=ignore  # a filter may leave one of the two presets without a test

# Presets compile many sources with the same options: the second one takes them from the first's, if
# ccache is there and such paths are as if from the repository.
export CCACHE_BASEDIR="${CCACHE_BASEDIR:-$repository}" CCACHE_NOHASHDIR=1

failed=()
run_tests() { # preset, ctest options
  local preset="$1"
  shift
  say "tests of preset $preset"
  ctest --test-dir "$repository/build/$preset" --output-on-failure --no-tests="$when_none" \
    --parallel "$(nproc)" "$@" || failed+=("$preset")
}

if $quick; then
  bash "$repository/jobs/install.sh"
else
  bash "$repository/jobs/install.sh" --cluster
fi
build_preset cpu
if $quick; then
  run_tests cpu -LE 'e2e|practice' "$@"
else
  run_tests cpu "$@"
  build_preset cpu-asan
  run_tests cpu-asan -L 'unit|mpi' "$@"
  # Another MPI library takes a build of its own, a quarter of an hour on two cores.
  if [[ -z "${ATOLL_ALL:-}" ]]; then
    say "skipped: MPICH, which only --all builds with"
  elif bash "$repository/jobs/install.sh" --mpi mpich && command -v mpicxx.mpich >/dev/null; then
    build_preset cpu-mpich
    run_tests cpu-mpich -L mpi "$@"
  else
    say "skipped: MPICH, since there is none to install here (package mpich)"
  fi
  if command -v nvcc >/dev/null; then
    build_preset cuda cuda_tests
    run_tests cuda -L 'gpu|emulated' "$@"
  else
    say "skipped: the CUDA backend, since there is no nvcc on PATH"
  fi
  if bash "$repository/jobs/install.sh" --fuzz && command -v clang++ >/dev/null; then
    build_preset fuzz
    cmake -DATOLL_FUZZ_SECONDS="$fuzz_seconds" "$repository/build/fuzz" >/dev/null
    run_tests fuzz "$@"
  else
    say "skipped: the fuzz targets, since there is no clang++ with libFuzzer here"
  fi
fi
((${#failed[@]} == 0)) || die "tests failed in preset ${failed[*]} (their output is above)"
say "all tests passed in $((SECONDS / 60)) min $((SECONDS % 60)) s"
