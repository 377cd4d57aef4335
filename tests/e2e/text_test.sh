#!/usr/bin/env bash
# Text in, text out with a model's own tokenizer: from the folder into the model file, prompts encoded and
# results decoded with the same bytes on any number of ranks, and what a tokenizer that is not supported
# leaves: tokens.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

# check WHAT COMMAND...: the command succeeds.
check() {
  local what="$1"
  shift
  if "$@" >"$work/check" 2>&1; then
    passed
  else
    failed "$what: $(tail -n 1 "$work/check")"
    show_output
  fi
}

# The sample model with a tokenizer whose ids are bytes but for two: 1 is "th" and 2 "the". So what the
# model computes stays what it is without one, and only these show who encoded.
python3 - "$sample" "$work" <<'PY'
import json, os, pathlib, sys

sample, work = map(pathlib.Path, sys.argv[1:])
plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
moved = {byte: 256 + place for place, byte in enumerate(b for b in range(256) if b not in plain)}
vocab = {chr(moved.get(byte, byte)): byte for byte in range(256) if byte not in (1, 2)} | {"th": 1, "the": 2}
split = {"type": "Split", "pattern": {"Regex": r"\s?\p{L}+|\s+|."}, "behavior": "Isolated", "invert": False}
level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
tokenizer = {
    "version": "1.0",
    "added_tokens": [{"id": 0, "content": "<|end|>", "special": True, "normalized": False, "single_word": False,
                      "lstrip": False, "rstrip": False}],
    "normalizer": None,
    "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, level]},
    "post_processor": None,
    "decoder": level,
    "model": {"type": "BPE", "vocab": vocab, "merges": ["t h", "th e"]},
}
tokenizer["model"]["vocab"]["<|end|>"] = vocab.pop(chr(moved[0]))
other = json.loads(json.dumps(tokenizer))
other["model"]["merges"].pop()
unsupported = json.loads(json.dumps(tokenizer)) | {"normalizer": {"type": "Lowercase"}}
for name, state in {"good": tokenizer, "other": other, "unsupported": unsupported}.items():
    folder = work / name
    folder.mkdir()
    for file in ("config.json", "model.safetensors"):
        os.symlink(sample / file, folder / file)
    (folder / "tokenizer.json").write_text(json.dumps(state))
(work / "good" / "chat_template.jinja").write_text("{{ messages }}")
prompts = ["Ge1:1 In the beginning", "thethe the", "caf\u00e9 \u4e2d", "<|end|>def f(x):\n"]
with open(work / "prompts.jsonl", "w") as file:
    for number, prompt in enumerate(prompts):
        file.write(json.dumps({"id": str(number), "prompt": prompt, "max_tokens": 24, "temperature": 0.8}) + "\n")
PY

for kind in good other unsupported; do
  capture "$ATOLL" import "$work/$kind" --output "$work/$kind.h5"
  succeeds "import, $kind"
  [[ "$kind" != unsupported ]] || check "a tokenizer that is not supported is named" \
    grep -q "normalizer Lowercase is not supported" "$work/stderr"
  capture "$ATOLL" inspect "$work/$kind.h5"
  succeeds "inspect, $kind"
  check "inspect tells of the tokenizer, $kind" grep -q "^tokenizer: .*tokenizer.json (" "$work/stdout"
done

# --- a look
capture "$ATOLL" tokenize "$work/good.h5" --input "$work/prompts.jsonl" --pieces
succeeds "tokenize"
check "pieces are shown" grep -qP '^2\t"the"$' "$work/stdout"
printf '"the th"\n"<|end|>"\n""\n' >"$work/texts"
capture "$ATOLL" tokenize "$work/good.h5" --input "$work/texts" --json-lines
succeeds "tokenize lines"
check "the ids are the tokenizer's" diff "$work/stdout" - <<<$'[2,32,1]\n[0]\n[]'
cp "$work/stdout" "$work/ids"
capture "$ATOLL" tokenize "$work/good.h5" --input "$work/ids" --json-lines --detokenize
succeeds "detokenize lines"
check "the texts come back" diff "$work/stdout" "$work/texts"
capture "$ATOLL" tokenize "$work/good" --input "$work/texts" --json-lines
succeeds "tokenize with a folder"
check "a folder gives the same" diff "$work/stdout" "$work/ids"
capture "$ATOLL" tokenize "$work/good.h5" --chat-template
succeeds "the chat template"
cp "$work/stdout" "$work/template.json"
json_check "the chat template is the folder's" "$work/template.json" <<'PY'
assert lines[0]["chat_template"] == "{{ messages }}" and isinstance(lines[0]["special_tokens"], dict), lines
PY
if python3 -c 'import jinja2' 2>/dev/null; then
  printf '{"id": "a", "messages": [{"role": "u", "content": "x"}]}\n' >"$work/chats"
  for source in good good.h5; do
    capture sh -c "ATOLL='$ATOLL' python3 '$ATOLL_SOURCE/jobs/chat.py' '$work/$source' <'$work/chats'"
    succeeds "rendering with $source"
    check "what is rendered with $source" grep -qF "\"prompt\": \"[{'role': 'u', 'content': 'x'}]\"" "$work/stdout"
  done
else
  printf 'left out: rendering chats, since Python has no module jinja2 here (package python3-jinja2)\n'
fi
printf '[1,\n' >"$work/broken"
capture "$ATOLL" tokenize "$work/good.h5" --input "$work/broken" --json-lines --detokenize
check "a broken line is named" grep -q "line 1 of the input: it is no JSON list" "$work/stderr"
check "with code 1" test "$code" -eq 1
capture "$ATOLL" tokenize "$work/unsupported.h5" --input "$work/texts"
check "why there is no text is said" grep -q "normalizer Lowercase is not supported" "$work/stderr"

# --- a run
for ranks in 1 3; do
  atoll_on "$ranks" run --model "$work/good.h5" --input "$work/prompts.jsonl" --output "$work/results.$ranks"
  succeeds "prompts on $ranks ranks"
done
same "results of 1 and 3 ranks" "$work/results.1" "$work/results.3"
# The same prompts as tokens, and the results' tokens as text.
check "texts are of the tokens" python3 - "$work" "$ATOLL" <<'PY'
import json, pathlib, subprocess, sys

work, atoll = pathlib.Path(sys.argv[1]), sys.argv[2]
results = [json.loads(line) for line in (work / "results.1").open()]
def tokenize(lines, *options):
    text = "".join(json.dumps(line) + "\n" for line in lines)
    done = subprocess.run([atoll, "tokenize", work / "good.h5", "--json-lines", *options], input=text, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]
assert len(results) == 4 and all(r["tokens"] for r in results), results
assert [r["text"] for r in results] == tokenize([r["tokens"] for r in results], "--detokenize", "--no-special-tokens")
prompts = [json.loads(line) for line in (work / "prompts.jsonl").open()]
ids = tokenize([p.pop("prompt") for p in prompts])
assert ids[1] == [2, 2, 32, 2] and ids[3][0] == 0, ids
with open(work / "tokens.jsonl", "w") as file:
    for prompt, tokens in zip(prompts, ids):
        file.write(json.dumps(prompt | {"tokens": tokens}) + "\n")
PY
atoll_on 2 run --model "$work/good.h5" --input "$work/tokens.jsonl" --output "$work/results.tokens"
succeeds "the same as tokens"
same "prompts and their tokens" "$work/results.1" "$work/results.tokens"

# --- a tokenizer that is not supported: prompts are refused with its reason, tokens are served
cat "$work/prompts.jsonl" >"$work/mixed.jsonl"
sed 's/"id": "/"id": "tokens /' "$work/tokens.jsonl" >>"$work/mixed.jsonl"
atoll_on 2 run --model "$work/unsupported.h5" --input "$work/mixed.jsonl" --output "$work/results.mixed"
succeeds "prompts and tokens without a tokenizer"
check "prompts are refused, tokens are served" python3 - "$work" <<'PY'
import json, pathlib, sys

work = pathlib.Path(sys.argv[1])
results = [json.loads(line) for line in (work / "results.mixed").open()]
assert all("normalizer Lowercase is not supported" in r["error"] and "jobs/tokenize.py" in r["error"] for r in results[:4])
assert all(r["text"] is None for r in results[4:])
assert len(results) == 8 and all(r["tokens"] for r in results[4:]), results[4:]
PY

# --- the model's identity has its tokenizer: another one is another run
capture "$ATOLL" inspect --no-verify "$work/good.h5"
identity="$(grep '^identity' "$work/stdout")"
capture "$ATOLL" inspect --no-verify "$work/other.h5"
check "another tokenizer is another identity" test "$identity" != "$(grep '^identity' "$work/stdout")"

# --- jobs/tokenize.py agrees, where Hugging Face's library is
if python3 -c 'import tokenizers' 2>/dev/null; then
  python3 "$ATOLL_SOURCE/jobs/tokenize.py" "$work/good" <"$work/prompts.jsonl" >"$work/by-python.jsonl"
  atoll_on 1 run --model "$work/good.h5" --input "$work/by-python.jsonl" --output "$work/results.python"
  succeeds "tokens of jobs/tokenize.py"
  same "tokens of jobs/tokenize.py" "$work/results.1" "$work/results.python"

  # Both forms of lines; with ids a model without a tokenizer says what one with it says of texts.
  python3 - "$work" <<'PY'
import json, pathlib, sys

work = pathlib.Path(sys.argv[1])
def write(name, lines):
    (work / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
def batch(number, url, **body):
    return {"custom_id": str(number), "method": "POST", "url": url, "body": {"model": "m", "max_tokens": 24, **body}}
url = "/v1/completions"
write("batch.texts", [batch(0, url, prompt="the th", n=2), batch(1, url, prompt=["thethe"], add_special_tokens=None),
                      batch(2, "/v1/chat/completions", prompt="the beginning", add_special_tokens=False)])
write("score.texts", [{"id": "0", "prompt": "In t", "continuations": ["hes", " the beginning", [1, 2]]},
                      {"id": "1", "tokens": [73, 110], "continuations": [" the", "th"]}])
write("samples.texts", [{"id": "0", "prompt": "the", "n": 3, "temperature": 1, "add_special_tokens": None, "max_tokens": 9}])
write("hard.texts", [{"id": "0", "prompt": "\ud800", "max_tokens": 1}, {"id": "1", "prompt": "the", "stop": ["x"], "max_tokens": 1},
                     {"id": "2", "prompt": "the", "max_tokens": 1}])
PY
  for kind in batch score samples hard; do
    mode=generate
    [[ "$kind" != score ]] || mode=score
    capture sh -c "LC_ALL=C python3 '$ATOLL_SOURCE/jobs/tokenize.py' '$work/good' <'$work/$kind.texts' >'$work/$kind.ids'"
    succeeds "$kind as ids"
    [[ "$kind" != hard ]] || check "texts that end are named once" test "$(grep -c '"stop"' "$work/stderr")" -eq 1
    for of in texts:good ids:unsupported; do
      atoll_on 1 run --mode "$mode" --model "$work/${of#*:}.h5" --input "$work/$kind.${of%:*}" \
        --output "$work/$kind.${of%:*}.results"
      succeeds "$kind, ${of%:*}"
    done
    capture sh -c "python3 '$ATOLL_SOURCE/jobs/tokenize.py' '$work/good' --decode <'$work/$kind.ids.results' >'$work/$kind.decoded'"
    succeeds "$kind as texts"
    json_check "$kind: texts are those of a job with the tokenizer" "$work/$kind.texts.results" "$work/$kind.decoded" <<'PY'
wanted, got = lines
if wanted[0].get("error"):  # the hard ones
    assert "not valid JSON" in got[0]["error"] and "tokenizer" in got[1]["error"], got
    wanted, got = wanted[2:], got[2:]
assert got == wanted and len(got) > 0, (got, wanted)
PY
  done
else
  printf 'left out: jobs/tokenize.py, since Python has no module tokenizers here\n'
fi
finish
