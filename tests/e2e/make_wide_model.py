"""Writes a DeepSeek-V3 of its real widths with one layer, of experts, in FP8: random codes, 11.6 GB.

make_wide_model.py FOLDER [EXPERTS]: shards of 32 experts each, as such models are published. The
vocabulary is small. Codes repeat after 64 MiB: what they are takes no part in how long they take.
"""

import json
import os
import struct
import sys

HIDDEN, INNER, EXPERTS, HEADS = 7168, 2048, 256, 128
Q_LATENT, KV_LATENT, NOPE, ROPE, VALUE, VOCAB = 1536, 512, 128, 64, 128, 1024
BLOCK = 128
PERIOD = (64 << 20) - 4096


def config(experts):
    return {
        "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "torch_dtype": "bfloat16",
        "vocab_size": VOCAB, "hidden_size": HIDDEN, "intermediate_size": 18432, "moe_intermediate_size": INNER,
        "num_hidden_layers": 1, "first_k_dense_replace": 0, "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS, "n_routed_experts": experts, "n_shared_experts": 1,
        "num_experts_per_tok": 8, "n_group": 8, "topk_group": 4, "topk_method": "noaux_tc",
        "scoring_func": "sigmoid", "norm_topk_prob": True, "routed_scaling_factor": 2.5,
        "q_lora_rank": Q_LATENT, "kv_lora_rank": KV_LATENT, "qk_nope_head_dim": NOPE,
        "qk_rope_head_dim": ROPE, "v_head_dim": VALUE, "hidden_act": "silu", "rms_norm_eps": 1e-6,
        "rope_theta": 10000, "max_position_embeddings": 4096, "tie_word_embeddings": False,
        "eos_token_id": 1, "quantization_config": {"quant_method": "fp8", "fmt": "e4m3",
                                                   "weight_block_size": [BLOCK, BLOCK]}}


def in_fp8(name, rows, cols):
    grid = [-(-rows // BLOCK), -(-cols // BLOCK)]
    # Codes are of 100 on average.
    scale = struct.pack("<f", 0.01 / cols**0.5)
    return [(name + ".weight", "F8_E4M3", [rows, cols], None),
            (name + ".weight_scale_inv", "F32", grid, scale * (grid[0] * grid[1]))]


def mlp(prefix):
    return (in_fp8(prefix + "gate_proj", INNER, HIDDEN) + in_fp8(prefix + "up_proj", INNER, HIDDEN)
            + in_fp8(prefix + "down_proj", HIDDEN, INNER))


def in_bf16(name, shape, bits=0x3F80):
    count = 1
    for extent in shape:
        count *= extent
    return (name, "BF16", shape, struct.pack("<H", bits) * count)


def random_bf16(name, rows, cols):
    """Numbers below 1 / 64 in magnitude."""
    raw = bytearray(os.urandom(2 * rows * cols))
    raw[1::2] = bytes(byte & 0x80 | 0x3C - (byte & 3) for byte in raw[1::2])
    return (name, "BF16", [rows, cols], bytes(raw))


def shards(experts):
    layer = "model.layers.0."
    attention = layer + "self_attn."
    yield (in_fp8(attention + "q_a_proj", Q_LATENT, HIDDEN)
           + in_fp8(attention + "q_b_proj", HEADS * (NOPE + ROPE), Q_LATENT)
           + in_fp8(attention + "kv_a_proj_with_mqa", KV_LATENT + ROPE, HIDDEN)
           + in_fp8(attention + "kv_b_proj", HEADS * (NOPE + VALUE), KV_LATENT)
           + in_fp8(attention + "o_proj", HIDDEN, HEADS * VALUE)
           + mlp(layer + "mlp.shared_experts.")
           + [in_bf16(attention + "q_a_layernorm.weight", [Q_LATENT]),
              in_bf16(attention + "kv_a_layernorm.weight", [KV_LATENT]),
              in_bf16(layer + "input_layernorm.weight", [HIDDEN]),
              in_bf16(layer + "post_attention_layernorm.weight", [HIDDEN]),
              in_bf16("model.norm.weight", [HIDDEN]),
              random_bf16("model.embed_tokens.weight", VOCAB, HIDDEN),
              random_bf16("lm_head.weight", VOCAB, HIDDEN),
              random_bf16(layer + "mlp.gate.weight", experts, HIDDEN),
              (layer + "mlp.gate.e_score_correction_bias", "F32", [experts], bytes(4 * experts))])
    for first in range(0, experts, 32):
        tensors = []
        for expert in range(first, min(first + 32, experts)):
            tensors += mlp(f"{layer}mlp.experts.{expert}.")
        yield tensors


def size_of(dtype, shape):
    count = {"F8_E4M3": 1, "BF16": 2, "F32": 4}[dtype]
    for extent in shape:
        count *= extent
    return count


def main():
    folder = sys.argv[1]
    experts = int(sys.argv[2]) if len(sys.argv) > 2 else EXPERTS
    os.makedirs(folder)
    # A code of all ones is NaN.
    table = bytes(byte ^ 1 if byte & 127 == 127 else byte for byte in range(256))
    codes = os.urandom(64 << 20).translate(table)
    names, total, at = {}, 0, 0
    for number, tensors in enumerate(shards(experts)):
        name = f"model-{number:05}.safetensors"
        header, end = {}, 0
        for tensor, dtype, shape, _ in tensors:
            header[tensor] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size_of(dtype, shape)]}
            end += size_of(dtype, shape)
            names[tensor] = name
        text = json.dumps(header).encode()
        with open(os.path.join(folder, name), "wb", buffering=1 << 20) as file:
            file.write(struct.pack("<Q", len(text)) + text)
            for _, dtype, shape, data in tensors:
                if data is not None:
                    file.write(data)
                    continue
                left = size_of(dtype, shape)
                while left > 0:
                    piece = codes[at : at + min(left, len(codes) - at)]
                    file.write(piece)
                    left -= len(piece)
                    at = (at + len(piece)) % PERIOD
        total += end
    with open(os.path.join(folder, "config.json"), "w", encoding="utf-8") as file:
        json.dump(config(experts), file)
    with open(os.path.join(folder, "model.safetensors.index.json"), "w", encoding="utf-8") as file:
        json.dump({"metadata": {"total_size": total}, "weight_map": names}, file)


if __name__ == "__main__":
    main()
