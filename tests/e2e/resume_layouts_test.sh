#!/usr/bin/env bash
# Runs in layouts (networks, stages, attention and experts over ranks) that are killed, stopped, or
# cannot write their checkpoints: each is resumed in another layout, and the bytes are those of a run
# that nobody interrupted.
#   ATOLL_CHAINS   with ATOLL_ALL: how many chains of random layouts (12), of a printed seed
#   ATOLL_SEED     that seed (the day's date)
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
num_requests=120  # where the disk is slow, a run makes few checkpoints, and faults come late in it
# shellcheck source-path=SCRIPTDIR source=interrupted.sh
source "$(dirname "${BASH_SOURCE[0]}")/interrupted.sh"

# of_layout LAYOUT: sets `ranks` and `layout` (options) from "RANKS OPTIONS...".
of_layout() { read -r -a layout <<<"${1#* }" && ranks="${1%% *}"; }

# interrupted FAULT LAYOUT: one link of a chain, from what there is in the folder.
interrupted() {
  of_layout "$2"
  local resume=()
  [[ ! -e "$journal" ]] || resume=(--resume)
  run_with "$1" "$ranks" "${resume[@]}" "${layout[@]}"
  no_orphans "$2, $1"
  case "${1##* }" in
    kill) if ((code != 0 && code != 75 && code != 124)); then passed; else failed "$2, $1: exit code $code"; fi ;;
    *) stopped "$2, $1" "$(tr '[:lower:]' '[:upper:]' <<<"${1##* }")" ;;
  esac
}
# resuming WHAT: the last run had found a checkpoint.
resuming() {
  if grep -q '^resuming from .*: step [0-9]*, [1-9]' "$work/stderr"; then
    passed
  else
    failed "$1: nothing was resumed from a checkpoint"
    show_output
  fi
}
ends_in() { # WHAT LAYOUT
  of_layout "$2"
  resumes "$1" "$ranks" "${layout[@]}"
}

# --- each layout's checkpoint into the next one's run. A killed run dies as it begins its third or fourth
# file, when it has a checkpoint or two; ranks that are killed and signalled are first and last,
# speak for their sequences and do not.
fresh
interrupted "3 MPI_Iallgather 200 usr1" "6 --tp 3 --replicas 2"
interrupted "2 MPI_Iallgather 200 term" "4 --pp 4"
resuming "attention over ranks, then stages"
interrupted "1 MPI_Iallgather 60 usr1" "3 --replicas 3"
resuming "stages, then networks"
interrupted "1 MPI_Iallgather 60 usr1" "4 --expert-tp 2 --slots 8"
resuming "networks, then experts over ranks"
ends_in "experts over ranks, then one rank" "1 --chunks 1"
resuming "experts over ranks, then one rank"

fresh
interrupted "3 MPI_File_open 4 kill" "4 --tp 2 --pp 2"
interrupted "0 MPI_File_open 4 kill" "2 --expert-tp 2"
resuming "attention over ranks and stages, then experts over ranks"
interrupted "5 MPI_File_open 3 kill" "6 --layout dp3-tp2"
resuming "experts over ranks, then networks of two"
ends_in "networks of two, then all of it" "8 --tp 2 --pp 2 --expert-tp 2 --no-overlap"
resuming "networks of two, then all of it"

fresh
interrupted "0 MPI_Iallgather 60 int" "1 --chunks 1"
interrupted "7 MPI_Iallgather 300 usr1" "8 --tp 2 --pp 2 --max-sequences 1"
resuming "one rank, then fewer places than there were sequences"
ends_in "fewer places, then three ranks" "3 --tp 3 --tp-output rows"
resuming "fewer places, then three ranks"

# --- checkpoints that cannot be written: all ranks that have a sequence leave the writing together
no_checkpoint() { # WHAT
  if grep -q "^no checkpoint of step .*the run goes on" "$work/stderr"; then
    passed
  else
    failed "$1: no message about the checkpoint"
    show_output
  fi
}
wide="8 --tp 2 --pp 2" # two owners: ranks 0, 1, 4, 5 and 2, 3, 6, 7; 0 and 2 speak for them
of_layout "$wide"
for fault in "0 MPI_File_write_at 90 fail" "2 MPI_File_write_at 60 fail"; do
  fresh
  run_with "$fault" "$ranks" "${layout[@]}"
  succeeds "$fault: the run goes on" || continue
  no_checkpoint "$fault"
  same "$fault" "$expected" "$results"
  json_check "$fault: one checkpoint failed, others did not" "$report" <<'EOP'
cost = lines[0]["checkpoints"]
assert cost["failed"] == 1 and cost["written"] >= 1, cost
EOP
done
# In the last checkpoint of a run that is stopped, which is written in one go.
for victim in 0 2; do
  of_layout "$wide"
  fresh
  fault="5 MPI_Iallgather 200 usr1;$victim MPI_File_write_at 60 fail"
  run_with "$fault" "$ranks" "${layout[@]}" --checkpoint-every 1000000
  no_orphans "$fault"
  stopped "$fault" USR1
  no_checkpoint "$fault"
  if grep -q "no checkpoint could be written" "$work/stderr"; then passed; else failed "$fault: not said"; fi
  ends_in "$fault" "2 --pp 2"
done

# A folder that is gone, and a full disk.
of_layout "$wide"
fresh
mpirun "${mpirun_flags[@]}" -n "$ranks" -x LD_PRELOAD="$fault_library" -x ATOLL_FAULT="0 MPI_Iallgather 200 stop" \
  "$ATOLL" "${run_options[@]}" "${layout[@]}" >"$work/stdout" 2>"$work/stderr" </dev/null &
job=$!
await_suspended "$job"
# The run may make a file in the folder while rm empties it; then rm has to begin again.
for _ in {1..100}; do if rm -rf "$checkpoints" 2>/dev/null; then break; fi; done
kill -CONT "$suspended"
await_end "the checkpoints' folder removed"
succeeds "the checkpoints' folder removed"
same "the checkpoints' folder removed" "$expected" "$results"
no_checkpoint "the checkpoints' folder removed"

full="$work/full"
mkdir "$full"
if mount -t tmpfs -o size=64k tmpfs "$full" 2>"$work/mount"; then
  trap 'umount -l "$full"; rm -rf "$work"' EXIT
  fresh
  atoll_on "$ranks" "${run_options[@]}" "${layout[@]}" --checkpoint-dir "$full/checkpoints"
  succeeds "a full disk under the checkpoints"
  same "a full disk under the checkpoints" "$expected" "$results"
  no_checkpoint "a full disk under the checkpoints"
  # One of few short sequences may have found room; what is left is whole.
  for left in "$full/checkpoints"/*; do
    [[ -e "$left" ]] || continue
    capture "$ATOLL" inspect "$left"
    succeeds "a full disk: $(basename "$left") is whole"
  done
else
  printf 'skipped: full disks (no tmpfs can be mounted here: %s)\n' "$(<"$work/mount")"
fi

# --- chains of random layouts
if ((all_sweeps)); then
  seed="${ATOLL_SEED:-$(date +%Y%m%d)}"
  RANDOM=$((seed % 32768))
  printf 'seed %s\n' "$seed"
  layouts=("1 --chunks 3" "5 --chunks 4" "2 --tp 2" "3 --tp 3 --tp-output rows" "4 --pp 4" "3 --pp 3"
    "6 --tp 2 --replicas 3" "4 --expert-tp 4" "8 --layout tp2-pp2" "8 --tp 2 --pp 2 --no-overlap"
    "6 --pp 2 --replicas 3" "12 --tp 3 --pp 2 --replicas 2" "8 --expert-tp 2 --tp 2 --pp 2 --route nodes --node-ranks 2"
    "6 --tp 6 --max-sequences 1" "4 --replicas 2 --slots 8")
  calls=("MPI_Iallgather usr1" "MPI_Iallgather term" "MPI_Iallgather kill" "MPI_File_open kill" "MPI_File_write_at kill")
  for ((chain = 1; chain <= ${ATOLL_CHAINS:-12}; ++chain)); do
    fresh
    names=""
    for ((link = 1; link <= 3; ++link)); do
      of_layout "${layouts[RANDOM % ${#layouts[@]}]}"
      read -r call action <<<"${calls[RANDOM % ${#calls[@]}]}"
      case "$call" in
        MPI_File_open) count=$((2 + RANDOM % 6)) ;;
        MPI_File_write_at) count=$((20 + RANDOM % 200)) ;;
        *) count=$((50 + RANDOM % 400)) ;;
      esac
      fault="$((RANDOM % ranks)) $call $count $action"
      names+="[$ranks ${layout[*]}: $fault] "
      resume=()
      [[ ! -e "$journal" ]] || resume=(--resume)
      run_with "$fault" "$ranks" "${resume[@]}" "${layout[@]}"
      no_orphans "$names"
      ((code != 124)) || failed "$names: hangs"
      ((code != 0)) || break # it had ended before
    done
    printf 'chain %d: %s\n' "$chain" "$names"
    if ((code == 0)); then
      same "$names" "$expected" "$results"
    else
      ends_in "$names" "${layouts[RANDOM % ${#layouts[@]}]}"
    fi
  done
fi
finish
