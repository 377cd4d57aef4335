#!/usr/bin/env bash
# What perf/harness works out of measurements, on constructed ones whose figures are known exactly.
# Argument: the repository (default: the one this script is in).
set -euo pipefail
cd "${1:-$(dirname "${BASH_SOURCE[0]}")/../..}"

command -v python3 >/dev/null || {
  printf 'skipped: no python3 here\n'
  exit 77
}
python=python3
if ! python3 -c 'import matplotlib' 2>/dev/null && [[ -x /usr/bin/python3 ]]; then
  python=/usr/bin/python3 # Debian's packages belong to it
fi
PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=perf "$python" - <<'CHECKS'
import os
import tempfile
from pathlib import Path

from harness_lib import plots, results, runner, stats
from harness_lib.plots import overlap, steps


def near(found, expected):
    assert len(found) == len(expected), (found, expected)
    assert all(abs(a - b) < 1e-9 for a, b in zip(found, expected)), (found, expected)


def rounds_of(*of_rounds):
    """Rounds of steps (compute, communication, overlapped), as results hold them."""
    keys = ("compute_s", "communication_s", "overlapped_s")
    found = {key: [[step[i] for step in of_round] for of_round in of_rounds]
             for i, key in enumerate(keys)}
    found["serial_s"] = [[step[0] + step[1] for step in of_round] for of_round in of_rounds]
    return found


def figures(*of_rounds):
    found = results.efficiency_of_medians(rounds_of(*of_rounds))
    return found["of_medians"], found["of_medians_low"], found["of_medians_high"]


# Three rounds of one step. Of the 27 ways to draw three rounds again, 7 have the lowest figure as
# their median and 7 the highest: the 90 % interval reaches from one to the other, while the
# quartiles of the steps' quotients are 0.6 and 0.9.
apart = [[(1.0, 1.0, 1.0)], [(1.0, 1.0, 1.2)], [(1.0, 1.0, 1.6)]]
near(figures(*apart), (0.8, 0.4, 1.0))
quotients = stats.summary([1.0, 0.8, 0.4])
near((quotients["low"], quotients["high"]), (0.6, 0.9))
# Ten steps in every round are no more rounds: whole rounds are drawn. Drawn step by step, the
# median of 30 would seldom be another than the middle round's, and the interval have no width.
near(figures(*[10 * of_round for of_round in apart]), (0.8, 0.4, 1.0))
# Medians are put together, not quotients: (2 + 2 - 4) / 2, though the quotients' median is 1.
near(figures(*3 * [[(1.0, 4.0, 4.0), (2.0, 2.0, 3.5), (4.0, 1.0, 4.0)]])[:1], (0.0,))
# What was measured in turn stays together: a machine that drifts moves all three times alike.
near(figures([(1.0, 1.0, 1.1)], [(2.0, 2.0, 2.2)], [(3.0, 3.0, 3.3)]), (0.9, 0.9, 0.9))
# Equal steps: no width.
near(figures(*3 * [2 * [(2.0, 1.0, 2.25)]]), (0.75, 0.75, 0.75))


def case(chunks, *of_rounds, ranks=4, busy=None, tokens=1.0):
    """An entry of results.json as results.collect makes it."""
    rounds = rounds_of(*of_rounds)
    flat = [step for of_round in of_rounds for step in of_round]
    rounds["overlap_efficiency"] = [[(a + b - c) / min(a, b) for a, b, c in flat]]
    rounds["tokens_per_s"] = [[tokens]]
    rounds["link_use_communication"] = rounds["link_use_overlapped"] = [[0.5]]
    if busy is not None:
        rounds["cores_busy_overlapped"] = [busy]
    metrics = {key: stats.summary([v for values in found for v in values])
               for key, found in rounds.items()}
    metrics["overlap_efficiency"].update(results.efficiency_of_medians(rounds))
    return {"id": f"layers: chunks {chunks}, {ranks} ranks", "program": "layers", "status": "ok",
            "nodes": 1, "ranks": ranks, "rate": None, "cores": 0, "mpi": {}, "rounds": rounds,
            "options": {"chunks": chunks, "skew": "uniform"}, "metrics": metrics, "runs": [],
            "comparable": True}


# Two rounds or one have no interval: the range of the steps instead, and named so.
few = case(2, [(1.0, 1.0, 1.0), (1.0, 1.0, 1.2)], [(1.0, 1.0, 1.6), (1.0, 1.0, 1.2)])
enough = case(4, *apart)
assert results.interval_of_medians(few) is None
near(results.interval_of_medians(enough), (0.4, 1.0))
try:
    stats.interval(max, [[1.0], [2.0]])
    raise SystemExit("an interval of two rounds")
except ValueError as error:
    assert "3 rounds, not 2" in str(error), error
for entries, head, words in (([few], "overlap efficiency (range of steps)", "steps: fewer than 3"),
                             ([enough], "overlap efficiency (90 % interval)", "bootstrap interval"),
                             ([few, enough], "overlap efficiency (90 % interval, or range of steps)",
                              "steps: fewer than 3")):
    _, heads, rows, remark = results.layers_table(entries)
    assert head in heads and words in remark, (heads, remark)
    assert all(len(row) == len(heads) for row in rows), rows
    assert ("bootstrap" in remark) == (enough in entries), remark
    shown = [row[heads.index(head)] for row in rows]
    assert shown == ["0.80 (steps 0.40 to 1.00)" if entry is few else "0.80 (0.40 to 1.00)"
                     for entry in entries], shown
# A sure overlap is shown before one that may be luck.
lucky = case(8, [(1.0, 1.0, 1.0)])
assert max([lucky, few, enough], key=steps.surely_hidden) is enough
if plots.available():
    import matplotlib.pyplot as plt

    def bars_of(*entries):
        _, ax = plt.subplots()
        overlap.against_chunks(ax, {"x": entries})
        return len(ax.collections)  # an error bar is one

    found = [bars_of(few, lucky), bars_of(few, enough), bars_of(enough, case(8, *apart))]
    assert found == [0, 1, 2], found
else:
    print("left out: bars in the picture (no matplotlib here)")

# The busy share of the cores: its median; not of steps that the kernel's ticks are too coarse for,
# and not where an old file has none.
column = results.layers_table([few])[1].index("cores busy, overlapped")
short = case(2, [(0.01, 0.01, 0.01)], busy=[0.5])
shown = [results.layers_row(entry)[column]
         for entry in (case(2, *apart, busy=[0.9, 0.99, 0.95]), short, few)]
assert shown == ["0.95", "-", "-"], shown
report = {"seconds": {"overlapped": [2.0]}, "config": {"tokens": 4}, "ranks": 1,
          "cores_busy": {"overlapped": [0.75], "serial": [0.5]}}
metrics = results.metrics_of(report, "layers")
assert metrics["cores_busy_overlapped"] == [0.75] and metrics["cores_busy_serial"] == [0.5], metrics
del report["cores_busy"]
assert not any("busy" in key for key in results.metrics_of(report, "layers"))


# The title names ranks only where every line goes from the same number to the same.
def line(**tokens):
    return {int(r[1:]): case(2, *apart, ranks=int(r[1:]), tokens=v) for r, v in tokens.items()}


title = overlap.scaling_finding({"a": line(_1=100.0, _4=200.0), "b": line(_1=100.0, _4=300.0)})
assert title == "From 1 rank to 4, each keeps 50 to 75 % of its tokens per second", title
title = overlap.scaling_finding({"a": line(_2=100.0, _4=200.0), "b": line(_1=100.0, _4=300.0)})
assert title == ("From the fewest ranks of a line to its most, each keeps 75 to 100 % of its tokens "
                 "per second"), title

# Every program has the same environment, the caller's choice first; the results say it.
for name in [name for name in os.environ if name.startswith(("UCX_", "OMPI_MCA_"))]:
    del os.environ[name]
assert runner.environment()["UCX_TCP_PUT_ENABLE"] == "n"
assert runner.environment_of_mpi() == {"UCX_TCP_PUT_ENABLE": "n"}
os.environ.update(UCX_TCP_PUT_ENABLE="y", UCX_TLS="tcp", OMPI_MCA_pml="ucx")
chosen = runner.environment_of_mpi()
assert chosen == {"OMPI_MCA_pml": "ucx", "UCX_TCP_PUT_ENABLE": "y", "UCX_TLS": "tcp"}, chosen
old, new = {"cases": []}, {"cases": [], "declared": {"environment": chosen}}
assert results.not_the_same([], old, chosen) == results.not_the_same([], new, chosen) == ""
assert ("UCX_TCP_PUT_ENABLE=y, UCX_TLS=tcp, then UCX_TCP_PUT_ENABLE=n"
        in results.not_the_same([], new, {"UCX_TCP_PUT_ENABLE": "n"}))
outcome = {"name": "x", "date": "", "commit": "", "rounds": 2, "notes": [], "cases": [few],
           "machine": {"cores": 2, "cpu": "", "kernel": ""}, "declared": {"environment": chosen}}
with tempfile.TemporaryDirectory() as folder:
    summary = Path(folder) / "summary.md"
    results.write_markdown(outcome, summary)
    assert "UCX_TLS=tcp" in summary.read_text(encoding="utf-8")
    results.write_markdown({**outcome, "declared": {}}, summary)
    assert "not recorded of all" in summary.read_text(encoding="utf-8")
print("the figures of constructed measurements are right")
CHECKS
