#!/usr/bin/env python3
"""Turns prompts into tokens, and results into text, with Hugging Face's own library: the way out for
models whose tokenizer Atoll does not support (`atoll import` says so).

usage: tokenize.py TOKENIZER < prompts.jsonl > requests.jsonl
       tokenize.py TOKENIZER --decode < results.jsonl > texts.jsonl

TOKENIZER is a folder with tokenizer.json, or that file. Needs `pip install --no-deps tokenizers`.
Lines that hold no "prompt" (with --decode: no "tokens") go through as they are.
"""

import argparse
import json
import os
import sys

AT_ONCE = 1024  # lines, so that any file fits memory


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
        except ValueError as error:
            sys.exit(f"tokenize.py: line {number} of the input is not JSON: {error}")
        if len(batch) == AT_ONCE:
            yield batch
            batch = []
    yield batch


def encode(tokenizer, batch):
    for adds in (True, False):
        lines = [line for line in batch if isinstance(line, dict) and isinstance(line.get("prompt"), str)
                 and line.get("add_special_tokens", True) is adds]
        encoded = tokenizer.encode_batch([line.pop("prompt") for line in lines], add_special_tokens=adds)
        for line, one in zip(lines, encoded):
            line.pop("add_special_tokens", None)
            line["tokens"] = one.ids


def decode(tokenizer, batch, keep_special):
    lines = [line for line in batch if isinstance(line, dict) and isinstance(line.get("tokens"), list)]
    texts = tokenizer.decode_batch([line["tokens"] for line in lines], skip_special_tokens=not keep_special)
    for line, text in zip(lines, texts):
        line["text"] = text


def main():
    options = arguments()
    tokenizer = load(options.tokenizer)
    for batch in batches(sys.stdin):
        if options.decode:
            decode(tokenizer, batch, options.special_tokens)
        else:
            encode(tokenizer, batch)
        for line in batch:
            print(json.dumps(line, ensure_ascii=False))


if __name__ == "__main__":
    main()
