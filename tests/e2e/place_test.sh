#!/usr/bin/env bash
# `atoll place`: a placement from recorded routing and from a trace. A run takes it and gives the same
# bytes; the figures in it are what the tokens say; the file is the same for any number of threads. What
# cannot be is refused.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

# cluster NODES RANKS FILE: a cluster file by hand.
cluster() {
  python3 - "$@" <<'PYTHON'
import json, sys

nodes, ranks, path = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
json.dump({"format": "atoll-cluster", "format_version": 1, "links": {"inside_node": None, "between_nodes": None},
           "nodes": [{"name": f"n{i}", "ranks": ranks} for i in range(nodes)]}, open(path, "w"))
PYTHON
}
# says WHAT FIXED-TEXT: the last command's output has it.
says() {
  if grep -qF -- "$2" "$work/stdout"; then
    passed
  else
    failed "$1: nothing says '$2'"
    show_output
  fi
}
place() { capture "$ATOLL" place "$@"; }

model="$work/model.h5"
import_sample "$model"
requests="$work/requests.jsonl"
head -n 8 "$ATOLL_SOURCE/jobs/sample-prompts.jsonl" >"$requests"
cluster 2 4 "$work/2x4.json"
cluster 4 4 "$work/4x4.json"
cluster 1 2 "$work/1x2.json"

# run_of RANKS NAME OPTION...
run_of() {
  local ranks="$1" name="$2"
  shift 2
  atoll_on "$ranks" run --model "$model" --input "$requests" --output "$work/$name.jsonl" \
    --report "$work/$name.report.json" --max-tokens 8 "$@"
}

# A recorded file names the model's layers; a run takes the placement, and no byte changes.
run_of 4 plain --record-routing "$work/routing.h5"
succeeds "a recorded run"
place --routing "$work/routing.h5" --cluster "$work/2x4.json" --output "$work/placed.json"
succeeds "a placement from a recorded run"
says "its table" "held out"
run_of 8 placed --node-ranks 4 --route nodes --placement "$work/placed.json"
succeeds "a run by the placement"
same "the results of a placed run" "$work/plain.jsonl" "$work/placed.jsonl"
place --routing "$work/routing.h5" --cluster "$work/2x4.json" --output "$work/replicas.json" --slots 3
succeeds "a placement with replicas"
run_of 8 replicas --node-ranks 4 --placement "$work/replicas.json"
succeeds "a run with its replicas"
same "the results with replicas" "$work/plain.jsonl" "$work/replicas.jsonl"
place --routing "$work/routing.h5" --cluster "$work/1x2.json" --output "$work/one-node.json"
succeeds "a placement on one node"
says "that there are no links" "no link is crossed"

# A trace of 16 experts whose busy ones are neighbours: contiguous order is bad, the best is known.
python3 - "$work" <<'PYTHON'
import json, random, struct, sys

random.seed(5)
tokens, layers = 1200, 3
rows = []
for token in range(tokens):
    for layer in range(layers):
        a = random.choice([0, 1, 2, 3]) if random.random() < 0.7 else random.randrange(16)
        b = random.choice([e for e in range(16) if e != a])
        rows += [a, b]
header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({tokens}, {layers}, 2), }}"
header += " " * (-(len(header) + 11) % 64) + "\n"
with open(f"{sys.argv[1]}/trace.npy", "wb") as file:
    file.write(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + bytes(rows))
json.dump(rows, open(f"{sys.argv[1]}/rows.json", "w"))
PYTHON
place --routing "$work/trace.npy" --cluster "$work/4x4.json" --output "$work/a.json" --threads 1 --first-layer 1
succeeds "a placement from a trace"
place --routing "$work/trace.npy" --cluster "$work/4x4.json" --output "$work/b.json" --threads 3 --first-layer 1
succeeds "the same by three threads"
same "the placement of one and of three threads" "$work/a.json" "$work/b.json"
json_check "figures are what the tokens say" "$work/a.json" "$work/rows.json" <<'PYTHON'
file, rows = lines
figures = file["figures"]
assert list(file["layers"]) == ["1", "2", "3"] == list(figures["layers"]), file["layers"].keys()
tokens, layers = len(rows) // 6, 3
for layer in range(layers):
    ranks = file["layers"][str(layer + 1)]
    assert sorted(r for of_expert in ranks for r in of_expert) == list(range(16)), ranks
    for part, (first, end) in (("made_from", (0, tokens // 2)), ("held_out", (tokens // 2, tokens))):
        found = figures["layers"][str(layer + 1)][part]
        for name, node in (("contiguous", lambda e: e // 4), ("placed", lambda e: ranks[e][0] // 4)):
            there, back, rank = [0] * 4, [0] * 4, [0] * 16
            for t in range(first, end):
                chosen = rows[6 * t + 2 * layer:6 * t + 2 * layer + 2]
                on = [node(e) for e in chosen]
                for n in set(on):
                    there[n] += 1
                    back[n] += 1 if on.count(n) in (1, 2) else 0
                for e in chosen:
                    rank[e] += 1
            assert found["busiest_node"][name] == max(there), (name, there, found)
            link = max(0.75 * (a + b) for a, b in zip(there, back))
            assert abs(found["busiest_link"][name] - link) < 1e-6 * link, (name, link, found)
            assert found["busiest_rank"][name] == max(rank), (name, rank, found)
        for kind in found.values():
            assert 0 < kind["bound"] <= min(kind["placed"], kind["contiguous"]) * (1 + 1e-9), found
    link = figures["layers"][str(layer + 1)]["made_from"]["busiest_link"]
    assert link["limit"] == "exact" and link["contiguous"] > 1.6 * link["placed"], link
    assert abs(link["placed"] - link["bound"]) < 1e-6 * link["bound"], link
sums = figures["sums"]
assert sums["held_out"]["busiest_link"]["gain"] > 1.4, sums
PYTHON
place --routing "$work/trace.npy" --cluster "$work/4x4.json" --output "$work/flat.json" --route flat \
  --top-k 1 --holdout 0 --experts 32 --slots 2
succeeds "other options"
if grep -q 'held out  ' "$work/stdout"; then failed "figures of held out tokens that are not there"; else passed; fi

# What cannot be is refused, in one message.
place --routing "$work/nowhere.npy" --cluster "$work/4x4.json" --output "$work/x.json"
refused "no routing" 1 "nowhere.npy"
place --routing "$requests" --cluster "$work/4x4.json" --output "$work/x.json"
refused "requests as routing" 1 "requests.jsonl"
place --routing "$work/trace.npy" --cluster "$work/nowhere.json" --output "$work/x.json"
refused "no cluster" 1 "nowhere.json.*check --cluster"
place --routing "$work/trace.npy" --cluster "$requests" --output "$work/x.json"
refused "requests as a cluster" 1 "not a cluster file"
place --routing "$work/trace.npy" --cluster "$work/4x4.json" --output "$work/x.json" --top-k 3
refused "more experts than a token has" 1 "2 experts for a token.*--top-k 3"
place --routing "$work/trace.npy" --cluster "$work/1x2.json" --output "$work/x.json" --slots 7
refused "a cluster that is too small" 1 "16 experts do not fit"
place --routing "$work/trace.npy" --cluster "$work/4x4.json" --output "$work/nowhere/x.json"
refused "an output nowhere" 1 "nowhere/x.json"
place --routing "$work/trace.npy" --cluster "$work/4x4.json" --output "$work/x.json" --experts 9
refused "fewer experts than are named" 1 "there are 9"
place --routing "$work/routing.h5" --cluster "$work/2x4.json" --output "$work/x.json" --experts 9
refused "other experts than are recorded" 1 "leave that away"
place --routing "$work/trace.npy" --cluster "$work/4x4.json" --output "$work/x.json" --holdout 1
refused "nothing to make it from" 2 "holdout"
place --cluster "$work/4x4.json" --output "$work/x.json"
refused "no routing named" 2 "--routing is required"
place --routing "$work/trace.npy" --cluster "$work/4x4.json" --output "$work/trace.npy"
refused "an output over the routing" 2 "same file"
printf '\x93NUMPY\x01\x00\x46\x00%-69s\n' "{'descr': '|u1', 'fortran_order': False, 'shape': (4, 2), }" >"$work/flat.npy"
printf 'abcdefgh' >>"$work/flat.npy"
place --routing "$work/flat.npy" --cluster "$work/4x4.json" --output "$work/x.json"
refused "a trace of another shape" 1 "flat.npy"
[[ ! -e "$work/x.json" && ! -e "$work/x.json.partial" ]] || failed "a refused placement left a file"
finish
