#!/usr/bin/env bash
# Waits end: a rank that stops, at any moment of a job, is named in one message and taken down with
# all others; so is a job in which one rank fails alone. Who is only suspended goes on.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

model="$work/model.h5"
import_sample "$model"
requests="$work/requests.jsonl"
results="$work/results.jsonl"
python3 -c "
import json
for number in range(12):
    print(json.dumps({'id': str(number), 'prompt': 'Ge1:1 In the beginning ' * 8, 'max_tokens': 120}))" \
  >"$requests"
run_options=(run --model "$model" --input "$requests" --progress none)

# no_process FOLDER WHAT: nothing that was started with this folder's files is left after some seconds.
no_process() {
  for _ in {1..50}; do
    pgrep -f "$1/" >/dev/null || break
    sleep 0.1
  done
  if pgrep -fa "$1/" >"$work/left"; then
    failed "$2: processes are left: $(cut -c 1-120 "$work/left" | head -n 3)"
    pkill -KILL -f "$1/" || true
  else
    passed
  fi
}

# faulty NAME FAULT COMMAND...: starts it under mpirun with 4 ranks (fault_ranks), with an --output of
# its own. Most of what follows is waiting, so several of these run side by side.
declare -A running=()
fault_ranks=4
faulty() {
  local name="$1" fault="$2"
  shift 2
  folder="$work/$name"
  mkdir "$folder"
  {
    work="$folder" capture mpirun "${mpirun_flags[@]}" -n "$fault_ranks" -x LD_PRELOAD="$fault_library" \
      -x ATOLL_FAULT="$fault" -x ATOLL_FAULT_MOMENT="$folder/moment" "$ATOLL" "$@" \
      --output "$folder/output"
    printf '%s %s\n' "$code" "$(date +%s%3N)" >"$folder/end"
  } &
  running[$name]=$!
}

# ended NAME: waits for it; sets `folder`, `code`, and `took_ms` since the fault.
ended() {
  local end_ms struck
  folder="$work/$1"
  wait "${running[$1]}"
  read -r code end_ms <"$folder/end"
  took_ms=-1
  if struck="$(LC_ALL=C stat -c %.3Y "$folder/moment" 2>/dev/null)"; then
    took_ms=$((end_ms - ${struck/./}))
  fi
}

# one_message NAME WHAT LIMIT PATTERN...: the job has failed within LIMIT seconds of the fault with one
# message besides at most one warning, which matches all patterns; no process is left.
one_message() {
  local name="$1" what="$2" limit="$3" pattern message
  shift 3
  ended "$name"
  printf '%s: ended after %d ms\n' "$what" "$took_ms"
  no_process "$folder" "$what"
  message="$(grep '^atoll: ' "$folder/stderr" | grep 'all ranks end\.\|failed (' || true)"
  if ((code == 0 || code == 124 || code == 137)); then
    failed "$what: exit code $code"
    show_output "$folder"
  elif ((took_ms < 0)); then
    failed "$what: the moment of the fault never came"
  elif ((took_ms > 1000 * limit)); then
    failed "$what: ended $took_ms ms after the fault, expected at most $limit s"
  elif [[ "$(wc -l <<<"$message")" != 1 || -z "$message" ]] ||
    (($(grep -c '^atoll: ' "$folder/stderr") > 2)); then
    failed "$what: not exactly one message: $message"
    show_output "$folder"
  else
    passed
    for pattern in "$@"; do
      if grep -qE -- "$pattern" <<<"$message"; then
        passed
      else
        failed "$what: no '$pattern' in: $message"
      fi
    done
  fi
}

# --- a rank that stops
silent() { printf 'rank %d \\([^)]*process [0-9]+\\) does not answer' "$1"; }
# The one at the very end waits longest: the others go on beside it.
faulty finalize "1 MPI_Finalize 1 stop" "${run_options[@]}" --deadline 4
faulty setup "1 MPI_Comm_dup 2 stop" "${run_options[@]}" --deadline 1.5
faulty nodes "2 MPI_Comm_split_type 1 stop" "${run_options[@]}" --deadline 1.5
faulty start "3 MPI_Init_thread 1 stop" "${run_options[@]}" --deadline 1.5
faulty hdf5 "1 MPI_File_open 1 stop" init --preset moe-16l-tiny --deadline 4
one_message setup "stopped in set-up" 60 "rank 0 has waited for other ranks for 1[5-9] s" "set-up" \
  "$(silent 1)"
one_message nodes "stopped where nodes are found" 60 "rank 0 has waited" "MPI_Comm_split_type" \
  "$(silent 2)"
one_message start "stopped before MPI starts" 60 "rank [012] has waited" "MPI_Init" \
  "not all ranks have come"
one_message hdf5 "stopped inside HDF5" 60 "rank 0 has waited" "creating the model file" "$(silent 1)"
# It has sent the others their requests only: they can come no further than to its counters.
# The warning is due after 5 s, long before the end, so that a machine that stalls has both.
faulty first "0 MPI_Isend 4 stop" "${run_options[@]}" --deadline 12
faulty collective "2 MPI_Isend 900 stop" "${run_options[@]}" --deadline 4 --transport ialltoallv
one_message first "stopped in the first step" 60 "rank 1 has waited for other ranks for 1[2-9] s" \
  "step 0, layer [0-9], chunk 0, counts" "$(silent 0)" "MPI awaits L[0-9] c0 counts from ranks 0"
warnings="$(grep -c '^atoll: .*ranks wait too$' "$folder/stderr" || true)"
if [[ "$warnings" == 1 ]]; then passed; else failed "$warnings straggler warnings, expected one"; fi
stopped_at="step [1-9][0-9]*, layer [0-9], chunk 0, (counts|dispatch|combine)"
one_message collective "stopped in decode, ialltoallv" 60 "rank 0 has waited" "$stopped_at" \
  "$(silent 2)"
faulty pairwise "2 MPI_Isend 900 stop" "${run_options[@]}" --deadline 4 --transport pairwise
one_message pairwise "stopped in decode, pairwise" 60 "rank 0 has waited" "$stopped_at" \
  "$(silent 2)" "MPI awaits L[0-9] c0 (counts|dispatch|combine) (from|to) ranks [0-9]"
one_message finalize "stopped at the end" 60 "rank 0 has waited" "the end, MPI_Finalize" \
  "$(silent 1)"

# --- a rank that fails alone
faulty fails "1 MPI_Isend 900 fail" "${run_options[@]}"
one_message fails "a rank that fails alone" 5 "MPI_Isend failed"
faulty fails_early "3 MPI_Comm_split_type 1 fail" "${run_options[@]}"
one_message fails_early "a rank that fails alone in set-up" 5 "MPI_Comm_split_type failed"

# --- in layouts: ranks are named as the job counts them, not by their places in a stage, a pipe or
# among those that share something. Rank 0 is with 2 in the pipe (--pp 2), and exchanges with 2 rows of
# the experts that it shares with 1 (--expert-tp 2); who has come further waits for the next pass.
faulty stage "2 MPI_Isend 900 stop" "${run_options[@]}" --deadline 4 --pp 2 --transport pairwise
faulty holder "2 MPI_Isend 900 stop" "${run_options[@]}" --deadline 4 --expert-tp 2 --transport pairwise
one_message stage "a stage's rank stopped" 60 "rank 0 has waited" "step [1-9][0-9]*, " "$(silent 2)" \
  "MPI_Iallgather|MPI awaits (c[0-9] (tokens from|forward to) ranks 2(, |; ))+" "2 other ranks wait too"
one_message holder "a rank that shares experts stopped" 60 "rank 0 has waited" "step [1-9][0-9]*, " \
  "$(silent 2)" "MPI_Iallgather|MPI awaits L[0-9] c0 [a-z-]+ (from|to) ranks [12]" "2 other ranks wait too"
faulty member "1 MPI_Isend 900 stop" "${run_options[@]}" --deadline 4 --tp 2 --replicas 2 --transport pairwise
faulty network "3 MPI_Isend 900 stop" "${run_options[@]}" --deadline 4 --tp 2 --replicas 2 --transport pairwise
one_message member "a rank that shares attention stopped" 60 "rank 0 has waited" "step [1-9][0-9]*, " \
  "$(silent 1)" "MPI_Iallgather|MPI awaits L[0-9] c0 [a-z-]+ (from|to) ranks 1" "2 other ranks wait too"
one_message network "a rank of another network stopped" 60 "rank 0 has waited" \
  "step [1-9][0-9]*, MPI_Iallgather" "$(silent 3)" "2 other ranks wait too"
fault_ranks=8
faulty last "7 MPI_Isend 900 fail" "${run_options[@]}" --tp 2 --pp 2
one_message last "a last stage's rank that fails alone" 5 "MPI_Isend failed"
for victim in 1 6; do
  faulty "dies$victim" "$victim MPI_Isend 900 kill" "${run_options[@]}" --tp 2 --pp 2 --expert-tp 2
  ended "dies$victim"
  no_process "$folder" "rank $victim dies"
  if ((code == 137 && took_ms >= 0 && took_ms < 5000)); then
    passed
  else
    failed "rank $victim dies: exit code $code, $took_ms ms after"
    show_output "$folder"
  fi
done
fault_ranks=4

# --- who is only suspended goes on
run_options+=(--output "$results")
capture mpirun "${mpirun_flags[@]}" -n 4 "$ATOLL" "${run_options[@]}" --chunks 1
succeeds "undisturbed"
cp "$results" "$work/undisturbed.jsonl"

# suspended WHAT NUMBER OPTION...: stops NUMBER ranks in the middle; all of them for 8 s, one until
# another warns.
suspended() {
  local what="$1" number="$2" job
  shift 2
  rm -f "$results"
  mpirun "${mpirun_flags[@]}" -n 4 -x LD_PRELOAD="$fault_library" -x ATOLL_FAULT="3 MPI_Isend 900 stop" \
    "$ATOLL" "${run_options[@]}" --chunks 1 "$@" >"$work/stdout" 2>"$work/stderr" </dev/null &
  job=$!
  await_suspended "$job" # rank 3
  if ((number > 1)); then
    suspended="$(pgrep -P "$job" | tr '\n' ' ')"
    # shellcheck disable=SC2086  # several ranks
    kill -STOP $suspended
    sleep 8
  else
    for _ in {1..400}; do
      if grep -q '^atoll: ' "$work/stderr"; then break; fi
      sleep 0.1
    done
  fi
  # shellcheck disable=SC2086
  kill -CONT $suspended
  code=0
  wait "$job" || code=$?
  succeeds "$what" && same "$what" "$work/undisturbed.jsonl" "$results"
}
suspended "one rank suspended, not for too long" 1 --deadline 60
warnings="$(grep -c '^atoll: rank 0 has waited .*(step .*rank 3 .* does not answer' "$work/stderr" || true)"
if [[ "$warnings" == 1 ]]; then passed; else failed "$warnings straggler warnings, expected one"; fi
suspended "the whole job suspended" 4 --deadline 4
if grep -q '^atoll: ' "$work/stderr"; then failed "a warning after the whole job was suspended"; else passed; fi
finish
