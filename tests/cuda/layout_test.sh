#!/usr/bin/env bash
# The whole program on the emulated CUDA device: results do not depend on ranks, chunks, overlap,
# transport, or the order in which streams run, and agree with the CPU backend's within BF16's rounding.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=../e2e/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/../e2e/common.sh"

model="$work/model.h5"
import_sample "$model"
python3 - "$ATOLL_SOURCE/tests/data/heldout.jsonl" "$work" <<'EOF'
import json, sys

heldout = [json.loads(line) for line in open(sys.argv[1], encoding="utf-8")]
with open(f"{sys.argv[2]}/score.jsonl", "w", encoding="utf-8") as file:
    for number, text in enumerate(heldout):
        text["prompt"] = text["prompt"][:[70, 9, 150, 1][number % 4]]
        file.write(json.dumps(text) + "\n")
    file.write(json.dumps({"id": "parts", "prompt": "Ge1:1 In the", "continuations": [" beginning", "x", [1, 2]]}) + "\n")
with open(f"{sys.argv[2]}/generate.jsonl", "w", encoding="utf-8") as file:
    for number, text in enumerate(heldout[:6]):
        request = {"id": text["id"], "prompt": text["prompt"][:[1, 20, 66][number % 3]],
                   "max_tokens": 4, "temperature": 0.8 * (number % 2), "seed": number,
                   "top_p": [1, 0.9, 1, 0.6, 1, 1][number]}
        if number in (2, 3):
            request |= {"n": number, "top_k": 20, "min_p": 0.001, "repetition_penalty": 1.3, "presence_penalty": 0.4,
                        "frequency_penalty": 0.1, "logit_bias": {"32": 2, "101": -1}, "top_logprobs": 3}
        file.write(json.dumps(request) + "\n")
with open(f"{sys.argv[2]}/small.json", "w", encoding="utf-8") as file:
    json.dump({"model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "vocab_size": 256,
               "hidden_size": 40, "intermediate_size": 48, "moe_intermediate_size": 24,
               "num_hidden_layers": 4, "mlp_only_layers": [1], "decoder_sparse_step": 1,
               "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "num_experts": 5,
               "num_experts_per_tok": 3, "norm_topk_prob": True, "hidden_act": "silu",
               "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "max_position_embeddings": 512,
               "tie_word_embeddings": False, "torch_dtype": "bfloat16"}, file)
EOF
# Setting up GEMMs takes an emulated device long: many ranks have a model that is small.
"$ATOLL" init --config "$work/small.json" --output "$work/small.h5" --seed 3

# run_layout OUTPUT MODE RANKS SEED OPTIONS...; MODE-small is of the small model.
run_layout() {
  local output="$1" mode="$2" ranks="$3" file
  export ATL_EMULATED_SEED="$4" ATL_EMULATED_PROTECT="${protect:-1}" ATL_EMULATED_BEFORE_MPI=1
  shift 4
  [[ "$mode" == *-small ]] && file="$work/small.h5" || file="$model"
  mode="${mode%-small}"
  atoll_on "$ranks" run --model "$file" --input "$work/$mode.jsonl" --output "$output" --mode "$mode" \
    --backend cuda --min-chunk-tokens 1 --step-tokens "${step_tokens:-128}" --report "$output.json" "$@"
}

# holds WHAT COMMAND...: that ends with 0.
holds() {
  local what="$1"
  shift
  if "$@"; then passed; else failed "$what"; fi
}

for mode in score generate score-small generate-small; do
  run_layout "$work/$mode.expected" "$mode" 1 1 --chunks 1 --no-overlap
  succeeds "$mode on one rank" || true
done
json_check "the report names device and transport" "$work/score.expected.json" <<'EOF'
report = lines[0]
assert report["backend"].startswith("cuda: "), report["backend"]
assert "depend on the layout" not in report["backend"], report["backend"]
assert report["transport"] in ("pairwise-staged", "pairwise", "ialltoallv"), report["transport"]
EOF

layouts=()
((all_sweeps)) && layouts+=(
  "score 3 4 --chunks 4 --transport pairwise-staged"
  "generate 3 6 --chunks 3 --no-overlap --transport pairwise-staged"
  "generate-small 3 13 --chunks 2 --node-ranks 1 --route nodes --no-overlap"
)
layouts+=(
  # mode ranks seed options
  "score 2 3 --chunks 2 --transport pairwise-staged"
  "generate 2 5 --chunks 2 --transport pairwise-staged"
  # To other nodes, flat and in two hops; replicas of the 5 experts; nodes that differ; more ranks
  # than experts.
  "score-small 4 11 --chunks 2 --node-ranks 2 --route flat"
  "score-small 4 12 --chunks 2 --node-ranks 2 --route nodes"
  "score-small 6 14 --chunks 3 --node-ranks 3,1,2 --route nodes --slots 2"
  "generate-small 8 15 --chunks 2 --node-ranks 3,5"
  # Attention over ranks, stages, networks.
  "score-small 2 16 --chunks 2 --tp 2"
  "generate-small 4 17 --chunks 2 --tp 2 --tp-output rows --replicas 2"
  "generate-small 4 18 --tp 2 --pp 2 --transport pairwise-staged"
  "generate-small 4 19 --slots 3 --balance replicate --balance-above 1 --balance-every 1 --balance-pays-in 1000000000000"
  # The last: its report and trace are read below.
  "generate 5 7 --chunks 2 --trace $work/trace.json"
)
for layout in "${layouts[@]}"; do
  read -r mode ranks seed options <<<"$layout"
  # shellcheck disable=SC2086  # `options` is a list of words
  run_layout "$work/results" "$mode" "$ranks" "$seed" $options
  succeeds "$layout" || continue
  same "$layout" "$work/$mode.expected" "$work/results"
done
cp "$work/results.json" "$work/last.json"

# Two devices, each chosen before MPI starts.
ATL_EMULATED_DEVICES=2 run_layout "$work/results" score-small 2 21
succeeds "two devices" && same "two devices" "$work/score-small.expected" "$work/results"

# An MPI library that takes device pointers; and one that only says so, of which a start crashes. The
# next one leaves that transport out, and the one after it the other.
export ATL_EMULATED_CUDA_AWARE=1
protect=0 run_layout "$work/results" score-small 3 22 --transport pairwise
succeeds "device pointers" && same "device pointers" "$work/score-small.expected" "$work/results"
json_check "the report tells the rate of large rows" "$work/results.json" <<'EOF'
tried = lines[0]["transports_tried"]
assert [t["transport"] for t in tried] == ["pairwise"] and tried[0]["passed"], tried
assert tried[0]["bytes_per_s"] > 0, tried
EOF
for crash in first second; do
  run_layout "$work/results" score-small 2 23
  holds "the $crash crash: code $code" test "$code" -ne 0
  holds "the $crash crash is explained" grep -q "crashed on device memory" "$work/stderr"
  holds "the $crash crash leaves a note" test -s "$work/results.transports"
done
run_layout "$work/results" score-small 2 23
succeeds "a third start" && same "a third start" "$work/score-small.expected" "$work/results"
for transport in ialltoallv pairwise; do
  holds "$transport is said to be left out" grep -q "transport $transport is left out" "$work/stderr"
done
holds "the note goes with the run's end" test ! -e "$work/results.transports"
unset ATL_EMULATED_CUDA_AWARE

# What tokens were routed to is the same in every layout, and replaying it changes no byte.
run_layout "$work/routed" generate-small 1 1 --chunks 1 --record-routing "$work/one.h5"
succeeds "routing recorded on one rank"
same "recording changes nothing" "$work/generate-small.expected" "$work/routed"
run_layout "$work/routed" generate-small 3 2 --chunks 3 --record-routing "$work/three.h5"
succeeds "routing recorded on three ranks"
same "routing on one and three ranks" "$work/one.h5" "$work/three.h5"
run_layout "$work/routed" generate-small 2 3 --chunks 2 --replay-routing "$work/one.h5" \
  --record-routing "$work/again.h5"
succeeds "routing replayed on two ranks"
same "results of replayed routing" "$work/generate-small.expected" "$work/routed"
same "replayed routing, recorded" "$work/one.h5" "$work/again.h5"

# One rank with several chunks, and a GEMM algorithm that is refused in the middle of the run.
ATL_EMULATED_FAIL=cublasLtMatmul:2000:15 run_layout "$work/results.replaced" score 1 8 --chunks 3
succeeds "a refused algorithm"
same "a refused algorithm" "$work/score.expected" "$work/results.replaced"
json_check "the report counts it" "$work/results.replaced.json" <<'EOF'
backend = lines[0]["backend"]
assert "1 GEMMs refused" in backend and "not tried" not in backend, backend
EOF

json_check "several ranks share the device, and streams have tracks" "$work/last.json" \
  "$work/trace.json" <<'EOF'
report, trace = lines
assert "shared by 5 ranks" in report["backend"], report["backend"]
assert all(rank["receive_buffer_growths"] == 0 for rank in report["per_rank"]), report["per_rank"]
tracks = {e["args"]["name"] for e in trace["traceEvents"] if e["name"] == "thread_name"}
assert {"compute", "pack", "copy", "host", "exchange c0"} <= tracks, tracks
EOF

# A KV cache that leaves no room for all rows that other ranks could send: buffers grow as they must.
# With few tokens in a pass all ranks' passes are full, and some layers send a rank more than its share.
# The memory is enough for more KV pages than one sequence can have: other buffers depend on fewer.
export ATL_EMULATED_MEMORY_MIB=400
step_tokens=48
run_layout "$work/results" score 5 9 --chunks 1 --kv-tokens 1000000
refused "a KV cache too large" 1 "--kv-tokens [0-9]+ would fit"
fitting="$(sed -n 's/.*--kv-tokens \([0-9]*\) would fit.*/\1/p' "$work/stderr" | head -n 1)"
run_layout "$work/results" score 5 9 --chunks 1 --kv-tokens "$fitting"
succeeds "buffers that grow" && same "buffers that grow" "$work/score.expected" "$work/results"
unset ATL_EMULATED_MEMORY_MIB step_tokens
json_check "the report counts how often buffers grew" "$work/results.json" <<'EOF'
growths = [rank["receive_buffer_growths"] for rank in lines[0]["per_rank"]]
assert 1 <= sum(growths) <= 5 * 4, growths
EOF

# Requests that could use more KV cache than there is memory: what is chosen then fits, with the
# tables that grow with it. The injected failure comes once all sizes were checked, at the cache.
python3 - "$work/long.jsonl" <<'EOF'
import json, sys

with open(sys.argv[1], "w", encoding="utf-8") as file:
    for number in range(60):
        print(json.dumps({"id": str(number), "prompt": "tide", "max_tokens": 12000}), file=file)
EOF
for limited in "1 300" "1 333" "3 400"; do
  read -r ranks mebibytes <<<"$limited"
  ATL_EMULATED_MEMORY_MIB="$mebibytes" ATL_EMULATED_FAIL=cudaMalloc:2:2 atoll_on "$ranks" run \
    --model "$model" --input "$work/long.jsonl" --output "$work/refused" --backend cuda
  refused "a KV cache of what is left of $mebibytes MiB on $ranks ranks" 1 \
    "cannot take [0-9]+\.[0-9] MiB for the KV cache"
done

# Attention by warpgroups, where every rank may.
json_check "the report says that attention is by wgmma" "$work/score-small.expected.json" <<'EOF'
assert "attention by wgmma" in lines[0]["backend"], lines[0]["backend"]
EOF
ATOLL_ATTENTION=mma run_layout "$work/mma" score-small 1 1 --chunks 1
succeeds "attention by mma.sync"
ATL_EMULATED_WGMMA=other run_layout "$work/other" score-small 2 20 --chunks 2
succeeds "a device whose warpgroups answer otherwise"
same "a device whose warpgroups answer otherwise" "$work/mma" "$work/other"
json_check "neither takes wgmma" "$work/mma.json" "$work/other.json" <<'EOF'
for report in lines:
    assert "wgmma" not in report["backend"], report["backend"]
EOF
ATOLL_ATTENTION=tensor atoll_on 1 run --model "$work/small.h5" --input "$work/score.jsonl" --output "$work/refused" \
  --backend cuda
refused "attention by something else" 1 "ATOLL_ATTENTION is \"tensor\"; it may be mma or wgmma"

# The same prompts on the CPU backend.
atoll_on 1 run --model "$model" --input "$work/score.jsonl" --output "$work/cpu" --mode score \
  --backend cpu
succeeds "score on the CPU"
json_check "CUDA and CPU backends agree" "$work/score.expected" "$work/cpu" <<'EOF'
differences = [abs(a - b) for cuda, cpu in zip(*lines) if "prompt_logprobs" in cuda  # not of continuations
               for a, b in zip(cuda["prompt_logprobs"], cpu["prompt_logprobs"]) if a is not None]
mean = sum(differences) / len(differences)
assert len(differences) > 300 and mean < 0.02, (len(differences), mean)
EOF

# Models of other families: transformers' results, and the same bytes in each layout.
unset ATL_EMULATED_PROTECT # takes most of the time
few=(--few)
((all_sweeps)) && few=()
for family in deepseek_v3 gpt_oss mimo_v2_flash; do
  command_limit=300 capture python3 "$ATOLL_SOURCE/tests/families_check.py" "${few[@]}" --cuda "$ATOLL" \
    "$ATOLL_SOURCE/tests/data/families" "$family"
  succeeds "$family on CUDA" || cat "$work/stdout"
done

# Weights that stay as they are published give the bytes of the same numbers.
for kind in "fp8 deepseek_v3" "mxfp4 gpt_oss" "int4 deepseek_v3"; do
  read -r method family <<<"$kind"
  python3 "$ATOLL_SOURCE/tests/e2e/quantise_model.py" "$method" "$ATOLL_SOURCE/tests/data/families/$family" "$work/coded" "$work/plain"
  printf '{"id": "a", "tokens": [7, 1, 8, 2, 8, 1, 8], "max_tokens": 5, "top_logprobs": 2}\n' >"$work/kept.jsonl"
  for form in coded plain; do
    keep=unpack
    [[ "$form" == coded ]] && keep=keep
    capture "$ATOLL" import "$work/$form" --output "$work/$form.h5" --weights "$keep"
    succeeds "$kind: import, $form" || continue
    capture "$ATOLL" run --model "$work/$form.h5" --input "$work/kept.jsonl" --output "$work/$form.jsonl" --backend cuda
    succeeds "$kind: $form on CUDA" || true
  done
  same "$kind: kept on CUDA" "$work/plain.jsonl" "$work/coded.jsonl"
done
atoll_on 2 run --model "$work/coded.h5" --input "$work/kept.jsonl" --output "$work/shared.jsonl" --backend cuda --tp 2
succeeds "kept, attention over ranks" && same "kept, attention over ranks" "$work/plain.jsonl" "$work/shared.jsonl"
export ATL_EMULATED_PROTECT=1

# What cannot be had is refused by name.
cuda_run=(run --model "$model" --input "$work/score.jsonl" --output "$work/refused" --mode score
  --step-tokens 128 --backend)
atoll_on 2 "${cuda_run[@]}" cuda --transport pairwise
refused "device pointers without a CUDA-aware MPI" 1 "pairwise-staged"
ATL_EMULATED_DEVICES=0 atoll_on 2 "${cuda_run[@]}" cuda
refused "no device" 1 "no CUDA device"
ATL_EMULATED_CAPABILITY=7.5 atoll_on 2 "${cuda_run[@]}" cuda
refused "a device too old" 1 "compute capability 7\.5.*8\.0"
ATL_EMULATED_FAIL=cudaFuncGetAttributes:1+:209 atoll_on 2 "${cuda_run[@]}" cuda
refused "kernels for other devices" 1 "compute capability 9\.0.*built for.*ATOLL_CUDA_ARCHITECTURES=90"
ATL_EMULATED_MEMORY_MIB=8 atoll_on 2 "${cuda_run[@]}" cuda
refused "a device too small" 1 "does not fit"
ATL_EMULATED_DEVICES=0 atoll_on 1 "${cuda_run[@]}" auto
succeeds "auto without a device"

# Failures in the middle of a pass: one message that names call, step and device.
ATL_EMULATED_FAIL=kernel:200:700 ATL_EMULATED_FAIL_RANK=1 atoll_on 2 "${cuda_run[@]}" cuda
refused "a kernel that fails" 1 "device 0 .*L[0-9]+ c[0-9] [a-z]+ was under way.*illegal"
ATL_EMULATED_FAIL=cudaMemcpyAsync:60:719 ATL_EMULATED_FAIL_RANK=1 atoll_on 2 "${cuda_run[@]}" cuda
refused "a call that fails" 1 "cudaMemcpyAsync failed in .*device 0"
ATL_EMULATED_FAIL=cudaMalloc:2:2 atoll_on 1 "${cuda_run[@]}" cuda
refused "no memory" 1 "cannot take .*device 0"
finish
