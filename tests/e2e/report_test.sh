#!/usr/bin/env bash
# The report adds up, a rank reads its own experts only, the trace is made of the schedule's steps,
# and what a person sees in a log is plain lines.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

model="$work/model.h5"
import_sample "$model"
prompts="$ATOLL_SOURCE/jobs/sample-prompts.jsonl"
sizes="$work/sizes.json"
printf '{"model": %d}\n' "$(stat -c %s "$model")" >"$sizes"

for ranks in 1 3 16; do
  report="$work/report.$ranks.json"
  trace="$work/trace.$ranks.json"
  atoll_on "$ranks" run --model "$model" --input "$prompts" --output "$work/results.jsonl" \
    --report "$report" --trace "$trace" --status "$work/status.json" --chunks 3 --min-chunk-tokens 4 --progress lines
  succeeds "run on $ranks ranks" || continue
  if grep -q $'\r' "$work/stdout" "$work/stderr"; then
    failed "a log has carriage returns"
  else
    passed
  fi
  json_check "status at the end, $ranks ranks" "$work/status.json" "$report" "$work/results.jsonl" <<'EOF'
status, report, results = lines
assert status["state"] == "finished" and status["updated"].endswith("Z"), status
assert status["requests"] == {"read": len(results), "finished": len(results), "waiting": 0}, status
# Requests that met their stop token leave tokens undone.
tokens = status["tokens"]
assert 0 < tokens["done"] <= tokens["at_most"] and tokens["per_s"] > 0, tokens
assert status["passes"] == sum(phase["steps"] for phase in report["phases"].values()), status
busiest = status["balance"]["busiest_rank"]
assert report["balance"]["busiest_rank"] == busiest and report["balance"]["passes"] == status["passes"]
assert (busiest["rows_over_mean"] > 1) == (report["ranks"] > 1), busiest
assert status["balance"]["busiest_node"] is None
# Of the whole run, as the counts in the report are.
by_layer = {layer["layer"]: layer["tokens"] for layer in report["tokens_per_expert"]["by_layer"]}
assert status["hot_experts"], status
for hot in status["hot_experts"]:
    counts = by_layer[hot["layer"]]
    assert counts[hot["expert"]] == hot["tokens"], (hot, counts)
    assert abs(hot["over_mean"] - hot["tokens"] * len(counts) / sum(counts)) < 1e-9, (hot, counts)
    assert hot["over_mean"] >= 1.5
hottest = [{key: hot[key] for key in ("layer", "expert", "over_mean")} for hot in status["hot_experts"]]
assert hottest == report["tokens_per_expert"]["hottest"], report["tokens_per_expert"]["hottest"]
EOF
  json_check "report of $ranks ranks" "$report" "$sizes" "$work/results.jsonl" <<'EOF'
report, sizes, results = lines
ranks = report["ranks"]
assert report["options"]["chunks"] == "3" and report["schedule"]["chunks_at_most"] == 3
assert report["transport"] in ("ialltoallv", "pairwise")
assert len(report["hosts"]) == 1 and len(report["host_of_rank"]) == ranks
assert report["backend"] and report["build"]["commit"] and report["basis"]

# Placement: every expert has one rank, and shares differ by one at most.
placement = report["placement"]
for layer in placement["layers"]:
    assert all(len(holders) == 1 for holders in layer["ranks_of_expert"])
rank_of_expert = [holders[0] for holders in placement["layers"][0]["ranks_of_expert"]]
shares = [rank_of_expert.count(r) for r in range(ranks)]
assert sum(shares) == 16 and max(shares) - min(shares) <= 1
assert placement["most_experts_of_a_layer_on_a_rank"] == max(shares)
assert placement["one_expert_per_rank"] == (ranks == 16)

# Ways: every pass ran in one of them.
assert sum(way["passes"] for way in report["ways"]) + 1 >= sum(
    phase["steps"] for phase in report["phases"].values())
assert all(way["route"] == "flat" and 1 <= way["chunks"] <= 3 for way in report["ways"])

# Phases: shares of the passes' time add up to all of it.
phases = report["phases"]
for name in ("prefill", "decode"):
    phase = phases[name]
    assert abs(sum(phase["share"].values()) - 1) < 1e-6, phase["share"]
    assert all(0 <= share <= 1 for share in phase["share"].values()), phase["share"]
    assert phase["tokens_per_s"] > 0 and phase["wall_s"] > 0
    overlap = phase["overlapped_share"]
    assert overlap is None or 0 <= overlap <= 1
written = sum(phase["new_tokens"] for phase in phases.values())
# The stop token itself was generated and is not among the tokens of the result.
stops = sum(result["finish_reason"] == "stop" for result in results)
assert written == sum(len(result["tokens"]) for result in results) + stops, written

# Experts: each processed token goes to two of them in every MoE layer.
processed = sum(phase["processed_tokens"] for phase in phases.values())
by_layer = report["tokens_per_expert"]["by_layer"]
assert [layer["layer"] for layer in by_layer] == list(range(1, 8))
for layer in by_layer:
    assert len(layer["tokens"]) == 16 and sum(layer["tokens"]) == 2 * processed, layer
totals = report["tokens_per_expert"]["total"]
assert totals == [sum(layer["tokens"][e] for layer in by_layer) for e in range(16)]
assert sum(rank["expert_rows"] for rank in report["per_rank"]) == sum(totals)
for rank, numbers in enumerate(report["per_rank"]):
    own = [e for e in range(16) if rank_of_expert[e] == rank]
    assert numbers["expert_rows"] == sum(totals[e] for e in own), rank

# Bytes: rows of 192 BF16 values; what goes out comes back; nothing to oneself.
moved = report["bytes_from_to"]
assert len(moved) == ranks and all(len(row) == ranks for row in moved)
assert all(moved[r][r] == 0 for r in range(ranks))
assert all(moved[a][b] == moved[b][a] for a in range(ranks) for b in range(ranks))
assert sum(map(sum, moved)) % (2 * 384) == 0
assert report["bytes_inside_nodes"] == sum(map(sum, moved)) and report["bytes_between_nodes"] == 0
assert ranks == 1 or sum(map(sum, moved)) > 0
waits = report["wait_s_by_for"]
assert len(waits) == ranks and all(len(row) == ranks and min(row) >= 0 for row in waits)

# Lean: a rank reads the replicated part and its own experts (7 layers of 3 matrices), not the rest.
expert_bytes = 7 * 3 * 192 * 128 * 2
replicated = sizes["model"] - 16 * expert_bytes
for share, numbers in zip(shares, report["per_rank"]):
    assert numbers["model_bytes_read"] <= replicated + share * expert_bytes, numbers
    assert numbers["model_bytes_read"] >= share * expert_bytes, numbers
EOF
  json_check "trace of $ranks ranks" "$trace" "$report" <<'EOF'
import re
trace, report = lines
events = trace["traceEvents"]
steps = [event for event in events if event["ph"] == "X"]
layer_step = r"L[0-7] c[0-2] (attention|mlp|route|counts|dispatch|experts|combine|merge)"
for event in steps:
    assert re.fullmatch(layer_step + r"|c[0-2] (embed|head)", event["name"]), event
    assert event["dur"] >= 0 and 0 <= event["pid"] < report["ranks"], event
assert {event["pid"] for event in steps} == set(range(report["ranks"]))
kinds = {event["name"].split()[-1] for event in steps}
assert kinds >= {"embed", "attention", "mlp", "route", "experts", "merge", "head"}, kinds
assert report["ranks"] == 1 or kinds >= {"counts", "dispatch", "combine"}, kinds
names = {(e["pid"], e["tid"]) for e in events if e["ph"] == "M" and e["name"] == "thread_name"}
assert {(event["pid"], event["tid"]) for event in steps} <= names
# One track runs one step at a time.
for track in names:
    own = sorted((e["ts"], e["dur"]) for e in steps if (e["pid"], e["tid"]) == track)
    assert all(a[0] + a[1] <= b[0] + 1 for a, b in zip(own, own[1:])), track
EOF
done

# Two hops: rows go to a node once, and what that saves is counted in whole numbers.
report="$work/report.nodes.json"
trace="$work/trace.nodes.json"
atoll_on 6 run --model "$model" --input "$prompts" --output "$work/results.jsonl" --report "$report" \
  --trace "$trace" --route nodes --node-ranks 2 --chunks 2 --min-chunk-tokens 4 --progress none
succeeds "run by two hops"
json_check "report of two hops" "$report" <<'EOF'
(report,) = lines
exchange = report["exchange"]
sent = exchange["sent"]
assert exchange["row_bytes"] == 384 and sent["flat"] == {"rows": 0, "bytes": 0}, sent
assert all(way["route"] == "nodes" for way in report["ways"])
# Nodes of two ranks each; the links are those of the machine, which is one node.
moved = report["bytes_from_to"]
node = [rank // 2 for rank in range(6)]
across = sum(moved[a][b] for a in range(6) for b in range(6) if node[a] != node[b])
inside = sum(moved[a][b] for a in range(6) for b in range(6) if node[a] == node[b])
assert across == report["bytes_between_nodes"] == sent["between_nodes"]["bytes"]
assert inside == report["bytes_inside_nodes"] == sent["inside_nodes"]["bytes"] == 384 * sent["inside_nodes"]["rows"]
# Along the rails alone: the same place on every node.
assert all(moved[a][b] == 0 for a in range(6) for b in range(6) if node[a] != node[b] and a % 2 != b % 2)
flat, least = exchange["flat_would"], exchange["one_row_per_token_and_node"]
assert exchange["measured"]["bytes_between_nodes"] == across
for measure in ("bytes_between_nodes", "busiest_link_bytes"):
    assert least[measure] % 384 == 0 and flat[measure] % 384 == 0
    assert 0 < least[measure] < flat[measure], (least, flat)
# On the way out each row has a tail of 16 bytes for two experts; the way back has no more rows than flat's.
out_rows = least["bytes_between_nodes"] // 768
back_rows = sent["between_nodes"]["rows"] - out_rows
assert across == out_rows * (384 + 16) + back_rows * 384
assert out_rows <= back_rows <= flat["bytes_between_nodes"] // 768
EOF
json_check "trace of two hops" "$trace" <<'EOF'
(trace,) = lines
events = trace["traceEvents"]
steps = [event for event in events if event["ph"] == "X"]
kinds = {event["name"].split()[-1] for event in steps}
assert kinds >= {"across-counts", "across-dispatch", "counts", "regroup", "dispatch", "experts", "combine", "fold",
                 "across-combine", "merge"}, kinds
for track in {(event["pid"], event["tid"]) for event in steps}:
    own = sorted((e["ts"], e["dur"]) for e in steps if (e["pid"], e["tid"]) == track)
    assert all(a[0] + a[1] <= b[0] + 1 for a, b in zip(own, own[1:])), track
EOF

# Perplexity in the report and in the table is that of the results.
atoll_on 2 run --model "$model" --input "$ATOLL_SOURCE/tests/data/heldout.jsonl" --mode score \
  --output "$work/results.jsonl" --report "$work/report.json" --progress none
succeeds "score"
if grep -q "perplexity" "$work/stdout"; then passed; else failed "no perplexity in the table"; fi
if grep -E '^atoll|tokens/s' "$work/stderr"; then failed "--progress none writes to stderr"; else passed; fi
json_check "perplexity" "$work/report.json" "$work/results.jsonl" <<'EOF'
report, results = lines
values = [p for result in results for p in result["prompt_logprobs"][1:]]
expected = math.exp(-sum(values) / len(values))
assert report["score"]["tokens"] == len(values)
assert abs(report["score"]["perplexity"] - expected) < 1e-4 * expected, (report["score"], expected)
EOF
finish
