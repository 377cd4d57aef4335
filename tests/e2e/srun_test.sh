#!/usr/bin/env bash
# srun as launcher, on a real Slurm on a cluster of namespaces: the bytes that mpirun gives; ranks that MPI
# did not join; a rank that stops answering; a job that is warned, is queued again and goes on; and one that
# goes on without a node it has lost.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
# shellcheck source-path=SCRIPTDIR source=cluster_jobs.sh
source "$(dirname "${BASH_SOURCE[0]}")/cluster_jobs.sh"
export ATOLL_LAUNCHER=srun

model="$work/model.h5"
import_sample "$model"
prompts="$jobs/sample-prompts.jsonl"
requests="$work/requests.jsonl"
python3 "$jobs/make-requests.py" --sequences 300 --prompt-tokens 5 --max-tokens 50 --vocab 256 \
  >"$requests"
for input in "$prompts" "$requests"; do
  atoll_on 2 run --model "$model" --input "$input" --output "$work/expected-${input##*/}" --backend cpu
  succeeds "${input##*/} on one machine" || true
done
cd "$work"
capture "$cluster" up 3 --rate 500mbit
succeeds "up" || finish
# shellcheck disable=SC2016  # for the shell on the head
pmi="$("$cluster" on head bash -c 'source "$1/launcher.sh"; pmi_of "$2"' bash "$jobs" "$ATOLL")"
if [[ -z "$pmi" ]]; then
  printf 'skipped: this Slurm has no PMI that the MPI library takes (srun --mpi=list)\n'
  exit 77
fi
on_three() { # SRUN-OPTION ATOLL-OPTION...: two ranks on each host, without a job script
  local option="$1"
  shift
  capture "$cluster" on head srun "$option" --nodes=3 --ntasks-per-node=2 "$ATOLL" run --model "$model" \
    --input "$prompts" --backend cpu --progress none "$@"
}

on_three "$pmi" --output "$work/srun.jsonl"
succeeds "srun $pmi" || true
same "srun $pmi" "$work/expected-${prompts##*/}" "$work/srun.jsonl"

# Without a PMI each process is alone; Open MPI refuses that in its own words, others leave it to Atoll.
on_three --mpi=none --output "$work/split.jsonl"
if ((code != 0)) && [[ ! -s "$work/split.jsonl" ]] &&
  grep -qE 'srun started 6 tasks|direct launched using "srun"' "$work/stderr"; then
  passed
else
  failed "srun --mpi=none: exit code $code, $(tail -n 3 "$work/stderr")"
fi

# A rank that stops: the others end within their deadline and say who it was.
"$cluster" on head srun "$pmi" --wait=5 --nodes=3 --ntasks-per-node=2 "$work/slow-atoll" run --model "$model" \
  --input "$requests" --output "$work/stopped.jsonl" --backend cpu --progress none --deadline 6 \
  >"$work/stopped.out" 2>&1 </dev/null &
running=$!
for _ in {1..300}; do
  if (($(finished_in "$work/stopped.jsonl") > 2)); then break; fi
  sleep 0.1
done
signal_on h2 STOP
stopped_at=$SECONDS
ended=0
wait "$running" || ended=$?
if ((ended != 0 && SECONDS - stopped_at < 40)) && grep -q 'h2, process [0-9]*) does not answer' "$work/stopped.out"; then
  passed
else
  failed "a rank stopped under srun: code $ended after $((SECONDS - stopped_at)) s: $(tail -n 4 "$work/stopped.out")"
fi
signal_on h2 KILL

# A job script under srun: told to stop as Slurm does before the time limit, queued again, goes on; then it
# loses the ranks of a node.
start_job() { # OUTPUT
  rm -f "$work/hurry"
  ATOLL="$work/slow-atoll" submit --nodes=3 --ntasks-per-node=2 "$jobs/atoll.sbatch" "$model" "$requests" \
    "$1" --checkpoint-every 2s --deadline 6 || return 1
  for _ in {1..600}; do
    if (($(finished_in "$1") > 4)); then return 0; fi
    sleep 0.1
  done
  failed "job $job: nothing finished in a minute: $(tail -n 5 "$work/atoll-$job/log")"
  return 1
}
if start_job "$work/requeued.jsonl"; then
  capture "$cluster" on head scancel --batch --signal=USR1 "$job"
  succeeds "the warning" || true
  for _ in {1..200}; do
    if (($(field Restarts) > 0)); then break; fi
    sleep 0.1
  done
  hurry
  release_job
  ends_well "a job under srun that was queued again" || true
  log_says "queued again" 'queued again, to go on'
  log_says "queued again" 'resuming: [1-9]'
  same "a job under srun that was queued again" "$work/expected-requests.jsonl" "$work/requeued.jsonl"
fi
if ((all_sweeps == 0)); then
  printf 'left out: a node that is lost, which only --all has\n'
elif start_job "$work/lost.jsonl"; then
  hurry
  signal_on h2 KILL
  ends_well "ranks of a node killed under srun" || true
  log_says "ranks of a node killed under srun" "left out: h2; going on with 4 ranks on 2 nodes"
  same "ranks of a node killed under srun" "$work/expected-requests.jsonl" "$work/lost.jsonl"
  leaves_no_process "ranks of a node killed under srun"
fi

# An array: its tasks share the requests, the last one joins, and the machine is looked at first.
job=0
ATOLL_CHECK=warn submit --array=0-2 --nodes=1 --ntasks-per-node=2 "$jobs/atoll-array.sbatch" "$model" "$prompts" \
  "$work/array.jsonl" || true
for _ in {1..300}; do
  if [[ -f "$work/array.jsonl" && ! -e "$work/array.jsonl.joining" ]]; then break; fi
  sleep 0.1
done
same "an array" "$work/expected-${prompts##*/}" "$work/array.jsonl"
if [[ -s "$work/atoll-$job-2/report.json" && -s "$work/atoll-$job-2/check.json" ]]; then
  passed
else
  failed "an array's task: $(tail -n 3 "$work/atoll-$job-2.out")"
fi

capture "$cluster" down
succeeds "down" || true
finish
