#!/usr/bin/env python3
"""wide_model.py FOLDER [--tiny]: a model with layers as wide as moe-16l's, two of them and a quarter of
the inner width, and prompts that fill its passes: wide.json and wide.jsonl."""

import json
import random
import sys

folder, *options = sys.argv[1:]
tiny = "--tiny" in options
hidden, inner, heads, prompts, tokens = (64, 32, 4, 4, 20) if tiny else (4096, 4096, 32, 16, 2048)
model = {
    "eos_token_id": [], "head_dim": hidden // heads, "hidden_act": "gelu_pytorch_tanh", "hidden_size": hidden,
    "intermediate_size": inner, "max_position_embeddings": 16384, "mlp_only_layers": [],
    "moe_intermediate_size": inner, "norm_topk_prob": True, "num_attention_heads": heads, "num_experts": 16,
    "num_experts_per_tok": 2, "num_hidden_layers": 2, "num_key_value_heads": heads, "qk_norm": False,
    "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    "vocab_size": 256}
with open(f"{folder}/wide.json", "w", encoding="utf-8") as file:
    json.dump(model, file)
draw = random.Random(5)
with open(f"{folder}/wide.jsonl", "w", encoding="utf-8") as file:
    for number in range(prompts):
        request = {"id": str(number), "tokens": [draw.randrange(256) for _ in range(tokens)]}
        print(json.dumps(request), file=file)
