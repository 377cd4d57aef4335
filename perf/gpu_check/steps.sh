# shellcheck shell=bash
# shellcheck disable=SC2154,SC2034  # variables that gpu_check.sh and its parts set and read
# What the parts of perf/gpu_check.sh share: steps with a limit, their table, what was packed for them.
# Sourced by it, never run; `output`, `bundle`, `build`, `minutes` and `folder` are its.
set -euo pipefail

# begin_part NAME: the table and the folder of logs, both empty.
begin_part() {
  table="$output/$1.txt"
  logs="$(mktemp -d "${TMPDIR:-/tmp}/atoll-gpu-check.XXXXXX")"
  work="$logs.work" # what is not kept
  mkdir "$work"
  monitor=""
  trap 'kill $monitor 2>/dev/null || true; rm -rf "$logs" "$work"' EXIT
  rm -f "$output/$1.txt" "$output/$1"-[0-9].tar
  seconds_in_all="$(python3 -c "print(int(60 * $minutes))")"
  num_passed=0 num_failed=0 num_not_run=0
  {
    printf 'part %s, %s\n\n' "$1" "$(date -u +%Y-%m-%dT%H:%M:%SZ)"
    printf '%-7s %6s  %-44s %14s %12s %8s  %s\n' "" seconds what figure floor fraction note
  } | tee "$table"
}

# row VERDICT SECONDS WHAT FIGURE FLOOR FRACTION NOTE: a line of the table.
row() {
  printf '%-7s %6s  %-44s %14s %12s %8s  %s\n' "$@" | sed 's/ *$//' | tee -a "$table"
  case "$1" in
    PASSED) num_passed=$((num_passed + 1)) ;;
    FAILED) num_failed=$((num_failed + 1)) ;;
    *) num_not_run=$((num_not_run + 1)) ;;
  esac
}
not_run() { row "NOT RUN" - "$1" - - - "$2"; }

# pack: the logs as they are now, in archives that may leave the machine.
pack() { python3 "$folder/pack.py" "$logs" "$output" "$part" || true; }

# left: seconds until what has not begun is left out.
left() { echo $((seconds_in_all - SECONDS)); }

variant="" # of what a step's lines in the table name, where the same is measured in several ways

# step NAME LIMIT COMMAND...: runs it under LIMIT seconds, or what is left of the time; its log is
# NAME.log. Lines of the log that begin with "= " (perf/table_line.hpp) are lines of the table too.
step() {
  local name="$1" limit="$2" begin=$SECONDS code=0 log rest verdict why="" line
  shift 2
  log="$logs/${name//[^[:alnum:]._-]/-}.log"
  ! $is_emulated || limit=$((4 * limit)) # what a busy machine emulates takes long
  rest="$(left)"
  if ((rest < 8)); then
    not_run "$name" "the $minutes minutes were over"
    return 0
  fi
  ((limit <= rest)) || limit=$rest
  printf '$ %s\n' "$*" >"$log"
  timeout --kill-after=5 "$limit" "$@" >>"$log" 2>&1 </dev/null || code=$?
  while IFS='|' read -r verdict what figure floor fraction note; do
    row "${verdict#= }" "" "$what${variant:+, $variant}" "$figure" "$floor" "$fraction" "$note"
  done < <(grep '^= ' "$log" || true)
  verdict=PASSED
  if grep -q 'SKIPPED: ' "$log" && ((code == 0 || code == 77)); then
    why="$(grep -m1 -o 'SKIPPED: .*' "$log" | cut -c10-)"
    # Some tests of a program may want more than others.
    if grep -qE '^\[  PASSED  \] [1-9]' "$log"; then why="in part: $why"; else verdict="NOT RUN"; fi
  elif ((code == 127)) && grep -q 'error while loading shared libraries' "$log"; then
    verdict="NOT RUN" why="$(grep -m1 -o 'error while loading shared libraries: .*' "$log")"
  elif ((code == 0)) && grep -qE '^\[  PASSED  \] 0 tests' "$log"; then
    verdict=FAILED why="no test was run"
  elif ((code == 0)) && [[ "$name" != ceilings ]] && grep -q '^Failed to match any benchmarks' "$log"; then
    verdict=FAILED why="no benchmark was run"
  elif ((code == 124 || code == 137)); then
    verdict="NOT RUN" why="stopped after $limit s"
    ((limit == rest)) && why="stopped when the $minutes minutes were over"
  elif ((code != 0)); then
    line="$(grep -v '^= ' "$log" | grep -E -i 'error|fail|expected|atoll: |ERROR SUMMARY' | head -n 1 || true)"
    verdict=FAILED why="exit code $code: ${line:-$(tail -n 1 "$log")}"
  fi
  row "$verdict" $((SECONDS - begin)) "$name" - - - "$why"
  pack
}

# unpack_bundle: sets `programs` to its bin/ and `ours` to the environment its programs want.
unpack_bundle() {
  local root line
  root="$work/bundle"
  [[ -f "$bundle" ]] || die "no bundle at $bundle: make it by perf/gpu_bundle.py"
  python3 "$folder/unpack.py" "$bundle" "$root" || die "cannot unpack $bundle"
  programs="$root/bin"
  is_emulated=false
  grep -qx 'device=emulated' "$root/about" && is_emulated=true
  sed 's/=/ /' "$root/about" >"$logs/bundle.txt"
  library_path="$root/mpi/lib:$root/lib"
  ours=(env "PATH=$root/mpi/bin:$PATH")
  while read -r line; do ours+=("${line//@ROOT@/$root}"); done <"$root/environment"
  mpirun="$root/mpi/bin/mpirun"
  mpi_is_cuda_aware="$(sed -n 's/^mpi_is_cuda_aware=//p' "$root/about")"
  ucx_has_cuda="$(sed -n 's/^ucx_has_cuda=//p' "$root/about")"
  row PASSED $SECONDS bundle "$(du -k "$bundle" | cut -f1) KiB" - - \
    "$(tr '\n' ' ' <"$logs/bundle.txt")"
}

# take_build: the same from a build on this machine, with this machine's MPI.
take_build() {
  [[ -n "$build" ]] || build="$repository/build/cuda"
  [[ -d "$build" ]] || die "no bundle and no build in $build: see perf/gpu_bundle.py, or build preset cuda"
  build="$(cd "$build" && pwd)"
  programs="$work/bin"
  mkdir "$programs"
  ln -s "$build/app/atoll" "$build"/perf/gpu_* "$build"/tests/cuda/gpu_* "$programs"
  is_emulated=false
  library_path=""
  ours=(env)
  mpirun="$(command -v mpirun || true)"
  mpi_is_cuda_aware=unknown
  ucx_has_cuda=unknown
  if command -v ompi_info >/dev/null; then
    mpi_is_cuda_aware=no
    ! ompi_info --parsable --all 2>/dev/null | grep -q 'mpi_built_with_cuda_support:value:true' ||
      mpi_is_cuda_aware=yes
  fi
}

# find_programs: sets `programs`, `ours`, `mpirun`, `launcher_options` and what is known of the MPI.
find_programs() {
  local cuda
  if [[ -z "$bundle" && -z "$build" && -f "$repository/build/gpu-bundle.tar.xz" ]]; then
    bundle="$repository/build/gpu-bundle.tar.xz"
  fi
  if [[ -n "$bundle" ]]; then unpack_bundle; else take_build; fi
  cuda="$(python3 "$folder/cuda_folders.py")"
  # What the user's own path has, such as the driver's library, stays behind it.
  ours+=("LD_LIBRARY_PATH=$library_path:$cuda${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}" OMP_WAIT_POLICY=passive)
  tools_path="$PATH:/usr/local/cuda/bin"
  allow_root
  [[ -z "${OMPI_ALLOW_RUN_AS_ROOT:-}" ]] || ours+=(OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1)
  launcher_options=()
  [[ -z "$mpirun" ]] || mapfile -t launcher_options < <(
    "${ours[@]}" bash "$repository/jobs/launcher.sh" --shared-machine "$mpirun"
  )
  tiny=()
  ! $is_emulated || tiny=(--tiny)
}

# find_device: what the machine is; sets `no_device` to the reason why there is none, else "".
find_device() {
  {
    printf 'host     %s cores, %s\n' "$(nproc)" "$(grep -m1 '^model name' /proc/cpuinfo | cut -d: -f2-)"
    printf 'kernel   %s\n' "$(uname -sr)"
    printf 'commit   %s\n' "$(git -C "$repository" describe --always --dirty 2>/dev/null || echo unknown)"
    timeout 20 nvidia-smi --query-gpu=name,uuid,driver_version,memory.total,clocks.max.sm,power.limit --format=csv ||
      echo "no nvidia-smi"
  } >"$logs/environment.txt" 2>&1
  if timeout 20 nvidia-smi -L >/dev/null 2>&1; then
    nvidia-smi --query-gpu=timestamp,clocks.sm,clocks.mem,power.draw,temperature.gpu,utilization.gpu \
      --format=csv -lms 500 >"$logs/clocks.csv" 2>&1 &
    monitor=$!
  fi
  no_device=""
  step ceilings 60 "${ours[@]}" "$programs/gpu_bench" "${tiny[@]}" --benchmark_filter=none
  if [[ ! -f "$logs/ceilings.log" ]]; then
    no_device="the $minutes minutes were over"
  elif ! grep -q '^= PASSED|ceilings' "$logs/ceilings.log"; then
    no_device="$(grep -m1 -o 'SKIPPED: .*' "$logs/ceilings.log" | cut -c10- || true)"
    no_device="${no_device:-gpu_bench does not start: $(tail -n 1 "$logs/ceilings.log" | sed 's/.*: error/error/')}"
  fi
}

# on_device NAME LIMIT COMMAND...: a step that is not begun where there is no device.
on_device() {
  if [[ -n "$no_device" ]]; then not_run "$1" "$no_device"; else step "$@"; fi
}

# ranks NAME LIMIT N [VARIABLE=VALUE...] COMMAND...: the same with N ranks.
ranks() {
  local name="$1" limit="$2" number="$3"
  shift 3
  if [[ -z "$mpirun" ]]; then
    not_run "$name" "no mpirun here"
  else
    on_device "$name" "$limit" "${ours[@]}" "$mpirun" "${launcher_options[@]}" -n "$number" env "$@"
  fi
}

# device_pointers: the variables for an MPI library that takes device pointers; none where it does not.
# A UCX without CUDA would take them for host memory.
device_pointers() {
  [[ "$mpi_is_cuda_aware" == yes ]] || return 1
  direct=()
  [[ "$ucx_has_cuda" == yes ]] || direct=(OMPI_MCA_pml=ob1 "OMPI_MCA_btl=self,smcuda")
}

# end_part: the counts, and the exit code.
end_part() {
  printf '\n%d s: %d passed, %d failed, %d not run; results in %s\n' "$SECONDS" "$num_passed" \
    "$num_failed" "$num_not_run" "$output" | tee -a "$table"
  pack
  ((num_failed == 0)) || exit 1
  [[ -z "$no_device" ]] || exit 77
}
