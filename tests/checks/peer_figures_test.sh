#!/usr/bin/env bash
# What perf/peers/engines.py works out of measurements, on constructed ones whose figures are known.
# Argument: the repository (default: the one this script is in).
set -euo pipefail
cd "${1:-$(dirname "${BASH_SOURCE[0]}")/../..}"

command -v python3 >/dev/null || {
  printf 'skipped: no python3 here\n'
  exit 77
}
PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=perf/peers python3 - <<'CHECKS'
from engines_lib import shapes, table


def near(found, expected):
    assert abs(found - expected) < 1e-9 * max(1, abs(expected)), (found, expected)


# Experts that tokens need: one token takes top_k of them whatever the routing, many take all that are
# taken at all, and two of four equal experts by two tokens are 1 - (1/2)^2 of each.
near(shapes.experts_hit([5, 3, 1, 1], 2, 1), 2 * 0.9 + 0.2)  # a share above 1 is cut to 1
near(shapes.experts_hit([4, 4, 4, 4], 2, 1), 2)
near(shapes.experts_hit([4, 4, 4, 4], 2, 2), 3)
near(shapes.experts_hit([1, 1, 0, 0], 1, 1000), 2)

# Passes: 6000 prompt tokens are three, the head sees only the last token of each prompt, and each
# decode step reads one position more of every sequence.
steps = shapes.steps_of("d")
assert steps["prefill"] == [(2048, 0, 0), (2048, 0, 0), (1904, 2, 0)], steps
assert steps["decode"][0] == (2, 2, 6002) and len(steps["decode"]) == 32, steps
assert shapes.steps_of("a")["decode"] == []

# One layer, counted by hand: attention 2 * 8 * 4 * (2 + 1) values, router 8 * 4, expert 3 * 8 * 16,
# head 8 * 10, keys and values 2 * 4 a position.
size = {"hidden": 8, "layers": 1, "heads": 2, "kv_heads": 1, "head_dim": 4, "experts": 4, "top_k": 2,
        "inner": 16, "vocab": 10}
num_bytes, operations = shapes.work_of_step(size, [[1, 1, 1, 1]], 1, 1, 5)
near(num_bytes, 2 * (192 + 32 + 2 * 384 + 80 + 5 * 8))
near(operations, 2 * (192 + 32 + 2 * 384 + 80))
routing = [[1, 1, 1, 1]]
# With endless GEMMs memory decides, with endless memory the GEMMs.
reads = shapes.floor_seconds(size, "b", "decode", routing, 1.0, 1e30)
near(reads, sum(2 * (192 + 32 + 768 + 80 + 8 * (32 + step)) for step in range(1, 129)))
near(shapes.floor_seconds(size, "b", "decode", routing, 1e30, 2.0), 128 * (192 + 32 + 768 + 80))


def result(firsts, logprobs):
    return {"tokens": [[first, 0] for first in firsts], "logprobs": [[one, 0] for one in logprobs]}


exact = {"b": result([7, 8, 9, 10], [-1.0, -1.0, -1.0, -1.0])}
same = table.agreement(exact, {"b": result([7, 8, 9, 1], [-1.1, -1.0, -0.9, -5.0])})
assert same["agrees"] and (same["equal"], same["of"]) == (3, 4), same
near(same["mean"], 0.2 / 3)
near(same["largest"], 0.1)
assert not table.agreement(exact, {"b": result([7, 1, 1, 1], [-1.0] * 4)})["agrees"]
assert not table.agreement(exact, {"b": result([7, 8, 9, 10], [-2.0] * 4)})["agrees"]
assert not table.agreement(exact, {"b": result([1, 1, 1, 1], [-1.0] * 4)})["agrees"]


def run(engine, prefill_s, decode_s, workload="b"):
    return {"workload": workload, "engine": engine, "note": "", "prefill_s": prefill_s, "prefill_tokens": 32,
            "decode_s": decode_s, "decode_tokens": 128, "peak_bytes": 2e9, "foreign_cores": 0.5}


# Atoll's faster layout is compared, by medians; the fastest peer of each phase is bold.
runs = [run("ranks", 1, s) for s in (2, 4, 1)] + [run("threads", 2, 8)]
runs += [run("one", 4, 1), run("two", 0.5, 4)]
facts = {"workloads": ["b"], "size": size, "tokens_by_layer": {"b": routing}, "bandwidth": 1e4,
         "gemm_rate": 1e30}
rows = [[cell.strip() for cell in line.strip("|").split("|")]
        for line in table.markdown(runs, facts, ["ranks", "threads"], ["one", "two"]).splitlines()[2:]]
assert [row[1] for row in rows] == ["ranks", "threads", "one", "two"], rows
assert rows[0][2] == "3" and rows[0][6] == "64.0 [32.0, 128.0]", rows[0]
assert rows[2][5] == "4.00" and rows[2][8] == "**0.50**", rows[2]
assert rows[3][5] == "**0.50**" and rows[3][8] == "2.00", rows[3]
assert rows[2][6] == "**128.0 [128.0, 128.0]**" and rows[3][3].startswith("**"), rows
assert rows[0][7] == f"{reads / 1e4 / 2:.2f}", (rows[0], reads)
# A workload without decoding has none in the table.
alone = [dict(run("ranks", 1, 0, "a"), decode_tokens=0), dict(run("one", 1, 0, "a"), decode_tokens=0)]
facts.update(workloads=["a"], tokens_by_layer={"a": routing})
row = table.markdown(alone, facts, ["ranks"], ["one"]).splitlines()[-1]
assert row.split("|")[7:10] == [" - "] * 3, row
CHECKS
printf 'the figures of constructed comparisons are right\n'
