#!/usr/bin/env bash
# A job on a real Slurm that loses the link of a node or all ranks of a node: it ends and
# says why, leaves no process, and when it is queued again its results are those of an undisturbed run.
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
processes_left() { pgrep -f -- "atoll run .*$work" || true; }
# fails_and_goes_on WHAT OUTPUT PATTERN: the job fails with a message, and is complete when queued again.
fails_and_goes_on() {
  wait_for_job
  if [[ "$ended" == *FAIL* ]]; then passed; else failed "$1: job $job is '$ended'"; fi
  if grep -qE "$3" "$work/atoll-$job/log"; then
    passed
  else
    failed "$1: the log has no '$3': $(tail -n 5 "$work/atoll-$job/log")"
  fi
  for _ in {1..100}; do
    [[ -n "$(processes_left)" ]] || break
    sleep 0.1
  done
  if [[ -z "$(processes_left)" ]]; then passed; else failed "$1: processes stay: $(processes_left)"; fi
  local kept
  kept="$(finished_in "$2")"
  if ((kept > 4 && kept < 400)); then passed; else failed "$1: $kept finished results are kept"; fi
  hurry
  queue_again
  ends_well "$1, queued again" || true
  if grep -q 'resuming: [1-9]' "$work/atoll-$job/log"; then passed; else failed "$1: began anew"; fi
  same "$1" "$work/expected.jsonl" "$2"
}

if start_job "$work/killed.jsonl"; then
  # shellcheck disable=SC2016  # for the shell on h2; hosts of a cluster see one another's processes
  capture "$cluster" on h2 sh -c 'for p in /proc/[0-9]*; do
    if [ "$(cat $p/comm)" = atoll ] && [ $(readlink $p/ns/uts) = $(readlink /proc/self/ns/uts) ]; then
      kill -KILL ${p#/proc/}; fi; done 2>/dev/null; true'
  succeeds "kill" || true
  fails_and_goes_on "all ranks of a node killed" "$work/killed.jsonl" 'signal 9|Killed'
fi

if start_job "$work/cut.jsonl"; then
  capture "$cluster" on h3 ip link set eth0 down
  succeeds "cutting the link" || true
  sleep 20 # the deadline passes on both sides
  capture "$cluster" on h3 ip link set eth0 up
  fails_and_goes_on "a link cut" "$work/cut.jsonl" 'h3.* does not answer'
fi

capture "$cluster" down
succeeds "down" || true
finish
