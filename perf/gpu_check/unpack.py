#!/usr/bin/env python3
"""unpack.py FILE FOLDER: unpacks what perf/gpu_bundle.py packed. Where this Python was built without
lzma, xz and tar do it."""

import pathlib
import subprocess
import sys
import tarfile

source, target = sys.argv[1:]
pathlib.Path(target).mkdir(parents=True)
try:
    with tarfile.open(source, "r:xz") as tar:
        if hasattr(tarfile, "tar_filter"):
            tar.extractall(target, filter="tar")
        else:
            tar.extractall(target)
except tarfile.CompressionError:
    subprocess.run(["tar", "-C", target, "-xJf", source], check=True)
