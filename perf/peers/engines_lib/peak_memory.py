#!/usr/bin/env python3
"""Runs a command and writes its peak resident set, in bytes, to PREFIX.PID.

    peak_memory.py PREFIX COMMAND [ARGUMENT...]

Under mpirun it stands before the program, so that every rank is counted by itself.
"""

import os
import sys

prefix, *command = sys.argv[1:]
child = os.posix_spawnp(command[0], command, os.environ)
_, status, usage = os.wait4(child, 0)
with open(f"{prefix}.{child}", "w", encoding="utf-8") as file:
    file.write(str(usage.ru_maxrss * 1024))
sys.exit(os.waitstatus_to_exitcode(status) % 256)
