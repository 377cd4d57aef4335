#!/usr/bin/env bash
# Commands of one process start no MPI: they work where MPI_Init cannot, as inside a Slurm step without
# PMI, with no home and no writable TMPDIR. Runs whose ranks MPI did not join are told so.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

host="$(hostname)"
step=(SLURM_JOB_ID=77 SLURM_JOBID=77 SLURM_STEP_ID=0 SLURM_STEPID=0 SLURM_NODELIST="$host"
  SLURM_JOB_NODELIST="$host" SLURM_NNODES=1 SLURM_TASKS_PER_NODE=1 SLURM_PROCID=0 SLURM_LOCALID=0)
one=("${step[@]}" SLURM_NTASKS=1 SLURM_NPROCS=1 SLURM_STEP_NUM_TASKS=1)

# A program in place of MPI's daemon and of ssh tells that MPI was started; so does the library.
mkdir "$work/bin"
for name in orted prted ssh rsh srun; do
  printf '#!/bin/sh\necho "%s was started" >>"%s/started"\nexit 1\n' "$name" "$work" >"$work/bin/$name"
done
chmod +x "$work"/bin/*

# in_every_place WHAT COMMAND...: it succeeds in each place, and nothing of MPI is started there.
in_every_place() {
  local what="$1" place
  shift
  places=("${one[*]}" "${step[*]} SLURM_NTASKS=3 SLURM_STEP_NUM_TASKS=3" "-u HOME -u USER"
    "TMPDIR=/proc/none" "${one[*]} PMIX_RANK=0 PMIX_NAMESPACE=slurm.pmix.77.0" "PMI_RANK=0 PMI_SIZE=1 PMI_FD=99" "OMPI_MCA_orte_launch_agent=/none OPAL_PREFIX=/none")
  for place in "${places[@]}"; do
    rm -f "$work/started"
    # shellcheck disable=SC2086  # assignments, one word each
    capture env -u OMPI_ALLOW_RUN_AS_ROOT $place PATH="$work/bin:$PATH" "$@"
    succeeds "$what in ${place:0:40}" || continue
    [[ ! -e "$work/started" ]] || failed "$what in ${place:0:40}: $(cat "$work/started")"
  done
}
in_every_place "--help" "$ATOLL" --help
in_every_place "--version" "$ATOLL" --version
in_every_place "run --help" "$ATOLL" run --help
in_every_place "import" "$ATOLL" import "$sample" --output "$work/m.h5"
in_every_place "inspect" "$ATOLL" inspect "$work/m.h5"
in_every_place "init" "$ATOLL" init --preset moe-4l-tiny --seed 3 --output "$work/alone.h5"
head -n 2 "$ATOLL_SOURCE/jobs/sample-prompts.jsonl" >"$work/r.jsonl"
run_one --model "$work/m.h5" --input "$work/r.jsonl" --output "$work/o" --max-tokens 2 \
  --dump-activations all --activations "$work/a.h5" --record-routing "$work/routing.h5"
succeeds "a run of one process"
in_every_place "diff" "$ATOLL" diff "$work/a.h5" "$work/a.h5"
printf '{"format": "atoll-cluster", "format_version": 1, "links": {"inside_node": null, "between_nodes": null},
  "nodes": [{"name": "a", "ranks": 4}, {"name": "b", "ranks": 4}]}' >"$work/nodes.json"
in_every_place "place" "$ATOLL" place --routing "$work/routing.h5" --cluster "$work/nodes.json" --output "$work/p.json"

# Failures are as ever: one message, and the exit code.
capture env "${one[@]}" "$ATOLL" inspect "$work/none.h5"
refused "inspect of no file" 1 'none.h5'
capture env "${one[@]}" "$ATOLL" init --preset moe-4l-tiny --output "$work/no/m.h5"
refused "init in no folder" 1 'no/m.h5'
capture env "${one[@]}" "$ATOLL" import
refused "import of nothing" 2 'required'

# Under a launcher as before: one result, and the same bytes.
for ranks in 1 3; do
  atoll_on "$ranks" init --preset moe-4l-tiny --seed 3 --output "$work/together.h5"
  succeeds "init on $ranks"
  capture "$ATOLL" inspect "$work/alone.h5"
  grep -v alone "$work/stdout" >"$work/alone.txt"
  capture "$ATOLL" inspect "$work/together.h5"
  grep -v together "$work/stdout" >"$work/together.txt"
  same "init on $ranks and alone" "$work/alone.txt" "$work/together.txt"
  atoll_on "$ranks" --version
  check "--version on $ranks: said once" test "$(grep -c '^atoll [0-9]' "$work/stdout")" = 1
done

# split WHAT PATTERN VARIABLE=VALUE...: a run whose launcher announced more than MPI joined.
split() {
  local what="$1" pattern="$2"
  shift 2
  rm -f "$work"/o*
  capture env "$@" "$ATOLL" run --model "$work/m.h5" --input "$work/r.jsonl" --output "$work/o" \
    --max-tokens 2 --progress none
  refused "$what" 1 "$pattern"
  check "$what: nothing is written" test ! -e "$work/o" -a ! -e "$work/o.journal"
}
# Open MPI 4 itself refuses where it sees SLURM_NODELIST; others go on, each rank by itself.
tasks=(SLURM_JOB_ID=77 SLURM_STEP_ID=0 SLURM_NTASKS=3 SLURM_STEP_NUM_TASKS=3)
for rank in 0 1 2; do
  split "task $rank of srun" 'srun started 3 tasks.*knows of 1.*srun --mpi=pmix' \
    "${tasks[@]}" SLURM_PROCID="$rank"
done
split "a task that knows its number only" 'its task 2 .*SLURM_PROCID' SLURM_PROCID=2
split "mpiexec of another MPI" 'PMI_SIZE.*mpirun of this MPI' PMI_SIZE=3 PMI_RANK=1
split "a rank that one process cannot have" 'calls this process 3 .PALS_RANKID' PALS_RANKID=3
split "another MPI again" 'MV2_COMM_WORLD_SIZE' MV2_COMM_WORLD_SIZE=2 MV2_COMM_WORLD_RANK=0

# One process that is meant to be one.
whole() { # WHAT COMMAND...
  local what="$1"
  shift
  rm -f "$work"/o*
  capture "$@" "$ATOLL" run --model "$work/m.h5" --input "$work/r.jsonl" --output "$work/o" \
    --max-tokens 2 --progress none
  succeeds "$what" && check "$what: the results" test -s "$work/o"
}
whole "srun -n 1" env SLURM_JOB_ID=77 SLURM_STEP_ID=0 SLURM_NTASKS=1 SLURM_STEP_NUM_TASKS=1 SLURM_PROCID=0
whole "a batch script of three tasks" env SLURM_JOB_ID=77 SLURM_NTASKS=3 SLURM_PROCID=0
whole "an interactive step" env "${tasks[@]}" SLURM_STEP_ID=4294967290 SLURM_PROCID=0
whole "a command in srun --pty bash" env "${tasks[@]}" SLURM_PROCID=0 SLURM_PTY_PORT=4000 SLURM_TASK_PID=1
whole "mpirun inside a step" env "${tasks[@]}" SLURM_PROCID=0 mpirun "${mpirun_flags[@]}" -n 2
whole "mpirun -n 1 inside a step" env "${tasks[@]}" SLURM_PROCID=0 mpirun "${mpirun_flags[@]}" -n 1
finish
