#!/usr/bin/env bash
# Threads are counted among the cores that the job was given, and the KV cache among its memory: by an
# affinity mask, control groups, Slurm. What a site says to OpenMP about binding hides no core.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

read -ra cores < <(python3 -c 'import os; print(*sorted(os.sched_getaffinity(0)))')
n="${#cores[@]}"
import_sample "$work/m.h5"
head -n 2 "$ATOLL_SOURCE/jobs/sample-prompts.jsonl" >"$work/r.jsonl"
options=(run --model "$work/m.h5" --input "$work/r.jsonl" --output "$work/o" --max-tokens 2
  --backend cpu --progress none --report "$work/report.json")

# given RANKS WHAT PYTHON COMMAND...: a run on so many ranks below COMMAND; PYTHON looks at `report`,
# `given` (its part about the first node) and `n` (the cores of this test).
given() {
  local ranks="$1" what="$2" program="$3"
  shift 3
  capture mpirun "${mpirun_flags[@]}" -n "$ranks" "$@" "$ATOLL" "${options[@]}"
  succeeds "$what" || return 0
  json_check "$what" "$work/report.json" <<PY
report, n = lines[0], $n
given = report["given"]["nodes"][0]
$program
PY
}
for ranks in 1 2 3 4; do
  given "$ranks" "$ranks ranks that share all cores" "
assert report['threads_per_rank'] == max(1, n // $ranks), report['threads_per_rank']
assert (given['cores'], given['cores_by'], given['ranks']) == (n, 'affinity', $ranks), given
assert [rank['threads'] for rank in report['per_rank']] == [max(1, n // $ranks)] * $ranks
assert report['given']['openmp_binding_not_followed'] == []" env
done
given 2 "ranks on one core" "
assert report['threads_per_rank'] == 1, report['threads_per_rank']
assert (given['cores'], given['cores_by']) == (1, 'affinity'), given" taskset -c "${cores[0]}"
if ((n >= 2)); then
  # shellcheck disable=SC2016  # the rank's variables
  given 2 "ranks with a core each" "
assert report['threads_per_rank'] == 1, report['threads_per_rank']
assert (given['cores'], given['cores_by']) == (2, 'affinity'), given" \
    bash -c 'cores=('"${cores[0]} ${cores[1]}"'); taskset -c "${cores[OMPI_COMM_WORLD_RANK]}" "$@"' bash
  given 1 "a share by Slurm" "
assert report['threads_per_rank'] == 1, report['threads_per_rank']
assert (given['cores'], given['cores_by']) == (1, 'SLURM_CPUS_ON_NODE'), given" \
    env SLURM_CPUS_ON_NODE=1
  given 1 "cores of a task by Slurm" "
assert report['threads_per_rank'] == 1, report['threads_per_rank']
assert given['cores_by'] == 'SLURM_CPUS_PER_TASK', given" env SLURM_CPUS_PER_TASK=1
else
  echo "not tried: ranks with a core each, and Slurm's shares (this test may use one core only)"
fi

# OpenMP's binding. The rank's threads may use what the rank may; without that all were on core 0.
bindings=(OMP_PROC_BIND=true OMP_PLACES=cores GOMP_CPU_AFFINITY="${cores[0]}" KMP_AFFINITY=compact)
given 1 "OpenMP's binding, in the report" "
assert report['threads_per_rank'] == n, report['threads_per_rank']
assert (given['cores'], given['cores_by']) == (n, 'affinity'), given
assert sorted(report['given']['openmp_binding_not_followed']) == sorted(
    '''$(printf '%s\n' "${bindings[@]}")'''.split()), report['given']" env "${bindings[@]}"
given 1 "no binding asked for" "
assert report['given']['openmp_binding_not_followed'] == []" env OMP_PROC_BIND=false

# masks RANKS VARIABLE=VALUE...: the masks of all threads of the ranks, once passes have been done.
masks() {
  local ranks="$1" job pid
  shift
  python3 -c '
import json
for i in range(40):
    print(json.dumps({"id": str(i), "prompt": "Ge1:1 " * 20, "max_tokens": 1 if i == 0 else 3000}))
' >"$work/long.jsonl"
  rm -f "$work"/long.out*
  env "$@" mpirun "${mpirun_flags[@]}" -n "$ranks" "$ATOLL" run --model "$work/m.h5" \
    --input "$work/long.jsonl" --output "$work/long.out" --backend cpu --progress none \
    >"$work/stdout" 2>"$work/stderr" &
  job=$!
  for _ in {1..1200}; do
    if grep -qs '"line":1,' "$work/long.out.journal" || ! kill -0 "$job" 2>/dev/null; then break; fi
    sleep 0.05
  done
  for pid in $(pgrep -P "$job"); do
    [[ "$(cat "/proc/$pid/comm" 2>/dev/null)" == atoll ]] || echo "called $(cat "/proc/$pid/comm")"
    sed -n 's/^Cpus_allowed_list:\s*//p' "/proc/$pid"/task/*/status 2>/dev/null || true
  done | sort -u
  kill "$job" 2>/dev/null || true
  wait "$job" 2>/dev/null || true
}
own="$(sed -n 's/^Cpus_allowed_list:\s*//p' /proc/self/status)"
for binding in OMP_PROC_BIND=spread OMP_PLACES=cores GOMP_CPU_AFFINITY="${cores[0]}"; do
  seen="$(masks 2 "$binding")"
  if [[ "$seen" == "$own" ]]; then
    passed
  else
    failed "$binding: threads may use \"${seen//$'\n'/ and }\", expected \"$own\""
    show_output
  fi
done

# Memory: Slurm's, and a control group's where this test may make one. The requests could use more keys
# and values than that, and end with their first token.
python3 - >"$work/r.jsonl" <<'PY'
import json
for i in range(100):
    print(json.dumps({"id": str(i), "prompt": "Ge1:1", "max_tokens": 16000,
                      "stop_token_ids": list(range(256))}))
PY
within="
cache = sum(rank['kv_cache_bytes'] for rank in report['per_rank'])
assert given['free_memory_bytes'] / 4 < cache < given['free_memory_bytes'] / 2, (cache, given)"
given 2 "memory by Slurm" "
assert given['free_memory_by'] == 'SLURM_MEM_PER_NODE', given
assert given['free_memory_bytes'] < 600 << 20, given$within" env SLURM_MEM_PER_NODE=600
group=/sys/fs/cgroup/memory/atoll-given-test.$$
if mkdir "$group" 2>/dev/null; then
  limit="$group/memory.limit_in_bytes"
elif [[ -f /sys/fs/cgroup/cgroup.controllers ]] && group="/sys/fs/cgroup/atoll-given-test.$$" &&
  mkdir "$group" 2>/dev/null; then
  limit="$group/memory.max"
else
  limit=""
fi
if [[ -n "$limit" ]] && echo $((700 << 20)) >"$limit" 2>/dev/null; then
  # shellcheck disable=SC2016  # of the shell that enters the group
  given 2 "memory by a control group" "
assert given['free_memory_by'] == 'cgroup', given
assert given['free_memory_bytes'] < 700 << 20, given$within" \
    bash -c 'echo $$ >'"$group"'/cgroup.procs && exec "$@"' bash
else
  echo "not tried: a control group of its own (none can be made here)"
fi
for _ in {1..200}; do # the kernel may still be taking the last process out of it
  if [[ ! -d "$group" ]] || rmdir "$group" 2>/dev/null; then break; fi
  sleep 0.05
done
finish
