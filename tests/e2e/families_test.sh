#!/usr/bin/env bash
# Models of families beyond the plain ones: log-probabilities and greedy tokens are those of Hugging
# Face's transformers, layouts change no byte, weights in few bits give what the same numbers give that
# were decoded before, and a run that was interrupted is resumed in another layout.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
families="$ATOLL_SOURCE/tests/data/families"

capture python3 "$ATOLL_SOURCE/tests/families_check.py" "$ATOLL" "$families"
succeeds "transformers' results, in every layout" || cat "$work/stdout"

# --- published in few bits: the model file is that of the decoded weights, byte for byte.
for kind in "fp8 deepseek_v3" "int4 deepseek_v3" "mxfp4 gpt_oss"; do
  read -r method family <<<"$kind"
  python3 "$ATOLL_SOURCE/tests/e2e/quantise_model.py" "$method" "$families/$family" "$work/coded" "$work/plain"
  for form in coded plain; do
    capture "$ATOLL" import "$work/$form" --output "$work/$form.h5"
    succeeds "$kind: import, $form" || true
  done
  same "$kind" "$work/plain.h5" "$work/coded.h5"
done
# What is left of the last one without its scales, and with blocks of another size.
python3 "$ATOLL_SOURCE/tests/e2e/quantise_model.py" fp8 "$families/deepseek_v3" "$work/coded" "$work/plain"
sed -i 's/"weight_block_size": \[16, 24\]/"weight_block_size": [16, 16]/' "$work/coded/config.json"
capture "$ATOLL" import "$work/coded" --output "$work/coded.h5"
refused "blocks of another size" 1 "_scale_inv .* has shape .* quantization_config make it"
sed -i 's/_scale_inv/_scale_foo/g' "$work/coded/model.safetensors"
capture "$ATOLL" import "$work/coded" --output "$work/coded.h5"
refused "no scales" 1 "_scale_inv is missing, the scales of"

# --- several ranks import what one does; where one cannot read, all end.
capture "$ATOLL" import "$families/gpt_oss" --output "$work/alone.h5"
succeeds "import on one rank"
atoll_on 3 import "$families/gpt_oss" --output "$work/together.h5"
succeeds "import on three ranks"
same "import on three ranks" "$work/alone.h5" "$work/together.h5"
atoll_on 3 import "$work/coded" --output "$work/together.h5"
refused "import on three ranks, no scales" 1 "_scale_inv is missing, the scales of"

# --- an index that selects keys: longer contexts than it selects are refused.
python3 - "$families/deepseek_v3" "$work/indexed" <<'EOP'
import json, os, shutil, sys

shutil.copytree(sys.argv[1], sys.argv[2])
path = os.path.join(sys.argv[2], "config.json")
config = json.load(open(path))
config.update(model_type="deepseek_v32", architectures=["DeepseekV32ForCausalLM"], index_topk=16)
json.dump(config, open(path, "w"))
EOP
capture "$ATOLL" import "$work/indexed" --output "$work/indexed.h5"
succeeds "an index over keys"
printf '{"id": "a", "tokens": [1, 2, 3], "max_tokens": 14}\n' >"$work/long.jsonl"
capture "$ATOLL" run --model "$work/indexed.h5" --input "$work/long.jsonl" --output "$work/long"
if grep -q "selects keys by an index" "$work/long"; then passed; else failed "longer than an index selects"; fi

# --- interrupted and resumed: latents, then other heads in other layers.
for family in deepseek_v3 mimo_v2_flash; do
  # shellcheck disable=SC2034  # read by interrupted.sh
  model_folder="$families/$family"
  # shellcheck source-path=SCRIPTDIR source=interrupted.sh
  source "$(dirname "${BASH_SOURCE[0]}")/interrupted.sh"
  fresh
  run_with "1 MPI_Iallgather 80 usr1" 2 --tp 2
  stopped "$family, attention over ranks" USR1
  run_with "0 MPI_Iallgather 60 usr1" 3 --pp 3 --resume
  stopped "$family, stages" USR1
  resumes "$family, to one rank" 1 --chunks 2
done

finish
