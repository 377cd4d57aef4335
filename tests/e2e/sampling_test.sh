#!/usr/bin/env bash
# What a request can ask of its draws: several samples, penalties, biases, texts that end it, the most
# probable tokens; and continuations that are scored. The same bytes in every layout and after a resume.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

model="$work/model.h5"
import_sample "$model"
python3 - "$work" <<'PY'
import json, pathlib, sys

work = pathlib.Path(sys.argv[1])
hot = {"temperature": 1.1, "max_tokens": 24}
start = "Ge1:1 In the beginning "
requests = [
    {"id": "three", "prompt": start, "n": 3, **hot},
    {"id": "seeded", "prompt": start, "n": 3, "seed": 2**64 - 1, **hot},
    {"id": "seeded 0", "prompt": start, "seed": 2**64 - 1, **hot},
    {"id": "seeded 1", "prompt": start, "seed": 0, **hot},
    {"id": "seeded 2", "prompt": start, "seed": 1, **hot},
    {"id": "one", "prompt": "def f(x):", "top_k": 1, **hot},
    {"id": "greedy", "prompt": "def f(x):", "max_tokens": 24, "top_logprobs": 5},
    {"id": "likely", "prompt": "def f(x):", "min_p": 1.0, **hot},
    {"id": "forced", "prompt": "x", "logit_bias": {"65": 1000}, "max_tokens": 5, "top_logprobs": 1},
    {"id": "barred", "prompt": start, "logit_bias": {"101": -1000, "32": -1000}, **hot},
    {"id": "once", "prompt": start, "frequency_penalty": 1000, "temperature": 0, "max_tokens": 60},
    {"id": "present", "prompt": start, "presence_penalty": 1000, "n": 2, **hot},
    {"id": "new", "prompt": start, "repetition_penalty": 1000, "temperature": 0, "max_tokens": 6},
    {"id": "mixed", "prompt": start * 4, "repetition_penalty": 1.3, "presence_penalty": 0.4, "frequency_penalty": 0.2,
     "top_k": 12, "min_p": 0.01, "top_p": 0.95, "top_logprobs": 20, "n": 2, **hot},
    {"id": "stopped", "prompt": start, "stop": ["e ", "qqq"], "max_tokens": 60},
    {"id": "long enough", "prompt": start, "stop": "e ", "stop_token_ids": [101, 32], "min_tokens": 12, "max_tokens": 60},
    {"id": "nothing", "prompt": start, "n": 2, "stop": []},
    {"id": "bad", "prompt": start, "n": 2, "temperature": -1},
]
prompts = ["Ge1:1 In the beginning", "Die Liebe ", "x"]
scored = [{"id": f"all {i}", "prompt": prompt + ending} for i, prompt in enumerate(prompts) for ending in (" God", "zz")]
for i, line in enumerate(scored):
    line["id"] = str(i)
scored += [{"id": f"c{i}", "prompt": prompt, "continuations": [" God", "zz"]} for i, prompt in enumerate(prompts)]
scored.append({"id": "ids", "tokens": [120], "continuations": [[32, 71], "zz"]})
for name, lines in {"sampled": requests, "scored": scored}.items():
    (work / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
PY

run() { # NAME OUTPUT RANKS OPTIONS...
  local mode=generate
  [[ "$1" == sampled ]] || mode=score
  atoll_on "$3" run --model "$model" --mode "$mode" --input "$work/$1.jsonl" --output "$2" "${@:4}"
}
run sampled "$work/sampled.expected" 1 --report "$work/report.json"
succeeds "sampling on one rank"
run scored "$work/scored.expected" 1
succeeds "scoring on one rank"
json_check "what was asked of the draws" "$work/sampled.expected" "$work/report.json" <<'PY'
results, report = lines
of = {line["id"]: line for line in results}
assert [line["id"] for line in results][:3] == ["three", "seeded", "seeded 0"] and len(results) == 18
samples = [sample["tokens"] for sample in of["three"]["samples"]]
assert len(samples) == 3 and samples[0] != samples[1] != samples[2], samples
for i, sample in enumerate(of["seeded"]["samples"]):
    assert {"id": f"seeded {i}", **sample} == of[f"seeded {i}"], i
greedy = of["greedy"]
assert of["one"]["tokens"] == greedy["tokens"] == of["likely"]["tokens"]
for token, logprob, tops in zip(greedy["tokens"], greedy["logprobs"], greedy["top_logprobs"], strict=True):
    assert len(tops) == 5 and tops[0] == {"token": token, "logprob": logprob}, (token, tops)
    assert sorted(tops, key=lambda top: (-top["logprob"], top["token"])) == tops and sum(math.exp(t["logprob"]) for t in tops) < 1.00001
forced = of["forced"]
assert forced["tokens"] == [65] * 5
# Log-probabilities are the model's own, whatever was added.
assert all(logprob < tops[0]["logprob"] < 0 for logprob, tops in zip(forced["logprobs"], forced["top_logprobs"]))
assert not {101, 32} & set(of["barred"]["tokens"])
for sample in [of["once"], *of["present"]["samples"]]:
    assert len(set(sample["tokens"])) == len(sample["tokens"]) > 4, sample
assert not set(of["new"]["tokens"]) & set(b"Ge1:1 In the beginning ")
assert all(len(tops) == 20 for sample in of["mixed"]["samples"] for tops in sample["top_logprobs"])
stopped = of["stopped"]
whole = bytes(stopped["tokens"])
assert stopped["finish_reason"] == "stop" and whole.endswith(b"e ") and whole[:-2].decode() == stopped["text"], stopped
enough = of["long enough"]
assert not {101, 32} & set(enough["tokens"][:12]) and len(enough["tokens"]) >= 12 and enough["finish_reason"] == "stop"
assert len(of["nothing"]["samples"]) == 2 and "temperature" in of["bad"]["error"]
PY
json_check "continuations" "$work/scored.expected" <<'PY'
of = {line["id"]: line for line in lines[0]}
for i, prompt in enumerate((22, 10, 1)):
    for ending in (0, 1):
        alone = of[str(2 * i + ending)]["prompt_logprobs"][prompt:]
        part = of[f"c{i}"]["continuations"][ending]
        assert part["logprobs"] == alone and abs(part["logprob"] - sum(alone)) < 1e-6, (i, ending)
        assert part["tokens"] == list((b" God", b"zz")[ending])
assert of["ids"]["continuations"][1] == of["c2"]["continuations"][1]
assert any(part["greedy"] for line in of.values() for part in line.get("continuations", [])) is False
PY

# A continuation that is what the model would say is greedy.
json_check "the greedy continuation" "$work/sampled.expected" <<'PY'
import pathlib, sys
greedy = next(line for line in lines[0] if line["id"] == "greedy")
line = {"id": "g", "prompt": "def f(x):", "continuations": [greedy["tokens"][:9], greedy["tokens"][:8] + [0]]}
pathlib.Path(paths[0]).with_name("greedy.jsonl").write_text(json.dumps(line) + "\n")
PY
run greedy "$work/greedy.results" 2
succeeds "scoring what was generated"
json_check "greedy, and not" "$work/greedy.results" <<'PY'
assert [part["greedy"] for part in lines[0][0]["continuations"]] == [True, False], lines
PY

# --- the same bytes in every layout
for layout in "3 --chunks 2" "2 --tp 2" "2 --pp 2" "4 --replicas 2 --max-sequences 3"; do
  # shellcheck disable=SC2086  # options
  for name in sampled scored; do
    run "$name" "$work/results" $layout
    succeeds "$name on $layout" || continue
    same "$name on $layout" "$work/$name.expected" "$work/results"
  done
done

# --- parts in shards, joined
for shard in 0 1; do
  run sampled "$work/sharded.jsonl" 1 --shard "$shard/2"
  succeeds "shard $shard"
done
capture "$ATOLL" join --output "$work/sharded.jsonl"
succeeds "join"
same "joined shards" "$work/sampled.expected" "$work/sharded.jsonl"

# --- after a resume: penalties, texts and samples go on from where they were
folder="$work/run"
mkdir "$folder"
for name in sampled scored; do
  options=(--max-sequences 4 --step-tokens 40 --checkpoint-dir "$folder/$name" --checkpoint-every 6)
  capture mpirun "${mpirun_flags[@]}" -n 2 -x LD_PRELOAD="$fault_library" -x ATOLL_FAULT="1 MPI_Iallgather 60 kill" \
    "$ATOLL" run --model "$model" --mode "$([[ $name == sampled ]] && echo generate || echo score)" \
    --input "$work/$name.jsonl" --output "$folder/$name.jsonl" "${options[@]}"
  if ((code == 0)) && [[ "$name" == sampled ]]; then failed "the run was not interrupted"; fi
  run "$name" "$folder/$name.jsonl" 3 "${options[@]}" --resume
  succeeds "resume of $name"
  same "$name, resumed" "$work/$name.expected" "$folder/$name.jsonl"
done
finish
