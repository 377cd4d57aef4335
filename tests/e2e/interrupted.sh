# shellcheck shell=bash disable=SC2034,SC2154
# What tests of interrupted runs share: a run that is interrupted, and resumed. Sourced after common.sh.
set -euo pipefail
command_limit=240

model="$work/model.h5"
# model_folder: a folder in place of the sample model's, of a vocabulary of bytes.
capture "$ATOLL" import "${model_folder:-$sample}" --output "$model"
succeeds "import of ${model_folder:-the sample model}"
requests="$work/requests.jsonl"
# num_requests: more of them leave work for longer chains of interrupted runs.
python3 - "$requests" "${num_requests:-48}" <<'EOP'
import json, sys

words = ["In the beginning ", "Die Liebe ", "def f(x): ", "El amor es "]
with open(sys.argv[1], "w") as file:
    for i in range(int(sys.argv[2])):
        file.write(json.dumps({"id": str(i), "prompt": words[i % 4] * (1 + i * 7 % 23), "max_tokens": 8 + i * 5 % 40,
                               "temperature": 0.7 * (i % 3), "seed": i}) + "\n")
EOP
folder="$work/run"
checkpoints="$folder/checkpoints"
results="$folder/results.jsonl"
journal="$results.journal"
report="$folder/report.json"
routing="$folder/routing.h5"
# Small passes, so that prompts take many and checkpoints are nearly always under way.
run_options=(run --model "$model" --input "$requests" --output "$results" --report "$report"
  --record-routing "$routing" --max-sequences 4 --step-tokens 64 --checkpoint-dir "$checkpoints" --checkpoint-every 6 --deadline 60)
expected="$work/expected.jsonl"
capture mpirun "${mpirun_flags[@]}" -n 2 "$ATOLL" run --model "$model" --input "$requests" \
  --output "$expected" --record-routing "$work/expected-routing.h5"
succeeds "the uninterrupted run"

job=0
start() { # RANKS OPTIONS...
  local ranks="$1"
  shift
  mpirun "${mpirun_flags[@]}" -n "$ranks" "$ATOLL" "${run_options[@]}" "$@" \
    >"$work/stdout" 2>"$work/stderr" </dev/null &
  job=$!
}
# The same to its end, with a fault (mpi_fault.cpp) at a certain moment; sets `code`. Ranks call
# MPI_Iallgather in every pass, and less than 40 times before the first.
run_with() { # FAULT RANKS OPTIONS...
  capture mpirun "${mpirun_flags[@]}" -n "$2" -x LD_PRELOAD="$fault_library" -x ATOLL_FAULT="$1" \
    "$ATOLL" "${run_options[@]}" "${@:3}"
}
stopped() { # WHAT SIGNAL
  if ((code == 75)) && grep -q "^atoll: stopped by SIG$2.*--resume" "$work/stderr"; then
    passed
  else
    failed "$1: exit code $code, expected 75 and a message"
    show_output
  fi
}
# Waits until the job has ended; sets `code`. 120 s after what was done to it, that is a hang.
await_end() { # WHAT
  for _ in {1..1200}; do
    kill -0 "$job" 2>/dev/null || break
    sleep 0.1
  done
  if kill -0 "$job" 2>/dev/null; then
    failed "$1: hangs"
    kill -KILL "$job"
  fi
  code=0
  wait "$job" 2>/dev/null || code=$?
}
ranks_left() { pgrep -f -- "--output $results" || true; }
no_orphans() { # WHAT
  local left=""
  for _ in {1..50}; do
    left="$(ranks_left)"
    [[ -z "$left" ]] && break
    sleep 0.1
  done
  if [[ -z "$left" ]]; then
    passed
  else
    failed "$1: processes stay: $left"
    # shellcheck disable=SC2086  # a list of numbers
    kill -KILL $left
  fi
}
num_kept() { if [[ -s "$journal" ]]; then echo $(($(wc -l <"$journal") - 1)); else echo 0; fi; }
is_writing() { compgen -G "$checkpoints/*.partial.*"; }
num_checkpoints() { { find "$checkpoints" -name 'checkpoint-*.h5' 2>/dev/null || true; } | wc -l; }
has_checkpoints() { (($(num_checkpoints) >= "$1")); }
newest() { find "$checkpoints" -name 'checkpoint-*.h5' | sort | tail -n 1; }
fresh() {
  rm -rf "$folder"
  mkdir "$folder"
}
# Resumes to the end; what was finished is not computed again, and the results are the expected ones.
resumes() { # WHAT RANKS OPTIONS...
  local kept
  kept="$(num_kept)"
  atoll_on "$2" "${run_options[@]}" --resume "${@:3}"
  succeeds "$1: resume on $2 ranks" || return 0
  same "$1: resumed on $2 ranks" "$expected" "$results"
  same "$1: routing, resumed on $2 ranks" "$work/expected-routing.h5" "$routing"
  json_check "$1: finished requests are not computed again" "$report" <<EOP
assert lines[0]["requests"]["resumed"] == $kept, (lines[0]["requests"], $kept)
EOP
  if [[ -e "$journal" ]]; then failed "$1: the journal stays"; else passed; fi
}
