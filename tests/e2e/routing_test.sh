#!/usr/bin/env bash
# Routing on record: the same file for every number of ranks and chunks, one row for every token that
# went through the layers; replayed, it gives the results that were recorded. Traces (.npy) are followed
# too. Files that cannot be are refused.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

model="$work/model.h5"
import_sample "$model"
requests="$work/requests.jsonl"
{
  head -n 6 "$ATOLL_SOURCE/jobs/sample-prompts.jsonl"
  printf '{"id": "refused", "prompt": ""}\n{"id": "one", "prompt": "a", "max_tokens": 1}\n'
  printf '{"id": "sampled", "prompt": "Ge1:1 In the beginning", "temperature": 0.9, "seed": 3}\n'
  printf '{"id": "stops", "prompt": "Ge1:1 In the", "stop_token_ids": [10, 46, 44, 32]}\n'
} >"$requests"

# run_of RANKS NAME OPTION...: a run of the requests; results in NAME.jsonl, report in NAME.json.
run_of() {
  local ranks="$1" name="$2"
  shift 2
  atoll_on "$ranks" run --model "$model" --input "$requests" --output "$work/$name.jsonl" \
    --report "$work/$name.json" --max-tokens 24 "$@"
}
# says WHAT FIXED-TEXT: the last command's output or errors have it.
says() {
  if cat "$work/stdout" "$work/stderr" | grep -qF -- "$2"; then
    passed
  else
    failed "$1: nothing says '$2'"
    show_output
  fi
}

for mode in generate score; do
  run_of 1 "$mode" --mode "$mode"
  succeeds "$mode without a record"
  run_of 1 "$mode-1" --mode "$mode" --record-routing "$work/$mode.h5"
  succeeds "$mode with a record"
  same "recording changes nothing, $mode" "$work/$mode.jsonl" "$work/$mode-1.jsonl"
  for layout in "2 4 --min-chunk-tokens 2" "5 3 --step-tokens 40" "16 2 --no-overlap" \
    "16 1 --max-sequences 2" "6 2 --tp 3 --pp 2" "4 4 --tp 2 --expert-tp 4" "6 auto --replicas 2 --pp 3" "4 2 --layout dp2-tp2"; do
    ((all_sweeps)) || [[ "$mode" == generate || "$layout" == [26]* ]] || continue
    read -r ranks chunks more <<<"$layout"
    # shellcheck disable=SC2086  # `more` is a list of words
    run_of "$ranks" other --mode "$mode" --chunks "$chunks" $more --record-routing "$work/other.h5"
    succeeds "$mode recorded with $layout"
    same "routing of $mode with $layout" "$work/$mode.h5" "$work/other.h5"
  done
done

# One row for every token that went through the layers.
json_check "as many positions as tokens" "$work/generate-1.jsonl" "$work/generate-1.json" \
  "$work/score-1.json" "$requests" <<'EOF'
generated, report, score_report, requests = lines
prompts = {r["id"]: len(r["prompt"].encode()) for r in requests}
assert any(r.get("finish_reason") == "stop" for r in generated), "no request stops"
wanted = sum(prompts[r["id"]] + len(r["tokens"]) - (r["finish_reason"] == "length")
             for r in generated if "error" not in r)
config = report["model"]["config"]
choices = (config["num_hidden_layers"] - len(config["mlp_only_layers"])) * config["num_experts_per_tok"]
recorded = report["routing"]["recorded"]
assert recorded["positions"] == wanted, (recorded, wanted)
assert recorded["bytes"] >= wanted * choices * 6, recorded
# What the router sent, counted by another part of the program.
assert sum(report["tokens_per_expert"]["total"]) == wanted * choices, report["tokens_per_expert"]["total"]
scored = score_report["routing"]["recorded"]["positions"]
assert scored == sum(prompts.values()), scored
EOF

# Replayed, it gives what was recorded, and can be recorded again.
for mode in generate score; do
  run_of 3 replayed --mode "$mode" --chunks 3 --replay-routing "$work/$mode.h5" \
    --record-routing "$work/again.h5"
  succeeds "$mode replayed"
  says "a replay" "replaying the experts' choices of $work/$mode.h5, with the recorded weights"
  same "results of $mode, replayed" "$work/$mode.jsonl" "$work/replayed.jsonl"
  same "routing of $mode, replayed" "$work/$mode.h5" "$work/again.h5"
  json_check "the report says so" "$work/replayed.json" <<'EOF'
replayed = lines[0]["routing"]["replayed"]
assert replayed["weights"] == "the recorded" and replayed["experts_taken"] == 2, replayed
EOF
done

# In any layout: whoever has a token's rows takes its choices from the file.
for layout in "4 --tp 2 --pp 2" "4 --expert-tp 2 --replicas 2" "8 --layout pp2-tp2" "8 --pp 8" \
  "4 --tp 2 --expert-tp 2 --route nodes --node-ranks 2"; do
  read -r ranks more <<<"$layout"
  # shellcheck disable=SC2086  # `more` is a list of words
  run_of "$ranks" replayed $more --replay-routing "$work/generate.h5" --record-routing "$work/again.h5"
  succeeds "replayed with $layout"
  same "results, replayed with $layout" "$work/generate.jsonl" "$work/replayed.jsonl"
  same "routing, replayed with $layout" "$work/generate.h5" "$work/again.h5"
done

# Of shards, each has a file of its own.
run_of 2 shards --shard 1/2 --replay-routing "$work/generate.h5" --record-routing "$work/part.h5"
succeeds "a shard, replayed and recorded"
part="$(compgen -G "$work/part.h5.*" || true)"
if [[ -n "$part" && ! -e "$work/part.h5" ]]; then passed; else failed "a shard's record is '$part'"; fi

# inspect: loads by layer, skew, co-activation; the loads are those of the report.
capture "$ATOLL" inspect "$work/generate.h5"
succeeds "inspect"
for text in "x 7 MoE layers x 2 of 16 experts" "most/mean" "most often together" "mean weights" \
  "checksums: all good"; do
  says "inspect" "$text"
done
python3 - "$work/stdout" "$work/inspected.json" <<'EOF'
import json, sys
text = open(sys.argv[1]).read().split("rows of experts 0, 1, ... by layer\n")[1]
rows = [list(map(int, line.split())) for line in text.splitlines() if line[:1] == " "]
json.dump({row[0]: row[1:] for row in rows}, open(sys.argv[2], "w"))
EOF
json_check "loads by layer" "$work/inspected.json" "$work/generate-1.json" <<'EOF'
inspected, report = lines
assert inspected == {str(l["layer"]): l["tokens"] for l in report["tokens_per_expert"]["by_layer"]}
EOF

# A trace: made choices in .npy, followed by any layout; each request takes its rows in turn.
python3 - "$work" <<'EOF'
import random, struct, sys

def save(name, tokens, layers, k, experts):
    random.seed(7)
    data = bytes(e for _ in range(tokens * layers) for e in random.sample(range(experts), k))
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({tokens}, {layers}, {k}), }}"
    header = header.ljust((10 + len(header) + 1 + 63) // 64 * 64 - 11) + "\n"
    with open(f"{sys.argv[1]}/{name}.npy", "wb") as file:
        file.write(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + data)

save("trace", 2000, 7, 2, 16)
save("wide", 2000, 7, 4, 16)
save("short", 100, 7, 2, 16)
save("shallow", 2000, 6, 2, 16)
save("narrow", 2000, 7, 1, 16)
save("foreign", 2000, 7, 2, 64)
EOF
run_of 1 trace-1 --replay-routing "$work/trace.npy" --record-routing "$work/trace-1.h5"
succeeds "a trace on one rank"
run_of 5 trace-5 --replay-routing "$work/trace.npy" --record-routing "$work/trace-5.h5" --chunks 4
succeeds "a trace on five ranks"
same "results of a trace" "$work/trace-1.jsonl" "$work/trace-5.jsonl"
same "routing of a trace" "$work/trace-1.h5" "$work/trace-5.h5"
for layout in "6 --tp 3 --pp 2" "4 --expert-tp 4" "6 --replicas 3 --pp 2"; do
  read -r ranks more <<<"$layout"
  # shellcheck disable=SC2086
  run_of "$ranks" trace-n --replay-routing "$work/trace.npy" --record-routing "$work/trace-n.h5" $more
  succeeds "a trace with $layout"
  same "results of a trace with $layout" "$work/trace-1.jsonl" "$work/trace-n.jsonl"
  same "routing of a trace with $layout" "$work/trace-1.h5" "$work/trace-n.h5"
done
if cmp -s "$work/trace-1.jsonl" "$work/generate.jsonl"; then
  failed "the trace changed nothing"
else
  passed
fi
run_of 2 recorded --replay-routing "$work/trace-1.h5"
succeeds "a trace that was recorded"
same "results of a trace that was recorded" "$work/trace-1.jsonl" "$work/recorded.jsonl"
capture "$ATOLL" inspect "$work/trace.npy"
succeeds "inspect of a trace"
says "inspect of a trace" "2000 tokens x 7 MoE layers x 2 of at least 16 experts"
if command -v h5dump >/dev/null; then
  # Token 1 of the first request is the trace's second; of its first layer, two bytes.
  capture h5dump -d /experts -s 1,0,0 -c 1,1,2 "$work/trace-1.h5"
  says "the recorded trace" "(1,0,0): $(od -An -tu1 -j142 -N2 "$work/trace.npy" | awk '{print $1 ", " $2}')"
fi
run_of 2 wide --replay-routing "$work/wide.npy"
succeeds "a trace of more experts a token"
says "a trace of more experts a token" "its last 2 of a token are left out"
json_check "the report names the router's weights" "$work/wide.json" <<'EOF'
replayed = lines[0]["routing"]["replayed"]
assert replayed["weights"] == "the router's", replayed
assert (replayed["experts_of_file"], replayed["experts_taken"]) == (4, 2), replayed
EOF

# A model of any description.
cat >"$work/description.json" <<'EOF'
{"hidden_size": 64, "num_hidden_layers": 3, "mlp_only_layers": [0], "num_attention_heads": 4,
 "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 96, "moe_intermediate_size": 32,
 "num_experts": 12, "num_experts_per_tok": 5, "norm_topk_prob": false, "hidden_act": "silu",
 "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "vocab_size": 256, "max_position_embeddings": 4096,
 "dtype": "float32"}
EOF
capture "$ATOLL" init --config "$work/description.json" --output "$work/described.h5"
succeeds "init by a description"
capture mpirun "${mpirun_flags[@]}" -n 3 "$ATOLL" init --config "$work/description.json" \
  --output "$work/described-3.h5"
succeeds "init by a description on three ranks"
same "a described model on 1 and 3 ranks" "$work/described.h5" "$work/described-3.h5"
capture "$ATOLL" init --config "$sample/config.json" --output "$work/like-sample.h5"
succeeds "init by a Hugging Face configuration"
sample_model="$model"
model="$work/described.h5"
run_of 1 described --record-routing "$work/described-1.routing"
succeeds "a described model"
run_of 4 described-4 --record-routing "$work/described-4.routing" --chunks 3
succeeds "a described model on four ranks"
same "top-5 results" "$work/described.jsonl" "$work/described-4.jsonl"
same "top-5 routing" "$work/described-1.routing" "$work/described-4.routing"
run_of 3 described --replay-routing "$work/described-1.routing"
succeeds "top-5, replayed"
same "top-5 results, replayed" "$work/described-4.jsonl" "$work/described.jsonl"
run_of 2 x --replay-routing "$work/generate.h5"
refused "routing of another model" 1 "recorded with the model"
run_of 2 x --replay-routing "$work/trace.npy"
refused "a trace of another model" 1 "7 MoE layers and the model 2"
model="$sample_model"

# What cannot be followed or written.
for bad in "short:it is short: it has choices of 100 tokens" "shallow:6 MoE layers and the model 7" \
  "narrow:1 experts for a token and the model takes 2" \
  "foreign:token [0-9]+ of MoE layer [0-9]+ has expert [0-9]+, and the model has 16"; do
  run_of 2 x --replay-routing "$work/${bad%%:*}.npy"
  refused "a trace that is ${bad%%:*}" 1 "${bad#*:}"
done
head -n 3 "$requests" >"$work/few.jsonl"
atoll_on 2 run --model "$model" --input "$work/few.jsonl" --output "$work/x.jsonl" --max-tokens 24 \
  --record-routing "$work/few.h5"
succeeds "a record of few requests"
run_of 2 x --replay-routing "$work/few.h5"
refused "a request that was not recorded" 1 "it has no request"
run_of 2 x --max-tokens 30 --replay-routing "$work/generate.h5"
refused "a record of fewer tokens" 1 "it is short: it has choices of [0-9]+ positions of request"
run_of 2 x --replay-routing "$work/score.h5"
refused "a record of the prompts alone" 1 "it is short"
cp "$work/generate.h5" "$work/damaged.h5"
python3 - "$work/damaged.h5" <<'EOF'
import sys
with open(sys.argv[1], "r+b") as file:  # the weights are last; the last rows of all belong to "stops"
    data = bytearray(file.read())
    at = max(i for i in range(len(data)) if data[i])
    file.seek(at)
    file.write(bytes([data[at] ^ 1]))
EOF
capture "$ATOLL" inspect "$work/damaged.h5"
refused "a damaged record" 1 "damaged:|damaged"
run_of 2 x --replay-routing "$requests"
refused "requests as routing" 1 "not an HDF5 file"
run_of 2 x --replay-routing "$work/nowhere.h5"
refused "no such file" 1 "No such file"
run_of 2 x --replay-routing "$work/generate.json"
refused "a report as routing" "1|2" "not an HDF5 file"
run_of 2 x --replay-routing "$work/described.h5"
refused "a model as routing" 1 "its format is \"atoll-model\""
run_of 2 x --record-routing "$work/nowhere/x.h5"
refused "a record nowhere" 1 "No such file"
run_of 2 x --record-routing "$model"
refused "a record over the model" 2 "same file"
run_of 2 x --replay-routing "$work/trace.npy" --shard 0/2
refused "a trace for a shard" 2 "shard"
capture "$ATOLL" init --output "$work/x.h5"
refused "init of nothing" 2 "--preset or --config"
capture "$ATOLL" init --config "$work/description.json" --preset moe-4l --output "$work/x.h5"
refused "init of two" 2 "excludes"
echo '{"hidden_size": 64}' >"$work/bad.json"
capture "$ATOLL" init --config "$work/bad.json" --output "$work/x.h5"
refused "init of half a description" 1 "bad.json.*no key"
capture "$ATOLL" init --config "$work/nowhere.json" --output "$work/x.h5"
refused "init of no description" 1 "No such file"
finish
