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
    --report "$report" --trace "$trace" --chunks 3 --min-chunk-tokens 4 --progress lines
  succeeds "run on $ranks ranks" || continue
  if grep -q $'\r' "$work/stdout" "$work/stderr"; then
    failed "a log has carriage returns"
  else
    passed
  fi
  json_check "report of $ranks ranks" "$report" "$sizes" "$work/results.jsonl" <<'EOF'
report, sizes, results = lines
ranks = report["ranks"]
assert report["options"]["chunks"] == "3" and report["transport"] in ("ialltoallv", "pairwise")
assert len(report["hosts"]) == 1 and len(report["host_of_rank"]) == ranks
assert report["backend"] and report["build"]["commit"] and report["basis"]

# Placement: every expert has one rank, and shares differ by one at most.
shares = report["layout"]["experts_per_rank"]
assert sum(shares) == 16 and max(shares) - min(shares) <= 1
assert [report["placement"]["rank_of_expert"].count(r) for r in range(ranks)] == shares

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
    own = [e for e in range(16) if report["placement"]["rank_of_expert"][e] == rank]
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
