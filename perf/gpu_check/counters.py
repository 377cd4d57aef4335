#!/usr/bin/env python3
"""counters.py FILE: what ncu --csv wrote, a line of the table (perf/table_line.hpp) for each launch."""

import csv
import sys


def main():
    launches = {}
    with open(sys.argv[1], encoding="utf-8", errors="replace") as file:
        lines = [line for line in file if line.startswith('"')]
    for row in csv.DictReader(lines):
        launch = launches.setdefault(row["ID"], {"kernel": row["Kernel Name"].split("(")[0].split("<")[0]})
        launch[row["Metric Name"]] = f"{row['Metric Value']} {row['Metric Unit']}".strip()
    if not launches:
        print("no kernel of that name was launched, or the counters could not be read")
        return 1
    for number, launch in launches.items():
        kernel, time = launch.pop("kernel"), launch.pop("gpu__time_duration.sum", "-")
        rest = ", ".join(f"{name.split('.')[0].split('__')[-1]} {value}" for name, value in launch.items())
        print(f"= PASSED|counters {number} {kernel.split('::')[-1]}|{time}|-|-|{rest}".replace("\n", " "))
    return 0


sys.exit(main())
