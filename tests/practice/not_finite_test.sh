#!/usr/bin/env bash
# Numbers that are not finite stay with the request that meets them. A float16 model overflows on the
# byte X alone: in generating and in scoring, on any number of ranks, however passes are cut, the line
# of that request says so and where, and the others get the bytes that they get without it. A weight
# that is not finite is named by `inspect`, and once when a run loads it.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

small_folder qwen3-moe "$work/base"

# make_folder NAME PYTHON: the small model, changed by the Python, which has `folder` and set_values.
make_folder() {
  python3 - "$work/base" "$work/$1" "$2" <<'EOF'
import sys
from make_model import Folder, tensor_of, values_of

base, output, program = sys.argv[1:]
folder = Folder(base, output)

def set_values(name, change):
    """change(row, column, value) for every value of a tensor, a vector being one row."""
    dtype, shape, _ = folder.tensors[name]
    width = shape[-1]
    values = [change(i // width, i % width, v) for i, v in enumerate(values_of(folder.tensors[name]))]
    folder.tensors[name] = tensor_of(values, shape, dtype)

exec(program)
folder.write()
EOF
  capture "$ATOLL" import "$work/$1" --output "$work/$1.h5"
  succeeds "import of $1"
}

# The last channel of the residual stream is 0 but for X, and nothing adds to it. There the experts of
# the first layer multiply it beyond 65504.
make_folder overflowing '
last = 31
folder.config["torch_dtype"] = "float16"
for name, (_, shape, _) in folder.tensors.items():
    folder.tensors[name] = tensor_of(values_of(folder.tensors[name]), shape, "F16")
set_values("model.embed_tokens.weight",
           lambda row, column, x: x if column != last else 4.0 if row == ord("X") else 0.0)
for name in folder.tensors:
    if "norm" in name:
        set_values(name, lambda row, column, x: 1.0)
    if "o_proj" in name or "down_proj" in name:
        set_values(name, lambda row, column, x: 0.0 if row == last else x)
    if "layers.0.mlp.experts" in name and "down_proj" not in name:
        set_values(name, lambda row, column, x: 3000.0 if column == last else x)
'
model="$work/overflowing.h5"

python3 - "$work" <<'EOF'
import json, sys

prompts = ["hello there", "a long one: " + "y" * 150, "hello X and more", "z", "the end",
           "p" * 70 + "X" + "q" * 40]
def write(name, chosen):
    with open(f"{sys.argv[1]}/{name}.jsonl", "w") as file:
        for i in chosen:
            request = {"id": f"r{i}", "prompt": prompts[i], "max_tokens": 8}
            if i % 2:
                request.update(temperature=0.9, seed=i)
            file.write(json.dumps(request) + "\n")
write("all", range(6))
write("good", [0, 1, 3, 4])
write("bad", [2, 5])
EOF

# good_lines FILE: the lines of the requests that meet no X.
good_lines() { grep -v '"error"' "$1" >"$work/good_lines" || true; }

for mode in generate score; do
  run_one --model "$model" --input "$work/good.jsonl" --output "$work/$mode.good" --mode "$mode" \
    --report "$work/$mode.good.json"
  succeeds "$mode without them"
  run_one --model "$model" --input "$work/all.jsonl" --output "$work/$mode.all" --mode "$mode" \
    --report "$work/$mode.all.json"
  succeeds "$mode"
  check "$mode: one line says how many" test "$(grep -c '^numbers were not finite in 2 of 6 requests; .*--dtype float32' "$work/stderr")" = 1
  check "$mode: the table says how many" grep -q '6 requests (2 failed' "$work/stdout"
  good_lines "$work/$mode.all"
  same "$mode: the others are served" "$work/$mode.good" "$work/good_lines"
  layouts=("1 --threads 2" "1 --chunks 4 --min-chunk-tokens 1" "1 --max-sequences 1" "1 --no-overlap"
    "1 --step-tokens 7 --chunks 3 --min-chunk-tokens 1" "2 --chunks 4 --min-chunk-tokens 1"
    "3 --step-tokens 9 --max-sequences 2")
  for layout in "${layouts[@]}"; do
    read -r ranks options <<<"$layout"
    # shellcheck disable=SC2086  # options are words
    atoll_on "$ranks" run --progress none --model "$model" --input "$work/all.jsonl" \
      --output "$work/layout" --mode "$mode" --threads 1 $options
    succeeds "$mode, $layout"
    same "$mode, $layout" "$work/$mode.all" "$work/layout"
  done
  run_one --model "$model" --input "$work/bad.jsonl" --output "$work/again" --mode "$mode" \
    --dtype float32
  succeeds "$mode again as it is told"
  check "$mode: float32 serves them" test "$(grep -c '"error"' "$work/again")" = 0
done

# What such requests leave in a file of activations does not depend on the layout either.
activations=(run --progress none --model "$model" --input "$work/all.jsonl" --mode score --threads 1
  --output "$work/layout" --dump-activations all --activations)
atoll_on 1 "${activations[@]}" "$work/a.h5"
succeeds "activations"
atoll_on 3 "${activations[@]}" "$work/b.h5" --chunks 3 --min-chunk-tokens 1 --step-tokens 9
succeeds "activations on 3 ranks"
same "activations" "$work/a.h5" "$work/b.h5"

# X is at position 6 of one prompt and 70 of the other; generating needs logits from its end on.
json_check "positions" "$work/generate.all" "$work/score.all" <<'EOF'
generated, scored = ({line["id"]: line for line in part} for part in lines)
for results, r2, r5 in ((generated, "15 (token 16 of the prompt's 16)", "110 (token 111 of the prompt's 111)"),
                        (scored, "6 (token 7 of the prompt's 16)", "70 (token 71 of the prompt's 111)")):
    for name, where in (("r2", r2), ("r5", r5)):
        error = results[name]["error"]
        assert f"logits at position {where} are not finite" in error, error
        assert "float16" in error and "--dtype float32" in error, error
        assert set(results[name]) == {"id", "line", "error"}
EOF
json_check "they are left out of the report" "$work/score.all.json" "$work/score.good.json" \
  "$work/generate.all.json" <<'EOF'
everything, good, generated = lines
assert everything["requests"]["failed"] == 2 and everything["requests"]["refused"] == 0
assert generated["requests"]["failed"] == 2 and good["requests"]["failed"] == 0
assert everything["score"]["requests_left_out"] == 2 and good["score"]["requests_left_out"] == 0
assert everything["score"]["perplexity"] == good["score"]["perplexity"] > 1
assert everything["score"]["tokens"] == good["score"]["tokens"]
EOF

# A run that ends before its report is written leaves the journal; the errors in it count as results.
for mode in generate score; do
  rm -f "$work/kept"
  run_one --model "$model" --input "$work/all.jsonl" --output "$work/kept" --mode "$mode" \
    --max-sequences 1 --report /dev/full
  refused "$mode: a report that cannot be written" 1 "/dev/full"
  sed -i '$d' "$work/kept.journal"
  run_one --model "$model" --input "$work/all.jsonl" --output "$work/kept" --mode "$mode" --resume \
    --report "$work/kept.json"
  succeeds "$mode: resumed"
  check "$mode: errors are not computed again" grep -q '^resuming: 5 of 6' "$work/stderr"
  check "$mode: resumed, and told all the same" grep -q '^numbers were not finite in 2 of 6 requests; .*--dtype float32' "$work/stderr"
  same "$mode: resumed" "$work/$mode.all" "$work/kept"
  json_check "$mode: a resumed report" "$work/kept.json" "$work/$mode.all.json" <<'EOF'
resumed, whole = lines
assert resumed["requests"]["failed"] == 2 and resumed["requests"]["resumed"] == 5
assert resumed.get("score") == whole.get("score")
EOF
  run_one --model "$model" --input "$work/all.jsonl" --output "$work/kept" --mode "$mode" --resume \
    --dtype float32
  succeeds "$mode: another type, once all is written"
done

# Weights that are not finite: of X's embedding, which the others never meet, and of an expert.
make_folder bad_weights '
nan, infinity = float("nan"), float("inf")
set_values("model.embed_tokens.weight",
           lambda row, column, x: nan if row == ord("X") and column in (3, 4) else x)
set_values("model.layers.1.mlp.experts.2.up_proj.weight",
           lambda row, column, x: -infinity if (row, column) == (5, 7) else x)
'
capture "$ATOLL" inspect "$work/bad_weights.h5"
succeeds "inspect"
check "inspect names the embedding" \
  grep -qF '/model/embed_tokens/weight: 2 values that are not finite (2 NaN), the first at [88, 3]' "$work/stdout"
check "inspect names the expert" \
  grep -qF '/experts/up_proj/weight: 1 value that is not finite (1 infinite), the first at [2, 5, 7]' "$work/stdout"
for ranks in 1 3; do
  atoll_on "$ranks" run --progress none --model "$work/bad_weights.h5" --input "$work/all.jsonl" \
    --output "$work/weights.$ranks" --mode score
  succeeds "weights that are not finite, $ranks ranks"
  for tensor in "embed_tokens/weight: 2 values .* at \[88, 3\]" \
    "experts/up_proj/weight: 1 value .* at \[2, 5, 7\]"; do
    check "named once at load by $ranks ranks: $tensor" test "$(grep -c "$tensor" "$work/stderr")" = 1
  done
done
check "advice that works" \
  grep -q '^numbers were not finite in [1-6] of 6 requests; weights of the model file .*atoll import' "$work/stderr"
check "no advice that does not" test "$(grep -c '^numbers.*--dtype float32' "$work/stderr")" = 0
same "weights that are not finite, in any layout" "$work/weights.1" "$work/weights.3"
check "requests with X fail there" test "$(grep -cE '"r[25]".*"error"' "$work/weights.1")" = 2

# Finite on file, but not as float16: named as well.
make_folder large_weight '
set_values("model.layers.0.self_attn.v_proj.weight",
           lambda row, column, x: 1e5 if (row, column) == (1, 2) else x)
'
capture "$ATOLL" inspect "$work/large_weight.h5"
check "finite on file" test "$(grep -c 'not finite' "$work/stdout")" = 0
run_one --model "$work/large_weight.h5" --input "$work/all.jsonl" --output "$work/large" \
  --mode score --dtype float16
succeeds "a weight that is too large"
check "a weight that is too large is named" \
  grep -q 'v_proj/weight: 1 value that is not finite (1 too large), the first at \[1, 2\]' "$work/stderr"
check "another type mends it" grep -q '^numbers were not finite in .*--dtype float32' "$work/stderr"
run_one --model "$work/large_weight.h5" --input "$work/all.jsonl" --output "$work/large"
succeeds "a weight that is large"
check "and not where it fits" test "$(grep -c 'not finite' "$work/stderr")" = 0

finish
