#!/usr/bin/env python3
"""What experts with many tokens cost, and what replicas give back, while the text changes its kind.

    jobs/install.sh --cluster; cmake --build --preset cpu --target atoll paced_run
    perf/balance.py TRACE.npy... [--hosts 4] [--ranks-per-host 4] [--passes 200] [--rounds 2]
                    [--pace FLOPS,BYTES] [--rate 1gbit] [--output DIR]

Each trace (real routers' choices, folded to 16 experts) is what the tokens of so many passes choose, one
trace after the other. Arithmetic is paced (perf/paced_run.cpp). Cases: one expert a rank; two places a
rank, in turn; the same with --balance replicate. How busy the busiest rank is, is read from --status
while a case runs. Results are compared byte by byte. Needs root, as the virtual cluster does. Output: the
table, OUTPUT/balance.md and OUTPUT/balance.json.
"""

import argparse
import json
import sys
import threading
from pathlib import Path
from statistics import mean, median

from harness_lib.folded_routing import fold_routing
from harness_lib.rounds import in_order_of
from harness_lib.shaped_hosts import ROOT, ShapedHosts, make_model, make_requests, mixtral

LAYERS, EXPERTS, TOP_K, VOCAB, HIDDEN, INNER = 4, 16, 2, 256, 128, 512
TOKENS = 64  # of a rank in a pass: one prompt
CONFIG = mixtral(LAYERS, HIDDEN, INNER, 4, EXPERTS, TOP_K, VOCAB)
CASES = {
    "one expert a rank": [],
    "two places a rank": ["--slots", "2"],
    "two places a rank, balanced": ["--slots", "2", "--balance", "replicate"],
}


def parsed():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("traces", type=Path, nargs="+")
    add("--hosts", type=int, default=4)
    add("--ranks-per-host", type=int, default=4)
    add("--passes", type=int, default=200, help="of each trace")
    add("--rounds", type=int, default=2)
    add("--pace", default="2e9,1e8", help="operations and bytes per second of a rank")
    add("--rate", default="1gbit", help="of each host's link")
    add("--output", type=Path, default=ROOT / "out/balance")
    return parser.parse_args()


class Watcher:
    """Reads the status file of a run while it goes on."""

    def __init__(self, path):
        self.path = path
        self.seen = {}
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()

    def watch(self):
        while not self.ended.wait(0.5):
            try:
                status = json.loads(self.path.read_text())
            except (FileNotFoundError, json.JSONDecodeError):
                continue
            if status["state"] == "running":
                self.seen[status["passes"]] = status["balance"]["busiest_rank"]["rows_over_mean"]

    def end(self):
        self.ended.set()
        self.thread.join()
        return sorted(self.seen.items())


def run(hosts, options, name):
    folder = options.output
    status = folder / "status.json"
    status.unlink(missing_ok=True)
    watcher = Watcher(status)
    program = [ROOT / "build/cpu/perf/paced_run", *options.pace.split(",")]
    said, report, results = hosts.run(
        folder, program, "--input", folder / "requests.jsonl", "--max-sequences", 1, "--step-tokens",
        TOKENS, "--status", status, "--replay-routing", folder / "routing.npy", *CASES[name])
    busy = float(said.rsplit("cores busy, set-up included: ", 1)[1].split(" ")[0])
    phase = report["phases"]["prefill"]
    return {"tokens_per_s": phase["tokens_per_s"], "wall_s": phase["wall_s"], "steps": phase["steps"],
            "waiting": phase["share"]["synchronisation"], "moved": report["balance"].get("moved"),
            "busiest": watcher.end(), "cores_busy": busy}, results


def table_of(found):
    first = median(run["tokens_per_s"] for run in next(iter(found.values())))
    lines = ["| case | tokens/s | over the first | waiting | busiest rank over the mean, over the run "
             "| experts moved | time lost | cores busy |", "|---|---|---|---|---|---|---|---|"]
    for name, runs in found.items():
        speed = median(run["tokens_per_s"] for run in runs)
        busiest = mean(over for run in runs for _, over in run["busiest"])
        moved = [run["moved"] for run in runs if run["moved"]]
        count = f"{median(m['experts_moved'] for m in moved):.0f}" if moved else "0"
        lost = median(run["moved"]["seconds"] / run["wall_s"] for run in runs) if moved else 0
        busy = median(run["cores_busy"] for run in runs)
        lines.append(f"| {name} | {speed:.0f} | {speed / first:.2f} "
                     f"| {median(run['waiting'] for run in runs):.0%} | {busiest:.2f} | {count} "
                     f"| {lost:.1%} | {busy:.0f} %{'' if busy < 80 else ' (not measurable here)'} |")
    return "\n".join(lines) + "\n"


def main():
    options = parsed()
    options.output = options.output.resolve()
    hosts = ShapedHosts("balance", options.hosts, options.ranks_per_host)
    make_model(options.output, CONFIG)
    prompts = hosts.ranks * options.passes
    make_requests(options.output / "requests.jsonl", prompts * len(options.traces), TOKENS, 1, VOCAB)
    fold_routing(options.traces, options.output / "routing.npy", prompts * TOKENS, LAYERS, EXPERTS, TOP_K)
    found = {name: [] for name in CASES}
    expected = None
    with hosts.up(options.rate):
        for number in range(options.rounds):
            for name in in_order_of(number, CASES):
                measured, results = run(hosts, options, name)
                expected = expected or results
                if results != expected:
                    sys.exit(f"{name}: results differ from those of the other cases")
                found[name].append(measured)
                print(f"round {number + 1}: {name}: {measured['tokens_per_s']:.0f} tokens/s, "
                      f"cores {measured['cores_busy']:.0f} % busy", flush=True)
    text = table_of(found)
    (options.output / "balance.md").write_text(text)
    (options.output / "balance.json").write_text(json.dumps(found))
    print(text)


if __name__ == "__main__":
    main()
