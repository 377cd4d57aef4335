#!/usr/bin/env bash
# Ways to write one configuration that people meet: the same model file comes out of all, and where two
# readings are possible, the one that was taken is said. Files that are no JSON: where, and after what.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

for kind in qwen3-moe mixtral olmoe; do
  small_folder "$kind" "$work/$kind"
  capture "$ATOLL" import "$work/$kind" --output "$work/$kind.h5"
  succeeds "$kind"
  check "$kind: nothing to say" test ! -s "$work/stderr"
done

# with KIND CHANGES: the folder with the configuration changed by this Python, imported.
with() {
  rm -f "$work/changed.h5"
  python3 - "$work/$1" "$2" <<'PYTHON'
import json, os, sys
folder, changes = sys.argv[1:]
original, config = folder + "/original.json", folder + "/config.json"
if not os.path.exists(original):
    os.rename(config, original)
with open(original, encoding="utf-8") as file:
    c = json.load(file)
exec(changes)
with open(config, "w", encoding="utf-8") as file:
    json.dump(c, file)
PYTHON
  capture "$ATOLL" import "$work/$1" --output "$work/changed.h5"
}

# same_model KIND CHANGES [PATTERN]: the same model file, and that is said (without PATTERN: nothing).
same_model() {
  with "$1" "$2"
  succeeds "$1, $2" || return 0
  same "$1, $2" "$work/$1.h5" "$work/changed.h5"
  if (($# < 3)); then
    check "$1, $2: nothing to say" test ! -s "$work/stderr"
  else
    check "$1, $2: says $3" grep -qE "^import: .*$3" "$work/stderr"
  fi
}

# not_taken KIND CHANGES PATTERN: refused by name.
not_taken() {
  with "$1" "$2"
  refused "$1, $2" 1 "$3"
}

# windowed KIND CHANGES: all layers attend to 64 keys.
windowed() {
  with "$1" "$2"
  succeeds "$1, $2" || return 0
  capture "$ATOLL" inspect "$work/changed.h5"
  check "$1, $2: windows" grep -qE '"window": ?64' "$work/stdout"
}

# --- whose model it is
for kind in qwen3-moe mixtral olmoe; do
  same_model "$kind" 'c["architectures"] = None'
  same_model "$kind" 'del c["architectures"]'
  same_model "$kind" 'c["architectures"] = []'
  same_model "$kind" 'c["architectures"] = c["architectures"][0]'
  same_model "$kind" 'c["architectures"] += ["Another"]'
  same_model "$kind" 'c["architectures"].insert(0, "Another")'
  same_model "$kind" 'c["architectures"] = ["LlamaForCausalLM"]' 'read as a .*model_type.*LlamaForCausalLM'
  same_model "$kind" 'del c["model_type"]'
  same_model "$kind" 'c["model_type"] = "llama"' 'by "architectures", although "model_type" is "llama"'
  not_taken "$kind" 'del c["model_type"]; c["architectures"] = None' 'supported are Qwen3MoeForCausalLM'
done
not_taken qwen3-moe 'del c["model_type"]; c["architectures"] += ["MixtralForCausalLM"]' \
  'no "model_type" to decide'

# --- the type of the weights
same_model olmoe 'c["dtype"] = "bfloat16"; c["torch_dtype"] = "float16"' 'took "dtype": "bfloat16"'
same_model olmoe 'c["dtype"] = c.pop("torch_dtype")'
same_model olmoe 'c["dtype"] = "torch.bfloat16"'
same_model olmoe 'c["dtype"] = None'
same_model olmoe 'c["torch_dtype"] = None'
same_model olmoe 'c["torch_dtype"] = "auto"'
not_taken olmoe 'c["dtype"] = "int8"' '"dtype" is "int8"'

# --- positions
same_model qwen3-moe 'c["rope_parameters"] = {"rope_type": "default", "rope_theta": c.pop("rope_theta")}'
same_model qwen3-moe 'c["rope_parameters"] = {"rope_theta": 10000}; c["rope_theta"] = None'
same_model qwen3-moe 'c["rope_parameters"] = {"rope_theta": 10000}; c["rope_theta"] = 1e6' \
  'took "rope_theta": 10000 of "rope_parameters"'
same_model qwen3-moe 'c["rope_scaling"] = {"type": "linear", "factor": 1.0}'
same_model qwen3-moe 'c["rope_scaling"] = {"rope_type": "default", "type": None}'
same_model mixtral 'c["rope_scaling"] = {}'
not_taken mixtral 'c["rope_scaling"] = {"type": "linear", "factor": 2.0}' 'rope_scaling.*linear'
not_taken mixtral 'c["rope_parameters"] = {"rope_type": "yarn", "factor": 4.0}' 'rope_parameters.*yarn'

# --- numbers, flags, null
same_model qwen3-moe 'c = {k: float(v) if type(v) is int else v for k, v in c.items()}'
same_model qwen3-moe 'c = {k: int(v) if type(v) is bool else v for k, v in c.items()}'
same_model qwen3-moe 'c.update(attention_bias=0, sliding_window=None, rope_scaling=None,
  quantization_config=None, eos_token_id=None, mlp_only_layers=None, num_local_experts=None)'
same_model qwen3-moe 'c["mlp_only_layers"] = [7]' 'left out layer 7'
not_taken qwen3-moe 'c["num_hidden_layers"] = 2.5' 'num_hidden_layers.*2.5'
not_taken olmoe 'c["clip_qkv"] = 8.0' 'clip_qkv'
windowed mixtral 'c["sliding_window"] = 64'
windowed mixtral 'c["sliding_window"] = 64; c["use_sliding_window"] = False'
windowed qwen3-moe 'c["sliding_window"] = 64; c["use_sliding_window"] = True; c["max_window_layers"] = 9'
same_model mixtral 'c["sliding_window"] = 512'
same_model qwen3-moe 'c["sliding_window"] = 64; c["use_sliding_window"] = False'

# The expert weights of a token are those of the softmax over all experts where norm_topk_prob is false,
# and false is what an absent key means.
with qwen3-moe 'c["norm_topk_prob"] = False'
succeeds "norm_topk_prob false"
cp "$work/changed.h5" "$work/not-normalised.h5"
check "norm_topk_prob false is another model" test "$(cmp -s "$work/qwen3-moe.h5" "$work/changed.h5" || echo differs)" = differs
with qwen3-moe 'del c["norm_topk_prob"]'
same "norm_topk_prob absent" "$work/not-normalised.h5" "$work/changed.h5"

# --- texts
# text NAME TEXT: config.json or another file of the folder becomes this text (printf's escapes).
text() {
  printf '%b' "$2" >"$work/olmoe/$1"
  rm -f "$work/changed.h5"
  capture "$ATOLL" import "$work/olmoe" --output "$work/changed.h5"
}
zeros="$(printf '0%.0s' {1..400})"
body="$(python3 -c 'import sys; print(open(sys.argv[1]).read()[1:])' "$work/olmoe/original.json")"
text config.json "{\"router_jitter_noise\": NaN, \"initializer_range\": Infinity, $body"
succeeds "numbers that only Python writes"
same "numbers that only Python writes" "$work/olmoe.h5" "$work/changed.h5"
text config.json "{\"hidden_size\": 1, $body"
succeeds "a key that comes twice"
same "a key that comes twice" "$work/olmoe.h5" "$work/changed.h5"
check "a key that comes twice is named" grep -q '^import: .*"hidden_size" comes twice' "$work/stderr"
text config.json "{\n  \"vocab_size\": 256,\n  // rows\n$body"
refused "a comment" 1 'config.json: not valid JSON: line 3, column 3 .after key "vocab_size"'
text config.json "{\"a\": [1, 2,]}"
refused "a comma too many" 1 'line 1, column 13 .after key "a"'
text config.json ""
refused "an empty config.json" 1 'config.json: not valid JSON: it is empty'
text config.json "[]"
refused "a list" 1 'config.json: \[\] instead of an object'
text config.json "{\"rope_theta\": -Infinity, ${body/\"rope_theta\": 10000.0, /}"
refused "no theta" 1 'rope_theta.*-Infinity'
text config.json "{\"a\": 1e400, \"b\": [-1e400, 1${zeros}], $body"
succeeds "numbers beyond a double"
same "numbers beyond a double" "$work/olmoe.h5" "$work/changed.h5"
text config.json "{\"rope_theta\": 1e400, ${body/\"rope_theta\": 10000.0, /}"
refused "a theta beyond a double" 1 'rope_theta.*1e400'
text config.json "{\n\"a\": 1e400,\n\"b\": 1e400x,\n$body"
refused "after numbers beyond a double" 1 'line 3, column 11 .after key "b"'
pointer="version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n"
text config.json "$pointer"
refused "a pointer of Git LFS" 1 'olmoe/config.json: it is a pointer of Git LFS.*git lfs pull'
rm "$work/olmoe/config.json"
ln -s nowhere "$work/olmoe/config.json"
capture "$ATOLL" import "$work/olmoe" --output "$work/changed.h5"
refused "a link to nowhere" 1 'olmoe/config.json: it is a symbolic link to nowhere'
rm "$work/olmoe/config.json"

cp "$work/olmoe/original.json" "$work/olmoe/config.json"
for content in '' '{"eos_token_id": ' '[1]' '{"eos_token_id": "</s>"}' '{"eos_token_id": [1, 6.5]}' \
  '{"eos_token_id": 1e30}' '{"eos_token_id": [true]}' "$pointer"; do
  text generation_config.json "$content"
  succeeds "generation_config.json '$content'"
  same "generation_config.json '$content'" "$work/olmoe.h5" "$work/changed.h5"
  check "generation_config.json '$content' is named" grep -q '^import: ignored .*generation_config.json' "$work/stderr"
done
text generation_config.json '{"eos_token_id": [200.0, 201, 151645, -1]}'
succeeds "stop ids of generation_config.json"
capture "$ATOLL" inspect "$work/changed.h5"
check "stop ids of generation_config.json" python3 -c '
import json, sys
text = open(sys.argv[1]).read()
config, _ = json.JSONDecoder().raw_decode(text[text.index("{"):])
sys.exit(config["eos_token_id"] != [200, 201])' "$work/stdout"
finish
