#!/usr/bin/env bash
# Networks, stages, attention and experts over ranks give the same bytes for the small presets, for whole-row
# norms, for uneven groups of heads, and in float32.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

python3 - "$work" <<'EOF'
import json, random, sys

folder = sys.argv[1]
common = {"vocab_size": 256, "num_hidden_layers": 3, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
          "max_position_embeddings": 512, "tie_word_embeddings": False, "hidden_act": "silu",
          "torch_dtype": "bfloat16"}
olmoe = {**common, "model_type": "olmoe", "architectures": ["OlmoeForCausalLM"], "hidden_size": 96,
         "intermediate_size": 64, "num_attention_heads": 12, "num_key_value_heads": 12, "num_experts": 5,
         "num_experts_per_tok": 2, "norm_topk_prob": False}
# 12 heads of 4 KV heads: three ranks have 3 + 1, 2 + 2 and 1 + 3 of them.
uneven = {**common, "model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"],
          "hidden_size": 96, "intermediate_size": 80, "moe_intermediate_size": 48, "head_dim": 16,
          "mlp_only_layers": [0], "decoder_sparse_step": 1, "num_attention_heads": 12,
          "num_key_value_heads": 4, "num_experts": 6, "num_experts_per_tok": 3, "norm_topk_prob": True}
# Two experts that are most of the model.
heavy = {**olmoe, "intermediate_size": 2048, "num_experts": 2}
for name, config in (("olmoe", olmoe), ("uneven", uneven), ("heavy", heavy)):
    with open(f"{folder}/{name}.json", "w", encoding="utf-8") as file:
        json.dump(config, file)
random.seed(3)
with open(f"{folder}/requests.jsonl", "w", encoding="utf-8") as file:
    for number, length in enumerate([1, 40, 7, 19, 3, 66, 12]):
        request = {"id": str(number), "tokens": [random.randrange(256) for _ in range(length)],
                   "max_tokens": 4 + number % 3}
        if number % 2:
            request |= {"temperature": 0.9, "seed": number}
        file.write(json.dumps(request) + "\n")
EOF

run_model() { # OUTPUT MODEL RANKS OPTIONS...
  local output="$1" model="$2" ranks="$3"
  shift 3
  atoll_on "$ranks" run --model "$work/$model.h5" --input "$work/requests.jsonl" --output "$output" \
    --min-chunk-tokens 1 --threads 1 "$@"
}

# model, and options that decide bits | layouts: ranks and options
cases=(
  "moe-61l-tiny|8 --tp 8;16 --layout ep8-pp2-tp4"
  "moe-16l-tiny|16 --layout tp8-pp2;4 --pp 4 --chunks 1"
  "moe-4l-tiny|8 --tp 8 --tp-output rows;4 --layout dp2-etp2"
  "olmoe|2 --tp 2;4 --tp 4 --tp-output rows --expert-tp 2;12 --layout ep3-tp3-pp2-dp2"
  "uneven|3 --tp 3;6 --tp 6 --pp 1;6 --tp 3 --replicas 2;6 --layout tp3-ep3-pp2"
  "uneven --dtype float32|3 --tp 3 --expert-tp 3;4 --layout tp2-pp2"
)
((all_sweeps)) && cases+=(
  "moe-61l-tiny --mode score|8 --tp 2 --pp 4;16 --layout dp2-ep4-etp2-tp8"
  "moe-16l-tiny --dtype float32|8 --tp 8;16 --layout ep8-tp8-pp2 --slots 8"
  "olmoe --mode score --dtype float32|6 --tp 6;12 --tp 12 --chunks 3;8 --layout tp4-pp2"
  "uneven --mode score|12 --tp 6 --pp 2;4 --tp 4 --tp-output rows;9 --layout dp3-ep3-tp3"
)
for preset in moe-61l-tiny moe-16l-tiny moe-4l-tiny; do
  "$ATOLL" init --preset "$preset" --output "$work/$preset.h5" --seed 5
done
for config in olmoe uneven heavy; do
  "$ATOLL" init --config "$work/$config.json" --output "$work/$config.h5" --seed 5
done
for case in "${cases[@]}"; do
  read -r model options <<<"${case%%|*}"
  # shellcheck disable=SC2086  # lists of words
  run_model "$work/expected" "$model" 1 $options --chunks 1 --no-overlap
  succeeds "$model $options on one rank" || continue
  while IFS= read -r -d ';' layout; do
    # shellcheck disable=SC2086
    run_model "$work/results" "$model" $layout $options
    succeeds "$model $options: $layout" || continue
    same "$model $options: $layout" "$work/expected" "$work/results"
    rm -f "$work/results"
  done <<<"${case#*|};"
  rm -f "$work/expected"
done

# Sums over ranks are another arithmetic: near, named, and not resumed as the exact one.
run_model "$work/exact" uneven 1 --mode score
succeeds "exact"
for sum in "" bf16; do
  # shellcheck disable=SC2086  # no type is no word
  run_model "$work/summed" uneven 3 --tp 3 --tp-sum $sum --mode score --report "$work/summed.json"
  succeeds "summed over ranks $sum"
  json_check "sums over ranks are near and named" "$work/exact" "$work/summed" "$work/summed.json" <<'EOF'
exact, summed, report = lines
pairs = [(a, b) for x, y in zip(exact, summed)
         for a, b in zip(x["prompt_logprobs"][1:], y["prompt_logprobs"][1:])]
worst = max(abs(a - b) for a, b in pairs)
mean = sum(abs(a - b) for a, b in pairs) / len(pairs)
assert mean < 0.05 and worst < 0.5, (mean, worst)
assert report["layout"]["tp_output"]["has"].startswith("sum"), report["layout"]
EOF
done

# Where memory is left for the whole output projection, prefill goes by rows and decode by columns.
run_model "$work/results" uneven 3 --tp 3 --report "$work/either.json"
succeeds "either way of the output projection"
json_check "both ways are taken" "$work/either.json" <<'EOF'
output = lines[0]["layout"]["tp_output"]
assert output["has"] == "either" and output["passes_by_rows"] > 0 < output["passes_by_columns"], output
EOF

# limit MODEL RANKS MEGABYTES OPTIONS...: what a rank takes at least, and so much more, in GB
limit() {
  "$ATOLL" layout --config "$work/$1.json" --backend cpu --ranks "$2" "${@:4}" |
    python3 -c '
import re, sys
weights, buffers, token = map(float, re.search(
    "weights ([0-9.]+) MB, buffers ([0-9.]+) MB, KV cache ([0-9.]+) MB", sys.stdin.read()).groups())
print((weights + buffers + 64 * token + float(sys.argv[1])) / 1000)' "$3"
}

# Memory decides: a few pages of KV cache come first, experts are cut where a rank has no room for
# them, and what does not fit is refused with what would.
run_model "$work/expected" uneven 1
run_model "$work/results" uneven 3 --tp 3 --report "$work/columns.json" \
  --memory-limit "$(limit uneven 3 0.08 --tp 3)"
succeeds "no room for the whole output projection"
same "no room for the whole output projection" "$work/expected" "$work/results"
json_check "it is cut" "$work/columns.json" <<'EOF'
assert lines[0]["layout"]["tp_output"]["has"] == "columns", lines[0]["layout"]
EOF
run_model "$work/expected" heavy 1
memory="$(limit heavy 4 -0.5)"
run_model "$work/results" heavy 4 --memory-limit "$memory" --report "$work/cut.json"
succeeds "no room for a whole expert"
if grep -q -- "--expert-tp 2: each expert is cut" "$work/stderr"; then passed; else
  failed "nothing said of experts that are cut: $(cat "$work/stderr")"
fi
same "no room for a whole expert" "$work/expected" "$work/results"
json_check "experts are cut" "$work/cut.json" <<'EOF'
report = lines[0]
assert report["layout"]["expert_tp"] == 2 and report["options"]["expert-tp"] == "auto", report["layout"]
EOF
run_model "$work/results" heavy 4 --memory-limit "$memory" --expert-tp 1
refused "a whole expert asked for" 1 "does not fit: it takes .*limited by --memory-limit; --expert-tp 2 would fit"
run_model "$work/results" heavy 2 --memory-limit 0.001
refused "hardly any memory" 1 "does not fit.*limited by --memory-limit; use more ranks"
finish
