#!/usr/bin/env bash
# OpenAI's batch lines in and out: the same tokens as the same requests in Atoll's own form, the same bytes
# on any number of ranks, errors for single lines, and lines that the client library's types take.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

model="$work/model.h5"
import_sample "$model"
python3 - "$work" <<'PY'
import json, pathlib, sys

work = pathlib.Path(sys.argv[1])
bodies = [
    {"prompt": "Ge1:1 In the", "max_tokens": 8, "temperature": 0},
    {"prompt": "def f(", "max_tokens": 6, "temperature": 0.8, "top_p": 0.9, "seed": 3, "logprobs": 0},
    {"prompt": [71, 101, 49], "max_tokens": 4, "temperature": 0.7},
    {"prompt": "x", "stop": ["y"]},
    {"messages": [{"role": "user", "content": "Hi"}]},
]
with open(work / "batch.jsonl", "w") as batch, open(work / "own.jsonl", "w") as own:
    for number, body in enumerate(bodies):
        line = {"custom_id": f"request-{number}", "method": "POST", "url": "/v1/completions", "body": {"model": "m"} | body}
        batch.write(json.dumps(line) + "\n")
        plain = {key: value for key, value in body.items() if key not in ("logprobs", "stop", "messages")}
        if isinstance(plain.get("prompt"), list):
            plain["tokens"] = plain.pop("prompt")
        if number < 3:
            own.write(json.dumps({"id": f"request-{number}"} | plain) + "\n")
PY
for ranks in 1 3; do
  atoll_on "$ranks" run --model "$model" --input "$work/batch.jsonl" --output "$work/results.$ranks.jsonl"
  succeeds "a batch on $ranks ranks"
done
same "results of 1 and 3 ranks" "$work/results.1.jsonl" "$work/results.3.jsonl"
atoll_on 2 run --model "$model" --input "$work/own.jsonl" --output "$work/own.results.jsonl"
succeeds "the same in Atoll's own form"
json_check "responses" "$work/results.1.jsonl" "$work/own.results.jsonl" <<'PY'
batch, own = lines
assert [line["custom_id"] for line in batch] == [f"request-{i}" for i in range(5)]
for response, plain, prompt_tokens in zip(batch, own, (12, 6, 3)):
    body = response["response"]["body"]
    assert response["response"]["status_code"] == 200 and response["error"] is None
    assert body["choices"][0]["token_ids"] == plain["tokens"] and body["choices"][0]["text"] == plain["text"]
    assert body["choices"][0]["finish_reason"] == plain["finish_reason"]
    assert body["usage"]["completion_tokens"] == len(plain["tokens"])
    assert body["usage"]["prompt_tokens"] == prompt_tokens
assert batch[1]["response"]["body"]["choices"][0]["logprobs"]["token_logprobs"] == own[1]["logprobs"]
assert "stop" in batch[3]["error"]["message"] and "chat template" in batch[4]["error"]["message"]
assert all(line["response"]["status_code"] == 400 for line in batch[3:])
PY
if python3 -c 'import openai' 2>/dev/null; then
  json_check "the client library's types" "$work/results.1.jsonl" <<'PY'
from openai.types import Completion
for line in lines[0][:3]:
    completion = Completion.model_validate(line["response"]["body"])
    assert completion.choices[0].text == line["response"]["body"]["choices"][0]["text"]
PY
else
  printf "left out: the client library's types, since Python has no module openai here\n"
fi
finish
