#!/usr/bin/env python3
"""Prints the folders of CUDA's libraries, as LD_LIBRARY_PATH wants them: a toolkit's, or those that come
with PyTorch in Python's own folders."""

import glob
import sys

folders = []
for pattern in ("/usr/local/cuda/lib64", "/usr/local/cuda/lib", "/usr/local/cuda/targets/x86_64-linux/lib"):
    folders += [path.rsplit("/", 1)[0] for path in glob.glob(pattern + "/libcublasLt.so.*")]
for base in filter(None, sys.path):
    folders += [path.rsplit("/", 1)[0] for path in sorted(glob.glob(base + "/nvidia/*/lib/lib*.so*"))]
print(":".join(dict.fromkeys(folders)))
