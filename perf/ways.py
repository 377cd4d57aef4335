#!/usr/bin/env python3
"""What `--route auto --chunks auto` chooses, beside all fixed ways, on shaped hosts of one machine.

    jobs/install.sh --cluster; cmake --build --preset cpu --target atoll
    perf/ways.py [--hosts 4] [--ranks-per-host 4] [--rounds 3] [--rates 100mbit,1gbit] [--cells NAME,...]
                 [--chunks 1,2,4,8] [--output DIR]

A cell is a rate of the hosts' links and the size of a pass. Whole runs are timed, trial passes of `auto`
included; each round runs all ways of a cell in another order. Results are compared byte by byte. Needs
root, as the virtual cluster does. Output: the table, OUTPUT/ways.md and OUTPUT/ways.json.
"""

import argparse
import json
import sys
from pathlib import Path
from statistics import median

from harness_lib.rounds import in_order_of
from harness_lib.shaped_hosts import ROOT, ShapedHosts, make_model, make_requests

VOCAB = 256
CONFIG = {
    "model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "vocab_size": VOCAB,
    "hidden_size": 512, "intermediate_size": 512, "moe_intermediate_size": 64, "num_hidden_layers": 2,
    "mlp_only_layers": [], "decoder_sparse_step": 1, "num_attention_heads": 8, "num_key_value_heads": 2,
    "head_dim": 64, "num_experts": 16, "num_experts_per_tok": 4, "norm_topk_prob": True,
    "hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "max_position_embeddings": 4096,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16",
}
# phase; requests, prompt tokens, new tokens; tokens of a rank's pass, sequences of a rank
CELLS = {
    "prefill-32": ("prefill", (800, 32, 1), 32, 2),
    "prefill-256": ("prefill", (1536, 64, 1), 256, 4),
    "decode-2": ("decode", (32, 4, 600), 64, 2),
    "decode-16": ("decode", (256, 4, 300), 64, 16),
}


def parsed():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--hosts", type=int, default=4)
    add("--ranks-per-host", type=int, default=4)
    add("--rounds", type=int, default=3)
    add("--rates", default="100mbit,1gbit")
    add("--cells", default=",".join(CELLS))
    add("--chunks", default="1,2,4,8")
    add("--output", type=Path, default=ROOT / "out/ways")
    options = parser.parse_args()
    options.cells = options.cells.split(",")
    for cell in options.cells:
        if cell not in CELLS:
            sys.exit(f'no cell "{cell}"; choose of {", ".join(CELLS)}')
    return options


def run(hosts, folder, cell, way):
    phase, _, tokens, sequences = CELLS[cell]
    route, chunks = way
    _, report, results = hosts.run(
        folder, [ROOT / "build/cpu/app/atoll", "run"], "--input", folder / f"{cell}.jsonl",
        "--step-tokens", tokens, "--max-sequences", sequences, "--route", route, "--chunks", chunks)
    return report["phases"][phase]["tokens_per_s"], results


def measure_rate(hosts, folder, options, rate, found):
    ways = [(route, chunks) for route in ("flat", "nodes") for chunks in options.chunks.split(",")]
    ways.append(("auto", "auto"))
    with hosts.up(rate):
        for cell in options.cells:
            expected = None
            for number in range(options.rounds):
                for way in in_order_of(number, ways):
                    speed, results = run(hosts, folder, cell, way)
                    if expected is None:
                        expected = results
                    if results != expected:
                        sys.exit(f"{cell}, {way}: results differ from those of the other ways")
                    found.setdefault((rate, cell), {}).setdefault(way, []).append(speed)
                    print(f"{rate}, {cell}, round {number + 1}: {way[0]} {way[1]}: {speed:.0f} tokens/s",
                          flush=True)


def table_of(found):
    lines = ["| link | pass | flat, best | nodes, best | auto | over the best |", "|---|---|---|---|---|---|"]
    for (rate, cell), speeds in found.items():
        middle = {way: median(runs) for way, runs in speeds.items()}
        best = {route: max((speed, chunks) for (r, chunks), speed in middle.items() if r == route)
                for route in ("flat", "nodes")}
        auto = middle["auto", "auto"]
        shown = [f"{speed:.0f} ({chunks} chunks)" for speed, chunks in best.values()]
        lines.append(f"| {rate} | {cell} | {shown[0]} | {shown[1]} | {auto:.0f} "
                     f"| {auto / max(best.values())[0]:.2f} |")
    return "\n".join(lines) + "\n"


def main():
    options = parsed()
    folder = options.output.resolve()
    hosts = ShapedHosts("ways", options.hosts, options.ranks_per_host)
    make_model(folder, CONFIG)
    for cell in options.cells:
        make_requests(folder / f"{cell}.jsonl", *CELLS[cell][1], VOCAB)
    found = {}
    for rate in options.rates.split(","):
        measure_rate(hosts, folder, options, rate, found)
    text = table_of(found)
    (folder / "ways.md").write_text(text)
    (folder / "ways.json").write_text(json.dumps(
        [{"rate": rate, "cell": cell, "ways": [{"route": r, "chunks": c, "tokens_per_s": runs}
                                               for (r, c), runs in speeds.items()]}
         for (rate, cell), speeds in found.items()]))
    print(text)


if __name__ == "__main__":
    main()
