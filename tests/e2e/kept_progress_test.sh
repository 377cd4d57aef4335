#!/usr/bin/env bash
# What a checkpoint keeps of requests under way: most probable tokens, continuations and scored prompts go on where they
# were, with the same bytes on other ranks; beginnings that several have in common are there once.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
model="$work/model.h5"
import_sample "$model"
python3 - "$ATOLL_SOURCE/tests/data/heldout.jsonl" "$work" <<'PY'
import json, pathlib, sys

texts = [json.loads(line)["prompt"] for line in open(sys.argv[1], encoding="utf-8")]
work = pathlib.Path(sys.argv[2])
long = " ".join(texts).encode("ascii", "replace").decode()
def write(name, lines):
    (work / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
write("samples", [
    {"id": "a", "prompt": long[:210], "n": 12, "temperature": 1, "max_tokens": 70, "top_logprobs": 2},
    {"id": "b", "prompt": long[:140] + "!", "n": 3, "temperature": 1, "max_tokens": 70},
    {"id": "c", "prompt": "alone", "max_tokens": 70, "top_logprobs": 1}])
write("scores", [
    {"id": "a", "prompt": long[:150], "continuations": [long[150 + i:400 + i] for i in range(6)]},
    {"id": "b", "prompt": long[:300]}])
write("echoes", [{"custom_id": str(i), "body": {"model": "m", "prompt": long[i:250 + i], "echo": True, "logprobs": i,
                                               "max_tokens": 30 * i}} for i in range(4)])
PY
# interrupted WHAT PASSES MODE OPTIONS...: stopped as rank 0 creates the first checkpoint, which is after so many
# passes, and gone on with by 3 ranks.
interrupted() {
  local what="$1" options=(--mode "$3" --checkpoint-dir "$work/$1.points" --checkpoint-every "$2" "${@:4}")
  atoll_on 1 run --model "$model" --input "$work/$what.jsonl" --output "$work/$what.expected" --mode "$3"
  succeeds "$what in one go" || return 0
  capture mpirun "${mpirun_flags[@]}" -n 2 -x LD_PRELOAD="$fault_library" -x ATOLL_FAULT="0 MPI_File_open 1 usr1" \
    "$ATOLL" run --model "$model" --input "$work/$what.jsonl" --output "$work/$what.results" "${options[@]}"
  if ((code == 75)); then passed; else failed "$what: not stopped, exit code $code"; show_output; fi
  capture "$ATOLL" inspect "$work/$what.points"/*.h5
  succeeds "$what: what was kept" || true
  cp "$work/stdout" "$work/$what.kept"
  atoll_on 3 run --model "$model" --input "$work/$what.jsonl" --output "$work/$what.results" "${options[@]}" --resume
  succeeds "$what, resumed" || true
  under_way="$(sed -n 's/.*resuming from .*, \([0-9]*\) requests under way/\1/p' "$work/stderr")"
  same "$what, resumed" "$work/$what.expected" "$work/$what.results"
}
interrupted samples 8 generate --max-sequences 8
if ((under_way == 16)); then passed; else failed "samples: $under_way of 16 were taken up"; fi
# Of 210 and 141 tokens three and two pages of 64 are shared on each rank that has several of them.
kept="$(sed -n 's/^\([0-9]*\) positions of .*/\1/p' "$work/samples.kept")"
shared="$(grep -c '^ *shared ' "$work/samples.kept" || true)"
whole="$(awk '$1 ~ /^[0-9]+$/ && NF == 4 { sum += $3 } END { print sum }' "$work/samples.kept")"
if ((shared >= 2 && 2 * kept < whole)); then passed; else
  failed "samples: $kept positions are kept of $whole, $shared beginnings"
  cat "$work/samples.kept"
fi
interrupted scores 8 score --step-tokens 32
if ((under_way > 0)); then passed; else failed "no continuation was taken up"; fi
interrupted echoes 24 generate --step-tokens 16
if ((under_way > 0)); then passed; else failed "no scored prompt was taken up"; fi
finish
