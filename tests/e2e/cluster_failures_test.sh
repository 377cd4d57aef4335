#!/usr/bin/env bash
# A job on a real Slurm that loses all ranks of a node, a rank that stops, or the link of a node: it says
# which node it leaves out and goes on without it at once; where it may not, it ends and says why, and
# goes on when it is queued again. It leaves no process, and its results are those of an undisturbed run.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
# shellcheck source-path=SCRIPTDIR source=cluster_jobs.sh
source "$(dirname "${BASH_SOURCE[0]}")/cluster_jobs.sh"

model="$work/model.h5"
import_sample "$model"
requests="$work/requests.jsonl"
python3 "$jobs/make-requests.py" --sequences 400 --prompt-tokens 5 --max-tokens 50 --vocab 256 \
  >"$requests"
atoll_on 2 run --model "$model" --input "$requests" --output "$work/expected.jsonl" --backend cpu
succeeds "the same on one machine" || true
cd "$work"
capture "$cluster" up 3 --rate 500mbit
succeeds "up" || finish

# start_job OUTPUT SBATCH-OPTION...: submits, and returns once some requests are finished and some not.
start_job() {
  local output="$1"
  shift
  rm -f "$work/hurry"
  ATOLL="$work/slow-atoll" submit --nodes=3 --ntasks-per-node=2 "$@" "$jobs/atoll.sbatch" "$model" \
    "$requests" "$output" --checkpoint-every 2s --deadline 6 || return 1
  for _ in {1..600}; do
    if (($(finished_in "$output") > 4)); then return 0; fi
    sleep 0.1
  done
  failed "job $job: nothing finished in a minute"
  return 1
}
# goes_on_by_itself WHAT OUTPUT NODE-LEFT-OUT
goes_on_by_itself() {
  ends_well "$1" || true
  log_says "$1" "left out: $3; going on with 4 ranks on 2 nodes"
  log_says "$1" 'resuming: [1-9]'
  same "$1" "$work/expected.jsonl" "$2"
}
# fails_and_goes_on WHAT OUTPUT PATTERN: the job fails with a message, and is complete when queued again.
fails_and_goes_on() {
  wait_for_job
  if [[ "$ended" == *FAIL* ]]; then passed; else failed "$1: job $job is '$ended'"; fi
  log_says "$1" "$3"
  leaves_no_process "$1"
  local kept
  kept="$(finished_in "$2")"
  if ((kept > 4 && kept < 400)); then passed; else failed "$1: $kept finished results are kept"; fi
  hurry
  queue_again
  ends_well "$1, queued again" || true
  log_says "$1" 'resuming: [1-9]'
  same "$1" "$work/expected.jsonl" "$2"
}

if start_job "$work/killed.jsonl"; then
  hurry
  signal_on h2 KILL
  goes_on_by_itself "all ranks of a node killed" "$work/killed.jsonl" h2
  leaves_no_process "all ranks of a node killed"
fi
if start_job "$work/stopped.jsonl"; then
  hurry
  signal_on h3 STOP
  goes_on_by_itself "all ranks of a node stopped" "$work/stopped.jsonl" h3
  signal_on h3 KILL
fi

if ATOLL_MOST_LOSSES=0 start_job "$work/cut.jsonl"; then
  capture "$cluster" on h3 ip link set eth0 down
  succeeds "cutting the link" || true
  sleep 20 # the deadline passes on both sides
  capture "$cluster" on h3 ip link set eth0 up
  fails_and_goes_on "a link cut" "$work/cut.jsonl" 'h3.* does not answer'
fi

capture "$cluster" down
succeeds "down" || true
finish
