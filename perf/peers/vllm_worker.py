#!/usr/bin/env python3
"""vLLM on this machine's CPU for perf/peers/engines.py: loads a model once, then runs what it is told.

    vllm_worker.py --model HF_DIR --threads N

Standard input has a line a run: the path of a file of requests as llama_driver reads them (how many
tokens to generate, then token ids, a line each). For every line it prints one line of JSON with the
keys of llama_driver. Prefill ends with the step that gives the last request its first token, decode
is all after that: the engine's steps are made one by one and timed here. The first run of a workload
compiles, so every one is run once, unmeasured, on a prompt of other tokens.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
parser.add_argument("--model", required=True)
parser.add_argument("--threads", type=int, default=2)
args = parser.parse_args()
os.environ.update(
    VLLM_ENABLE_V1_MULTIPROCESSING="0",  # the engine in this process, so that its steps can be timed
    VLLM_CPU_KVCACHE_SPACE="1", VLLM_CPU_OMP_THREADS_BIND="nobind", VLLM_NO_USAGE_STATS="1",
    VLLM_LOGGING_LEVEL="ERROR", OMP_NUM_THREADS=str(args.threads), HF_HUB_OFFLINE="1",
    CUDA_VISIBLE_DEVICES="")  # fmt: skip
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # what libraries print is no answer

from vllm import LLM, SamplingParams  # noqa: E402
from vllm.inputs import TokensPrompt  # noqa: E402


def read_requests(path):
    lines = [[int(word) for word in line.split()] for line in Path(path).read_text().splitlines()]
    return [(line[0], line[1:]) for line in lines]


def run(engine, requests, name):
    """One batch; what llama_driver prints of it."""
    outputs = {}
    for number, (max_tokens, prompt) in enumerate(requests):
        sampling = SamplingParams(temperature=0, max_tokens=max_tokens, min_tokens=max_tokens,
                                  ignore_eos=True, logprobs=0, detokenize=False)  # fmt: skip
        engine.add_request(f"{name}-{number}", TokensPrompt(prompt_token_ids=prompt), sampling)
    begin = time.perf_counter()
    first = early = None
    while engine.has_unfinished_requests():
        for output in engine.step():
            outputs[output.request_id] = output.outputs[0]
        now = time.perf_counter()
        if first is None and len(outputs) == len(requests):
            # Requests that had their first token early may have more by now: part of prefill.
            first, early = now, sum(len(one.token_ids) for one in outputs.values())
    ordered = [outputs[f"{name}-{number}"] for number in range(len(requests))]
    logprobs = [[step[token].logprob for step, token in zip(one.logprobs, one.token_ids)]
                for one in ordered]  # fmt: skip
    return {"prefill_s": first - begin, "prefill_tokens": sum(len(p) for _, p in requests),
            "decode_s": now - first, "decode_tokens": sum(len(one.token_ids) for one in ordered) - early,
            "tokens": [list(one.token_ids) for one in ordered], "logprobs": logprobs}  # fmt: skip


def peak_memory():
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no VmHWM")


def main():
    begin = time.perf_counter()
    llm = LLM(model=args.model, dtype="bfloat16", skip_tokenizer_init=True, max_model_len=4096,
              max_num_batched_tokens=4096, enable_prefix_caching=False, seed=0)  # fmt: skip
    load_s = time.perf_counter() - begin
    warm = set()
    for number, line in enumerate(sys.stdin):
        path = line.strip()
        requests = read_requests(path)
        if path not in warm:
            warm.add(path)
            others = [(n, [token ^ 1 for token in prompt]) for n, prompt in requests]
            run(llm.llm_engine, others, f"warm-{number}")
        result = run(llm.llm_engine, requests, f"run-{number}")
        print(json.dumps({"load_s": load_s, "peak_bytes": peak_memory(), **result}), file=answers,
              flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
