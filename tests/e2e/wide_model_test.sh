#!/usr/bin/env bash
# A DeepSeek-V3 of its real widths with one layer, of random codes in FP8: it is imported as fast as its bytes
# can be copied, in little memory, and run with its weights as they are. With --all alone: it is 11.5 GB, twice.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

experts="${ATOLL_WIDE_EXPERTS:-256}" # fewer to try the script itself
if ((!all_sweeps)); then
  printf 'skipped: takes minutes and 35 GB of disk, with --all alone\n'
  exit 77
fi
free_gb=$(($(df --output=avail -k "$work" | tail -n 1) / 1000000))
memory_gb=$(($(sed -n 's/^MemAvailable: *\([0-9]*\) kB/\1/p' /proc/meminfo) / 1000000))
if ((experts == 256 && (free_gb < 40 || memory_gb < 16))); then
  printf 'skipped: wants 40 GB of free disk and 16 GB of memory; there are %d and %d\n' "$free_gb" "$memory_gb"
  exit 77
fi
command_limit=600
python3 "$ATOLL_SOURCE/tests/e2e/make_wide_model.py" "$work/folder" "$experts"
sync "$work/folder"/*
bytes="$(du -sb "$work/folder" | cut -f 1)"

cat >"$work/measure.py" <<'PYTHON'
import resource, subprocess, sys, time

begin = time.monotonic()
code = subprocess.run(sys.argv[2:]).returncode
with open(sys.argv[1], "w", encoding="utf-8") as file:
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    file.write(f"{time.monotonic() - begin:.2f} {peak // 1000}\n")
sys.exit(code)
PYTHON
# measured WHAT COMMAND...: sets `seconds` and `peak_mb`.
measured() {
  local what="$1"
  shift
  capture python3 "$work/measure.py" "$work/measured" "$@"
  succeeds "$what" || return 0
  read -r seconds peak_mb <"$work/measured"
  printf '%s: %s s, %d MB at most\n' "$what" "$seconds" "$peak_mb"
}
# holds WHAT EXPRESSION: in Python.
holds() { if python3 -c "assert $2"; then passed; else failed "$1"; fi; }

# The same bytes read and written, and flushed, by cat.
# shellcheck disable=SC2016  # the inner shell's
measured "copied" bash -c 'cat "$1"/*.safetensors >"$2" && sync "$2"' - "$work/folder" "$work/copy"
copied="$seconds"
rm -f "$work/copy"
measured "imported" "$ATOLL" import "$work/folder" --output "$work/model.h5" --weights keep
holds "little memory" "$peak_mb < 600"
holds "as fast as a copy of $copied s" "$seconds < 2 * $copied + 2"
holds "codes stay codes" "$(stat -c %s "$work/model.h5") < 1.05 * $bytes"
rm -rf "$work/folder"

printf '{"id": "a", "tokens": [3, 1, 4, 1, 5, 9], "max_tokens": 4, "top_logprobs": 1}\n' >"$work/requests.jsonl"
measured "a few tokens" "$ATOLL" run --model "$work/model.h5" --input "$work/requests.jsonl" \
  --output "$work/results.jsonl" --backend cpu --kv-tokens 64 --progress none
json_check "tokens, and log-probabilities that are finite" "$work/results.jsonl" <<'EOF'
(result,) = lines[0]
assert "error" not in result and len(result["tokens"]) == 4, result
assert all(math.isfinite(step[0]["logprob"]) for step in result["top_logprobs"]), result
EOF
finish
