#!/usr/bin/env bash
# Runs that are killed, stopped by signals, or lose their disk: nothing hangs, no process stays, and
# --resume gives the bytes of an uninterrupted run.
#   ATOLL_KILLS   how many runs are killed, at moments of a printed seed (8; 20 with ATOLL_ALL)
#   ATOLL_SEED    that seed (the day's date)
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
# shellcheck source-path=SCRIPTDIR source=interrupted.sh
source "$(dirname "${BASH_SOURCE[0]}")/interrupted.sh"
kills="${ATOLL_KILLS:-$((all_sweeps ? 20 : 8))}"
seed="${ATOLL_SEED:-$(date +%Y%m%d)}"
RANDOM=$((seed % 32768))

# Starts a run whose rank 0 suspends itself in the middle, and waits for that; SIGCONT to $suspended
# lets it go on.
start_suspended() {
  mpirun "${mpirun_flags[@]}" -n 3 -x LD_PRELOAD="$fault_library" \
    -x ATOLL_FAULT="0 MPI_Iallgather 50 stop" "$ATOLL" "${run_options[@]}" \
    >"$work/stdout" 2>"$work/stderr" </dev/null &
  job=$!
  await_suspended "$job"
}
# Waits until a test holds, or the job has ended.
until_true() { # COMMAND...
  for _ in {1..600}; do
    if "$@" >/dev/null 2>&1 || ! kill -0 "$job" 2>/dev/null; then return 0; fi
    sleep 0.02
  done
}

# --- a run's own account. In memory: how many checkpoints there are at the end is not the disk's matter.
in_memory="$(mktemp -d /dev/shm/atoll-e2e.XXXXXX)"
trap 'rm -rf "$work" "$in_memory"' EXIT
fresh
began=$(date +%s%N)
start 3 --checkpoint-dir "$in_memory"
await_end "a run with checkpoints"
span_ms=$((($(date +%s%N) - began) / 1000000 - 400))
((span_ms > 0)) || span_ms=1
succeeds "a run with checkpoints"
same "a run with checkpoints" "$expected" "$results"
same "routing of a run with checkpoints" "$work/expected-routing.h5" "$routing"
json_check "the cost of checkpoints" "$report" <<'EOP'
cost = lines[0]["checkpoints"]
assert cost["written"] >= 2 and cost["failed"] == 0 and cost["bytes"] > 0 and 0 < cost["share"] < 1, cost
EOP
if (($(find "$in_memory" -type f | wc -l) == 2)); then passed; else failed "not two checkpoints: $(ls "$in_memory")"; fi

# --- kill -9 at any moment
printf 'seed %s\n' "$seed"
during=0
for ((i = 1; i <= kills; ++i)); do
  fresh
  start 3
  if ((i % 4 == 0)); then
    until_true has_checkpoints 1
    until_true is_writing
  else
    sleep "$(awk -v ms=$((250 + RANDOM % span_ms)) 'BEGIN {print ms / 1000}')"
  fi
  moment="$(num_kept) finished, $(num_checkpoints) checkpoints"
  if is_writing >/dev/null; then
    moment="$moment, writing another"
    during=$((during + 1))
  fi
  mapfile -t ranks < <(ranks_left | while read -r pid; do [[ "$pid" == "$job" ]] || echo "$pid"; done)
  if ((${#ranks[@]} > 0)); then kill -KILL "${ranks[$((RANDOM % ${#ranks[@]}))]}" 2>/dev/null || true; fi
  await_end "kill $i"
  no_orphans "kill $i"
  printf 'kill %d: %s; exit code %d\n' "$i" "$moment" "$code"
  # A run that had ended before leaves its results, which is what is asked of it.
  if ((code == 0)); then
    same "kill $i came too late" "$expected" "$results"
  else
    resumes "kill $i" $((1 + RANDOM % 5))
  fi
done
if ((kills < 8 || during > 0)); then passed; else failed "no kill fell into the writing of a checkpoint"; fi

# --- signals
for signal in USR1 TERM INT; do
  fresh
  run_with "2 MPI_Iallgather 50 ${signal,,}" 3
  no_orphans "SIG$signal"
  stopped "SIG$signal" "$signal"
  if [[ "$signal" == USR1 ]]; then
    capture "$ATOLL" inspect "$(newest)"
    succeeds "inspect of a checkpoint"
    if grep -q "checksums: all good" "$work/stdout"; then passed; else failed "inspect: no verdict"; fi
    atoll_on 2 "${run_options[@]}"
    refused "results of an interrupted run would be lost" 1 "finished results.*--resume"
    atoll_on 2 "${run_options[@]}" --resume --max-tokens 5
    refused "other options" 1 "max-tokens was 64 and is 5"
    atoll_on 2 "${run_options[@]}" --resume --dtype float32
    refused "another element type" 1 "dtype was bfloat16 and is float32"
    atoll_on 2 "${run_options[@]}" --resume --kv-tokens 64
    refused "another KV cache" 1 "kv-tokens was 0 and is 64"
    sed '2s/Die/Der/' "$requests" >"$work/other.jsonl"
    atoll_on 2 "${run_options[@]}" --resume --input "$work/other.jsonl"
    refused "other requests" 1 "input was"
    mv "$journal" "$work/kept"
    atoll_on 2 "${run_options[@]}" --resume --mode score
    refused "a checkpoint of another mode" 1 "mode was generate and is score"
    mv "$work/kept" "$journal"
  fi
  resumes "SIG$signal" 4
done
fresh
start_suspended # no pass ends any more
victim="$(pgrep -P "$job" | grep -vx "$suspended" | tail -n 1)"
kill -TERM "$victim"
is_pending() { # SIGTERM is bit 14 of 64, in hexadecimal
  awk '/^(SigPnd|ShdPnd)/ && index("4567cdef", substr($2, 13, 1)) { found = 1 } END { exit !found }' \
    "/proc/$victim/status"
}
while is_pending; do sleep 0.05; done
sleep 1.5 # less would be the same press of a key
kill -TERM "$victim"
await_end "a second signal"
no_orphans "a second signal"
if ((code != 0 && code != 75)); then passed; else failed "a second signal: exit code $code"; fi
resumes "a second signal" 2

# --- fewer places than sequences under way: what waits goes from checkpoint to checkpoint
fresh
run_with "1 MPI_Iallgather 50 usr1" 3
stopped "before fewer places" USR1
resumed_from() { sed -nE 's/^resuming from .*: step ([0-9]+), ([0-9]+) .*/\1 \2/p' "$work/stderr"; }
kept="$(num_kept)"
run_with "0 MPI_File_open 2 kill" 2 --resume --max-sequences 1 --checkpoint-every 4
if ((code != 0)); then passed; else failed "fewer places: not killed"; fi
read -r step under_way < <(resumed_from)
resumes "fewer places" 4
read -r later still < <(resumed_from)
finished="$(sed -nE 's/^resuming: ([0-9]+) of .*/\1/p' "$work/stderr")"
if ((later > step && under_way > 4 && still + finished - kept >= under_way)); then
  passed
else
  failed "of $under_way under way at step $step, step $later has $still, $((finished - kept)) were finished"
fi

# --- damaged checkpoints
damage() { # WHAT PATTERN CHECKPOINT_DAMAGE...
  fresh
  run_with "1 MPI_Iallgather 50 usr1" 3
  run_with "1 MPI_Iallgather 50 usr1" 3 --resume
  stopped "before $1" USR1
  if has_checkpoints 2; then passed; else failed "$1: less than two checkpoints"; fi
  "${@:3}"
  resumes "$1" 2
  if grep -qE "$2" "$work/stderr"; then passed; else failed "$1: no message about $2"; fi
}
flip_newest() {
  python3 -c "
import sys
path = sys.argv[1]
data = bytearray(open(path, 'rb').read())
data[len(data) * 3 // 4] ^= 4
open(path, 'wb').write(data)" "$(newest)"
}
cut_all() { find "$checkpoints" -name '*.h5' -exec truncate -s 3000 {} +; }
damage "a damaged checkpoint" "not used: .*damaged" flip_newest
if grep -q "^resuming from" "$work/stderr"; then passed; else failed "the checkpoint before a damaged one is not used"; fi
damage "two cut checkpoints" "no usable checkpoint" cut_all
damage "no checkpoints any more" "no usable checkpoint" rm -r "$checkpoints"

# --- files of others in the folder: they stay, and the run numbers its own above them
fresh
rm "$in_memory"/*
checkpoints="$in_memory"
others=("$checkpoints/checkpoint-1.h5" "$checkpoints/checkpoint-000900000.h5")
for other in "${others[@]}"; do echo kept >"$other"; done
start 3 --checkpoint-dir "$checkpoints"
await_end "other files in the folder"
succeeds "other files in the folder"
if (($(num_checkpoints) == 4)) && [[ "$(newest)" > "${others[1]}" ]] && grep -q kept "${others[0]}" && grep -q kept "${others[1]}"; then
  passed
else
  failed "other files in the folder: $(ls "$checkpoints")"
fi
checkpoints="$folder/checkpoints"

# --- folders that go away
# The run may make a file in the folder while rm empties it; then rm has to begin again.
remove_folder() { for _ in {1..100}; do if rm -rf "$1" 2>/dev/null; then return; fi; done; }
fresh
start_suspended
remove_folder "$checkpoints"
kill -CONT "$suspended"
await_end "the checkpoints' folder removed"
succeeds "the checkpoints' folder removed"
same "the checkpoints' folder removed" "$expected" "$results"
if grep -q "no checkpoint of step .*the run goes on" "$work/stderr"; then passed; else failed "no message about a missing folder"; fi
fresh
start_suspended
remove_folder "$folder"
kill -CONT "$suspended"
await_end "the output's folder removed"
no_orphans "the output's folder removed"
if ((code != 0)) && grep -qE "^atoll: .*(removed|No such file)" "$work/stderr"; then
  passed
else
  failed "the output's folder removed: exit code $code"
  show_output
fi
fresh
resumes "the output's folder made again" 2

# --- full disks
full="$work/full"
mkdir "$full"
if mount -t tmpfs -o size=12k tmpfs "$full" 2>"$work/mount"; then
  trap 'umount -l "$full"; rm -rf "$work" "$in_memory"' EXIT
  run_options+=(--output "$full/results.jsonl")
  results="$full/results.jsonl"
  journal="$results.journal"
  fresh
  start 3
  await_end "a full disk under the results"
  no_orphans "a full disk under the results"
  refused "a full disk under the results" 1 "No space left.*--resume"
  mount -o remount,size=10m "$full"
  resumes "a disk with room again" 2
  mount -o remount,size=64k "$full"
  rm -rf "${full:?}"/*
  checkpoints="$full/checkpoints"
  results="$folder/results.jsonl"
  journal="$results.journal"
  fresh
  run_options+=(--output "$results" --checkpoint-dir "$checkpoints")
  start 3
  await_end "a full disk under the checkpoints"
  succeeds "a full disk under the checkpoints"
  same "a full disk under the checkpoints" "$expected" "$results"
  if grep -q "no checkpoint of step .*No space left" "$work/stderr"; then passed; else failed "no message about a full disk"; fi
  if [[ -z "$(ls "$checkpoints")" ]]; then passed; else failed "a full disk: left $(ls "$checkpoints")"; fi
else
  printf 'skipped: full disks (no tmpfs can be mounted here: %s)\n' "$(<"$work/mount")"
fi
finish
