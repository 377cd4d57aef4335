#!/usr/bin/env bash
# The perf harness on a tiny sweep: what works is measured, what fails is recorded, what this machine
# cannot do is named; the report stands alone; comparing a result with itself finds no difference.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

need_benchmarks
unset UCX_TCP_PUT_ENABLE # what the harness chooses is looked at
harness="$ATOLL_SOURCE/perf/harness"
compare="$ATOLL_SOURCE/perf/compare"
out="$work/out"

capture "$harness" "$ATOLL_SOURCE/perf/sweeps/tiny.toml" --build "$build" --output "$out"
succeeds "tiny sweep" || finish
if grep -q "^report .*report.html" "$work/stdout"; then passed; else failed "no path of the report"; fi

json_check "results" "$out/results.json" <<'CHECK'
(result,) = lines
assert result["declared"]["environment"]["UCX_TCP_PUT_ENABLE"] == "n", result["declared"]
cases = {case["id"]: case for case in result["cases"]}
states = sorted(case["status"] for case in cases.values())
assert states == ["failed", "not measured", "ok", "ok", "ok"], states
for case in cases.values():
    if case["status"] == "not measured":
        assert "two nodes" in case["reason"], case
    if case["status"] == "failed":  # recorded in every round, with the program's own words
        assert len(case["runs"]) == result["rounds"], case["runs"]
        assert all(run["code"] != 0 and run["error"] for run in case["runs"])
        assert "1 experts" in case["reason"], case["reason"]
    if case["status"] == "ok":
        for key in ("compute_s", "communication_s", "overlapped_s", "serial_s"):
            metric = case["metrics"][key]
            assert 0 < metric["low"] <= metric["median"] <= metric["high"], metric
            assert metric["n"] == 2 * result["rounds"], metric
        a, b, c = (case["metrics"][k]["median"]
                   for k in ("compute_s", "communication_s", "overlapped_s"))
        expected = (a + b - c) / min(a, b)
        efficiency = case["metrics"]["overlap_efficiency"]
        assert abs(efficiency["of_medians"] - expected) < 1e-9
        # Three rounds: with an interval, which unit.harness_figures checks on known numbers.
        assert "of_medians_low" in efficiency and "of_medians_high" in efficiency, efficiency
        assert all(0 <= share <= 1 for values in case["rounds"]["cores_busy_overlapped"]
                   for share in values), case["rounds"]
        detail = case["detail"]
        rows = detail["expert_rows_of_layer"]
        top_k = case["options"].get("top_k", 2)
        assert all(sum(layer) == 2 * top_k * 64 for layer in rows), rows  # ranks, top-k, tokens
        moved = detail["bytes_from_to"]
        assert moved[0][0] == moved[1][1] == 0 and moved[0][1] == moved[1][0] > 0, moved
        assert detail["busiest_link_bytes"] == moved[0][1]
        assert abs(sum(detail["share"]["overlapped"].values()) - 1) < 1e-6
CHECK

if grep -q '^Environment of all programs.*UCX_TCP_PUT_ENABLE=n' "$out/summary.md"; then
  passed
else
  failed "the summary does not say the environment"
fi

# With matplotlib every picture is drawn; what they show is put together by functions that are
# checked also without it.
if grep -q 'no matplotlib' "$out/summary.md"; then
  printf 'left out: the pictures (no matplotlib here)\n'
else
  for picture in timeline breakdown overlap-efficiency bytes-matrix roofline; do
    if [[ -s "$out/$picture.png" && -s "$out/$picture.svg" ]] &&
      grep -q "<figure id=\"$picture\"" "$out/report.html"; then
      passed
    else
      failed "no picture $picture: $(grep 'no plots' "$out/summary.md" || true)"
    fi
  done
fi
json_check "what pictures show" "$out/results.json" <<CHECK
sys.path.insert(0, "$ATOLL_SOURCE/perf")
from harness_lib.plots import overlap, steps, style, traffic
(result,) = lines
base = next(case for case in result["cases"] if case["status"] == "ok")
def case(nodes, ranks, **options):
    place = dict(nodes=nodes, ranks=ranks, rate="1gbit" if nodes > 1 else None)
    return {**base, **place, "id": f"{nodes} {ranks} {options}",
            "options": {**base["options"], **options}}
# A curve joins equal numbers of hosts, or of ranks per host; nothing else, and nothing is lost.
entries = [case(2, 2), case(2, 4), case(4, 4), case(4, 8), case(1, 4), case(1, 4, experts=8)]
found = {kind: [(e["nodes"], r) for r, e in sorted(by.items())]
         for (kind, _), by in overlap.series_of(entries).items()}
assert found == {"2 hosts": [(2, 2), (2, 4)], "4 hosts": [(4, 4), (4, 8)],
                 "1 rank per host": [(2, 2), (4, 4)],
                 "2 ranks per host": [(2, 4), (4, 8)]}, found
names = style.names(entries)
assert len(set(names.values())) == len(entries), names
moved = style.spread([0.9, 0.8, 0.1], 0.2)  # labels that would overlap
assert [round(x, 6) for x in moved] == [0.95, 0.75, 0.1], moved
def event(pid, tid, ts, dur):
    return {"pid": pid, "tid": tid, "ts": ts, "dur": dur}
events = [event(0, 0, 0, 2), event(0, 0, 1, 3), event(0, 1, 2, 4), event(0, 2, 9, 1)]
assert steps.hidden_arithmetic(events, 1) == (0.4, 0.5)  # 0 to 4 of 10, and 2 to 4 of that
# A hot rank that moves is seen layer by layer, though the whole step is even.
entry = {"detail": {"dispatched_bytes_to_of_layer": [[3, 1], [1, 3]]}, "id": "x"}
assert traffic.skews(entry) == (1.5, 1.0)
assert "whole step hides (1.00)" in traffic.finding_of([entry], {"x": "rotating"})
CHECK

# Self-contained: nothing is fetched. Plots are there, or the reason why not.
if grep -qE '(src|href)="?https?:|@import|url\(' "$out/report.html"; then
  failed "the report refers to the network"
else
  passed
fi
if grep -qE 'data:image/png;base64|no matplotlib' "$out/report.html"; then
  passed
else
  failed "the report has neither plots nor a word on why"
fi

capture "$compare" "$out/results.json" "$out/results.json"
succeeds "comparison of a result with itself" || true
if grep -q "^no difference in" "$work/stdout"; then passed; else failed "A differs from A"; fi
# What is compared below has steady times, since a busy machine's may spread by more than any change:
# the same result with every overlapped step three times as long.
python3 - "$out/results.json" "$work/steady.json" "$work/slower.json" <<'CHANGE'
import json, sys
result = json.load(open(sys.argv[1], encoding="utf-8"))
for case in result["cases"]:
    for metric, rounds in case["rounds"].items():
        case["rounds"][metric] = [[1 + 0.01 * i + 0.001 * j for j, _ in enumerate(values)]
                                  for i, values in enumerate(rounds)]
json.dump(result, open(sys.argv[2], "w", encoding="utf-8"))
for case in result["cases"]:
    for metric, rounds in case["rounds"].items():
        if metric == "overlapped_s":
            case["rounds"][metric] = [[3 * value for value in values] for values in rounds]
json.dump(result, open(sys.argv[3], "w", encoding="utf-8"))
CHANGE
capture "$compare" "$work/steady.json" "$work/slower.json"
if ((code == 1)) && grep -q "^slower .*overlapped" "$work/stdout"; then
  passed
else
  failed "three times as long is not slower (exit code $code)"
  show_output
fi

# What is higher where more is better, what was lost, and what was asked for otherwise.
python3 - "$work/steady.json" "$work/lower.json" "$work/lost.json" <<'CHANGE'
import copy, json, sys
result = json.load(open(sys.argv[1], encoding="utf-8"))
lower, lost = copy.deepcopy(result), copy.deepcopy(result)
for case in lower["cases"]:
    for metric, rounds in case["rounds"].items():
        if metric == "overlap_efficiency":
            case["rounds"][metric] = [[value - 50 for value in values] for values in rounds]
        elif metric == "tokens_per_s" or metric.startswith("link_use_"):
            case["rounds"][metric] = [[value / 50 for value in values] for values in rounds]
    case["options"]["top_k"] = 1
measured = [case for case in lost["cases"] if case["status"] == "ok"]
measured[0].update(status="failed", rounds={}, metrics={})
json.dump(lower, open(sys.argv[2], "w", encoding="utf-8"))
json.dump(lost, open(sys.argv[3], "w", encoding="utf-8"))
CHANGE
capture "$compare" "$work/steady.json" "$work/lower.json"
for metric in overlap_efficiency tokens_per_s link_use_communication link_use_overlapped; do
  if ((code == 1)) && grep -q "^lower .*: $metric$" "$work/stdout"; then
    passed
  else
    failed "a lower $metric is not seen (exit code $code)"
    show_output
  fi
done
if grep -q '^options differ.* top_k None, then 1' "$work/stdout"; then passed; else failed "options"; fi
capture "$compare" "$work/steady.json" "$work/lost.json"
if ((code == 1)) && grep -q '^1 measured in A' "$work/stdout"; then passed; else failed "a lost case"; fi
for content in '[]' '{' '{"format": "atoll-perf"}' '{"format": "atoll-perf", "machine": {}, "rounds": 1,
  "cases": [{"id": "x", "status": "ok", "options": {}, "metrics": {}, "runs": [],
             "rounds": {"step_s": [[0]]}}]}'; do
  printf '%s' "$content" >"$work/garbage.json"
  capture "$compare" "$out/results.json" "$work/garbage.json"
  if ((code == 2)) && [[ "$(wc -l <"$work/stderr")" == 1 ]]; then
    passed
  else
    failed "no message for $content"
    show_output
  fi
done

# Added to: other cases stay; other options of the same case are refused. An old result has neither
# the environment nor the cores' share.
cp -r "$out" "$work/added"
python3 - "$work/added/results.json" <<'CHANGE'
import json, sys
result = json.load(open(sys.argv[1], encoding="utf-8"))
del result["declared"]["environment"]
for case in result["cases"]:
    for kind in ("rounds", "metrics"):
        case[kind] = {key: value for key, value in case[kind].items() if "busy" not in key}
json.dump(result, open(sys.argv[1], "w", encoding="utf-8"))
CHANGE
capture "$harness" "$ATOLL_SOURCE/perf/sweeps/tiny.toml" --build "$build" --output "$work/added" \
  --append --only uniform --rounds 1
succeeds "one more round of one case" || true
json_check "appended results" "$out/results.json" "$work/added/results.json" <<'CHECK'
before, after = ({case["id"]: case for case in result["cases"]} for result in lines)
assert set(before) == set(after), set(after)
for name, case in before.items():
    more = 1 if "uniform" in name else 0
    assert len(after[name]["runs"]) == len(case["runs"]) + more, name
    if case["status"] == "ok":
        assert len(after[name]["rounds"].get("cores_busy_overlapped", [])) == more, name
assert "environment" not in lines[1]["declared"], lines[1]["declared"]  # unknown of the first rounds
CHECK
if grep -q 'for MPI: not recorded' "$work/added/summary.md"; then passed; else failed "environment"; fi
code=0
UCX_TCP_PUT_ENABLE=y "$harness" "$ATOLL_SOURCE/perf/sweeps/tiny.toml" --build "$build" \
  --output "$out" --append --only uniform --rounds 1 >"$work/stdout" 2>"$work/stderr" || code=$?
if ((code == 2)) &&
  grep -q "environment: .*UCX_TCP_PUT_ENABLE=n.*, then .*UCX_TCP_PUT_ENABLE=y" "$work/stderr"; then
  passed
else
  failed "rounds in another environment were added (exit code $code)"
  show_output
fi
sed 's/^tokens = .*/tokens = 128/' "$ATOLL_SOURCE/perf/sweeps/tiny.toml" >"$work/other.toml"
capture "$harness" "$work/other.toml" --build "$build" --output "$work/added" --append --rounds 1
if ((code == 2)) && grep -q "options differ .*tokens 64, then 128" "$work/stderr"; then
  passed
else
  failed "rounds with other options were added (exit code $code)"
  show_output
fi

# Stopped in its second round: what was measured is kept and reported.
"$harness" "$ATOLL_SOURCE/perf/sweeps/tiny.toml" --build "$build" --output "$work/stopped" \
  --only uniform --rounds 1000 >"$work/stopped.txt" 2>&1 &
stopped=$!
for _ in {1..600}; do
  if grep -q '^round 2 ' "$work/stopped.txt"; then break; fi
  sleep 0.1
done
kill -TERM "$stopped"
code=0
wait "$stopped" || code=$?
if ((code == 143)); then passed; else failed "stopped: exit code $code"; fi
json_check "results of a sweep that was stopped" "$work/stopped/results.json" <<'CHECK'
(result,) = lines
(case,) = result["cases"]
assert case["status"] == "ok" and 1 <= len(case["rounds"]["overlapped_s"]) < 1000, case["runs"]
assert any("interrupted" in note for note in result["notes"]), result["notes"]
CHECK
if [[ -s "$work/stopped/report.html" ]]; then passed; else failed "no report of a stopped sweep"; fi

# A sweep that cannot be used is refused with the reason.
printf 'name = "x"\n[[grid]]\nprogram = "nothing"\n' >"$work/bad.toml"
capture "$harness" "$work/bad.toml" --output "$work/bad"
if ((code == 2)) && grep -q "no program 'nothing'" "$work/stderr"; then
  passed
else
  failed "a wrong sweep: exit code $code"
  show_output
fi
for line in 'rounds = "three"' 'rounds = 0' 'launcher = "srun"' '[[grid]]|mpi = "x"' '[grid]'; do
  printf '%s\n' "${line//|/$'\n'}" >"$work/bad.toml"
  [[ "$line" == *grid* ]] || printf '[[grid]]\n' >>"$work/bad.toml"
  [[ "$line" != '[grid]' ]] || printf 'ranks = 2\n' >>"$work/bad.toml"
  capture "$harness" "$work/bad.toml" --output "$work/bad"
  if ((code == 2)) && [[ "$(wc -l <"$work/stderr")" == 1 ]]; then
    passed
  else
    failed "a sweep with $line: exit code $code"
    show_output
  fi
done
# More ranks than the cores can bear: named, not run.
printf 'name = "x"\nranks_per_core = 1\n[[grid]]\nranks = 4096\n' >"$work/many.toml"
capture "$harness" "$work/many.toml" --build "$build" --output "$work/many"
if ((code == 1)) && grep -q "waiting for cores" "$work/stdout"; then
  passed
else
  failed "too many ranks: exit code $code"
  show_output
fi
finish
