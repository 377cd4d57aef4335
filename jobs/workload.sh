#!/usr/bin/env bash
# The workload of the reference deployments, where none was given: the model file of $ATOLL_PRESET, its
# name at least, and requests of random tokens. Sourced by their job scripts, with their arguments.
set -euo pipefail

if (($# == 0)); then
  place="${SLURM_SUBMIT_DIR:-$PWD}"
  export ATOLL_MODEL="${ATOLL_MODEL:-$place/$ATOLL_PRESET.h5}"
  export ATOLL_OUTPUT="${ATOLL_OUTPUT:-$place/results-$SLURM_JOB_ID.jsonl}"
  if [[ -z "${ATOLL_INPUT:-}" ]]; then
    export ATOLL_INPUT="$place/requests-$SLURM_JOB_ID.jsonl"
    vocab=32768
    [[ "$ATOLL_PRESET" != *-tiny ]] || vocab=256
    python3 "$ATOLL_HOME/jobs/make-requests.py" --sequences "${ATOLL_SEQUENCES:-128}" \
      --prompt-tokens "${ATOLL_PROMPT_TOKENS:-9900}" --max-tokens "${ATOLL_MAX_TOKENS:-100}" \
      --vocab "$vocab" >"$ATOLL_INPUT"
  fi
fi
