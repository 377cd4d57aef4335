#!/usr/bin/env bash
# Sources are formatted as .clang-format says. Argument: the repository (default: the one this
# script is in).
set -euo pipefail
cd "${1:-$(dirname "${BASH_SOURCE[0]}")/../..}"

# Versions of clang-format differ in small things; the sources follow Debian 12's.
wanted=14
for program in "clang-format-$wanted" clang-format; do
  if command -v "$program" >/dev/null && "$program" --version | grep -q "version $wanted\."; then
    mapfile -t sources < <(find app comm compute io tests perf -name '*.[hc]pp' -o -name '*.cu' -o -name '*.cuh' | sort)
    ((${#sources[@]} > 0))
    "$program" --dry-run --Werror "${sources[@]}"
    printf '%d files are formatted\n' "${#sources[@]}"
    exit 0
  fi
done
printf 'skipped: no clang-format %d here (package clang-format-%d)\n' "$wanted" "$wanted"
exit 77
