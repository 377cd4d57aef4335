#!/usr/bin/env bash
# The job scripts on a real Slurm, on a cluster of namespaces with shaped links: several nodes give the
# bytes that one gives, a job leaves what it should, goes on after its time limit, and the cluster
# leaves nothing, also when its start was killed.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
# shellcheck source-path=SCRIPTDIR source=cluster_jobs.sh
source "$(dirname "${BASH_SOURCE[0]}")/cluster_jobs.sh"
hosts=16

# What a cluster might leave: processes (its folder is among their mounts), links, mounts, groups.
traces() {
  grep -ls "$ATOLL_CLUSTER" /proc/[0-9]*/mountinfo || true
  ip -brief link | awk '{ print $1 }'
  grep -F -e "$ATOLL_CLUSTER" -e "$work" /proc/self/mounts || true
  find /sys/fs/cgroup -maxdepth 2 -name "*$ATOLL_CLUSTER*" 2>/dev/null || true
}
traces >"$work/before"
gone() { # WHAT
  for _ in {1..50}; do # what was killed may take a moment to go
    traces >"$work/after"
    if cmp -s "$work/before" "$work/after"; then break; fi
    sleep 0.1
  done
  same "$1 leaves no process, link, mount or group" "$work/before" "$work/after"
  if [[ -e "$state" ]]; then failed "$1 leaves $state"; else passed; fi
}

model="$work/model.h5"
import_sample "$model"
prompts="$jobs/sample-prompts.jsonl"
atoll_on 2 run --model "$model" --input "$prompts" --output "$work/expected.jsonl" --backend cpu
succeeds "the same on one machine" || true
cd "$work"

# A start that is killed. Its processes end by themselves, and `down` removes what is left.
for delay in 0.05 0.2; do
  "$cluster" up 4 >/dev/null 2>&1 &
  starting=$!
  sleep "$delay"
  kill -KILL "$starting" 2>/dev/null || true
  wait "$starting" 2>/dev/null || true
  for _ in {1..50}; do
    traces >"$work/after"
    if [[ -f "$state/ready" ]] || cmp -s "$work/before" "$work/after"; then break; fi
    sleep 0.1
  done
  capture "$cluster" down
  succeeds "down after a killed start" || true
  gone "a start killed after $delay s"
done

# A cluster that is killed.
capture "$cluster" up 3
succeeds "up" || finish
kill -KILL "$(cut -d' ' -f1 "$state/keeper")"
capture "$cluster" down
succeeds "down after a kill" || true
gone "a killed cluster"

capture "$cluster" up "$hosts" --rate 500mbit
succeeds "up" || finish
capture "$cluster" up 2
if ((code == 1)) && grep -q 'is up already' "$work/stderr"; then passed; else failed "up twice"; fi
capture "$cluster" on h2 sh -c 'hostname; ls /dev/shm | grep -c slurmd; tc qdisc show dev eth0'
if grep -qx h2 "$work/stdout" && grep -q 'tbf .*rate 500Mbit' "$work/stdout"; then
  passed
else
  failed "host h2: $(cat "$work/stdout" "$work/stderr")"
fi

# Four nodes of four ranks.
if submit --nodes=4 --ntasks-per-node=4 --gpus-per-node=4 "$jobs/atoll.sbatch" "$model" "$prompts" \
  "$work/results.jsonl" && ends_well "4 nodes of 4 ranks"; then
  folder="$work/atoll-$job"
  same "4 nodes of 4 ranks" "$work/expected.jsonl" "$work/results.jsonl"
  for file in log job.txt environment.txt modules.txt commit.txt bindings.txt cluster.json report.json status.json \
    trace.json; do
    if [[ -s "$folder/$file" ]]; then passed; else failed "the job's folder has no $file"; fi
  done
  if grep -qx OMPI_MCA_pml=ucx "$folder/environment.txt"; then passed; else failed "not over UCX"; fi
  if (($(grep -c '^bind: rank [0-9]* on h[1-4]: GPU [0-9] .*NIC eth0' "$folder/bindings.txt") == 16 || \
    $(grep -c '^bind: rank [0-9]* on h[1-4]: GPU none, NIC eth0' "$folder/bindings.txt") == 16)); then
    passed
  else
    failed "bindings: $(head -n 2 "$folder/bindings.txt")"
  fi
  json_check "report and cluster file" "$folder/report.json" "$folder/cluster.json" <<'PY'
report, cluster = lines
assert report["hosts"] == ["h1", "h2", "h3", "h4"], report["hosts"]
assert report["host_of_rank"] == [r // 4 for r in range(16)]
by_node = report["bytes_from_node_to_node"]
assert sum(by_node[n][n] for n in range(4)) == report["bytes_inside_nodes"] > 0
assert sum(map(sum, by_node)) - report["bytes_inside_nodes"] == report["bytes_between_nodes"] > 0
assert cluster["nodes"] == [{"name": f"h{n}", "ranks": 4} for n in range(1, 5)]
assert {k: report["links"][k] for k in cluster["links"]} == cluster["links"]
PY
fi

# Either route on real hosts: the same bytes, and between hosts no more than is needed.
for route in flat nodes; do
  capture "$cluster" run -n 12 --ranks-per-node 3 "$ATOLL" run --model "$model" --input "$prompts" \
    --output "$work/$route.jsonl" --report "$work/$route.json" --route "$route" --chunks 3 \
    --min-chunk-tokens 4 --progress none --backend cpu
  succeeds "12 ranks on 4 hosts, $route" || continue
  same "12 ranks on 4 hosts, $route" "$work/expected.jsonl" "$work/$route.jsonl"
done
json_check "either route" "$work/flat.json" "$work/nodes.json" <<'PY'
flat, nodes = (report["exchange"] for report in lines)
assert flat["measured"] == flat["flat_would"] == nodes["flat_would"], (flat, nodes)
assert flat["one_row_per_token_and_node"] == nodes["one_row_per_token_and_node"]
rows = nodes["one_row_per_token_and_node"]["bytes_between_nodes"] // (2 * nodes["row_bytes"])
tails = rows * 16
for key in ("bytes_between_nodes", "busiest_link_bytes"):
    least = nodes["one_row_per_token_and_node"][key]
    assert least < nodes["measured"][key] < nodes["flat_would"][key] + tails, (key, nodes)
PY

# The links, as atoll measures them: between nodes what tc allows, less headers, however many ranks
# share it; inside a node, memory, an order of magnitude above. Bounds are wide since cores are few.
run_links() { # REPORT RANKS
  capture "$cluster" run -n "$2" --ranks-per-node 2 "$ATOLL" run --model "$model" \
    --input "$prompts" --output /dev/null --report "$1" --cluster "$work/cluster.json" \
    --max-tokens 1 --progress none --backend cpu
  succeeds "run on $2 ranks with a cluster file" || true
}
run_links "$work/links1.json" 4
run_links "$work/links2.json" 4
run_links "$work/links3.json" 6
json_check "links" "$work/links1.json" "$work/links2.json" "$work/links3.json" <<'PY'
first, again, other = (report["links"] for report in lines)
rate = 500e6 / 8
for links in (first, other):
    between, inside = links["between_nodes"], links["inside_node"]
    for key in ("pair_bytes_per_s", "node_bytes_per_s"):
        assert 0.4 * rate < between[key] < 1.1 * rate, (key, between)
        assert inside[key] > 2 * between[key], (key, links)
    for latency in (inside["latency_s"], between["latency_s"]):  # which is less, busy cores decide
        assert 0 < latency < 1, links
assert first == again, "the second run was to take the file's figures"
assert first["measured"] and other != first, "other nodes were to be measured anew"
PY

# A job longer than its minute: Slurm warns it (it looks twice a minute), it is queued again, and the
# results are the same in the end. Before, it would take 100 s at least.
python3 "$jobs/make-requests.py" --sequences 800 --prompt-tokens 5 --max-tokens 50 --vocab 256 \
  >"$work/long.jsonl"
atoll_on 2 run --model "$model" --input "$work/long.jsonl" --output "$work/long.expected.jsonl" \
  --backend cpu
succeeds "the long job on one machine" || true
if ATOLL="$work/slow-atoll" submit --nodes=2 --ntasks-per-node=1 --time=1 --signal=B:USR1@20 \
  "$jobs/atoll.sbatch" "$model" "$work/long.jsonl" "$work/resumed.jsonl"; then
  for _ in {1..400}; do
    if (($(field Restarts) > 0)); then break; fi
    sleep 0.2
  done
  hurry
  capture "$cluster" on head scontrol update "JobId=$job" TimeLimit=10
  succeeds "more time for the rest" || true
  release_job
  ends_well "the job that was queued again" || true
  if grep -q 'resuming: [1-9]' "$work/atoll-$job/log"; then passed; else failed "it did not go on: $(cat "$work/atoll-$job/log")"; fi
  same "the interrupted job" "$work/long.expected.jsonl" "$work/resumed.jsonl"
fi

# The reference deployments: as they are, would Slurm take them; and small ones of the same structure.
for script in moe-16l-16gpu:2 moe-16l-16gpu-baseline:2 moe-61l-128gpu:16; do
  capture "$cluster" sbatch --test-only "$jobs/${script%:*}.sbatch"
  if grep -q "on nodes h\[1-${script#*:}\]" "$work/stderr"; then
    passed
  else
    failed "sbatch --test-only ${script%:*}: $(cat "$work/stderr")"
  fi
done
export ATOLL_SEQUENCES=18 ATOLL_PROMPT_TOKENS=6 ATOLL_MAX_TOKENS=2
reference() { # PRESET NAME: what one rank makes of the job's own model and requests
  atoll_on 1 run --model "$work/$1.h5" --input "$work/requests-$job.jsonl" --output "$work/$2.jsonl" \
    --backend cpu
  succeeds "$2 on one rank" || true
  same "$2" "$work/$2.jsonl" "$work/results-$job.jsonl"
}
export ATOLL_PRESET=moe-16l-tiny
if submit "$jobs/moe-16l-16gpu.sbatch" && ends_well "moe-16l on 2 nodes of 8 ranks"; then
  reference moe-16l-tiny moe-16l
fi
if submit "$jobs/moe-16l-16gpu-baseline.sbatch" && ends_well "the baseline of moe-16l on 2 nodes of 8 ranks"; then
  reference moe-16l-tiny moe-16l-baseline
fi
export ATOLL_PRESET=moe-61l-tiny
if submit --nodes=4 --ntasks-per-node=4 "$jobs/moe-61l-128gpu.sbatch" &&
  ends_well "moe-61l in two networks on 4 nodes"; then
  reference moe-61l-tiny moe-61l
fi

# One network of 64 experts on 8 hosts of 8 ranks, which share attention.
head -n 5 "$work/requests-$job.jsonl" >"$work/few.jsonl"
atoll_on 1 run --model "$work/moe-61l-tiny.h5" --input "$work/few.jsonl" --output "$work/few.expected.jsonl" \
  --backend cpu
succeeds "a few requests on one rank" || true
capture "$cluster" run -n 64 --ranks-per-node 8 "$ATOLL" run --model "$work/moe-61l-tiny.h5" \
  --input "$work/few.jsonl" --output "$work/few.results.jsonl" --tp 8 --report "$work/few.json" \
  --progress none --backend cpu
succeeds "64 ranks on 8 hosts" || true
same "64 ranks on 8 hosts" "$work/few.expected.jsonl" "$work/few.results.jsonl"

# A job that cannot run says so in its folder and in Slurm's own output.
unset ATOLL_PRESET
if submit --nodes=1 "$jobs/atoll.sbatch" "$work/nothing.h5" "$prompts" "$work/nothing.jsonl"; then
  wait_for_job
  if [[ "$ended" == FAILED ]] && grep -q 'no model .*nothing.h5' "$work/atoll-$job.out"; then
    passed
  else
    failed "a job without its model: $ended, and says: $(cat "$work/atoll-$job.out")"
  fi
fi

capture "$cluster" down
succeeds "down" || true
gone "down"
finish
