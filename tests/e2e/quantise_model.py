"""Makes two folders of a Hugging Face model's weights in few bits, rounded to nearest: one as such
models are published, and one with what its numbers come to, in BF16.

quantise_model.py METHOD FOLDER CODED PLAIN: METHOD is fp8 (blocks of 16 x 24, so that there are
partial ones), mxfp4 (experts of gpt-oss) or int4 (experts' matrices, groups of 8).
quantise_model.py --make-qwen FOLDER: writes a small Qwen3-MoE of random weights.
"""

import json
import math
import os
import random
import shutil
import struct
import sys

E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
BLOCK = (16, 24)
GROUP = 8


def e4m3(code):
    exponent, fraction = code >> 3 & 15, code & 7
    value = fraction * 2.0**-9 if exponent == 0 else (8 + fraction) * 2.0 ** (exponent - 10)
    return -value if code & 128 else value


E4M3 = sorted((e4m3(c), c) for c in range(256) if c & 127 != 127)


def float32(value):
    return struct.unpack("<f", struct.pack("<f", value))[0]


def bfloat16_bits(value):
    """Of a float32, to nearest, ties to even."""
    bits = struct.unpack("<I", struct.pack("<f", value))[0]
    return (bits + 0x7FFF + (bits >> 16 & 1)) >> 16


def read(path):
    with open(path, "rb") as file:
        size = struct.unpack("<Q", file.read(8))[0]
        header = json.loads(file.read(size))
        data = file.read()
    header.pop("__metadata__", None)
    return {k: (v["dtype"], v["shape"], data[slice(*v["data_offsets"])]) for k, v in header.items()}


def write(path, tensors):
    header, data = {}, b""
    for name, (dtype, shape, raw) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + data)


def floats(raw):
    return [struct.unpack("<f", b"\0\0" + raw[i : i + 2])[0] for i in range(0, len(raw), 2)]


def bfloat16(values):
    return b"".join(struct.pack("<H", bfloat16_bits(v)) for v in values)


def nearest(value):
    return min(E4M3, key=lambda pair: abs(pair[0] - value))[1] if abs(value) < 448 else E4M3[-1][1]


def fp8(name, shape, values, coded, plain):
    rows, cols = shape
    grid = [-(-rows // BLOCK[0]), -(-cols // BLOCK[1])]
    scales = [float32(random.uniform(0.5, 2) / 256) for _ in range(grid[0] * grid[1])]
    codes, result = bytearray(), []
    for i, value in enumerate(values):
        scale = scales[i // cols // BLOCK[0] * grid[1] + i % cols // BLOCK[1]]
        codes.append(nearest(value / scale))
        result.append(float32(e4m3(codes[-1]) * scale))
    coded[name] = ("F8_E4M3", shape, bytes(codes))
    coded[name + "_scale_inv"] = ("F32", grid, struct.pack(f"<{len(scales)}f", *scales))
    plain[name] = ("BF16", shape, bfloat16(result))


def int4(name, shape, values, coded, plain):
    rows, cols = shape
    scales, words, result = [], [], []
    for first in range(0, len(values), GROUP):
        group = values[first : first + GROUP]
        scales.append(float32(struct.unpack("<f", struct.pack("<HH", 0, bfloat16_bits(max(map(abs, group)) / 7 + 1e-6)))[0]))
        word = 0
        for i, value in enumerate(group):
            number = max(-8, min(7, round(value / scales[-1])))
            word |= (number + 8) << 4 * i
            result.append(float32(number * scales[-1]))
        words.append(word)
    base = name[: -len("weight")]
    coded[base + "weight_packed"] = ("I32", [rows, cols // 8], struct.pack(f"<{len(words)}I", *words))
    coded[base + "weight_scale"] = ("BF16", [rows, cols // GROUP], bfloat16(scales))
    coded[base + "weight_shape"] = ("I64", [2], struct.pack("<2q", rows, cols))
    plain[name] = ("BF16", shape, bfloat16(result))


def mxfp4(name, shape, values, coded, plain):
    """[experts, in, out] as it is saved in BF16 becomes [experts, out, in] in blocks of 32."""
    experts, rows, cols = shape
    result, numbers, scales = [0.0] * len(values), bytearray(), bytearray()
    for e in range(experts):
        for c in range(cols):
            for first in range(0, rows, 32):
                at = [(e * rows + first + i) * cols + c for i in range(32)]
                exponent = math.ceil(math.log2(max(abs(values[i]) for i in at) / 6 + 1e-9))
                scales.append(exponent + 127)
                halves = []
                for i in at:
                    size = abs(values[i]) / 2.0**exponent
                    code = min(range(8), key=lambda k: abs(E2M1[k] - size))
                    result[i] = math.copysign(E2M1[code] * 2.0**exponent, values[i])
                    halves.append(code | (8 if values[i] < 0 else 0))
                numbers += bytes(halves[i] | halves[i + 1] << 4 for i in range(0, 32, 2))
    coded[name + "_blocks"] = ("U8", [experts, cols, rows // 32, 16], bytes(numbers))
    coded[name + "_scales"] = ("U8", [experts, cols, rows // 32], bytes(scales))
    plain[name] = ("BF16", shape, bfloat16(result))


METHODS = {
    "fp8": (fp8, lambda n: n.endswith("proj.weight") or "proj_with_mqa" in n,
            {"quant_method": "fp8", "weight_block_size": list(BLOCK)}),
    "int4": (int4, lambda n: ".experts." in n,
             {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {"group_0": {
                 "weights": {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": GROUP}}}}),
    "mxfp4": (mxfp4, lambda n: n.endswith(("experts.gate_up_proj", "experts.down_proj")),
              {"quant_method": "mxfp4"}),
}


def make_qwen(folder):
    config = {"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "vocab_size": 256,
              "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
              "num_hidden_layers": 3, "mlp_only_layers": [0], "intermediate_size": 96,
              "moe_intermediate_size": 40, "num_experts": 8, "num_experts_per_tok": 2,
              "norm_topk_prob": True, "max_position_embeddings": 512, "eos_token_id": 2,
              "dtype": "bfloat16"}
    shapes = {"model.embed_tokens.weight": [256, 64], "model.norm.weight": [64], "lm_head.weight": [256, 64]}
    for layer in range(3):
        prefix = f"model.layers.{layer}."
        for name in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{prefix}{name}.weight"] = [64]
        for name, rows in (("q_proj", 64), ("k_proj", 32), ("v_proj", 32), ("o_proj", 64)):
            shapes[f"{prefix}self_attn.{name}.weight"] = [rows, 64]
        for name in ("q_norm", "k_norm"):
            shapes[f"{prefix}self_attn.{name}.weight"] = [16]
        mlps = {f"{prefix}mlp.": 96} if layer == 0 else {f"{prefix}mlp.experts.{e}.": 40 for e in range(8)}
        if layer > 0:
            shapes[f"{prefix}mlp.gate.weight"] = [8, 64]
        for mlp, width in mlps.items():
            shapes |= {f"{mlp}gate_proj.weight": [width, 64], f"{mlp}up_proj.weight": [width, 64],
                       f"{mlp}down_proj.weight": [64, width]}
    tensors = {}
    for name, shape in shapes.items():
        values = [1.0] * shape[0] if "norm" in name else [
            random.gauss(0, 1 / math.sqrt(shape[1])) for _ in range(math.prod(shape))]
        tensors[name] = ("BF16", shape, bfloat16(values))
    os.makedirs(folder, exist_ok=True)
    write(os.path.join(folder, "model.safetensors"), tensors)
    with open(os.path.join(folder, "config.json"), "w", encoding="utf-8") as file:
        json.dump(config, file)


def main():
    if sys.argv[1] == "--make-qwen":
        random.seed(3)
        return make_qwen(sys.argv[2])
    method, folder, to_coded, to_plain = sys.argv[1:]
    random.seed(7)
    make, wanted, description = METHODS[method]
    with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
        config = json.load(file)
    coded, plain = {}, {}
    for name, (dtype, shape, raw) in read(os.path.join(folder, "model.safetensors")).items():
        if dtype == "BF16" and wanted(name):
            make(name, shape, floats(raw), coded, plain)
        else:
            coded[name] = plain[name] = (dtype, shape, raw)
    for target, tensors, extra in ((to_coded, coded, {"quantization_config": description}), (to_plain, plain, {})):
        shutil.rmtree(target, ignore_errors=True)
        os.makedirs(target)
        write(os.path.join(target, "model.safetensors"), tensors)
        with open(os.path.join(target, "config.json"), "w", encoding="utf-8") as file:
            json.dump(config | extra, file)


main()
