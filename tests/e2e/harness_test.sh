#!/usr/bin/env bash
# The perf harness on a tiny sweep: what works is measured, what fails is recorded, what this machine
# cannot do is named; the report stands alone; comparing a result with itself finds no difference.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

build="$(cd "$(dirname "$ATOLL")/.." && pwd)"
[[ -x "$build/perf/layers_bench" ]] || {
  printf 'skipped: no %s (benchmarks are not built)\n' "$build/perf/layers_bench"
  exit 77
}
harness="$ATOLL_SOURCE/perf/harness"
compare="$ATOLL_SOURCE/perf/compare"
out="$work/out"

capture "$harness" "$ATOLL_SOURCE/perf/sweeps/tiny.toml" --build "$build" --output "$out"
succeeds "tiny sweep" || finish
if grep -q "^report .*report.html" "$work/stdout"; then passed; else failed "no path of the report"; fi

json_check "results" "$out/results.json" <<'CHECK'
(result,) = lines
cases = {case["id"]: case for case in result["cases"]}
states = sorted(case["status"] for case in cases.values())
assert states == ["failed", "not measured", "ok", "ok"], states
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
        assert abs(case["metrics"]["overlap_efficiency"]["of_medians"] - expected) < 1e-9
        detail = case["detail"]
        rows = detail["expert_rows_of_layer"]
        assert all(sum(layer) == 2 * 2 * 64 for layer in rows), rows  # ranks, top-k, tokens
        moved = detail["bytes_from_to"]
        assert moved[0][0] == moved[1][1] == 0 and moved[0][1] == moved[1][0] > 0, moved
        assert detail["busiest_link_bytes"] == moved[0][1]
        assert abs(sum(detail["share"]["overlapped"].values()) - 1) < 1e-6
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
# The same result with every overlapped step three times as long.
python3 - "$out/results.json" "$work/slower.json" <<'CHANGE'
import json, sys
result = json.load(open(sys.argv[1], encoding="utf-8"))
for case in result["cases"]:
    for metric, rounds in case["rounds"].items():
        if metric == "overlapped_s":
            case["rounds"][metric] = [[3 * value for value in values] for values in rounds]
json.dump(result, open(sys.argv[2], "w", encoding="utf-8"))
CHANGE
capture "$compare" "$out/results.json" "$work/slower.json"
if ((code == 1)) && grep -q "^slower .*overlapped" "$work/stdout"; then
  passed
else
  failed "three times as long is not slower (exit code $code)"
  show_output
fi

# A sweep that cannot be used is refused with the reason.
printf 'name = "x"\n[[grid]]\nprogram = "nothing"\n' >"$work/bad.toml"
capture "$harness" "$work/bad.toml" --output "$work/bad"
if ((code == 2)) && grep -q "no program 'nothing'" "$work/stderr"; then
  passed
else
  failed "a wrong sweep: exit code $code"
  show_output
fi
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
