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
    {"prompt": "x", "wings": ["y"]},
    {"messages": [{"role": "user", "content": "Hi"}]},
]
with open(work / "batch.jsonl", "w") as batch, open(work / "own.jsonl", "w") as own:
    for number, body in enumerate(bodies):
        line = {"custom_id": f"request-{number}", "method": "POST", "url": "/v1/completions", "body": {"model": "m"} | body}
        batch.write(json.dumps(line) + "\n")
        plain = {key: value for key, value in body.items() if key not in ("logprobs", "wings", "messages")}
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
assert "wings" in batch[3]["error"]["message"] and "chat template" in batch[4]["error"]["message"]
assert all(line["response"]["status_code"] == 400 for line in batch[3:])
PY
# --- prompts that are scored, several in a line, and lines that generate nothing: the same bytes however prompts are cut,
# log-probabilities of --mode score, tokens of a line for each prompt.
python3 - "$work" <<'PY'
import json, pathlib, sys

work = pathlib.Path(sys.argv[1])
text = "Ge1:1 In the beginning God created the heaven and the earth."
bodies = [
    {"prompt": text, "echo": True, "logprobs": 2, "max_tokens": 0},
    {"prompt": text, "echo": True, "logprobs": 0, "max_tokens": 5, "temperature": 0, "presence_penalty": 1},
    {"prompt": [text, [71, 101, 49], "def f("], "n": 2, "seed": 9, "max_completion_tokens": 4, "logprobs": 1},
    {"prompt": text, "max_tokens": 0},
    {"prompt": "x", "echo": True, "logprobs": 1, "max_tokens": 2},
    {"prompt": [text, ""], "max_tokens": 2},
    {"prompt": text + " ", "max_tokens": 5, "temperature": 0},
]
(work / "echo.jsonl").write_text("".join(
    json.dumps({"custom_id": str(number), "body": {"model": "m"} | body}) + "\n" for number, body in enumerate(bodies)))
(work / "score.jsonl").write_text(json.dumps({"id": "t", "prompt": text}) + "\n")
own = [{"id": f"2-{p}", "prompt": prompt, "seed": 9 + 2 * p, "n": 2, "max_tokens": 4, "temperature": 1}
       for p, prompt in enumerate([text, "Ge1", "def f("])]
(work / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in own))
PY
atoll_on 1 run --model "$model" --input "$work/score.jsonl" --output "$work/score.results.jsonl" --mode score
succeeds "the prompt's score"
atoll_on 2 run --model "$model" --input "$work/prompts.jsonl" --output "$work/prompts.results.jsonl"
succeeds "a line for each prompt"
for cut in "1 " "3 --step-tokens 16" "4 --layout ep4-tp2 --speculate 3 --chunks 2" "1 --share-prefixes off --max-sequences 2"; do
  # shellcheck disable=SC2086  # several words
  atoll_on ${cut%% *} run --model "$model" --input "$work/echo.jsonl" --output "$work/echo.results.jsonl" ${cut#* }
  succeeds "prompts that are scored, on $cut"
  [[ -e "$work/echo.first.jsonl" ]] || cp "$work/echo.results.jsonl" "$work/echo.first.jsonl"
  same "prompts that are scored, on $cut" "$work/echo.first.jsonl" "$work/echo.results.jsonl"
done
json_check "what they say" "$work/echo.first.jsonl" "$work/score.results.jsonl" "$work/prompts.results.jsonl" <<'PY'
echo, (score,), own = lines
assert [line["response"]["status_code"] for line in echo] == [200] * 5 + [400, 200], echo
bodies = [line["response"]["body"] for line in echo]
text = "Ge1:1 In the beginning God created the heaven and the earth."
near = lambda a, b: len(a) == len(b) and all(x is y is None or abs(x - y) < 1e-4 for x, y in zip(a, b))
first = bodies[0]["choices"][0]
assert first["text"] == text and first["token_ids"] == [] and first["logprobs"]["tokens"] == list(text)
assert near(first["logprobs"]["token_logprobs"], score["prompt_logprobs"])
assert first["logprobs"]["top_logprobs"][0] is None and all(2 <= len(tops) <= 3 for tops in first["logprobs"]["top_logprobs"][1:])
assert bodies[0]["usage"] == {"prompt_tokens": 60, "completion_tokens": 0, "total_tokens": 60}
second = bodies[1]["choices"][0]
assert len(second["logprobs"]["tokens"]) == 65 and second["text"] == text + "".join(second["logprobs"]["tokens"][60:])
assert near(second["logprobs"]["token_logprobs"][:60], score["prompt_logprobs"]) and second["logprobs"]["top_logprobs"] is None
choices = bodies[2]["choices"]
assert [choice["token_ids"] for choice in choices] == [sample["tokens"] for line in own for sample in line["samples"]]
assert bodies[2]["usage"]["prompt_tokens"] == 60 + 3 + 6 and bodies[2]["usage"]["completion_tokens"] == 24
assert bodies[3]["choices"][0]["text"] == "" and bodies[3]["choices"][0]["logprobs"] is None
assert bodies[4]["choices"][0]["logprobs"]["token_logprobs"][0] is None and len(bodies[4]["choices"][0]["logprobs"]["tokens"]) == 3
assert "a prompt is empty" in echo[5]["error"]["message"]
PY

# --- samples, texts that end, probabilities and echo; chats whose messages jobs/chat.py has rendered
cat >"$work/chat.jinja" <<'EOT'
{%- for message in messages %}
    {%- if message.role == "nobody" %}{{ raise_exception("there is no " + message.role) }}{% endif %}
{{- "<" + message.role + ">" + message.content }}
{% endfor %}
{%- if add_generation_prompt %}<assistant> {{ strftime_now("%d %b %Y") }}{{ tools | tojson if tools }}{% endif %}
EOT
python3 - "$work" <<'PY'
import json, pathlib, sys

work = pathlib.Path(sys.argv[1])
def line(number, url, body):
    return {"custom_id": str(number), "method": "POST", "url": "/v1/" + url, "body": {"model": "m"} | body}
user = [{"role": "user", "content": "Ge1:1 In the beginning"}]
tool = {"type": "function", "function": {"name": "f\u00e9", "parameters": {"type": "object"}}}
more = [
    line(0, "completions", {"prompt": "Ge1:1 In the", "n": 3, "seed": 5, "max_tokens": 9, "stop": [" "], "logprobs": 3}),
    line(1, "completions", {"prompt": "Ge1:1 In the", "echo": True, "max_completion_tokens": 4, "temperature": 0}),
    line(2, "completions", {"prompt": "Ge1:1 In the", "max_tokens": 4, "temperature": 0, "logit_bias": {"65": 100}}),
    line(3, "chat/completions", {"messages": user, "max_tokens": 8, "n": 2, "logprobs": True, "top_logprobs": 2}),
    line(4, "chat/completions", {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}], "tools": [tool],
                                 "tool_choice": "auto", "temperature": 0, "max_completion_tokens": 5}),
    line(5, "chat/completions", {"messages": [{"role": "nobody", "content": "x"}]}),
    line(6, "chat/completions", {"messages": user, "stream": True}),
]
(work / "more.jsonl").write_text("".join(json.dumps(one) + "\n" for one in more))
own = [{"id": "4", "prompt": "<user>Hi\n<assistant> 31 Jan 2026" + json.dumps([tool], ensure_ascii=False), "max_tokens": 5},
       {"id": "3", "prompt": "<user>Ge1:1 In the beginning\n<assistant> 31 Jan 2026", "max_tokens": 8, "n": 2, "temperature": 1}]
(work / "plain.jsonl").write_text("".join(json.dumps(one) + "\n" for one in own))
PY
if python3 -c 'import jinja2' 2>/dev/null; then
  capture sh -c "python3 '$ATOLL_SOURCE/jobs/chat.py' '$work/chat.jinja' --date 2026-01-31 <'$work/more.jsonl' >'$work/rendered.jsonl'"
  succeeds "rendering chats"
  for ranks in 1 3; do
    atoll_on "$ranks" run --model "$model" --input "$work/rendered.jsonl" --output "$work/more.$ranks.jsonl" --format openai
    succeeds "completions and chats on $ranks ranks"
  done
  same "completions and chats on 1 and 3 ranks" "$work/more.1.jsonl" "$work/more.3.jsonl"
  atoll_on 2 run --model "$model" --input "$work/plain.jsonl" --output "$work/plain.results.jsonl"
  succeeds "the same chats in Atoll's own form"
  json_check "their responses" "$work/more.1.jsonl" "$work/plain.results.jsonl" <<'PY'
more, plain = lines
bodies = [line["response"]["body"] for line in more]
assert [line["response"]["status_code"] for line in more] == [200] * 5 + [400] * 2, more
samples = bodies[0]["choices"]
assert [choice["index"] for choice in samples] == [0, 1, 2] and bodies[0]["usage"]["prompt_tokens"] == 12
assert bodies[0]["usage"]["completion_tokens"] == sum(len(choice["token_ids"]) for choice in samples)
for choice in samples:
    whole = bytes(choice["token_ids"]).decode()
    assert choice["text"] == whole.split(" ")[0] and (choice["finish_reason"] == "stop") == (" " in whole), choice
    assert choice["logprobs"]["tokens"] == list(whole) and all(3 <= len(tops) <= 4 for tops in choice["logprobs"]["top_logprobs"])
assert bodies[1]["choices"][0]["text"].startswith("Ge1:1 In the") and bodies[1]["usage"]["completion_tokens"] == 4
assert bodies[2]["choices"][0]["text"] == "AAAA"
content = bodies[3]["choices"][1]["logprobs"]["content"]
assert bodies[3]["object"] == "chat.completion" and len(content) == 8 and all(len(token["top_logprobs"]) == 2 for token in content)
assert [choice["token_ids"] for choice in bodies[3]["choices"]] == [sample["tokens"] for sample in plain[1]["samples"]]
assert bodies[4]["choices"][0]["message"] == {"role": "assistant", "content": plain[0]["text"], "refusal": None}
assert "there is no nobody" in more[5]["error"]["message"] and '"stream"' in more[6]["error"]["message"]
PY
  # Lines that cannot be rendered, or are no lines, end neither the rendering nor the job.
  python3 - "$work" <<'PY'
import json, pathlib, sys

user = [{"role": "user", "content": "x"}]
lines = [{"messages": [{"role": "user", "content": "half a pair: \ud83d"}]},
         {"messages": user, "chat_template_kwargs": [1]},
         {"messages": user, "chat_template_kwargs": None, "add_generation_prompt": None},
         {"messages": None, "prompt": "Ge1:1 In the"}]
chats = [json.dumps({"id": str(number), "max_tokens": 4} | line).encode() for number, line in enumerate(lines)]
chats += [b"[" * 200000, b'{"id": "5", "messages": [{"role": "user", "content": "\xff"}]}', b"\xff"]
(pathlib.Path(sys.argv[1]) / "hard.jsonl").write_bytes(b"\n".join(chats) + b"\n")
PY
  capture sh -c "LC_ALL=C python3 '$ATOLL_SOURCE/jobs/chat.py' '$work/chat.jinja' --date 2026-01-31 <'$work/hard.jsonl' >'$work/hard.rendered.jsonl'"
  succeeds "rendering with lines that cannot be"
  atoll_on 1 run --model "$model" --input "$work/hard.rendered.jsonl" --output "$work/hard.results.jsonl"
  succeeds "a job of these lines"
  json_check "their results" "$work/hard.results.jsonl" <<'PY'
(results,) = lines
errors = [line.get("error") for line in results]
assert [line.get("id") for line in results] == ["0", "1", "2", "3", None, "5", None], results
assert errors[2:4] == [None, None], errors
said = {0: "surrogate pair", 1: '"chat_template_kwargs" is [1]', 4: "nested", 5: "no UTF-8", 6: "not UTF-8"}
assert all(text in errors[number] for number, text in said.items()), errors
PY
  # As editors of Windows write files; and folders without a template, of which it is said what they lack.
  printf '\xef\xbb\xbf{"id": "b", "messages": [{"role": "user", "content": "x"}]}\n' >"$work/marked.jsonl"
  { printf '\xef\xbb\xbf' && cat "$work/chat.jinja"; } >"$work/marked.jinja"
  capture sh -c "python3 '$ATOLL_SOURCE/jobs/chat.py' '$work/marked.jinja' --date 2026-01-31 <'$work/marked.jsonl' >'$work/marked.rendered'"
  succeeds "a byte order mark" || true
  json_check "a byte order mark" "$work/marked.rendered" <<'PY'
assert lines[0] == [{"id": "b", "prompt": "<user>x\n<assistant> 31 Jan 2026", "add_special_tokens": False}], lines
PY
  mkdir "$work/base"
  for said in 'there is no chat_template.jinja, and there is no tokenizer_config.json' \
    'there is no chat_template.jinja, and tokenizer_config.json has no "chat_template"'; do
    capture sh -c "python3 '$ATOLL_SOURCE/jobs/chat.py' '$work/base' <'$work/marked.jsonl'"
    if ((code == 1)) && grep -q "base has no chat template: $said" "$work/stderr"; then passed; else
      failed "a folder without a template, exit code $code: $(cat "$work/stderr")"
    fi
    printf '{"bos_token": "<s>"}' >"$work/base/tokenizer_config.json"
  done
  printf '{%% for %%}' >"$work/wrong.jinja"
  capture sh -c "python3 '$ATOLL_SOURCE/jobs/chat.py' '$work/wrong.jinja' <'$work/hard.jsonl'"
  if ((code == 1)) && [[ "$(wc -l <"$work/stderr")" == 1 ]] &&
    grep -q "wrong.jinja: the chat template is not Jinja: line 1: " "$work/stderr"; then
    passed
  else
    failed "a template that is not Jinja: exit code $code"
    show_output
  fi
else
  printf 'left out: chats, since Python has no module jinja2 here (package python3-jinja2)\n'
fi
if python3 -c 'import openai' 2>/dev/null; then
  json_check "the client library's types" "$work/results.1.jsonl" "$work/more.1.jsonl" <<'PY'
from openai.types import Completion
from openai.types.chat import ChatCompletion
for line in lines[0][:3] + lines[1][:5]:
    body = line["response"]["body"]
    kind = ChatCompletion if body["object"] == "chat.completion" else Completion
    read = kind.model_validate(body, strict=True)
    assert len(read.choices) == len(body["choices"]) and read.usage.total_tokens == body["usage"]["total_tokens"]
    if kind is Completion:
        assert read.choices[0].text == body["choices"][0]["text"]
    else:
        assert read.choices[0].message.content == body["choices"][0]["message"]["content"]
PY
else
  printf "left out: the client library's types, since Python has no module openai here\n"
fi
finish
