#!/usr/bin/env python3
"""Writes the fuzz targets' seeds, a folder for each, and their dictionaries.

usage: make_corpus.py FOLDER
"""

import json
import pathlib
import struct
import sys


def safetensors(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def tensor(dtype, shape, begin, end):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


SAFETENSORS = {
    "empty": safetensors({}),
    "one": safetensors({"w": tensor("BF16", [2, 3], 0, 12)}, bytes(range(12))),
    "three": safetensors(
        {
            "__metadata__": {"format": "pt"},
            "a": tensor("F32", [2], 0, 8),
            "b": tensor("F16", [1, 2], 8, 12),
            "c": tensor("BF16", [], 12, 14),
        },
        bytes(14),
    ),
    "hole": safetensors({"w": tensor("F32", [1], 4, 8)}, bytes(8)),
    "beyond": safetensors({"w": tensor("F32", [1 << 40], 0, 1 << 42)}, bytes(8)),
    "long_header": struct.pack("<Q", 1 << 60) + b"{}",
    "cut": safetensors({"w": tensor("F32", [2], 0, 8)}, bytes(3)),
}

REQUESTS = {
    "prompt": b'{"id": "a", "prompt": "In the beginning", "max_tokens": 5}\n',
    "tokens": b'{"id": "b", "tokens": [68, 105, 101], "temperature": 0.7, "top_p": 0.9, "seed": 7}\n',
    "stop": b'{"id": "c", "prompt": "\\u00e4\\ud83d\\ude00", "stop_token_ids": [10, 46]}\r\n\n',
    "twice": b'{"id": "a", "prompt": "x"}\n{"id": "a", "prompt": "y"}\n',
    "bad": b'{"id": 7, "prompt": "x"}\n[1]\nnull\n{"id": "cut", "pro\n{"id": "d", "tokens": [-1]}\n',
    "numbers": b'{"id": "e", "tokens": [1e3, 18446744073709551616], "max_tokens": 2.5}\n',
    "utf8": b'{"id": "f", "prompt": "\xff\xfe"}\n',
    "batch": b'{"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"model": "m", "prompt": '
             b'"Hi", "max_tokens": 3, "logprobs": 0, "n": 1}}\n{"custom_id": "b", "body": {"prompt": [1, 2]}}\n',
    "nested": b'{"id": ' + b"[" * 80 + b"]" * 80 + b"}\n",
}

OURS = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "first_k_dense_replace": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 128,
    "moe_intermediate_size": 32,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "norm_topk_prob": True,
    "hidden_act": "gelu_pytorch_tanh",
    "qk_norm": False,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "vocab_size": 256,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
QWEN = OURS | {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "mlp_only_layers": [0],
    "decoder_sparse_step": 1,
    "hidden_act": "silu",
    "attention_bias": False,
    "eos_token_id": [0, 1],
    "use_sliding_window": False,
}
MIXTRAL = {
    "architectures": ["MixtralForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e6,
    "vocab_size": 300,
    "max_position_embeddings": 256,
    "tie_word_embeddings": True,
    "torch_dtype": "float16",
    "sliding_window": None,
    "rope_scaling": None,
}
OLMOE = MIXTRAL | {
    "architectures": ["OlmoeForCausalLM"],
    "num_experts": 4,
    "clip_qkv": None,
    "norm_topk_prob": False,
}
DESCRIBED = {
    "version": 2, "hidden_size": 8, "num_layers": 2, "vocab_size": 16, "max_positions": 32, "rms_norm_eps": 1e-6,
    "activation": "swiglu", "dtype": "float32", "tie_word_embeddings": False, "stop_token_ids": [1],
    "attention": {"num_heads": 2, "head_dim": 4, "value_dim": 4, "qk_norm": "none", "scale": 0.5},
    "attention_kinds": [{"num_kv_heads": 1, "window": 3, "sinks": True, "rope": 0}], "attention_of_layer": [0, 0],
    "ropes": [{"dims": 2, "factor": 1.0, "frequencies": [1.0]}],
    "feed_forward_kinds": [{"type": "dense", "width": 6}, {
        "type": "experts", "width": 4, "num_experts": 4, "top_k": 2, "shared_width": 4, "router": {
            "score": "sigmoid", "groups": 2, "top_groups": 1, "group_score": "two_best", "normalise": True}}],
    "feed_forward_of_layer": [0, 1]}
DEEPSEEK = {
    "model_type": "deepseek_v3", "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 16,
    "intermediate_size": 6, "moe_intermediate_size": 4, "n_routed_experts": 4, "num_experts_per_tok": 2,
    "n_shared_experts": 1, "kv_lora_rank": 4, "q_lora_rank": 4, "qk_nope_head_dim": 2, "qk_rope_head_dim": 2,
    "v_head_dim": 2, "first_k_dense_replace": 1, "n_group": 2, "topk_group": 1, "hidden_act": "silu",
    "max_position_embeddings": 32, "rope_scaling": {
        "type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8, "mscale": 1.0, "mscale_all_dim": 1.0},
    "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}
GPT_OSS = {
    "model_type": "gpt_oss", "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 4,
    "num_key_value_heads": 1, "vocab_size": 16, "intermediate_size": 6, "num_local_experts": 4,
    "num_experts_per_tok": 2, "sliding_window": 3, "layer_types": ["sliding_attention", "full_attention"],
    "rope_parameters": {"rope_type": "default", "rope_theta": 150000.0}}

MODEL_CONFIG = {
    name: json.dumps(config).encode()
    for name, config in {"ours": OURS, "qwen": QWEN, "mixtral": MIXTRAL, "olmoe": OLMOE,
                         "described": DESCRIBED, "deepseek": DEEPSEEK, "gpt-oss": GPT_OSS}.items()
}

OPTIONS_FILE = {
    "some": b'mode = "score"\nmax-tokens = 3\nchunks = 4\n',
    "flag": b"no-overlap = true\ndeadline = 12.5\n# comment\n",
    "section": b'[run]\nchunks = 2\n[[x]]\nmodel = "other.h5"\n',
    "list": b'chunks = [1, 2]\nreport = "a\\"b"\ntransport = \'pairwise\'\n',
    "wrong": b"wings = 2\nchunks = nine\n=\n",
    "help": b"help = true\nconfig = \"/dev/null\"\n",
}

# Orders of six bytes: object, place, what to put there.
CHECKPOINT = {
    "unchanged": b"",
    **{f"object_{i}": bytes([i, 0, 255, 255, 255, 127]) for i in range(24)},
    "two": bytes([0, 8, 1, 0, 0, 0, 3, 0, 2, 0, 0, 0]),
}



def alphabet():
    """The characters that stand for bytes in byte-level vocabularies."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    moved = {byte: 256 + place for place, byte in enumerate(b for b in range(256) if b not in plain)}
    return [chr(moved.get(byte, byte)) for byte in range(256)]


def split(pattern, behavior="Isolated"):
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": False}


BYTES = {
    "normalizer": None,
    "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
        split(r"'s|[^\r\n\p{L}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}]+|\s+(?!\S)|\s+"),
        {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}]},
    "decoder": {"type": "ByteLevel"},
    "post_processor": {"type": "TemplateProcessing", "single": [
        {"SpecialToken": {"id": "<s>"}}, {"Sequence": {"id": "A"}}], "special_tokens": {"<s>": {"ids": [258]}}},
    "added_tokens": [{"id": 258, "content": "<s>", "special": True}],
    "model": {"type": "BPE", "vocab": {c: i for i, c in enumerate(alphabet())} | {"ab": 256, "abc": 257},
              "merges": ["a b", ["ab", "c"]]},
}
CHARACTERS = {
    "normalizer": {"type": "Sequence", "normalizers": [
        {"type": "NFC"}, {"type": "Prepend", "prepend": "_"}, {"type": "Replace", "pattern": {"String": " "}, "content": "_"}]},
    "pre_tokenizer": {"type": "Metaspace", "replacement": "_", "prepend_scheme": "first", "split": True},
    "decoder": {"type": "Sequence", "decoders": [
        {"type": "Replace", "pattern": {"String": "_"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
    "added_tokens": [{"id": 9, "content": "<x>", "lstrip": True, "rstrip": True, "normalized": True}],
    "model": {"type": "BPE", "unk_token": "?", "fuse_unk": True, "byte_fallback": True,
              "vocab": {"?": 0, "_": 1, "a": 2, "b": 3, "_a": 4, "<0xC3>": 5, "<0xA9>": 6}, "merges": [["_", "a"]]},
}
SCRIPTS = BYTES | {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [
    split(r"[\p{Han}]+|[\p{L}&&[^\p{Han}]]+|(?i:'s)|\x41{2}+", "MergedWithNext"), {"type": "Digits", "individual_digits": True},
    {"type": "Punctuation", "behavior": "Contiguous"}, {"type": "ByteLevel"}]}}
TEKKEN = {"config": {"pattern": "\\p{L}+|.", "default_vocab_size": 6, "default_num_special_tokens": 3},
          "vocab": [{"rank": 0, "token_bytes": "YQ=="}, {"rank": 1, "token_bytes": "Yg=="}, {"rank": 2, "token_bytes": "YWI="}]}
STEPS = {"version": 1, "sources": [], "special_tokens": {}, "byte_level": False, "byte_fallback": False,
         "ignore_merges": True, "merge_by_id": False, "fuse_unknown": False, "unknown": -1, "unreachable": [],
         "normal": [], "cuts": [], "decode": [], "prefix": [0], "suffix": [], "added": []}
TEXT = b"\0 ab abc <s>it's 123 \xc3\xa9\xe4\xb8\xad\xf0\x9f\x98\x80 _a"
TOKENIZER = {
    "bytes": b"j" + json.dumps(BYTES, separators=(",", ":")).encode() + TEXT,
    "characters": b"j" + json.dumps(CHARACTERS).encode() + TEXT,
    "scripts": b"j" + json.dumps(SCRIPTS, separators=(",", ":")).encode() + TEXT,
    "broken_text": b"j" + json.dumps(CHARACTERS).encode() + b"\0a\xff\xe4\xb8",
    "tekken": b"t" + json.dumps(TEKKEN).encode() + TEXT,
    "ranks": b"rYQ== 0\nYg== 1\nYWI= 2\n" + TEXT,
    "steps": b"m" + json.dumps(STEPS).encode() + b"\0abcab",
}

WORDS = {
    "tokenizer": ['"Split"', '"Regex"', '"String"', '"ByteLevel"', '"Metaspace"', '"Digits"', '"Punctuation"',
                  '"NFC"', '"Prepend"', '"Replace"', '"ByteFallback"', '"Fuse"', '"Strip"', '"Isolated"', '"Removed"',
                  '"MergedWithPrevious"', '"MergedWithNext"', '"Contiguous"', "\\\\p{L}", "\\\\s", "(?i:", "(?!", "&&[^",
                  "{1,3}", "(?=", "\\\\x41", "<s>", '"ignore_merges"', '"unk_token"', "true", "false", "null", "256"],
    "safetensors": ['"dtype"', '"shape"', '"data_offsets"', '"__metadata__"', '"BF16"', '"F16"',
                    '"F32"', '"F8_E4M3"', "[", "]", "{", "}", "9223372036854775807", "-1", "1e400"],
    "requests": ['"id"', '"prompt"', '"tokens"', '"max_tokens"', '"temperature"', '"top_p"',
                 '"seed"', '"stop_token_ids"', "null", "true", "1e400", "-1", "256", "\\u0000",
                 "18446744073709551616", '"custom_id"', '"body"', '"logprobs"', '"n"', '"stop"', '"url"', '"top_k"',
                 '"min_p"', '"logit_bias"', '"repetition_penalty"', '"presence_penalty"', '"top_logprobs"',
                 '"min_tokens"', '"continuations"', '"echo"', '"/v1/chat/completions"', '"render_error"'],
    "model_config": sorted({f'"{key}"' for key in OURS | QWEN | MIXTRAL | OLMOE | DESCRIBED | DEEPSEEK | GPT_OSS})
    + ['"silu"', '"float32"', "null", "true", "false", "2147483647", "-1", "1e400", "0.5"],
    "options_file": ["mode", "chunks", "max-tokens", "no-overlap", "deadline", "transport",
                     "step-tokens", "max-sequences", "kv-tokens", "threads", "report", "trace",
                     "config", "help", "version", "true", "false", "[run]", "[[", "nan", "inf"],
}


def escaped(word):
    return word.replace("\\", "\\\\").replace('"', '\\"')


def main():
    folder = pathlib.Path(sys.argv[1])
    seeds = {"safetensors": SAFETENSORS, "requests": REQUESTS, "model_config": MODEL_CONFIG,
             "options_file": OPTIONS_FILE, "checkpoint": CHECKPOINT, "tokenizer": TOKENIZER}
    for target, files in seeds.items():
        (folder / target).mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            (folder / target / name).write_bytes(data)
        words = "# what such inputs are made of\n" + "".join(f'"{escaped(word)}"\n' for word in WORDS.get(target, []))
        (folder / f"{target}.dict").write_text(words, encoding="utf-8")


if __name__ == "__main__":
    main()
