#!/usr/bin/env bash
# Weights with NaN or Inf, as a training run that diverged leaves them: the import names the tensors, in
# few lines however many there are, and makes the model file all the same.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

python3 - "$sample" "$work" <<'PYTHON'
import math, sys
import make_model
from make_model import Folder, tensor_of, values_of

sample, work = sys.argv[1:]


def spoiled(name, values, dtype="BF16", torch_dtype="bfloat16"):
    """A folder with these values at these elements of these tensors; "all" is every tensor."""
    made = Folder(sample, f"{work}/{name}")
    make_model.qwen3_moe(made)
    made.config["torch_dtype"] = torch_dtype
    for tensor in list(made.tensors):
        numbers, shape = values_of(made.tensors[tensor]), made.tensors[tensor][1]
        for element, value in values.get(tensor, values.get("all", {})).items():
            numbers[element] = value
        made.tensors[tensor] = tensor_of(numbers, shape, dtype)
    made.write()


expert = "model.layers.1.mlp.experts.3.up_proj.weight"
few = {expert: {33: math.nan, 34: -math.inf, 1535: math.nan}, "model.norm.weight": {31: math.inf}}
spoiled("few", few)
spoiled("few-f16", few, "F16", "float16")
spoiled("few-f32", few, "F32", "float32")
spoiled("few-rounded", few, "F32", "bfloat16")
spoiled("many", {"all": {0: math.nan}})
spoiled("none", {})
spoiled("large", {expert: {33: 1e30}}, "F32", "float16")
spoiled("too-large-bf16", {expert: {33: 3.4028e38}}, "F32", "bfloat16")
spoiled("too-large-f16", {expert: {33: 3.4028e38}}, "F32", "float16")
spoiled("too-large-f32", {expert: {33: 3.4028e38}}, "F32", "float32")
spoiled("large-bf16", {expert: {33: 1e30}}, "F32", "bfloat16")
PYTHON

import_folder() { capture "$ATOLL" import "$work/$1" --output "$work/$1.h5"; }

for kind in few few-f16 few-f32 few-rounded; do
  import_folder "$kind"
  succeeds "$kind"
  check "$kind: expert" grep -qF "import: tensor model.layers.1.mlp.experts.3.up_proj.weight has 3 values that are not finite (2 NaN, 1 infinite), the first at [1, 1]" "$work/stderr"
  check "$kind: norm" grep -qF "import: tensor model.norm.weight has 1 value that is not finite (1 infinite), the first at [31]" "$work/stderr"
  check "$kind: no other line" test "$(wc -l <"$work/stderr")" = 2
done
import_folder many
succeeds "every tensor"
check "every tensor: few lines" test "$(wc -l <"$work/stderr")" -le 10
check "every tensor: how many" grep -qE '^import: [0-9]+ more tensors have values that are not finite' "$work/stderr"
for kind in none large-bf16; do
  import_folder "$kind"
  succeeds "$kind"
  check "$kind: nothing to say" test ! -s "$work/stderr"
done
# Two weights are made of one tensor, on whichever ranks: what it has counts once.
python3 - "$ATOLL_SOURCE/tests/data/families/deepseek_v3" "$work/shared" <<'PYTHON'
import json, os, shutil, struct, sys

shutil.copytree(sys.argv[1], sys.argv[2])
with open(os.path.join(sys.argv[2], "model.safetensors"), "r+b") as file:
    size = struct.unpack("<Q", file.read(8))[0]
    begin, end = json.loads(file.read(size))["model.layers.0.self_attn.kv_b_proj.weight"]["data_offsets"]
    for at in (begin, end - 2):
        file.seek(8 + size + at)
        file.write(struct.pack("<H", 0x7FC0))
PYTHON
for ranks in 1 3; do
  atoll_on "$ranks" import "$work/shared" --output "$work/shared.h5"
  succeeds "a tensor of two weights, $ranks ranks"
  check "a tensor of two weights, $ranks ranks: said once" test "$(grep -c 'kv_b_proj.*has 2 values that are not finite (2 NaN)' "$work/stderr")" = 1
  check "a tensor of two weights, $ranks ranks: no other line" test "$(grep -c 'not finite' "$work/stderr")" = 1
done
# A finite value that the model's type has no place for is a matter of the type.
import_folder large
refused "too large for float16" 1 'experts.3.up_proj.weight.*too large for float16.*bfloat16.*"dtype" of config.json'
sed -i 's/"torch_dtype": "float16"/"dtype": "bfloat16"/' "$work/large/config.json"
import_folder large
succeeds "too large for float16, as bfloat16"
same "too large for float16, as bfloat16" "$work/large-bf16.h5" "$work/large.h5"
import_folder too-large-f32
succeeds "too large for bfloat16, as float32"
for kind in bf16 f16; do
  import_folder "too-large-$kind"
  refused "too large for all but float32, $kind" 1 \
    'experts.3.up_proj.weight in .*: element 33 is 3.4028e.38 .float32., too large for b?float16; convert to float32 .*"dtype" of config.json'
  sed -i 's/"torch_dtype": "[a-z0-9]*"/"dtype": "float32"/' "$work/too-large-$kind/config.json"
  import_folder "too-large-$kind"
  succeeds "$kind, as the message says"
  same "$kind, as the message says" "$work/too-large-f32.h5" "$work/too-large-$kind.h5"
done
finish
