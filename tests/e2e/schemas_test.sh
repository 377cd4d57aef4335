#!/usr/bin/env bash
# io/schemas: requests, results and reports of real runs are what the schemas say, and wrong ones are not.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
python3 -c 'from jsonschema import Draft202012Validator' 2>/dev/null || {
  printf 'skipped: Python has no module jsonschema 4 here (package python3-jsonschema)\n'
  exit 77
}

model="$work/model.h5"
import_sample "$model"
python3 - "$work" <<'PY'
import json, pathlib, sys

work = pathlib.Path(sys.argv[1])
every = {"temperature": 0.9, "top_p": 0.9, "top_k": 40, "min_p": 0.01, "repetition_penalty": 1.1, "presence_penalty": 0.1,
         "frequency_penalty": -0.1, "logit_bias": {"101": -1.5}, "seed": 2**64 - 1, "stop": ["\n", "xyz"], "min_tokens": 2,
         "stop_token_ids": [0], "max_tokens": 6}
bodies = [{"model": "m", "prompt": "Ge1:1", **every, "n": 2, "logprobs": 2}, {"prompt": [1, 2], "echo": True, "user": "me"},
          {"prompt": "x", "best_of": 1, "logprobs": None, "stream": False, "max_completion_tokens": 3}]
chats = [{"model": "m", "prompt": "<u>Hi", "add_special_tokens": False, "logprobs": True, "top_logprobs": 2, "n": 2, "max_tokens": 3},
         {"prompt": "Hi", "max_tokens": 3, "response_format": {"type": "text"}},
         {"messages": [{"role": "x"}], "render_error": "no such role"}]
lines = {
    "generate": [{"id": "a", "prompt": "Ge1:1", **every, "n": 2, "top_logprobs": 3}, {"id": "b", "tokens": [71], "stop": "q"},
                 {"id": "c", "prompt": "def", "add_special_tokens": False, "seed": None}],
    "score": [{"id": "a", "prompt": "Ge1:1 In"}, {"id": "b", "prompt": "Ge1:1", "continuations": [" In", [1, 2]]}],
    "openai": [{"custom_id": f"{url}{i}", "method": "POST", "url": "/v1/" + url, "body": body}
               for url, all in (("completions", bodies), ("chat/completions", chats)) for i, body in enumerate(all)],
}
for name, requests in lines.items():
    (work / f"{name}.jsonl").write_text("".join(json.dumps(request) + "\n" for request in requests))
with open(work / "generate.jsonl", "a") as file:
    file.write('{"id": "broken", "prompt": 7}\n{\n')
PY
for name in generate score openai; do
  mode=generate
  [[ "$name" != score ]] || mode=score
  atoll_on 2 run --model "$model" --mode "$mode" --input "$work/$name.jsonl" --output "$work/$name.results.jsonl" \
    --report "$work/$name.report.json"
  succeeds "the run of $name"
done
for layout in "--tp 2" "--tp 2 --tp-sum" "--pp 2"; do # each says other things of itself
  read -r -a options <<<"$layout"
  atoll_on 2 run --model "$model" --input "$work/generate.jsonl" --output "$work/in-layout.jsonl" "${options[@]}" \
    --report "$work/$layout.report.json"
  succeeds "the run of $layout"
done

export ATOLL_SCHEMAS="$ATOLL_SOURCE/io/schemas"
cat >"$work/schemas.py" <<'PY'
import os, pathlib, warnings

warnings.simplefilter("ignore")  # newer versions of the module have another way to say where schemas are
import jsonschema

folder = pathlib.Path(os.environ["ATOLL_SCHEMAS"])
schemas = {path.name.removesuffix(".schema.json"): json.loads(path.read_text()) for path in folder.glob("*.schema.json")}
assert set(schemas) == {"request", "result", "batch_request", "batch_result", "report"}, sorted(schemas)
for schema in schemas.values():
    jsonschema.Draft202012Validator.check_schema(schema)
store = {schema["$id"]: schema for schema in schemas.values()}
def validator(schema):
    resolver = jsonschema.RefResolver.from_schema(schema, store=store)
    return jsonschema.Draft202012Validator(schema, resolver=resolver)
validators = {name: validator(schema) for name, schema in schemas.items()}
def check(name, values):
    assert values
    for value in values:
        for error in validators[name].iter_errors(value):
            raise AssertionError(f"{name}: {error.message[:200]} at {list(error.absolute_path)}")
def refuse(name, value):
    assert not validators[name].is_valid(value), (name, value)
PY
checked() { # WHAT FILE...: the Python on stdin, with check(SCHEMA, VALUES) and refuse(SCHEMA, VALUE)
  cat "$work/schemas.py" - >"$work/program"
  json_check "$@" <"$work/program"
}
head -n 3 "$work/generate.jsonl" >"$work/whole.jsonl"
checked "Atoll's own lines" "$work/whole.jsonl" "$work/score.jsonl" "$work/generate.results.jsonl" "$work/score.results.jsonl" <<'PY'
generate, score, generated, scored = lines
check("request", generate + score)
assert len(generated) == 5 and ["error" in line for line in generated] == [False] * 3 + [True] * 2
check("result", generated + scored)
for wrong in ({"id": 7, "prompt": "x"}, {"id": "a"}, {"id": "a", "prompt": "x", "tokens": [1]}, {"id": "a", "prompt": "x", "wings": 2},
              {"id": "a", "prompt": "x", "top_p": 0}, {"id": "a", "prompt": "x", "stop": [""]}):
    refuse("request", wrong)
for wrong in ({"id": "a"}, generated[1] | {"prompt_logprobs": [None]}, generated[1] | {"finish_reason": "done"}, generated[1] | {"more": 1}):
    refuse("result", wrong)
PY
checked "OpenAI's batch lines" "$work/openai.jsonl" "$work/openai.results.jsonl" <<'PY'
requests, results = lines
check("batch_request", requests)
check("batch_result", results)
assert [line["response"]["status_code"] for line in results] == [200] * 5 + [400], results
refuse("batch_request", {"custom_id": "a", "body": {"prompt": "x", "wings": 2}})
refuse("batch_result", results[0] | {"error": "no"})
PY
checked "reports" "$work/generate.report.json" "$work/score.report.json" "$work/--tp 2.report.json" \
  "$work/--tp 2 --tp-sum.report.json" "$work/--pp 2.report.json" <<'PY'
check("report", lines)
refuse("report", {key: value for key, value in lines[0].items() if key != "requests"})
PY
finish
