#!/usr/bin/env bash
# jobs/lm_eval_atoll.py: what EleutherAI's harness is told is what jobs say of the same texts.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
python3 -c 'import lm_eval' 2>/dev/null || {
  printf 'skipped: Python has no module lm_eval here (pip install lm_eval)\n'
  exit 77
}

model="$work/model.h5"
import_sample "$model"
cat >"$work/ask.py" <<'PY'
import importlib.util, json, pathlib, sys

work, jobs = pathlib.Path(sys.argv[1]), sys.argv[2]
spec = importlib.util.spec_from_file_location("adapter", f"{jobs}/lm_eval_atoll.py")
adapter = importlib.util.module_from_spec(spec)
spec.loader.exec_module(adapter)
from lm_eval.api.instance import Instance

def ask(kind, pairs, **more):
    model = adapter.Atoll(model=work / "model.h5", launcher="env", folder=work / "asked", options="--threads 1", **more)
    return getattr(model, kind)([Instance(request_type=kind, doc={}, arguments=pair, idx=0) for pair in pairs])

start = "Ge1:1 In the beginning"
answers = {
    "likelihood": ask("loglikelihood", [(start, " God"), ("def f(", "x"), (start + " ", "God"), ("", "In"), (start, "zz")]),
    "cut": ask("loglikelihood", [("abc" * 30 + start, " God")], max_length=len(start) + 4),
    "rolling": ask("loglikelihood_rolling", [(start,), ("In",)]),
    "windows": ask("loglikelihood_rolling", [(start,)], max_length=12),
    "generated": ask("generate_until", [(start, {"until": ["\n", "God"], "max_gen_toks": 30}), (start, {"max_gen_toks": 5})]),
}
(work / "answers.json").write_text(json.dumps(answers))
PY
for turn in first second; do
  capture python3 "$work/ask.py" "$work" "$ATOLL_SOURCE/jobs"
  succeeds "asking, the $turn time" || finish
  cp "$work/answers.json" "$work/answers.$turn.json"
done
same "answers of both turns" "$work/answers.first.json" "$work/answers.second.json"
python3 - "$work" <<'PY'
import json, pathlib, sys

work = pathlib.Path(sys.argv[1])
start = list(b"Ge1:1 In the beginning")
score = {"a": start + list(b" God"), "b": list(b"def f(x"), "c": start + list(b"zz"), "d": [0] + start, "e": [0, 73, 110]}
(work / "score.jsonl").write_text("".join(json.dumps({"id": name, "tokens": tokens}) + "\n" for name, tokens in score.items()))
(work / "generate.jsonl").write_text(json.dumps({"id": "a", "tokens": start, "max_tokens": 30}) + "\n")
PY
for mode in score generate; do
  atoll_on 1 run --model "$model" --mode "$mode" --input "$work/$mode.jsonl" --output "$work/$mode.results.jsonl"
  succeeds "$mode without the adapter"
done
json_check "answers are those of the jobs" "$work/answers.json" "$work/score.results.jsonl" "$work/generate.results.jsonl" <<'PY'
answers, scored, generated = lines
of = {line["id"]: line["prompt_logprobs"] for line in scored}
def near(got, want):
    assert abs(got - want) < 1e-4, (got, want)
likelihood = [value for value, greedy in answers["likelihood"]]
near(likelihood[0], sum(of["a"][22:]))
near(likelihood[1], sum(of["b"][6:]))
near(likelihood[2], sum(of["a"][22:]))  # the context's space is scored with the word
near(likelihood[3], sum(of["e"][1:]))
near(likelihood[4], sum(of["c"][22:]))
near(answers["cut"][0][0], sum(of["a"][22:]))
near(answers["rolling"][0], sum(of["d"][1:]))
near(answers["rolling"][1], sum(of["e"][1:]))
assert answers["windows"][0] < 0 and answers["windows"] != answers["rolling"][:1]
text = generated[0]["text"]
assert answers["generated"] == [min(text.split("\n")[0], text.split("God")[0], key=len), text[:5]], (answers["generated"], text)
PY
finish
