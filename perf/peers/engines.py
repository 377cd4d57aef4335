#!/usr/bin/env python3
"""Atoll beside llama.cpp, ik_llama.cpp and vLLM on this machine's CPU: one command, one table.

    perf/peers/install-engines.sh [DIR]                            # once; DIR: out/peers
    cmake --build --preset cpu --target atoll kernels_bench
    perf/peers/engines.py [--rounds 5] [--workloads a,b,c,d] [--engines NAME,...] [--size small]

Same weights (a random Qwen3MoE, 3.5 GB in 16 bits), same token ids, same cores, one process at a
time. First every engine's first greedy tokens and their log-probabilities are held against Atoll's in
float32; an engine far off ends the command. Then every round runs every workload on every engine, in
another order each time, with the floors (read bandwidth, Atoll's own GEMM) measured before each round
and at the end. Times are of prefill (until every request has its first token) and decode (all after
it); loading is not in them. Output: the table, OUTPUT/table.md and OUTPUT/results.json.

The floor of a phase is the sum over its passes of max(bytes / bandwidth, operations / GEMM rate): of
16-bit weights, the experts that so many tokens are expected to hit by the routing that Atoll counted,
the head, keys and values; of the bare GEMMs. Engines that are not installed are named and left out.
"""

import argparse
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parent))

from engines_lib import floors, runs, table  # noqa: E402
from engines_lib.shapes import SIZES, WORKLOADS  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]


def parsed():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--folder", type=Path, default=ROOT / "out/peers", help="of install-engines.sh")
    add("--build", type=Path, default=ROOT / "build/cpu", help="Atoll's build folder")
    add("--output", type=Path, help="folder for the results (FOLDER/results)")
    add("--size", choices=SIZES, default="full", help="of the model; small is for a trial")
    add("--rounds", type=int, default=5)
    add("--workloads", default=",".join(WORKLOADS), help="of a, b, c, d")
    add("--engines", help="names, with commas; default: all")
    add("--threads", type=int, default=2, help="cores that every engine has")
    add("--only-agreement", action="store_true", help="compare tokens, measure nothing")
    add("--lock", type=Path, help="a file locked while the engines run one workload in turn, for shared machines")
    args = parser.parse_args()
    args.folder, args.build = args.folder.resolve(), args.build.resolve()
    args.output = (args.output or args.folder / "results").resolve()
    args.atoll = args.build / "app/atoll"
    args.model = args.folder / args.size
    args.requests = args.model / "requests"
    args.workloads = args.workloads.split(",")
    unknown = set(args.workloads) - set(WORKLOADS)
    if unknown:
        parser.error(f"no workload {', '.join(sorted(unknown))}; there are {', '.join(WORKLOADS)}")
    return args


def say(text):
    print(text, file=sys.stderr, flush=True)


def with_numpy(folder):
    """A Python that has numpy: this one, the system's (Debian's packages are its), or vLLM's."""
    for python in (sys.executable, "/usr/bin/python3", folder / "vllm/bin/python"):
        try:
            if subprocess.run([python, "-c", "import numpy"], capture_output=True).returncode == 0:
                return python
        except OSError:
            continue
    raise SystemExit("engines.py: no Python here has numpy, which the model is made with; install it")


def prepare(args):
    """Model, Atoll's copy of it, and requests."""
    args.output.mkdir(parents=True, exist_ok=True)
    runs.call([with_numpy(args.folder), ROOT / "perf/peers/make_model.py", args.model,
               "--size", args.size])  # fmt: skip
    runs.write_requests(args.requests, SIZES[args.size])
    packed, made = args.model / "model.h5", args.model / "made.json"
    if not packed.exists() or packed.stat().st_mtime < made.stat().st_mtime:
        say("importing the model ...")
        packed.unlink(missing_ok=True)
        runs.call([args.atoll, "import", args.model / "hf", "--output", packed])


def chosen_engines(args):
    """The engines that were asked for and can run."""
    known = runs.engines(args)
    names = args.engines.split(",") if args.engines else list(known)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise SystemExit(f"engines.py: no engine {', '.join(unknown)}; there are {', '.join(known)}")
    chosen = []
    for name in names:
        lack = known[name].missing()
        if lack is None:
            chosen.append(known[name])
        else:
            say(f"left out: {name}: {lack} (perf/peers/install-engines.sh, or a build of Atoll)")
    if not chosen:
        raise SystemExit("engines.py: no engine can run here")
    return chosen


def check_agreement(args, chosen):
    """({engine: agreement}, {workload: tokens by layer and expert}); ends the command if one is off."""
    exact = runs.Atoll("atoll-float32", args, 1, args.threads, dtype="float32")
    reference, results = {}, {engine.name: {} for engine in chosen}
    for workload in args.workloads:
        with runs.locked(args.lock):
            reference[workload] = exact.measured(workload)
            for engine in list(chosen):
                try:
                    results[engine.name][workload] = engine.measured(workload)
                except runs.Failure as failure:
                    say(f"left out: {engine.name}: {failure}")
                    chosen.remove(engine)
        say(f"first tokens of workload {workload}: done")
    found = {one.name: table.agreement(reference, results[one.name]) for one in chosen}
    print(table.agreement_table(found), flush=True)
    off = [name for name, one in found.items() if not one["agrees"]]
    if off:
        raise SystemExit(f"engines.py: {', '.join(off)} computes something else; nothing was timed")
    layouts = [[results[one.name][workload]["tokens"] for workload in args.workloads]
               for one in chosen if not one.peer]  # fmt: skip
    if any(tokens != layouts[0] for tokens in layouts[1:]):
        raise SystemExit("engines.py: Atoll's tokens depend on its layout; nothing was timed")
    return found, {w: reference[w]["tokens_by_layer"] for w in args.workloads}


def run_rounds(args, chosen):
    """(runs, floors): every workload on every engine, in another order each round."""
    measured, limits = [], []
    order = random.Random(1)
    for number in range(1, args.rounds + 1):
        limits.append(floors.measure(args))
        for workload in order.sample(args.workloads, len(args.workloads)):
            with runs.locked(args.lock):
                for engine in order.sample(chosen, len(chosen)):
                    measured += run_case(number, workload, engine)
    limits.append(floors.measure(args))
    return measured, limits


def run_case(number, workload, engine):
    """[what was measured], or [] with a line on why not."""
    try:
        result = engine.measured(workload)
    except runs.Failure as failure:
        say(f"round {number}: {engine.name}, {workload}: {failure}")
        return []
    keep = {key: value for key, value in result.items()
            if key not in ("tokens", "logprobs", "tokens_by_layer")}  # fmt: skip
    keep.update(workload=workload, engine=engine.name, note=engine.note(workload), round=number)
    shown = ", ".join(f"{phase} {table.speed(keep, phase):.1f} tokens/s"
                      for phase in table.phases_of(workload))  # fmt: skip
    say(f"round {number}: {engine.name}, {workload}: {shown}")
    return [keep]


def cpu_name():
    names = [line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
             if line.startswith("model name")]  # fmt: skip
    return f"{names[0]}, {len(names)} cores" if names else "unknown"


def spread(values, unit, scale):
    return f"{median(values) / scale:.1f} {unit} [{min(values) / scale:.1f}, {max(values) / scale:.1f}]"


def report(args, chosen, agreements, routing, measured, limits):
    bandwidths = [one["bytes_per_s"] for one in limits]
    rates = [one["gemm_flops_per_s"] for one in limits]
    facts = {
        "size": SIZES[args.size], "workloads": args.workloads, "tokens_by_layer": routing,
        "bandwidth": median(bandwidths), "gemm_rate": median(rates),
    }  # fmt: skip
    ours = [engine.name for engine in chosen if not engine.peer]
    peers = [engine.name for engine in chosen if engine.peer]
    about = next((run for run in measured if "commit" in run), {})
    text = "\n".join([
        f"{cpu_name()}; {args.threads} threads; Atoll {about.get('commit', '-')} "
        f"({about.get('isa', '-')}); model: {args.size}; rounds: {args.rounds}", "",
        *(f"* {name}: {WORKLOADS[name][3]}" for name in args.workloads), "",
        f"Floors, before each round and at the end: reads {spread(bandwidths, 'GB/s', 1e9)}, "
        f"GEMM of {floors.GEMM_ROWS} rows (Atoll's) {spread(rates, 'GFLOP/s', 1e9)}.", "",
        "First tokens against Atoll in float32:", "", table.agreement_table(agreements), "",
        "Medians [least, greatest] of the rounds. Bold: the fastest peer. \"Atoll over it\": Atoll's "
        "faster layout over the engine. Peak GB: resident, all ranks together, shared pages counted "
        "in each. Others' load: cores, the highest.", "",
        table.markdown(measured, facts, ours, peers)])  # fmt: skip
    print("\n" + text)
    (args.output / "table.md").write_text(text + "\n")
    whole = {"cpu": cpu_name(), "facts": facts, "agreement": agreements, "floors": limits,
             "runs": measured}  # fmt: skip
    (args.output / "results.json").write_text(json.dumps(whole, indent=1) + "\n")
    say(f"{args.output}: table.md, results.json")


def main():
    args = parsed()
    cores = sorted(os.sched_getaffinity(0))[: args.threads]
    os.sched_setaffinity(0, cores)  # of every engine, which this process starts
    chosen = chosen_engines(args)
    started = list(chosen)  # some may be left out later
    try:
        prepare(args)
        agreements, routing = check_agreement(args, chosen)
        if args.only_agreement:
            return
        measured, limits = run_rounds(args, chosen)
    except runs.Failure as failure:
        raise SystemExit(f"engines.py: {failure}") from failure
    finally:
        for engine in started:
            engine.close()
    if not measured:
        raise SystemExit("engines.py: nothing could be measured")
    report(args, chosen, agreements, routing, measured, limits)


if __name__ == "__main__":
    main()
