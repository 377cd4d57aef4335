#!/usr/bin/env bash
# The start of a run: each byte of the model file is read once for all ranks, the first requests of a
# long file are served while the others are read, and ranks other than 0 keep nothing of them.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

model="$work/model.h5"
import_sample "$model"

# A file is judged by its first 10,000 requests: both go on after them, one three times as long.
python3 - "$work" <<'EOF'
import json, sys

def request(i):
    more = {} if i % 3 else {"temperature": 0.9}
    return json.dumps({"id": f"r{i}", "prompt": f"{i} {'x' * (i % 5)}", "max_tokens": 1 + i % 3, **more})
lines = [request(i) for i in range(31500)]
lines[10200] = '{"id": "broken", "prompt": '
lines[10300] = request(7)
def write(name, lines):
    with open(f"{sys.argv[1]}/{name}.jsonl", "w") as file:
        file.write("\n".join(lines) + "\n")
write("long", lines[:10500])
write("longer", lines)
write("few", lines[:20])
lines[5] = json.dumps({"id": "r5", "prompt": "another", "max_tokens": 1})
write("changed", lines[:10500])
EOF
results="$work/results.jsonl"
journal="$results.journal"
input="$work/long.jsonl"
run_options=(run --model "$model" --output "$results" --report "$work/report.json" --max-sequences 32
  --progress none)

# --- weights
for ranks in 1 4 16; do
  atoll_on "$ranks" "${run_options[@]}" --input "$work/few.jsonl"
  succeeds "a run on $ranks ranks" || continue
  json_check "bytes read by $ranks ranks" "$work/report.json" <<'EOF'
report, = lines
startup = report["startup"]
read = sum(rank["model_bytes_read"] for rank in report["per_rank"])
assert read == startup["reading"]["bytes"] == startup["tensor_bytes_on_file"] > 0, startup
assert (startup["sending"]["bytes"] > 0) == (report["ranks"] > 1), startup
assert startup["packing"]["bytes"] >= startup["tensor_bytes_on_file"], startup
assert startup["first_admitted_s"] > 0, startup
EOF
done

# --- a long file, in any layout
atoll_on 1 "${run_options[@]}" --input "$input"
succeeds "a long file on one rank"
mv "$results" "$work/expected.jsonl"
json_check "results of a long file" "$work/expected.jsonl" <<'EOF'
results, = lines
assert len(results) == 10500
bad = [i for i, result in enumerate(results) if "error" in result]
assert bad == [10200, 10300], bad
assert all(results[i]["id"] == f"r{i}" for i in range(10500) if i not in bad)
assert "is that of line 8 already" in results[10300]["error"], results[10300]
EOF
atoll_on 3 "${run_options[@]}" --input "$input" --chunks 3
succeeds "a long file on three ranks" && same "on three ranks" "$work/expected.jsonl" "$results"
cp "$work/report.json" "$work/long.json"
rm -f "$results"

# --- interrupted before all is read, and resumed
mpirun "${mpirun_flags[@]}" -n 3 -x LD_PRELOAD="$fault_library" \
  -x ATOLL_FAULT="0 MPI_Iallgather 80 stop" "$ATOLL" "${run_options[@]}" --input "$input" \
  >"$work/stdout" 2>"$work/stderr" </dev/null &
job=$!
await_suspended "$job"
# shellcheck disable=SC2086  # several ranks
kill -KILL $suspended
wait "$job" || true
if head -n 1 "$journal" | grep -q 'of the first 10001'; then
  passed
else
  failed "the journal's first line does not say that 10001 requests were read"
fi
atoll_on 2 "${run_options[@]}" --input "$work/changed.jsonl" --resume
refused "resumed with another input" 1 'input was [0-9a-f]{16}.* and is [0-9a-f]{16}'
atoll_on 2 "${run_options[@]}" --input "$input" --resume
if grep -qE '^resuming: [1-9][0-9]* of 10500 requests are finished' "$work/stderr"; then
  passed
else
  failed "the resumed run kept nothing"
fi
succeeds "resumed" && same "resumed" "$work/expected.jsonl" "$results"
rm -f "$results"

# --- in shards
for shard in 0/2 1/2; do
  atoll_on 2 "${run_options[@]}" --input "$input" --shard "$shard"
  succeeds "shard $shard"
done
capture "$ATOLL" join --output "$results"
succeeds "joined" && same "joined" "$work/expected.jsonl" "$results"
rm -f "$results"

# --- what other ranks keep
atoll_on 3 "${run_options[@]}" --input "$work/longer.jsonl" --chunks 3
succeeds "a longer file on three ranks"
json_check "memory of the other ranks" "$work/long.json" "$work/report.json" <<'EOF'
peaks = [report["startup"]["peak_memory_bytes_of_rank"] for report in lines]
growth = [after - before for before, after in zip(*peaks)]
# 21,000 requests more; kept anywhere, each takes 200 bytes and more.
assert max(growth[1:]) < 2 << 20, growth
EOF
finish
