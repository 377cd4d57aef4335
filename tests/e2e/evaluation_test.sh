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

def atoll(**more):
    return adapter.Atoll(model=work / "model.h5", launcher="env", folder=work / "asked", options="--threads 1", **more)

def ask(kind, pairs, **more):
    model = atoll(**more)
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

# What is more than one request takes is several; half a surrogate pair is U+FFFD.
several = [(start, " God"), (start, "zz"), ("", "In"), (start, " \ud800x"), (start, " \ufffdx")]
whole = ask("loglikelihood", several)
adapter.CONTINUATIONS_AT_ONCE = 2
assert ask("loglikelihood", several) == whole and whole[3] == whole[4], whole
adapter.CONTINUATIONS_AT_ONCE, adapter.BYTES_AT_ONCE = 1000, 8
assert ask("loglikelihood", several) == whole
assert [len(some) for some in adapter.split(["a", "b", "c" * 20, "d"])] == [2, 1, 1]

# Sampling without a temperature is one of 1.
def temperature(wanted):
    model, asked = atoll(), []
    model.run = lambda requests, mode: asked.extend(requests) or {"0": {"text": ""}}
    model.generate_until([Instance(request_type="generate_until", doc={}, arguments=(start, wanted), idx=0)])
    return asked[0]["temperature"]
temperatures = [temperature(wanted) for wanted in (
    {}, {"do_sample": True}, {"do_sample": True, "temperature": 0.5}, {"do_sample": False, "temperature": 0.5})]
assert temperatures == [0, 1, 0.5, 0], temperatures

# Another model under the same path, or another program, has files of its own; the same ones are taken up.
def files():
    return {path.name for path in (work / "asked").glob("*.results.jsonl")}
for change in ({}, {"version": "another"}, {"facts": {"identity": "another"}}):
    before, model = files(), atoll()
    for key, value in change.items():
        setattr(model, key, model.facts | value if key == "facts" else value)
    model.run([{"id": "0", "prompt": "x", "max_tokens": 1}], "generate")
    assert len(files() - before) == (0 if (work / "second").exists() else 1), change
(work / "second").touch()

(work / "day.jinja").write_text('{{ strftime_now("%d %b %Y") }}{{ messages[0].content }}')
chats = [atoll(chat=work / "day.jinja", **more).apply_chat_template([{"role": "user", "content": "x"}])
         for more in ({}, {"date": "2026-01-31"})]
assert chats == ["01 Jan 2026x", "31 Jan 2026x"], chats
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
