#!/usr/bin/env bash
# From a fresh machine to generated text: installs, builds, imports the sample model, and lets 16 MPI
# ranks, one expert of every layer each, complete the sample prompts.
#
#   jobs/quickstart.sh [--ranks N]       N from 1 to 16; 16 unless given
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

wrong_use() {
  printf 'quickstart.sh: %s\n' "$*" >&2
  exit 2
}

ranks=16
while (($# > 0)); do
  case "$1" in
    --ranks)
      ranks="${2:-}"
      [[ "$ranks" =~ ^([1-9]|1[0-6])$ ]] || wrong_use "--ranks takes a number from 1 to 16"
      shift 2
      ;;
    -h | --help)
      print_head_comment "${BASH_SOURCE[0]}"
      exit 0
      ;;
    *) wrong_use "unknown option $1; see --help" ;;
  esac
done

bash "$repository/jobs/install.sh"
build_preset cpu atoll

atoll="$repository/build/cpu/app/atoll"
sample="$repository/tests/data/sample-model"
prompts="$repository/jobs/sample-prompts.jsonl"
work="$repository/build/quickstart"
model="$work/sample-model.h5"
mkdir -p "$work"

if [[ "$model" -nt "$sample/model.safetensors" && "$model" -nt "$sample/config.json" &&
  "$model" -nt "$atoll" ]]; then
  say "model: $model"
else
  say "importing $sample"
  "$atoll" import "$sample" --output "$model"
fi

say "$ranks ranks complete the sample prompts"
mpirun_here -n "$ranks" "$atoll" run --model "$model" --input "$prompts" \
  --output "$work/results.jsonl" --report "$work/report.json" >"$work/speeds.txt" ||
  die "the run failed (see the message above)"

say "prompts and what the model wrote (>>)"
python3 - "$prompts" "$work/results.jsonl" <<'EOF'
import json, sys

requests, results = ([json.loads(line) for line in open(path, encoding="utf-8")] for path in sys.argv[1:])
for request, result in zip(requests, results, strict=True):
    text = result.get("text", "refused: " + result.get("error", ""))
    print(f'{request["id"]}: {request["prompt"]} >>{text}'.replace("\n", "\n    "))
EOF
say "speeds"
cat "$work/speeds.txt"
say "results: $work/results.jsonl, report: $work/report.json"
