#!/usr/bin/env python3
"""Writes requests of random tokens, for measurements: every run with the same arguments gets the same.

make-requests.py --sequences N --prompt-tokens N --max-tokens N --vocab N [--seed N] > requests.jsonl
"""
import argparse
import json
import random
import sys

parser = argparse.ArgumentParser(description=__doc__)
for name in ("sequences", "prompt-tokens", "max-tokens", "vocab"):
    parser.add_argument(f"--{name}", type=int, required=True)
parser.add_argument("--seed", type=int, default=0)
options = parser.parse_args()
source = random.Random(options.seed)
for number in range(options.sequences):
    tokens = [source.randrange(options.vocab) for _ in range(options.prompt_tokens)]
    request = {"id": str(number), "tokens": tokens, "max_tokens": options.max_tokens}
    sys.stdout.write(json.dumps(request) + "\n")
