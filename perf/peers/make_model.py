#!/usr/bin/env python3
"""Writes one random model in the formats of the engines that perf/peers/engines.py compares.

    python3 perf/peers/make_model.py DIR [--size full|small] [--seed N]

DIR/hf is a Hugging Face folder (Qwen3MoE, BF16, safetensors), which `atoll import` and vLLM read;
DIR/bf16.gguf and DIR/f16.gguf hold the same values for llama.cpp and ik_llama.cpp. Only numpy is
needed. Weights are scaled so that activations keep their size through the layers, routers decide and
logits are not flat: with flat ones every engine's rounding would choose another token. GGUF is
written here and not by llama.cpp's converter, which wants PyTorch and a tokenizer; names, shapes and
types are those that the converter gives (its conversion/qwen.py and gguf-py/gguf/constants.py).
"""

import argparse
import json
import math
import struct
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))

from engines_lib.shapes import CONTEXT, SIZES  # noqa: E402

ROPE_THETA = 10000.0
EPSILON = 1e-6
ALIGNMENT = 32  # GGUF's default
GGUF_TYPES = {"f32": 0, "f16": 1, "bf16": 30}


def config_of(size):
    return {
        "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe",
        "vocab_size": size["vocab"], "hidden_size": size["hidden"],
        "intermediate_size": size["inner"], "moe_intermediate_size": size["inner"],
        "num_hidden_layers": size["layers"], "num_attention_heads": size["heads"],
        "num_key_value_heads": size["kv_heads"], "head_dim": size["head_dim"],
        "num_experts": size["experts"], "num_experts_per_tok": size["top_k"],
        "norm_topk_prob": True, "mlp_only_layers": [], "decoder_sparse_step": 1,
        "hidden_act": "silu", "rms_norm_eps": EPSILON, "rope_theta": ROPE_THETA,
        "max_position_embeddings": CONTEXT, "tie_word_embeddings": False,
        "attention_bias": False, "torch_dtype": "bfloat16", "use_sliding_window": False,
    }  # fmt: skip


def weights_of(size):
    """(name in Hugging Face's folder, name in GGUF, shape, standard deviation or None for a norm).

    Experts have a tensor each in the folder; their GGUF name stands for one of all experts.
    """
    hidden, inner, dim = size["hidden"], size["inner"], size["head_dim"]
    queries, keys = size["heads"] * dim, size["kv_heads"] * dim

    def plain(fan_in):
        return 1 / math.sqrt(fan_in)

    yield "model.embed_tokens.weight", "token_embd.weight", (size["vocab"], hidden), 1.0
    for layer in range(size["layers"]):
        hf, gguf = f"model.layers.{layer}.", f"blk.{layer}."
        yield hf + "input_layernorm.weight", gguf + "attn_norm.weight", (hidden,), None
        for one, width in (("q", queries), ("k", keys), ("v", keys)):
            yield (f"{hf}self_attn.{one}_proj.weight", f"{gguf}attn_{one}.weight",
                   (width, hidden), plain(hidden))  # fmt: skip
        for one in "qk":
            yield f"{hf}self_attn.{one}_norm.weight", f"{gguf}attn_{one}_norm.weight", (dim,), None
        # Attention over many positions averages random values away: twice the plain width.
        yield (hf + "self_attn.o_proj.weight", gguf + "attn_output.weight", (hidden, queries),
               2 * plain(queries))  # fmt: skip
        yield hf + "post_attention_layernorm.weight", gguf + "ffn_norm.weight", (hidden,), None
        yield hf + "mlp.gate.weight", gguf + "ffn_gate_inp.weight", (size["experts"], hidden), \
            2 * plain(hidden)  # fmt: skip
        for one, shape in (("gate", (inner, hidden)), ("up", (inner, hidden)),
                           ("down", (hidden, inner))):  # fmt: skip
            for expert in range(size["experts"]):
                yield (f"{hf}mlp.experts.{expert}.{one}_proj.weight", f"{gguf}ffn_{one}_exps.weight",
                       shape, plain(shape[1]))  # fmt: skip
    yield "model.norm.weight", "output_norm.weight", (hidden,), None
    yield "lm_head.weight", "output.weight", (size["vocab"], hidden), 3 * plain(hidden)


def to_bf16(values):
    """Bits of float32 `values` rounded to BF16, ties to even."""
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def from_bf16(bits):
    return (bits.astype(np.uint32) << 16).view(np.float32)


def values_of(weights, seed):
    """Yields every weight with its BF16 bits, one at a time."""
    random = np.random.default_rng(seed)
    for hf, gguf, shape, deviation in weights:
        values = random.standard_normal(shape, dtype=np.float32)
        if deviation is None:
            values = 1 + 0.1 * values  # a norm
        else:
            values *= deviation
        yield hf, gguf, to_bf16(np.ascontiguousarray(values, dtype=np.float32))


def gguf_string(text):
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def gguf_key(key, value):
    """One key with a string, an integer or a float."""
    if isinstance(value, str):
        return gguf_string(key) + struct.pack("<I", 8) + gguf_string(value)
    if isinstance(value, float):
        return gguf_string(key) + struct.pack("<If", 6, value)
    return gguf_string(key) + struct.pack("<II", 4, value)


def gguf_keys(size):
    arch = "qwen3moe"
    return {
        "general.architecture": arch, "general.name": "random", "general.alignment": ALIGNMENT,
        f"{arch}.block_count": size["layers"], f"{arch}.context_length": CONTEXT,
        f"{arch}.embedding_length": size["hidden"], f"{arch}.feed_forward_length": size["inner"],
        f"{arch}.expert_feed_forward_length": size["inner"],
        f"{arch}.attention.head_count": size["heads"],
        f"{arch}.attention.head_count_kv": size["kv_heads"],
        f"{arch}.attention.key_length": size["head_dim"],
        f"{arch}.attention.value_length": size["head_dim"],
        f"{arch}.attention.layer_norm_rms_epsilon": EPSILON,
        f"{arch}.rope.freq_base": ROPE_THETA, f"{arch}.expert_count": size["experts"],
        f"{arch}.expert_used_count": size["top_k"], f"{arch}.vocab_size": size["vocab"],
        "tokenizer.ggml.model": "none",
    }  # fmt: skip


class Gguf:
    """A GGUF file (version 3) whose tensors come one after another."""

    def __init__(self, path, size, weights, kind):
        self.kind, self.file = kind, open(path, "wb")
        infos, offset = [], 0
        shapes = {}  # experts of one name are stacked
        for _, name, shape, deviation in weights:
            many = size["experts"] if "_exps." in name else 1
            # Norms and routers stay float32, as llama.cpp's converter has them.
            single = deviation is None or name.endswith("ffn_gate_inp.weight")
            shapes[name] = ((many,) if many > 1 else ()) + shape, "f32" if single else kind
        for name, (shape, stored) in shapes.items():
            infos.append(
                gguf_string(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape[::-1])
                + struct.pack("<IQ", GGUF_TYPES[stored], offset))  # fmt: skip
            offset += math.prod(shape) * (4 if stored == "f32" else 2)
            offset = -(-offset // ALIGNMENT) * ALIGNMENT
        self.stored = {name: stored for name, (_, stored) in shapes.items()}
        keys = [gguf_key(key, value) for key, value in gguf_keys(size).items()]
        self.file.write(b"GGUF" + struct.pack("<IQQ", 3, len(infos), len(keys)))
        self.file.write(b"".join(keys) + b"".join(infos))
        self.last = None

    def add(self, name, bits):
        if name != self.last:
            self.file.write(b"\0" * (-self.file.tell() % ALIGNMENT))
            self.last = name
        stored = self.stored[name]
        if stored == "bf16":
            data = bits
        else:
            data = from_bf16(bits).astype(np.float32 if stored == "f32" else np.float16)
        self.file.write(data.tobytes())

    def close(self):
        self.file.write(b"\0" * (-self.file.tell() % ALIGNMENT))
        self.file.close()


def safetensors_header(weights):
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, _, shape, _ in weights:
        end = offset + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def make(folder, size_name, seed):
    """Writes all files, unless they are there: they are whole when DIR/made.json exists."""
    size = SIZES[size_name]
    made = {"size": size_name, "seed": seed}
    mark = folder / "made.json"
    if mark.exists() and json.loads(mark.read_text()) == made:
        return
    mark.unlink(missing_ok=True)
    (folder / "hf").mkdir(parents=True, exist_ok=True)
    (folder / "hf/config.json").write_text(json.dumps(config_of(size), indent=2) + "\n")
    weights = list(weights_of(size))
    ggufs = [Gguf(folder / f"{kind}.gguf", size, weights, kind) for kind in ("bf16", "f16")]
    with open(folder / "hf/model.safetensors", "wb") as file:
        file.write(safetensors_header(weights))
        for _, gguf, bits in values_of(weights, seed):
            file.write(bits.tobytes())
            for one in ggufs:
                one.add(gguf, bits)
    for one in ggufs:
        one.close()
    mark.write_text(json.dumps(made) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    make(args.folder, args.size, args.seed)
    print(f"{args.folder}: hf, bf16.gguf, f16.gguf", file=sys.stderr)


if __name__ == "__main__":
    main()
