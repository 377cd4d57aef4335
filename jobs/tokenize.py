#!/usr/bin/env python3
"""Turns prompts into tokens, and results into text, with Hugging Face's own library: the way out for
models whose tokenizer Atoll does not support (`atoll import` says so).

usage: tokenize.py TOKENIZER < prompts.jsonl > requests.jsonl
       tokenize.py TOKENIZER --decode < results.jsonl > texts.jsonl

TOKENIZER is a folder with tokenizer.json, or that file. Needs `pip install --no-deps tokenizers`.
Lines are Atoll's own or of OpenAI's batch format. Those that hold no text to encode (with --decode: no
tokens) go through as they are. Texts of "stop" stay texts: only a model with its tokenizer can look for them.
"""

import argparse
import json
import os
import re
import sys

AT_ONCE = 1024  # lines, so that any file fits memory
SURROGATE = re.compile("[\ud800-\udfff]")  # half of a pair, or a byte of the input that is no UTF-8


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("tokenizer", help="folder with tokenizer.json, or that file")
    parser.add_argument("--decode", action="store_true", help="from results with tokens to results with text")
    parser.add_argument("--special-tokens", action="store_true", help="with --decode: keep special tokens in the text")
    return parser.parse_args()


def load(path):
    try:
        from tokenizers import Tokenizer
    except ImportError:
        sys.exit("tokenize.py: Python's module tokenizers is missing; run: pip install --no-deps tokenizers")
    file = os.path.join(path, "tokenizer.json") if os.path.isdir(path) else path
    try:
        tokenizer = Tokenizer.from_file(file)
    except Exception as error:  # the library's errors have no type of their own
        sys.exit(f"tokenize.py: cannot read {file}: {error}; give a folder with tokenizer.json")
    tokenizer.no_truncation()  # settings of some files, which are not for generation
    tokenizer.no_padding()
    return tokenizer


def batches(stream):
    batch = []
    for number, line in enumerate(stream, 1):
        if not line.strip():
            continue
        try:
            batch.append(json.loads(line))
        except RecursionError:
            sys.exit(f"tokenize.py: line {number} of the input nests too deep")
        except ValueError as error:
            sys.exit(f"tokenize.py: line {number} of the input is not JSON: {error}")
        if len(batch) == AT_ONCE:
            yield batch
            batch = []
    yield batch


def is_text(value):
    """Whether it can be encoded; of half a surrogate pair the job says what is wrong with it."""
    return isinstance(value, str) and not SURROGATE.search(value)


def body_of(line):
    """Where a request's keys are: the line itself, or its body in OpenAI's batch format."""
    return line["body"] if "custom_id" in line and isinstance(line.get("body"), dict) else line


def encode_each(tokenizer, jobs):
    """Lists of ids of (text, adds special tokens) pairs."""
    ids = [None] * len(jobs)
    for adds in (True, False):
        places = [place for place, job in enumerate(jobs) if job[1] is adds]
        encoded = tokenizer.encode_batch([jobs[place][0] for place in places], add_special_tokens=adds)
        for place, one in zip(places, encoded):
            ids[place] = one.ids
    return ids


def encode_continuations(tokenizer, line, prompt, adds):
    """Their texts as ids, as a job with the tokenizer takes them: those of prompt and text together beyond
    the number of the prompt's; by themselves after a prompt that came as ids (None)."""
    places = [place for place, one in enumerate(line["continuations"]) if is_text(one) and one]
    jobs = [((prompt or "") + line["continuations"][place], adds if prompt is not None else False) for place in places]
    num_prompt = len(line["tokens"]) if prompt is not None else 0
    for place, ids in zip(places, encode_each(tokenizer, jobs)):
        if ids[num_prompt:]:  # else it stays a text, which is refused
            line["continuations"][place] = ids[num_prompt:]


def prompt_of(body):
    prompt = body.get("prompt")
    return prompt[0] if isinstance(prompt, list) and len(prompt) == 1 else prompt


def encode(tokenizer, batch):
    lines = [line for line in batch if isinstance(line, dict)]
    found = []
    for line in lines:
        body = body_of(line)
        adds = body.get("add_special_tokens")
        adds = True if adds is None else adds  # null is "not given"
        prompt = prompt_of(body) if body is not line else body.get("prompt")
        if is_text(prompt) and isinstance(adds, bool):
            found.append((line, body, prompt, adds))
    prompts = {}
    for (line, body, prompt, adds), ids in zip(found, encode_each(tokenizer, [one[2:] for one in found])):
        body.pop("add_special_tokens", None)
        body.pop("prompt")
        body["tokens" if body is line else "prompt"] = ids
        prompts[id(line)] = (prompt, adds)
    for line in lines:
        if isinstance(line.get("continuations"), list) and isinstance(line.get("tokens"), list):
            encode_continuations(tokenizer, line, *prompts.get(id(line), (None, False)))


def with_tokens(line):
    """Of a line of results the objects that have tokens: (object, key of the tokens, what gets the text, its key)."""
    response = line.get("response")
    body = response.get("body") if isinstance(response, dict) else None
    choices = body.get("choices") if isinstance(body, dict) else None
    for choice in choices if isinstance(choices, list) else []:
        message = choice.get("message")
        yield choice, "token_ids", *((message, "content") if isinstance(message, dict) else (choice, "text"))
    samples = line.get("samples")
    for one in [line, *(samples if isinstance(samples, list) else [])]:
        yield one, "tokens", one, "text"


def decode(tokenizer, batch, keep_special):
    found = [one for line in batch if isinstance(line, dict) for one in with_tokens(line)
             if isinstance(one[0].get(one[1]), list)]
    texts = tokenizer.decode_batch([one[key] for one, key, _, _ in found], skip_special_tokens=not keep_special)
    for (_, _, target, key), text in zip(found, texts):
        target[key] = text


def has_stop_texts(line):
    stop = body_of(line).get("stop") if isinstance(line, dict) else None
    return isinstance(stop, str) or isinstance(stop, list) and any(isinstance(text, str) for text in stop)


def written(line):
    """A line as JSON; what UTF-8 cannot hold as an escape."""
    text = json.dumps(line, ensure_ascii=False)
    return json.dumps(line) if SURROGATE.search(text) else text


def main():
    options = arguments()
    tokenizer = load(options.tokenizer)
    sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape", newline="\n")
    sys.stdout.reconfigure(encoding="utf-8", newline="\n")
    num_stops = 0
    for batch in batches(sys.stdin):
        if options.decode:
            decode(tokenizer, batch, options.special_tokens)
        else:
            num_stops += sum(map(has_stop_texts, batch))
            encode(tokenizer, batch)
        for line in batch:
            print(written(line))
    if num_stops:
        print(f'tokenize.py: {num_stops} lines have texts in "stop", which need a tokenizer in the model; without '
              'one the job refuses them: give "stop_token_ids"', file=sys.stderr)


if __name__ == "__main__":
    main()
