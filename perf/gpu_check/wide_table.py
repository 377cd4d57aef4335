#!/usr/bin/env python3
"""wide_table.py RESULTS REPORTS: the runs of together.sh's wide model: equal bytes, and a line of the
table (perf/table_line.hpp) each with its speed and what overlapped."""

import glob
import json
import os
import sys


def main():
    results, reports = sys.argv[1:]
    names = sorted(os.path.basename(path).removesuffix(".jsonl") for path in glob.glob(f"{results}/wide-*.jsonl"))
    if not names:
        print("no run of the wide model came to an end")
        return 1
    failed, wanted = False, None
    for name in names:
        with open(f"{results}/{name}.jsonl", "rb") as file:
            bytes_of = file.read()
        wanted = wanted if wanted is not None else bytes_of
        same = bytes_of == wanted
        failed |= not same
        with open(f"{reports}/{name}-report.json", encoding="utf-8") as file:
            report = json.load(file)
        phase = report["phases"]["prefill"]
        grown = sum(rank.get("receive_buffer_growths", 0) for rank in report["per_rank"])
        print(f"= {'PASSED' if same else 'FAILED'}|{name}|{phase['tokens_per_s']:.0f} tokens/s|-|-|"
              f"bytes {'same' if same else 'OTHERS'} as {names[0]}; overlapped {phase.get('overlapped_share') or 0:.2f}; "
              f"{report.get('transport')}; buffers grew {grown} times")
    return 1 if failed else 0


sys.exit(main())
