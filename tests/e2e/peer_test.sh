#!/usr/bin/env bash
# Peers get the work that Atoll gets: the routing that layers_bench writes for them has, layer by layer
# and rank by rank, the rows that layers_bench computes itself, for every kind of skew; and PyTorch's
# ranks, where it is installed, report just these.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

need_benchmarks
export OMP_NUM_THREADS=1
shapes=(--layers 3 --hidden 128 --intermediate 64 --experts 4 --tokens 96 --sequence 16)

for skew in uniform log-normal hot-expert rotating; do
  # Other chunks than in the run that is compared: they must not decide who gets which token.
  capture mpirun "${mpirun_flags[@]}" -n 2 "$build/perf/layers_bench" "${shapes[@]}" --skew "$skew" \
    --chunks 2 --routing-only "$work/routing.json"
  succeeds "routing, $skew" || continue
  capture mpirun "${mpirun_flags[@]}" -n 2 "$build/perf/layers_bench" "${shapes[@]}" --skew "$skew" \
    --chunks 4 --repetitions 1 --warm-up 0 --json "$work/report.json"
  succeeds "layers, $skew" || continue
  json_check "rows of the routing, $skew" "$work/routing.json" "$work/report.json" <<'CHECK'
routing, report = lines
ranks, experts = routing["ranks"], routing["experts"]
assert [len(codes) for codes in routing["codes_of_rank"]] == [96 * 2] * ranks
for layer, expert_of in enumerate(routing["expert_of_code"]):
    computed, dispatched = [0] * ranks, [0] * ranks
    assert sorted(expert_of) == list(range(experts))
    for rank, codes in enumerate(routing["codes_of_rank"]):
        for first, second in zip(codes[::2], codes[1::2]):
            assert first != second
            for code in (first, second):
                to = expert_of[code] * ranks // experts
                computed[to] += 1
                dispatched[to] += 128 * 2 * (to != rank)  # hidden, BF16
    assert computed == report["expert_rows_of_layer"][layer], (layer, computed)
    assert dispatched == report["dispatched_bytes_to_of_layer"][layer], (layer, dispatched)
CHECK
done

if "${ATOLL_PEER_PYTHON:-/usr/bin/python3}" -c "import torch, mpi4py" 2>/dev/null; then
  cat >"$work/peer.toml" <<'SWEEP'
name = "peer"
rounds = 1
warm_up_rounds = 0
timeout_s = 60
[base]
ranks = 2
layers = 3
hidden = 128
intermediate = 64
experts = 4
tokens = 96
sequence = 16
repetitions = 1
skew = ["log-normal", "rotating"]
[[grid]]
program = "layers"
[[grid]]
program = "torch"
SWEEP
  capture "$ATOLL_SOURCE/perf/harness" "$work/peer.toml" --build "$build" --output "$work/out"
  succeeds "sweep with the peer" || finish
  json_check "rows of the peer" "$work/out/results.json" <<'CHECK'
(result,) = lines
cases = {(case["program"], case["options"]["skew"]): case for case in result["cases"]}
for skew in ("log-normal", "rotating"):
    ours, theirs = (cases[program, skew]["detail"]["expert_rows_of_layer"]
                    for program in ("layers", "torch"))
    assert ours == theirs, (skew, ours, theirs)
CHECK
  if grep -q "other work" "$work/out/summary.md"; then failed "equal work is doubted"; else passed; fi
  # Another routing is refused, and another outcome is named.
  capture mpirun "${mpirun_flags[@]}" -n 2 "${ATOLL_PEER_PYTHON:-/usr/bin/python3}" \
    "$ATOLL_SOURCE/perf/peers/torch_moe.py" "${shapes[@]}" --tokens 64 --routing "$work/routing.json"
  if ((code != 0)) && grep -q "it is of 96 tokens, not 64" "$work/stderr"; then
    passed
  else
    failed "the peer took the routing of another number of tokens (exit code $code)"
    show_output
  fi
else
  printf 'left out: PyTorch beside Atoll (no PyTorch or mpi4py here; perf/peers/install.sh)\n'
fi
if python3 - "$ATOLL_SOURCE/perf" <<'CHECK'; then
import sys
sys.path.insert(0, sys.argv[1])
from harness_lib.results import busiest_over_mean, doubts_of_peer
entry = lambda rows: {"detail": {"expert_rows_of_layer": rows} if rows else {}}
assert doubts_of_peer(entry([[3, 1]]), entry([[3, 1]])) == ""
assert "other work" in doubts_of_peer(entry([[3, 1]]), entry([[2, 2]]))
assert "did not report" in doubts_of_peer(entry([[3, 1]]), entry(None))
assert busiest_over_mean([[3, 1], [2, 2]]) == 1.25
CHECK
  passed
else
  failed "other work of the peer is not noticed"
fi
finish
