#!/usr/bin/env bash
# The results of a run do not depend on its layout: ranks, chunks, overlap, transport, threads and the
# cutting of prompts into pieces, routes, placements and replicas change no byte, in generation (greedy and sampled) and in scoring.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

model="$work/model.h5"
import_sample "$model"

# Requests of many lengths, greedy and sampled, text and ids, and one line that cannot be used.
python3 - "$ATOLL_SOURCE/tests/data/heldout.jsonl" "$work" <<'EOF'
import json, sys

heldout = [json.loads(line) for line in open(sys.argv[1], encoding="utf-8")]
everything = "\n".join(text["prompt"] for text in heldout)
sampled = [{}, {"temperature": 0.8, "seed": 7}, {"temperature": 1.1, "top_p": 0.85, "seed": 2**40}]
generate = []
for number, text in enumerate(heldout):
    length = [1, 7, 64, 3, 128, 20][number % 6]
    generate.append({"id": text["id"], "prompt": text["prompt"][:length],
                     "max_tokens": [12, 5, 20][number % 3], **sampled[number % 3]})
generate.append({"id": "long", "prompt": everything[:900], "max_tokens": 6})
generate.append({"id": "ids", "tokens": list(everything.encode())[500:540], "max_tokens": 9,
                 "temperature": 0.7, "seed": 7})
generate.append({"id": "stops", "prompt": "Ge1:1 In the beginning", "max_tokens": 40,
                 "stop_token_ids": [10, 46, 44]})
def write(name, requests, broken_line=None):
    lines = [json.dumps(request) for request in requests]
    if broken_line is not None:
        lines.insert(broken_line - 1, '{"id": "broken", "prompt": ')
    with open(f"{sys.argv[2]}/{name}.jsonl", "w", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")
write("generate", generate, broken_line=10)
write("score", heldout + [{"id": "everything", "prompt": everything}])
EOF

# run_layout OUTPUT MODE RANKS CHUNKS OVERLAP TRANSPORT THREADS MORE...
run_layout() {
  local output="$1" mode="$2" ranks="$3" chunks="$4" overlap="$5" transport="$6" threads="$7"
  shift 7
  # One token is enough for a chunk of its own, so that short prompts are cut as well.
  local options=(--mode "$mode" --chunks "$chunks" --transport "$transport" --threads "$threads"
    --min-chunk-tokens 1 "$@")
  [[ "$overlap" == yes ]] || options+=(--no-overlap)
  atoll_on "$ranks" run --model "$model" --input "$work/$mode.jsonl" --output "$output" "${options[@]}"
}

for mode in generate score; do
  run_layout "$work/$mode.expected" "$mode" 1 1 no ialltoallv 1
  succeeds "$mode on one rank"
done

json_check "results of generate" "$work/generate.expected" <<'EOF'
results = lines[0]
assert len(results) == 16, len(results)
assert "error" in results[9] and results[9]["line"] == 10, results[9]
for number, result in enumerate(results):
    if number == 9:
        continue
    assert "error" not in result, result
    assert result["finish_reason"] in ("length", "stop"), result
    assert 1 <= len(result["tokens"]) <= 40 and len(result["tokens"]) == len(result["logprobs"]), result
    assert all(0 <= token < 256 for token in result["tokens"]), result
    assert all(math.isfinite(p) and p <= 0 for p in result["logprobs"]), result
    if all(0 < token < 128 for token in result["tokens"]):
        assert result["text"].encode() == bytes(result["tokens"]), result
names = [r["id"] for n, r in enumerate(results) if n != 9]
assert len(set(names)) == 15 and names[-3:] == ["long", "ids", "stops"], names
EOF

json_check "results of score" "$work/score.expected" "$work/score.jsonl" <<'EOF'
results, requests = lines
assert [r["id"] for r in results] == [r["id"] for r in requests]
for result, request in zip(results, requests):
    logprobs = result["prompt_logprobs"]
    assert len(logprobs) == len(request["prompt"].encode()) and logprobs[0] is None, result["id"]
    assert all(math.isfinite(p) and p <= 0 for p in logprobs[1:]), result["id"]
# A trained model is far from guessing, which takes 5.5 nats a byte.
values = [p for r in results[:-2] for p in r["prompt_logprobs"][1:]]
mean = -sum(values) / len(values)
assert 0.5 < mean < 2.2, mean
EOF

layouts=(
  # ranks chunks overlap transport threads more
  "1 2 yes ialltoallv 2"
  "1 8 no pairwise 1 --step-tokens 50"
  "2 1 yes pairwise 1"
  "2 3 yes ialltoallv 2 --max-sequences 2"
  "2 4 no auto 1"
  "3 8 yes pairwise 1 --step-tokens 97"
  "3 2 no ialltoallv 1"
  "3 5 yes auto 2"
  "5 4 yes pairwise 1 --max-sequences 1"
  "5 1 no ialltoallv 2"
  "5 7 yes ialltoallv 1 --step-tokens 64"
  "8 2 yes pairwise 1"
  "8 6 no ialltoallv 1"
  "16 1 yes ialltoallv 1"
  "16 4 yes pairwise 1"
  "16 8 yes ialltoallv 2 --step-tokens 33"
  "16 2 no pairwise 1"
  # Two hops, on nodes that are equal, uneven or one rank each; replicas; any placement.
  "4 3 yes ialltoallv 1 --route nodes --node-ranks 2"
  "9 4 yes pairwise 1 --route nodes --node-ranks 3,5,1"
  "16 2 yes ialltoallv 1 --route nodes --node-ranks 4 --step-tokens 50"
  "16 1 no pairwise 1 --route nodes --node-ranks 1"
  "24 2 yes ialltoallv 1 --route nodes --node-ranks 8"
  "17 2 yes auto 1 --route flat"
  "5 3 yes auto 1 --node-ranks 2,3 --slots 7"
  "6 auto yes ialltoallv 1 --node-ranks 3 --placement $work/placement.6.json"
  # Attention over several ranks, stages of layers, several networks.
  "2 2 yes ialltoallv 1 --tp 2"
  "3 3 yes pairwise 1 --tp 3 --tp-output rows"
  "4 8 yes ialltoallv 1 --pp 4 --step-tokens 64"
  "6 4 no auto 1 --tp 2 --replicas 3 --step-tokens 50"
  "12 auto yes pairwise 1 --tp 3 --pp 2 --replicas 2 --tp-output rows"
  "16 4 yes ialltoallv 1 --tp 2 --pp 2 --node-ranks 4 --route nodes"
  "4 2 yes ialltoallv 1 --expert-tp 2"
  "8 3 yes pairwise 1 --layout tp2-pp2 --tp-output columns"
  "8 2 no auto 1 --expert-tp 4 --tp 2 --node-ranks 2 --route nodes"
)
((all_sweeps)) && layouts+=(
  "33 2 yes ialltoallv 1 --route nodes --node-ranks 11"
  "33 auto yes pairwise 1 --node-ranks 4,4,4,4,4,4,4,5"
  "32 4 yes ialltoallv 1 --route nodes --node-ranks 8"
  "16 8 yes pairwise 2 --route nodes --node-ranks 7,9 --step-tokens 33"
  "3 5 no ialltoallv 1 --route nodes --node-ranks 1,2 --slots 16"
  "12 auto yes auto 1 --route nodes --node-ranks 3 --placement $work/placement.12.json"
  "13 4 no pairwise 1 --route nodes --node-ranks 6,6,1 --placement $work/placement.13.json"
  "6 5 yes pairwise 2 --tp 6 --max-sequences 1"
  "6 2 no ialltoallv 1 --tp 3 --step-tokens 33"
  "8 auto yes auto 1 --pp 8"
  "24 3 yes ialltoallv 1 --tp 6 --pp 2 --replicas 2"
  "18 2 yes pairwise 1 --tp 3 --replicas 3 --slots 6 --tp-output rows"
  "36 auto yes ialltoallv 1 --tp 2 --replicas 2 --node-ranks 6"
  "8 8 yes pairwise 1 --layout ep2-etp4 --step-tokens 33"
  "24 2 yes ialltoallv 1 --layout dp2-pp2-ep3-etp2-tp6"
)
for layout in "${layouts[@]}"; do
  [[ "$layout" == *--placement* ]] || continue
  # One to three replicas of each expert anywhere, another way in every layer but one.
  python3 - "${layout%% *}" "${layout##* }" <<'EOF'
import json, random, sys

ranks, path = int(sys.argv[1]), sys.argv[2]
random.seed(ranks)
layers = {str(layer): [random.sample(range(ranks), random.randint(1, 3)) for _ in range(16)]
          for layer in range(1, 7)}
json.dump({"format": "atoll-placement", "layers": layers}, open(path, "w"))
EOF
done
number=0
for mode in generate score; do
  for layout in "${layouts[@]}"; do
    # Scoring runs the same steps, so that a third of the layouts is enough for every change.
    ((all_sweeps || number++ % 3 == 0)) || [[ "$mode" == generate ]] || continue
    read -r ranks chunks overlap transport threads more <<<"$layout"
    what="$mode: $ranks ranks, $chunks chunks, overlap $overlap, $transport, $threads threads $more"
    # shellcheck disable=SC2086  # `more` is a list of words
    run_layout "$work/results" "$mode" "$ranks" "$chunks" "$overlap" "$transport" "$threads" $more
    succeeds "$what" || continue
    same "$what" "$work/$mode.expected" "$work/results"
    rm -f "$work/results"
  done
done
finish
