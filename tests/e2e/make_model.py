#!/usr/bin/env python3
"""Writes Hugging Face model folders for the end-to-end tests: good ones, and ones with one fault.

    make_model.py KIND SAMPLE OUTPUT

SAMPLE is the sample model's folder, OUTPUT the folder to make. KIND is a function below, with `-`
for `_`. Only Python's standard library is used.
"""

import json
import os
import random
import struct
import sys

SIZE_OF = {"BF16": 2, "F16": 2, "F32": 4}


def read_safetensors(path):
    """Returns {name: (dtype, shape, bytes)}."""
    with open(path, "rb") as file:
        data = file.read()
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    header.pop("__metadata__", None)
    return {
        name: (entry["dtype"], entry["shape"],
               data[8 + size + entry["data_offsets"][0] : 8 + size + entry["data_offsets"][1]])
        for name, entry in header.items()
    }


def header_of(tensors):
    header, offset = {}, 0
    for name, (dtype, shape, content) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape,
                        "data_offsets": [offset, offset + len(content)]}
        offset += len(content)
    return header


def write_raw(path, header, tensors, header_length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text) if header_length is None else header_length))
        file.write(text)
        for _, _, content in tensors.values():
            file.write(content)


def write_safetensors(path, tensors):
    write_raw(path, {"__metadata__": {"format": "pt"}, **header_of(tensors)}, tensors)


class Folder:
    """The sample model, to be changed and written."""

    def __init__(self, sample, output):
        self.output = output
        with open(os.path.join(sample, "config.json"), encoding="utf-8") as file:
            self.config = json.load(file)
        self.tensors = read_safetensors(os.path.join(sample, "model.safetensors"))

    def path(self, name):
        return os.path.join(self.output, name)

    def write_config(self):
        os.makedirs(self.output, exist_ok=True)
        with open(self.path("config.json"), "w", encoding="utf-8") as file:
            json.dump(self.config, file)

    def write(self):
        self.write_config()
        write_safetensors(self.path("model.safetensors"), self.tensors)

    def write_header(self, header, header_length=None):
        self.write_config()
        write_raw(self.path("model.safetensors"), header, self.tensors, header_length)


# --- the sample model, told differently: the same model file must come out


def sharded_with_index(folder):
    folder.write_config()
    names = list(folder.tensors)[::-1]
    weight_map = {}
    for shard, part in enumerate((names[0::3], names[1::3], names[2::3])):
        file = f"model-{shard + 1:05d}-of-00003.safetensors"
        write_safetensors(folder.path(file), {name: folder.tensors[name] for name in part})
        weight_map.update({name: file for name in part})
    with open(folder.path("model.safetensors.index.json"), "w", encoding="utf-8") as file:
        json.dump({"metadata": {"total_size": 1}, "weight_map": weight_map}, file)


def sharded_without_index(folder):
    folder.write_config()
    names = list(folder.tensors)
    write_safetensors(folder.path("a.safetensors"), {n: folder.tensors[n] for n in names[:50]})
    write_safetensors(folder.path("b.safetensors"), {n: folder.tensors[n] for n in names[50:]})


def widened_to_f32(folder):
    """BF16 -> F32 appends two zero bytes below each value."""
    for name, (dtype, shape, content) in folder.tensors.items():
        assert dtype == "BF16"
        wide = bytearray(2 * len(content))
        wide[2::4], wide[3::4] = content[0::2], content[1::2]
        folder.tensors[name] = ("F32", shape, bytes(wide))
    folder.write()


def norms_in_f16(folder):
    """Norm weights have few enough digits for F16: it holds them exactly."""
    for name, (dtype, shape, content) in folder.tensors.items():
        if "norm" not in name:
            continue
        values = [struct.unpack("<f", b"\0\0" + content[i : i + 2])[0]
                  for i in range(0, len(content), 2)]
        halves = struct.pack(f"<{len(values)}e", *values)
        assert list(struct.unpack(f"<{len(values)}e", halves)) == values, name
        folder.tensors[name] = ("F16", shape, halves)
    folder.write()


# --- other architectures, small, with random weights


def values_of(tensor):
    """The values of a tensor, as a list of numbers."""
    dtype, _, content = tensor
    if dtype != "BF16":
        return list(struct.unpack(f"<{len(content) // SIZE_OF[dtype]}{'f' if dtype == 'F32' else 'e'}",
                                  content))
    wide = bytearray(2 * len(content))
    wide[2::4], wide[3::4] = content[0::2], content[1::2]
    return list(struct.unpack(f"<{len(content) // 2}f", wide))


def tensor_of(values, shape, dtype):
    """A tensor of these values; BF16 is cut, not rounded."""
    if dtype == "F16":
        return (dtype, list(shape), struct.pack(f"<{len(values)}e", *values))
    content = struct.pack(f"<{len(values)}f", *values)
    if dtype == "BF16":
        narrow = bytearray(2 * len(values))
        narrow[0::2], narrow[1::2] = content[2::4], content[3::4]
        content = bytes(narrow)
    return (dtype, list(shape), content)


def random_tensor(seed, shape, scale):
    generator = random.Random(seed)
    count = 1
    for size in shape:
        count *= size
    return tensor_of([generator.gauss(0, scale) for _ in range(count)], shape, "BF16")


def small_model(folder, architecture, expert_names, router, qk_norm, more):
    hidden, layers, heads, kv_heads, dim, width, experts = 32, 2, 4, 2, 8, 48, 4
    folder.config = {
        "architectures": [architecture], "vocab_size": 256, "hidden_size": hidden,
        "intermediate_size": width, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "num_experts_per_tok": 2, "hidden_act": "silu",
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 512,
        "tie_word_embeddings": False, "torch_dtype": "bfloat16", **more,
    }
    shapes = {"model.embed_tokens.weight": (256, hidden), "model.norm.weight": (hidden,),
              "lm_head.weight": (256, hidden)}
    for layer in range(layers):
        at = f"model.layers.{layer}."
        shapes[at + "input_layernorm.weight"] = (hidden,)
        shapes[at + "post_attention_layernorm.weight"] = (hidden,)
        for name, rows in (("q", heads * dim), ("k", kv_heads * dim), ("v", kv_heads * dim)):
            shapes[at + f"self_attn.{name}_proj.weight"] = (rows, hidden)
        shapes[at + "self_attn.o_proj.weight"] = (hidden, heads * dim)
        if qk_norm:
            whole = qk_norm == "whole_row"
            shapes[at + "self_attn.q_norm.weight"] = (heads * dim if whole else dim,)
            shapes[at + "self_attn.k_norm.weight"] = (kv_heads * dim if whole else dim,)
        shapes[at + router + ".weight"] = (experts, hidden)
        for expert in range(experts):
            for name, shape in zip(expert_names,
                                   ((width, hidden), (width, hidden), (hidden, width))):
                shapes[at + name.format(expert) + ".weight"] = shape
    folder.tensors = {name: random_tensor(name, shape, 0.2) for name, shape in shapes.items()}
    folder.write()


def mixtral(folder):
    at = "block_sparse_moe.experts.{}."
    small_model(folder, "MixtralForCausalLM", (at + "w1", at + "w3", at + "w2"),
                "block_sparse_moe.gate", False,
                {"model_type": "mixtral", "num_local_experts": 4, "sliding_window": None})


def qwen3_moe(folder):
    at = "mlp.experts.{}."
    small_model(folder, "Qwen3MoeForCausalLM",
                (at + "gate_proj", at + "up_proj", at + "down_proj"), "mlp.gate", "per_head",
                {"model_type": "qwen3_moe", "num_experts": 4, "head_dim": 8,
                 "moe_intermediate_size": 48, "norm_topk_prob": True, "decoder_sparse_step": 1,
                 "mlp_only_layers": []})


def olmoe(folder):
    at = "mlp.experts.{}."
    small_model(folder, "OlmoeForCausalLM", (at + "gate_proj", at + "up_proj", at + "down_proj"),
                "mlp.gate", "whole_row",
                {"model_type": "olmoe", "num_experts": 4, "norm_topk_prob": False,
                 "clip_qkv": None})


# --- routers that send every token to the lowest experts (ties go to the lower index)


def zero_router(folder):
    routers = [name for name in folder.tensors if name.endswith("mlp.gate.weight")]
    assert len(routers) == 7, routers
    for name in routers:
        dtype, shape, content = folder.tensors[name]
        folder.tensors[name] = (dtype, shape, bytes(len(content)))
    folder.write()


def zero_router_top1(folder):
    folder.config["num_experts_per_tok"] = 1
    zero_router(folder)


# --- faults of the safetensors file


def fault_header_beyond_file(folder):
    folder.write_header(header_of(folder.tensors), header_length=1 << 40)


def fault_header_length_huge(folder):
    folder.write_header(header_of(folder.tensors), header_length=(1 << 64) - 1)


def fault_header_not_json(folder):
    folder.write_header(b'{"a": ')


def fault_header_list(folder):
    folder.write_header(b"[]")


def fault_header_deep(folder):
    folder.write_header(b'{"a":' + b"[" * 200000 + b"]" * 200000 + b"}")


def fault_file_empty(folder):
    folder.write_config()
    open(folder.path("model.safetensors"), "wb").close()


def fault_file_short(folder):
    folder.write()
    os.truncate(folder.path("model.safetensors"), 5)


def fault_truncated(folder):
    folder.write()
    os.truncate(folder.path("model.safetensors"), 1 << 20)


def changed_entry(folder, name, **changes):
    header = header_of(folder.tensors)
    header[name].update(changes)
    folder.write_header(header)


def fault_offsets_out_of_range(folder):
    changed_entry(folder, "model.norm.weight", data_offsets=[1 << 40, (1 << 40) + 384])


def fault_offsets_overlap(folder):
    header = header_of(folder.tensors)
    for name in ("model.norm.weight", "model.layers.0.input_layernorm.weight"):
        assert header[name]["shape"] == [192]
    header["model.norm.weight"]["data_offsets"] = list(
        header["model.layers.0.input_layernorm.weight"]["data_offsets"])
    folder.write_header(header)


def fault_offsets_reversed(folder):
    header = header_of(folder.tensors)
    begin, end = header["model.norm.weight"]["data_offsets"]
    changed_entry(folder, "model.norm.weight", data_offsets=[end, begin])


def fault_offsets_negative(folder):
    changed_entry(folder, "model.norm.weight", data_offsets=[-384, 0])


def fault_offsets_overflow(folder):
    top = (1 << 64) - 1
    changed_entry(folder, "model.norm.weight", data_offsets=[top - 383, top])


def fault_shape_overflow(folder):
    changed_entry(folder, "model.norm.weight", shape=[1 << 62, 1 << 62, 192])


def fault_shape_negative(folder):
    changed_entry(folder, "model.norm.weight", shape=[-192])


def fault_size_of_entry(folder):
    changed_entry(folder, "model.norm.weight", shape=[191])


def fault_dtype(folder):
    changed_entry(folder, "model.norm.weight", dtype="I64")


def fault_missing_tensor(folder):
    del folder.tensors["model.layers.3.mlp.experts.7.up_proj.weight"]
    folder.write()


def fault_wrong_shape(folder):
    dtype, shape, content = folder.tensors["model.layers.2.self_attn.q_proj.weight"]
    folder.tensors["model.layers.2.self_attn.q_proj.weight"] = (
        dtype, [shape[0] * 2, shape[1] // 2], content)
    folder.write()


def fault_index_names_missing_file(folder):
    sharded_with_index(folder)
    os.remove(folder.path("model-00002-of-00003.safetensors"))


def fault_index_not_json(folder):
    sharded_with_index(folder)
    with open(folder.path("model.safetensors.index.json"), "w", encoding="utf-8") as file:
        file.write("{")


# --- faults of the configuration


def with_config(**changes):
    def write(folder):
        folder.config.update(changes)
        folder.write()
    return write


fault_architecture = with_config(architectures=["LlamaForCausalLM"], model_type="llama")
fault_top_k = with_config(num_experts_per_tok=17)
fault_top_k_zero = with_config(num_experts_per_tok=0)
fault_hidden_negative = with_config(hidden_size=-192)
fault_hidden_huge = with_config(hidden_size=1 << 62)
fault_hidden_beyond_int64 = with_config(hidden_size=1 << 70)
fault_hidden_text = with_config(hidden_size="192")
fault_layers_huge = with_config(num_hidden_layers=1 << 40)
fault_experts_zero = with_config(num_experts=0)
fault_heads = with_config(num_attention_heads=6, num_key_value_heads=4)
fault_activation = with_config(hidden_act="relu")
fault_eps = with_config(rms_norm_eps=-1)


def fault_no_config(folder):
    folder.write()
    os.remove(folder.path("config.json"))


def fault_config_not_json(folder):
    folder.write()
    with open(folder.path("config.json"), "w", encoding="utf-8") as file:
        file.write('{"architectures": [')


def fault_config_deep(folder):
    folder.write()
    with open(folder.path("config.json"), "w", encoding="utf-8") as file:
        file.write('{"hidden_size": ' + "[" * 200000 + "]" * 200000 + "}")


def fault_no_weights(folder):
    folder.write_config()


def main():
    kind, sample, output = sys.argv[1:]
    globals()[kind.replace("-", "_")](Folder(sample, output))


if __name__ == "__main__":
    main()
