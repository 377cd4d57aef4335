#!/usr/bin/env python3
"""What a placement gives back where real routing is skewed: step times against loads.

    jobs/install.sh --cluster; cmake --build --preset cpu --target atoll paced_run
    perf/placements.py TRACE.npy [--hosts 4] [--ranks-per-host 4] [--passes 30] [--rounds 2] [--top-k 2]
                       [--bound link,rank] [--output DIR]

A real router's choices, folded to 16 experts, are replayed with experts in their order, placed by `atoll
place` from the same trace's first half, and with replicas on 24 and 32 places. `link`: links are slow and
arithmetic fast, so that the busiest link decides; `rank`: the other way round. "Of its loads": how much
faster a step is than in order, over how much less the busiest link or rank has. Arithmetic is paced
(perf/paced_run.cpp); results are compared byte by byte. Needs root, as the virtual cluster does. Output:
the table, OUTPUT/placements.md and OUTPUT/placements.json.
"""

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from statistics import median

from harness_lib.folded_routing import fold_routing, read_npy
from harness_lib.rounds import in_order_of
from harness_lib.shaped_hosts import ROOT, ShapedHosts, command, make_model, make_requests, mixtral

LAYERS, EXPERTS, VOCAB, HIDDEN, INNER = 4, 16, 256, 512, 512
TOKENS = 64  # of a rank in a pass: one prompt
# operations and bytes per second of a rank; the rate of a host's link
BOUNDS = {"link": ("2e11,2e11", "100mbit"), "rank": ("4e9,1e10", "10gbit")}
CASES = ("in order", "placed", "24 places", "32 places")


def parsed():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("trace", type=Path)
    add("--hosts", type=int, default=4)
    add("--ranks-per-host", type=int, default=4)
    add("--passes", type=int, default=30)
    add("--rounds", type=int, default=2)
    add("--top-k", type=int, default=2)
    add("--bound", default="link,rank")
    add("--output", type=Path, default=ROOT / "out/placements")
    return parser.parse_args()


def without_coldest(placement, loads, places):
    """The same with so many places in all: experts with the fewest tokens lose their replicas."""
    for layer, holders in placement["layers"].items():
        for expert in sorted(range(EXPERTS), key=lambda e: loads[int(layer), e]):
            while sum(map(len, holders)) > places and len(holders[expert]) > 1:
                holders[expert].pop()


def make_placements(folder, hosts, ranks_per_host):
    """Files for all cases but the first, from the trace's first half."""
    nodes = [{"name": f"h{host + 1}", "ranks": ranks_per_host} for host in range(hosts)]
    (folder / "cluster.json").write_text(json.dumps(
        {"format": "atoll-cluster", "format_version": 1, "nodes": nodes,
         "links": {"inside_node": None, "between_nodes": None}}))
    for name, slots in (("placed", 1), ("32 places", 2)):
        print(command(ROOT / "build/cpu/app/atoll", "place", "--routing", folder / "routing.npy",
                      "--cluster", folder / "cluster.json", "--slots", slots, "--output",
                      folder / f"{name}.json"))
    (tokens, layers, top_k), values = read_npy(folder / "routing.npy")
    loads = Counter(((i // top_k) % layers, values[i]) for i in range(tokens * layers * top_k))
    placement = json.loads((folder / "32 places.json").read_text())
    without_coldest(placement, loads, 24)
    (folder / "24 places.json").write_text(json.dumps(placement))


def run(hosts, folder, case, pace):
    words = [] if case == "in order" else ["--placement", folder / f"{case}.json"]
    said, report, results = hosts.run(
        folder, [ROOT / "build/cpu/perf/paced_run", *pace.split(",")], "--input", folder / "requests.jsonl",
        "--max-sequences", 1, "--step-tokens", TOKENS, "--replay-routing", folder / "routing.npy", *words)
    phase = report["phases"]["prefill"]
    return {"seconds": phase["wall_s"] / phase["steps"],
            "link": report["exchange"]["measured"]["busiest_link_bytes"],
            "rank": report["balance"]["busiest_rank"]["rows_over_mean"],
            "waiting": phase["share"]["synchronisation"],
            "busy": float(said.rsplit("cores busy, set-up included: ", 1)[1].split(" ")[0])}, results


def table_of(found):
    lines = ["| bound by | experts | ms of a step | over in order | busiest link, MB | busiest rank over the mean "
             "| load over in order | of its loads | waiting | cores busy |",
             "|---|---|---|---|---|---|---|---|---|---|"]
    for (bound, case), runs in found.items():
        at = {key: median(r[key] for r in runs) for key in runs[0]}
        first = {key: median(r[key] for r in found[bound, CASES[0]]) for key in runs[0]}
        faster, less = first["seconds"] / at["seconds"], first[bound] / at[bound]
        lines.append(
            f"| {bound} | {case} | {1e3 * at['seconds']:.1f} | {1 / faster:.2f} | {1e-6 * at['link']:.1f} "
            f"| {at['rank']:.2f} | {1 / less:.2f} | {faster / less:.2f} | {at['waiting']:.0%} "
            f"| {at['busy']:.0f} %{'' if at['busy'] < 80 else ' (not measurable here)'} |")
    return "\n".join(lines) + "\n"


def main():
    options = parsed()
    folder = options.output.resolve()
    hosts = ShapedHosts("placements", options.hosts, options.ranks_per_host)
    make_model(folder, mixtral(LAYERS, HIDDEN, INNER, 8, EXPERTS, options.top_k, VOCAB))
    prompts = hosts.ranks * options.passes
    make_requests(folder / "requests.jsonl", prompts, TOKENS, 1, VOCAB)
    fold_routing([options.trace], folder / "routing.npy", prompts * TOKENS, LAYERS, EXPERTS, options.top_k)
    make_placements(folder, options.hosts, options.ranks_per_host)
    found = {(bound, case): [] for bound in options.bound.split(",") for case in CASES}
    expected = None
    for bound in options.bound.split(","):
        pace, rate = BOUNDS[bound]
        with hosts.up(rate):
            for number in range(options.rounds):
                for case in in_order_of(number, CASES):
                    measured, results = run(hosts, folder, case, pace)
                    expected = expected or results
                    if results != expected:
                        sys.exit(f"{case}: results differ from those of the other cases")
                    found[bound, case].append(measured)
                    print(f"round {number + 1}: {bound}, {case}: {1e3 * measured['seconds']:.1f} ms, cores "
                          f"{measured['busy']:.0f} % busy", flush=True)
    text = table_of(found)
    (folder / "placements.md").write_text(text)
    (folder / "placements.json").write_text(
        json.dumps([{"bound": b, "experts": c, "runs": runs} for (b, c), runs in found.items()]))
    print(text)


if __name__ == "__main__":
    main()
