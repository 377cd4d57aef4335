#!/usr/bin/env bash
# `atoll plan`: bytes of a planned job are those of the run itself; files of an answer are whole and the
# same again; it runs where MPI cannot; what cannot be is refused, saying what would work.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

plan() { capture "$ATOLL" plan "$@"; }

# A machine of 2 nodes x 4 ranks, a job of 16 requests, and what its tokens choose.
model="$work/model.h5"
capture "$ATOLL" init --preset moe-16l-tiny --output "$model"
succeeds "a model"
python3 "$ATOLL_SOURCE/jobs/make-requests.py" --sequences 16 --prompt-tokens 12 --max-tokens 4 --vocab 256 \
  >"$work/requests.jsonl"
python3 - "$work" <<'PYTHON'
import json, random, struct, sys

work = sys.argv[1]
machine = {
    "format": "atoll-machine", "format_version": 1, "name": "two nodes of four", "backend": "cpu",
    "nodes": {"count": 2, "ranks": 4},
    "arithmetic": {"peak_flops_per_s": 1e11}, "memory": {"bytes": 4e9, "bytes_per_s": 1e10},
    "inside_node": {"rank_bytes_per_s": 1e9, "latency_s": 1e-6},
    "between_nodes": {"node_bytes_per_s": 1e8, "latency_s": 3e-5},
    "host": {"launch_s": 1e-6, "poll_s": 1e-5, "message_s": 1e-6, "agree_s": 5e-5, "eager_bytes": 4096}}
json.dump(machine, open(f"{work}/machine.json", "w"))
json.dump({"format": "atoll-workload", "format_version": 1, "requests": "requests.jsonl"},
          open(f"{work}/work.json", "w"))
json.dump({"format": "atoll-workload", "format_version": 1, "prompts": 32, "prompt_tokens": 256, "new_tokens": 1},
          open(f"{work}/large.json", "w"))
measured = {"at": "2026-01-01T00:00:00Z", "commit": "0", "processor": "another, family 1"}
json.dump(machine | {"measured": measured}, open(f"{work}/foreign.json", "w"))
for name, section, key, value in (("missing", "between_nodes", "latency_s", None),
                                  ("absurd", "arithmetic", "peak_flops_per_s", 4e20),
                                  ("unknown", "memory", "bandwith", 1e9),
                                  ("small", "memory", "bytes", 1.1e7)):
    changed = json.loads(json.dumps(machine))
    changed[section].pop(key, None)
    if value is not None:
        changed[section][key] = value
    json.dump(changed, open(f"{work}/{name}.json", "w"))
for name, changes in (("half", {"between_nodes": {"node_bytes_per_s": 5e7}}),
                      ("slow-card", {"speeds": [{"rank": 4, "ranks": 4, "link": 0.25}]}),
                      ("pods", {"between_nodes": {"levels": [{"name": "leaf", "nodes": 1, "oversubscription": 8}]}})):
    changed = json.loads(json.dumps(machine))
    for section, values in changes.items():
        changed[section] = values if section == "speeds" else changed[section] | values
    json.dump(changed, open(f"{work}/{name}.json", "w"))
random.seed(3)
for name, layers in (("trace", 16), ("other", 7), ("hot", 16)):
    tokens = 16 * 15
    # Of hot ones all go to the first two experts, which are on one rank.
    choices = range(2 if name == "hot" else 16)
    rows = bytes(e for _ in range(tokens * layers) for e in random.sample(choices, 2))
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({tokens}, {layers}, 2), }}"
    header += " " * (-(len(header) + 11) % 64) + "\n"
    with open(f"{work}/{name}.npy", "wb") as file:
        file.write(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + rows)
PYTHON
job=(--cluster "$work/machine.json" --workload "$work/work.json")

# same_bytes NAME OPTION...: what a run sends between nodes is what was planned, to the byte.
same_bytes() {
  local name="$1"
  shift
  plan --model "$model" "${job[@]}" --routing "$work/trace.npy" --output "$work/$name" "$@"
  succeeds "the plan of $name"
  atoll_on 8 run --model "$model" --input "$work/requests.jsonl" --output "$work/results.jsonl" \
    --report "$work/report.json" --node-ranks 4 --replay-routing "$work/trace.npy" --threads 1 "$@"
  succeeds "the run of $name"
  json_check "bytes of $name" "$work/$name/plan.json" "$work/report.json" <<'PYTHON'
planned, report = lines
measured = report["exchange"]["measured"]
for key in ("bytes_between_nodes", "busiest_link_bytes"):
    assert planned["exchange"][key] == measured[key] > 0, (key, planned["exchange"], measured)
for phase in ("prefill", "decode"):
    assert planned["phases"][phase]["passes"] == report["phases"][phase]["steps"], phase
PYTHON
}
same_bytes flat --route flat --chunks 1
same_bytes nodes --route nodes --chunks 2
same_bytes tp --tp 2 --tp-output columns --route nodes --chunks 1
same_bytes pp --pp 2 --tp 2 --expert-tp 2 --tp-output rows --route flat

# All of an answer is there, well formed, and the same again.
plan --model "$model" "${job[@]}" --routing "$work/trace.npy" --output "$work/again" --route flat --chunks 1
succeeds "the same plan"
for file in plan.json plan.html trace.json complete_deployment_dag.graphml; do
  same "$file of the same plan" "$work/flat/$file" "$work/again/$file"
done
if python3 - "$work/flat" <<'PYTHON'; then passed; else failed "files of an answer"; fi
import json, re, sys
from pathlib import Path
from xml.etree import ElementTree

folder = Path(sys.argv[1])
names = ("complete_deployment_dag", "comprehensive_moe_dag", "simplified_moe_dag", "detailed_expert_dag")
for name in names:
    ElementTree.parse(folder / f"{name}.svg")
    dot = (folder / f"{name}.dot").read_text()
    assert dot.startswith(f"digraph {name}") and dot.count("->") > 4 and "style=dashed" in dot, name
graph = ElementTree.parse(folder / "complete_deployment_dag.graphml")
space = "{http://graphml.graphdrawing.org/xmlns}"
ids = [n.get("id") for n in graph.iter(f"{space}node")]
ends = {e.get(k) for e in graph.iter(f"{space}edge") for k in ("source", "target")}
assert len(ids) == len(set(ids)) and ends == set(ids), (len(ids), len(ends))
events = json.loads((folder / "trace.json").read_text())["traceEvents"]
assert any(e.get("name") == "L3 c0 dispatch" for e in events)
page = (folder / "plan.html").read_text()
assert page.index("tokens/s") < page.index("<svg") and "http://" not in re.sub(r"http://www.w3.org\S*", "", page)
PYTHON
atoll_on 4 run --model "$model" --input "$work/requests.jsonl" --output "$work/plain.jsonl" --threads 1
succeeds "a run by the default layout"
sed 's/"count": 2/"count": 1/' "$work/machine.json" >"$work/one-node.json"
atoll_on 4 run --model "$model" --input "$work/requests.jsonl" --output "$work/auto.jsonl" --threads 1 \
  --layout auto --machine "$work/one-node.json"
succeeds "a run by the planner's layout"
if grep -q 'layout auto: ' "$work/stderr"; then passed; else failed "the planner's choice is not said"; fi
same "results by the planner's layout" "$work/plain.jsonl" "$work/auto.jsonl"
atoll_on 4 run --model "$model" --input "$work/requests.jsonl" --output "$work/auto.jsonl" \
  --layout auto --machine "$work/unlike.json"
refused "a layout planned without a machine" 1 "unlike.json"

plan --preset moe-16l-tiny "${job[@]}" --all-layouts --skew 0.8
succeeds "all layouts"
for words in "what if" "of linear" "comes first" "limited by"; do
  if grep -q "$words" "$work/stdout"; then passed; else failed "all layouts do not say '$words'"; fi
done

# Another machine, and other choices, are another answer.
large() { # NAME MACHINE TRACE
  plan --model "$model" --cluster "$work/$2.json" --workload "$work/large.json" --routing "$work/$3.npy" \
    --output "$work/$1" --route flat --chunks 1
  succeeds "a plan: $1"
}
slower() { # NAME MACHINE TRACE: than the plan named large
  large "$@"
  json_check "a slower plan: $1" "$work/large/plan.json" "$work/$1/plan.json" <<'PYTHON'
before, after = lines
assert after["tokens_per_s"] < 0.97 * before["tokens_per_s"], (after["tokens_per_s"], before["tokens_per_s"])
PYTHON
}
large large machine trace
slower "half the link" half trace
slower "one slow card" slow-card trace
slower "pods with narrow uplinks" pods trace
slower "two hot experts" machine hot

# What was measured once is predicted again, and no worse; and who made it worse would be told.
predict_again() {
  PYTHONDONTWRITEBYTECODE=1 ATOLL="$ATOLL" capture python3 "$ATOLL_SOURCE/perf/validate" --check \
    --output "$work/validate" "$@"
}
predict_again
succeeds "predictions of the recorded cases"
mkdir "$work/records"
cp -r "$ATOLL_SOURCE/perf/results/validation" "$work/records"
python3 - "$ATOLL_SOURCE/perf/results/validation.csv" "$work/records/validation.csv" <<'PYTHON'
import csv, sys

with open(sys.argv[1]) as file:
    rows = [row for row in csv.DictReader(file) if row["case"] != "nodes"]
for row in rows:
    if row["case"] == "base":
        row["measured_s"] = float(row["measured_s"]) / 1.3
    if row["case"] == "tp":
        row["measured_bytes"] = int(row["measured_bytes"]) + 1
with open(sys.argv[2], "w", newline="") as file:
    writer = csv.DictWriter(file, rows[0].keys())
    writer.writeheader()
    writer.writerows(rows)
PYTHON
predict_again --records "$work/records" --cases base,tp,nodes
if ((code == 1)) && grep -q "tp sent.*base are more than 10 points worse.*not recorded: nodes" "$work/stderr"; then
  passed
else
  failed "predictions that came out worse: exit code $code"
  show_output
fi

# What cannot be is refused, in one message that says what would work.
plan --preset nonsense "${job[@]}"
refused "an unknown preset" 2 "choose one of moe-61l"
plan "${job[@]}"
refused "no model" 2 "which model.*--preset"
plan --preset moe-16l-tiny --cluster "$work/missing.json" --workload "$work/work.json"
refused "a missing rate" 1 "missing.json.*between_nodes.*lacks .latency_s."
plan --preset moe-16l-tiny --cluster "$work/absurd.json" --workload "$work/work.json"
refused "an absurd rate" 1 "peak_flops_per_s.*no machine has"
plan --preset moe-16l-tiny --cluster "$work/unknown.json" --workload "$work/work.json"
refused "an unknown figure" 1 "bandwith.*it may have"
plan --preset moe-16l-tiny "${job[@]}" --layout auto
refused "a layout that nobody chooses" 2 "auto is for .atoll run"
plan --preset moe-16l-tiny "${job[@]}" --all-layouts --layout tp2-pp2
refused "all layouts and one" 2 "all-layouts"
plan --model "$model" --workload "$work/work.json" --cluster "$work/foreign.json"
refused "figures of another processor" 1 "measured on another, family 1.*--foreign-machine"
plan --model "$model" --workload "$work/work.json" --cluster "$work/foreign.json" --foreign-machine
succeeds "figures of another processor, asked for"
plan --preset moe-16l-tiny --cluster "$work/small.json" --workload "$work/work.json"
refused "a model that fits nowhere" 1 "does not fit"
plan --preset moe-16l-tiny "${job[@]}" --routing "$work/other.npy"
refused "a trace of another shape" 1 "other.npy.*7 layers.*give a trace"
plan --preset moe-16l-tiny "${job[@]}" --tp 3
refused "a layout that does not divide" 1 "tp"
plan --preset moe-16l-tiny "${job[@]}" --ranks 9
refused "more ranks than there are" 1 "--ranks 9.*give 8"
plan --preset moe-16l-tiny --cluster "$work/work.json" --workload "$work/work.json"
refused "a workload as a machine" 1 "no machine"
plan --preset moe-16l-tiny --cluster "$work/machine.json" --workload "$work/machine.json"
refused "a machine as a workload" 1 "no workload"
plan --preset moe-16l-tiny "${job[@]}" --output "$work/work.json"
refused "a file as the folder" 1 "cannot make the folder"
finish
