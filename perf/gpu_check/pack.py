#!/usr/bin/env python3
"""pack.py LOGS OUTPUT PART: puts the files of LOGS, each gzipped, into OUTPUT/PART-1.tar and so on.

At most three archives of 15 MiB, small files first; what does not fit is named in PART-1.tar's
left-out.txt, larger files than an archive with their beginning. A file is compressed again only when it
has changed, so that this may be called after every step."""

import gzip
import io
import os
import pathlib
import sys
import tarfile

MOST_ARCHIVES, MOST_BYTES = 3, 15 << 20


def compressed(path, cache):
    kept = cache / (path.name + ".gz")
    if not kept.exists() or kept.stat().st_mtime_ns < path.stat().st_mtime_ns:
        kept.write_bytes(gzip.compress(path.read_bytes(), 6))
    return kept.read_bytes()


def archive_of(sizes, size):
    """The first archive with room, or -1."""
    for number, used in enumerate(sizes):
        if used + size + 1536 <= MOST_BYTES:
            return number
    if len(sizes) < MOST_ARCHIVES and size + 1536 <= MOST_BYTES:
        sizes.append(0)
        return len(sizes) - 1
    return -1


def main():
    logs, output, part = (pathlib.Path(p) for p in sys.argv[1:])
    cache = logs / ".packed"
    cache.mkdir(exist_ok=True)
    files = [(path, compressed(path, cache)) for path in logs.iterdir() if path.is_file()]
    files.sort(key=lambda file: len(file[1]))
    sizes, members, left_out = [0], [], []
    for path, data in files:
        number = archive_of(sizes, len(data))
        if number < 0:
            left_out.append(f"{path.name}: {path.stat().st_size} bytes, {len(data)} compressed\n")
            continue
        sizes[number] += len(data) + 1536
        members.append((number, path.name + ".gz", data))
    if left_out:
        members.append((0, "left-out.txt", "".join(left_out).encode()))
    for number in range(len(sizes)):
        target = output / f"{part}-{number + 1}.tar"
        partial = target.with_suffix(".partial")
        with tarfile.open(partial, "w") as tar:
            for where, name, data in members:
                if where == number:
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
        os.replace(partial, target)


main()
