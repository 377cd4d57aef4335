#!/usr/bin/env python3
"""compare.py RESULTS REPORTS CPU FIRST OTHER...: scoring runs of the same texts. The CPU's
log-probabilities are near those of FIRST, and every other run has the bytes of FIRST. Prints lines for
the table (perf/table_line.hpp) with what the report says of device, transport and overlap."""

import json
import sys

folder, reports, cpu, first, *others = sys.argv[1:]
NEAR = 0.02  # rounding of activations to 16 bits, in another order of sums


def results(name):
    with open(f"{folder}/{name}.jsonl", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def told(name):
    with open(f"{reports}/{name}-report.json", encoding="utf-8") as file:
        report = json.load(file)
    phases = {key: phase for key, phase in report.get("phases", {}).items() if isinstance(phase, dict)}
    busy = [f"{key} {phase['tokens_per_s']:.0f} tokens/s, overlapped {phase.get('overlapped_share') or 0:.2f}"
            for key, phase in phases.items() if phase.get("tokens_per_s")]
    return f"{report.get('transport')}; {', '.join(busy)}; {report.get('backend')}".replace("|", "/")


def main():
    failed = False
    pairs = [(a, b) for r, s in zip(results(cpu), results(first), strict=True)
             for a, b in zip(r["prompt_logprobs"], s["prompt_logprobs"], strict=True) if a is not None]
    mean = sum(abs(a - b) for a, b in pairs) / len(pairs)
    near = mean < NEAR
    failed |= not near
    print(f"= {'PASSED' if near else 'FAILED'}|{first} to {cpu}, log-probability|{mean:.5f}|{NEAR}|-|"
          f"{len(pairs)} of them; {told(first)}")
    with open(f"{folder}/{first}.jsonl", "rb") as file:
        wanted = file.read()
    for name in others:
        with open(f"{folder}/{name}.jsonl", "rb") as file:
            same = file.read() == wanted
        failed |= not same
        print(f"= {'PASSED' if same else 'FAILED'}|{name} to {first}, bytes|{'same' if same else 'others'}"
              f"|-|-|{told(name)}")
    return 1 if failed else 0


sys.exit(main())
