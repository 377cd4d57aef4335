#!/usr/bin/env python3
"""Compares Atoll with expected results of Hugging Face models, family by family.

families_check.py [--one | --few] [--cuda] ATOLL FOLDER [NAME...]: FOLDER has a folder for each family
with config.json, model.safetensors and expected.json: {"cases": [{"tokens": [...], "prompt_logprobs": [null, ...],
"greedy": [...]}, ...]}, computed in float32. Each is imported and scored in float32 on one rank, and
generates greedily in every layout of LAYOUTS (or FEW, or on one rank), which must all give the same
bytes; --cuda: on a device. Prints a line for each family: the largest difference of a log-probability,
greedy tokens that differ, and layouts whose bytes do. Exit code 1 where a difference is above 1e-4 or
any token or byte differs.
"""

import json
import os
import subprocess
import sys
import tempfile

BACKEND = "cuda" if "--cuda" in sys.argv else "cpu"
ONE = {"1 rank": (1, [])}
LAYOUTS = {
    "1 rank": (1, []),
    "1 rank, 5 tokens a pass": (1, ["--step-tokens", "5"]),
    "3 ranks, 2 chunks": (3, ["--chunks", "2", "--min-chunk-tokens", "1", "--step-tokens", "40"]),
    "4 ranks, nodes of 2": (4, ["--route", "nodes", "--node-ranks", "2"]),
    "--tp 2": (2, ["--tp", "2", "--step-tokens", "33"]),
    "--tp 4 --pp 3": (12, ["--tp", "4", "--pp", "3", "--tp-output", "rows"]),
    "--expert-tp 2 --tp 2": (4, ["--expert-tp", "2", "--tp", "2", "--tp-output", "columns"]),
}
FEW = {name: LAYOUTS[name] for name in ("1 rank", "1 rank, 5 tokens a pass", "--tp 2")}
LAUNCHER = os.path.join(os.path.dirname(__file__), os.pardir, "jobs", "launcher.sh")
MPIRUN = ["mpirun"] + subprocess.run(["bash", LAUNCHER, "--shared-machine"], check=True,
                                     capture_output=True, text=True).stdout.split()


def run(command):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode not in (0, 65):
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip().splitlines()[-1:]}")
    return done.stderr


def results_of(path):
    with open(path, encoding="utf-8") as lines:
        return {r["id"]: r for r in map(json.loads, lines)}


def launch(atoll, ranks, model, requests, results, options):
    start = [] if ranks == 1 else MPIRUN + ["-n", str(ranks)]
    run(start + [atoll, "run", "--model", model, "--input", requests, "--output", results,
                 "--dtype", "float32", "--backend", BACKEND] + options)


def check(atoll, folder, work, layouts):
    """Largest difference, greedy tokens that differ, requests refused, layouts that differ."""
    model = os.path.join(work, "model.h5")
    run([atoll, "import", folder, "--output", model])
    with open(os.path.join(folder, "expected.json"), encoding="utf-8") as file:
        cases = json.load(file)["cases"]
    requests = os.path.join(work, "requests.jsonl")
    with open(requests, "w", encoding="utf-8") as file:
        for i, case in enumerate(cases):
            line = {"id": str(i), "tokens": case["tokens"], "max_tokens": len(case["greedy"])}
            file.write(json.dumps(line) + "\n")
    results = os.path.join(work, "results.jsonl")
    launch(atoll, 1, model, requests, results, ["--mode", "score"])
    scored = results_of(results)
    worst, wrong, refused, bytes_of = 0.0, 0, 0, {}
    for i, case in enumerate(cases):
        got = scored[str(i)]
        if "error" in got:
            refused += 1
            continue
        for mine, theirs in zip(got["prompt_logprobs"], case["prompt_logprobs"]):
            if theirs is not None:
                worst = max(worst, abs(mine - theirs))
    for name, (ranks, options) in layouts.items():
        try:
            launch(atoll, ranks, model, requests, results, options)
        except RuntimeError as error:
            bytes_of[name] = str(error)
            continue
        with open(results, "rb") as file:
            bytes_of[name] = file.read()
        if name == "1 rank":
            made = results_of(results)
            for i, case in enumerate(cases):
                if "error" in made[str(i)]:
                    continue
                tokens = made[str(i)]["tokens"]
                wrong += sum(a != b for a, b in zip(tokens, case["greedy"]))
                stopped = made[str(i)].get("finish_reason") == "stop"
                wrong += 0 if stopped else len(case["greedy"]) - len(tokens)
    first = bytes_of["1 rank"]
    other = {k: v if isinstance(v, str) else "other bytes" for k, v in bytes_of.items() if v != first}
    return worst, wrong, refused, other


def main():
    layouts = ONE if "--one" in sys.argv else FEW if "--few" in sys.argv else LAYOUTS
    atoll, base, *names = [a for a in sys.argv[1:] if not a.startswith("--")]
    failed = False
    for name in names or sorted(os.listdir(base)):
        folder = os.path.join(base, name)
        if not os.path.exists(os.path.join(folder, "expected.json")):
            continue
        with tempfile.TemporaryDirectory() as work:
            try:
                worst, wrong, refused, other = check(atoll, folder, work, layouts)
            except (RuntimeError, KeyError) as error:
                print(f"{name:18} FAILED {error}", flush=True)
                failed = True
                continue
        bad = worst > 1e-4 or wrong > 0 or other
        failed = failed or bool(bad)
        print(f"{name:18} {'FAILED' if bad else 'ok':6} difference {worst:.1e}, {wrong} greedy tokens "
              f"differ, {refused} requests refused, layouts that differ: {other or 'none'}",
              flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
