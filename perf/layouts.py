#!/usr/bin/env python3
"""Layouts beside one another on shaped hosts of one machine: one model, the same tokens and kernels.

    jobs/install.sh --cluster; cmake --build --preset cpu --target atoll paced_run
    perf/layouts.py [--hosts 2] [--ranks-per-host 8] [--rounds 3] [--pace FLOPS,BYTES] [--rate 640mbit]
                    [--layouts NAME,...] [--phases prefill,decode] [--routing TRACE.npy] [--output DIR]

Arithmetic is paced (perf/paced_run.cpp): each rank takes as long as one of --pace operations and bytes
per second would, so that 16 ranks on a few cores do not lend each other theirs. The defaults are a GPU of
240 TFLOP/s and 1.44 TB/s with links of 50 GB/s between nodes, slowed down alike, for experts that are an
eighth as wide. Each round runs every case in another order; a case whose cores were too busy is named.
Results of all layouts are compared byte by byte, but those that sum over ranks. Needs root, as the
virtual cluster does. Output: the table, OUTPUT/layouts.md and OUTPUT/layouts.json.
"""

import argparse
import json
import sys
from pathlib import Path
from statistics import median

from harness_lib.folded_routing import fold_routing
from harness_lib.rounds import in_order_of
from harness_lib.shaped_hosts import ROOT, ShapedHosts, make_model, make_requests, mixtral

LAYERS, EXPERTS, TOP_K, VOCAB, HIDDEN, INNER = 8, 16, 2, 256, 512, 2048
CONFIG = mixtral(LAYERS, HIDDEN, INNER, 8, EXPERTS, TOP_K, VOCAB)
# (sequences, prompt tokens, new tokens) of a job; the phase that is measured
PHASES = {"prefill": (64, 192, 1), "decode": (128, 4, 12)}
# What each layout adds, by its number of ranks R and ranks of a host H.
LAYOUTS = {
    "EP": lambda R, H: [],
    "EP, TP attention": lambda R, H: ["--tp", str(H)],
    "TP x PP, exact": lambda R, H: ["--layout", f"tp{H}-pp{R // H}"],
    "TP x PP, exact, output cut": lambda R, H: ["--layout", f"tp{H}-pp{R // H}", "--tp-output", "columns"],
    "TP x PP, exact, output whole": lambda R, H: ["--layout", f"tp{H}-pp{R // H}", "--tp-output", "rows"],
    "TP x PP, summed": lambda R, H: ["--layout", f"tp{H}-pp{R // H}", "--tp-sum"],
    "TP x PP, summed in BF16": lambda R, H: ["--layout", f"tp{H}-pp{R // H}", "--tp-sum", "bf16"],
    "TP x PP, experts whole": lambda R, H: ["--layout", f"ep{H}-tp{H}-pp{R // H}",
                                            "--slots", str(EXPERTS // 2)],
}


def parsed():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--hosts", type=int, default=2)
    add("--ranks-per-host", type=int, default=8)
    add("--rounds", type=int, default=3)
    add("--pace", default="6e9,36e6", help="operations and bytes per second of a rank")
    add("--rate", default="640mbit", help="of each host's link")
    add("--layouts", default=";".join(LAYOUTS), help="with ; between")
    add("--phases", default=",".join(PHASES))
    add("--chunks", default="auto")
    add("--routing", type=Path, help="a real router's choices, folded to the model's experts")
    add("--output", type=Path, default=ROOT / "out/layouts")
    return parser.parse_args()


class Bench:
    def __init__(self, options):
        self.options = options
        self.hosts = ShapedHosts("layouts", options.hosts, options.ranks_per_host)
        self.folder = options.output.resolve()
        make_model(self.folder, CONFIG)
        for phase in options.phases.split(","):
            sequences, prompt, new = PHASES[phase]
            make_requests(self.folder / f"{phase}.jsonl", sequences, prompt, new, VOCAB)
            if options.routing:
                fold_routing([options.routing], self.folder / f"{phase}.npy",
                             sequences * (prompt + new - 1), LAYERS, EXPERTS, TOP_K)

    def run(self, phase, layout):
        sequences, prompt, _ = PHASES[phase]
        # All sequences are under way at once, spread over all ranks, and a pass takes their prompts.
        per_rank = sequences // self.hosts.ranks
        words = ["--input", self.folder / f"{phase}.jsonl", "--max-sequences", per_rank,
                 "--step-tokens", per_rank * prompt // 2, "--chunks", self.options.chunks,
                 *LAYOUTS[layout](self.hosts.ranks, self.options.ranks_per_host)]
        if self.options.routing:
            words += ["--replay-routing", self.folder / f"{phase}.npy"]
        program = [ROOT / "build/cpu/perf/paced_run", *self.options.pace.split(",")]
        said, report, results = self.hosts.run(self.folder, program, *words)
        busy = float(said.rsplit("cores busy, set-up included: ", 1)[1].split(" ")[0])
        return report["phases"][phase], report["exchange"], busy, results

    def measure(self):
        cases = [(p, name) for p in self.options.phases.split(",")
                 for name in self.options.layouts.split(";")]
        found = {case: [] for case in cases}
        expected = {}
        with self.hosts.up(self.options.rate):
            for number in range(self.options.rounds):
                for case in in_order_of(number, cases):
                    phase, exchange, busy, results = self.run(*case)
                    if "summed" not in case[1]:
                        if expected.setdefault(case[0], results) != results:
                            sys.exit(f"{case}: results differ from those of the other layouts")
                    found[case].append({"phase": phase, "exchange": exchange, "busy": busy})
                    print(f"round {number + 1}: {case[0]}, {case[1]}: "
                          f"{phase['tokens_per_s']:.0f} tokens/s, cores {busy:.0f} % busy", flush=True)
        return found


def table_of(found, options):
    lines = ["| phase | layout | tokens/s | over EP | arithmetic | messages | waiting, bubble | rest "
             "| MB between hosts | cores busy |", "|---|---|---|---|---|---|---|---|---|---|"]
    for phase in options.phases.split(","):
        speeds = {name: median(r["phase"]["tokens_per_s"] for r in found[phase, name])
                  for name in options.layouts.split(";")}
        first = next(iter(speeds.values()))
        for name, speed in speeds.items():
            runs = found[phase, name]
            share = {key: median(r["phase"]["share"][key] for r in runs)
                     for key in ("compute", "communication", "synchronisation", "overhead")}
            between = median(r["exchange"]["measured"]["bytes_between_nodes"] for r in runs) * 1e-6
            busy = median(r["busy"] for r in runs)
            lines.append(
                f"| {phase} | {name} | {speed:.0f} | {speed / first:.2f} | {share['compute']:.0%} "
                f"| {share['communication']:.0%} | {share['synchronisation']:.0%} "
                f"| {share['overhead']:.0%} | {between:.1f} "
                f"| {busy:.0f} %{'' if busy < 80 else ' (not measurable here)'} |")
    return "\n".join(lines) + "\n"


def main():
    options = parsed()
    for name in options.layouts.split(";"):
        if name not in LAYOUTS:
            sys.exit(f'no layout "{name}"; choose of {", ".join(LAYOUTS)}')
    bench = Bench(options)
    found = bench.measure()
    text = table_of(found, options)
    (bench.folder / "layouts.md").write_text(text)
    (bench.folder / "layouts.json").write_text(json.dumps(
        [{"phase": p, "layout": name, "runs": runs} for (p, name), runs in found.items()]))
    print(text)


if __name__ == "__main__":
    main()
