# shellcheck shell=bash disable=SC2154
# What the tests on a virtual cluster share: a cluster's name and folder, jobs and their ends. Sourced
# after common.sh; skips the test where such a cluster is not allowed.
set -euo pipefail

jobs="$ATOLL_SOURCE/jobs"
export TMPDIR="$work" ATOLL ATOLL_CLUSTER="test-$$"
export ATOLL_OPTIONS="--backend cpu" # its hosts have no GPUs, though the machine may
cluster="$jobs/cluster/cluster"
state="$work/atoll-cluster.$UID.$ATOLL_CLUSTER"

if ! reason="$("$cluster" probe)"; then
  printf 'skipped: %s\n' "$reason"
  exit 77
fi
trap '"$cluster" down || true; rm -rf "$work"' EXIT

# With slow-atoll a job takes one sequence at a time and rank until `hurry`, and at least 5 ms for each
# token: it cannot end before the test has done to it what it is to survive.
cat >"$work/slow-atoll" <<EOF
#!/usr/bin/env bash
if [[ -e "$work/hurry" || "\$1" != run ]]; then exec "$ATOLL" "\$@"; fi
export LD_PRELOAD="$fault_library" ATOLL_FAULT="0 MPI_Iallgather 5 slow"
exec "$ATOLL" "\$@" --max-sequences 1
EOF
chmod +x "$work/slow-atoll"
hurry() { touch "$work/hurry"; }

# submit ARGUMENTS...: sets `job`.
submit() {
  job=0
  capture "$cluster" sbatch --parsable "$@"
  succeeds "sbatch $*" || return 1
  job="$(cat "$work/stdout")"
}
field() { "$cluster" on head scontrol show job "$job" | sed -n "s/.*\b$1=\([^ ]*\).*/\1/p"; }
# wait_for_job: sets `ended` to Slurm's word for how.
wait_for_job() {
  local limit=$((SECONDS + command_limit))
  ended=""
  until [[ "$ended" == COMPLETED || "$ended" == *FAIL* || "$ended" == TIMEOUT ||
    "$ended" == CANCELLED ]]; do
    if ((SECONDS > limit)); then break; fi
    sleep 0.3
    ended="$(field JobState)"
  done
}
ends_well() { # WHAT
  wait_for_job
  if [[ "$ended" == COMPLETED ]]; then
    passed
  else
    failed "$1: job $job is $ended"
    tail -n 20 "$work/atoll-$job.out" "$work/atoll-$job/log" "$state/slurmctld.log" 2>/dev/null || true
    return 1
  fi
}
# finished_in OUTPUT: how many results its journal has.
finished_in() {
  local count
  count="$(grep -cs '"result"' "$1.journal" || true)"
  echo "${count:-0}"
}
# Slurm holds a job that was queued again for two minutes, so that nodes settle. They revoke what they
# were told of it, by whole seconds: starting it within the same second would fail.
release_job() {
  sleep 1.2
  capture "$cluster" on head scontrol update "JobId=$job" StartTime=now
}
# queue_again: as a user does with a job that has failed, once its nodes are free.
queue_again() {
  for _ in {1..300}; do
    capture "$cluster" on head scontrol requeue "$job"
    if ((code == 0)); then break; fi
    sleep 0.2
  done
  succeeds "requeue" || true
  release_job
}
processes_left() { pgrep -f -- "atoll run .*$work" || true; }
leaves_no_process() { # WHAT
  for _ in {1..100}; do
    [[ -n "$(processes_left)" ]] || break
    sleep 0.1
  done
  if [[ -z "$(processes_left)" ]]; then passed; else failed "$1: processes stay: $(processes_left)"; fi
}
log_says() { # WHAT PATTERN
  if grep -qE "$2" "$work/atoll-$job/log"; then
    passed
  else
    failed "$1: the log has no '$2': $(tail -n 5 "$work/atoll-$job/log")"
  fi
}

# signal_on HOST SIGNAL: to all its ranks; hosts of a cluster see one another's processes.
signal_on() {
  # shellcheck disable=SC2016  # for the shell on the host
  capture "$cluster" on "$1" sh -c 'for p in /proc/[0-9]*; do
    if [ "$(cat $p/comm)" = atoll ] && [ $(readlink $p/ns/uts) = $(readlink /proc/self/ns/uts) ]; then
      kill -'"$2"' ${p#/proc/}; fi; done 2>/dev/null; true'
  succeeds "signal $2 on $1" || true
}
