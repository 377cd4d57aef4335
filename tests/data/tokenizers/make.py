#!/usr/bin/env python3
"""Trains the small vocabularies beside this file and records what Hugging Face's library makes of
texts with them, and with variants of their steps: tokenizer.json files and expected.json.

usage: make.py        (needs `pip install tokenizers`; last run with 0.23.3)

The tests only read what it wrote.
"""

import json
import pathlib
import random

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parent.parent.parent

GPT4 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+")

HARD = [
    "", "a", " ", "   ", "\n", "\t\t", "\r\n", "\x00", "a\x00b", " a", "a ", "  a  b ", "Hello, world!",
    "It's I'm WE'LL they'd \u017fx '\u017f K'\u212a", "don\u2019t", "1234567890 1 22 333 4444", "3.14e-10",
    "\u00bd \u00b2 \u2167 \u0663 \u4e00", "\n\n\n", "\n \n \n", "a\n\n b", "x\t\ty", "\u00a0x\u00a0", "\u2003\u2003a",
    "\u3000\u4e2d\u6587", "\u180e\u180ea \u180e", "\u200bx", "\ufeffx", "\u00e9 e\u0301 o\u0323\u0302 \u1ed9",
    "\ud55c\uad6d\uc5b4 \u1112\u1161\u11ab", "\u65e5\u672c\u8a9e\u306e\u30c6\u30ad\u30b9\u30c8", "\u4e2d\u6587English123",
    "\u041f\u0440\u0438\u0432\u0435\u0442", "\u05e9\u05dc\u05d5\u05dd", "\u0645\u0631\u062d\u0628\u0627",
    "\u0939\u093f\u0928\u094d\u0926\u0940", "\u0e44\u0e17\u0e22", "\U0001f600", "\U0001f469\u200d\U0001f4bb",
    "\U0001f3f3\ufe0f\u200d\U0001f308", "e\u0301\u0301\u0301", "\u0301abc", "x" * 200, " " * 300, "ab" * 150,
    "." * 120, "def f(x):\n    return x**2  # comment\n", "#include <stdio.h>\nint main() { return 0; }",
    "<html>&amp;</html>", "\\n\\t \"q\" 'q'", "http://a.com/b?c=d&e=f#g", "C:\\path\\f.txt", "$100.00 \u20ac50",
    "...!!!???", "\u2014\u2013\u2010", "\ufb01 \ufb02 \ufb05", "\u0130 \u0131 \u00df \u1e9e", "\u00c5 \u212b A\u030a",
    "\U0001d49c \U0001d7d8", "\ue000", "\ufffd\uffff\U0010ffff", "<s>", "</s>hi<s>", "a<|sep|>b", "a  <|sep|>  b",
    "<|sep|><|sep|>", "x <mask> y", "x\u3000<mask>\u3000y", "<|sep", "foo<tool>bar", "cafe\u0301<tool>", "\u00e9\u00e9<\u00e9>",
    "e\u0301<\u00e9>e\u0301", "<\u00e9>", "<e\u0301>", "\u2581a \u2581\u2581b", "<0x41><0xE2>", "\u0120x", "HTTPServer camelCase",
    "snake_case __init__", "1,000,000", "'s 't", "''s", "\x85x\x85", "\u2028\u2029", "\x0b\x0c\x1c\x1f ", "a-b_c.d",
]


def texts():
    random.seed(7)
    words = [h for h in HARD if 0 < len(h) < 40]
    made = ["".join(random.choice(words) + random.choice(["", " ", "", "\n", "  "])
                    for _ in range(random.randrange(1, 12))) for _ in range(100)]
    return HARD + made


def training():
    lines = [json.loads(line) for line in (ROOT / "tests/data/heldout.jsonl").open(encoding="utf-8")]
    return [line.get("prompt", "") for line in lines] + [(ROOT / "README.md").read_text(encoding="utf-8")] + HARD * 3


def add_tokens(tokenizer):
    tokenizer.add_special_tokens([AddedToken("<s>", special=True), AddedToken("</s>", special=True),
                                  AddedToken("<|sep|>", lstrip=True, rstrip=True, special=True)])
    tokenizer.add_tokens([AddedToken("<tool>", normalized=False), AddedToken("<mask>", lstrip=True, normalized=False),
                          AddedToken("<\u00e9>", normalized=True)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A $B </s>", special_tokens=[(t, tokenizer.token_to_id(t)) for t in ("<s>", "</s>")])


def bytes_tokenizer():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(GPT4), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(training(), trainers.BpeTrainer(
        vocab_size=700, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    add_tokens(tokenizer)
    return tokenizer


def characters_tokenizer():
    special = ["<unk>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")  # for training alone
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(),
                                           decoders.Strip(" ", 1, 0)])
    tokenizer.train_from_iterator(training(), trainers.BpeTrainer(
        vocab_size=900, special_tokens=special, limit_alphabet=90, show_progress=False))
    state = json.loads(tokenizer.to_str())
    state["pre_tokenizer"] = None
    state["added_tokens"] = []  # the bytes are pieces only
    tokenizer = Tokenizer.from_str(json.dumps(state))
    add_tokens(tokenizer)
    return tokenizer


def split(pattern, behavior, invert=False, regex=True):
    return {"type": "Split", "pattern": {"Regex" if regex else "String": pattern}, "behavior": behavior, "invert": invert}


def level(prefix=False, regex=False):
    return {"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": True, "use_regex": regex}


def sequence(*steps):
    return {"type": "Sequence", "pretokenizers": list(steps)}


def metaspace(scheme, cut):
    return {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": scheme, "split": cut}


SIGNS = r"^.|[\p{Nd}&&[^5]]{2}+|a{,2}b|\u0041\x42?|(?m:x.)|[a-c]++|(?<=o)l|(?<!e)l|\d|\S\s$"
HAN = r"[\p{Han}]+|[\p{L}\p{M}&&[^\p{Han}]]+|\p{^L}"
# What a variant changes in the file, by base.
VARIANTS = {
    "bytes": {
        "as trained": {},
        "gpt2": {"normalizer": None, "pre_tokenizer": level(regex=True)},
        "prefix": {"pre_tokenizer": level(prefix=True, regex=True)},
        "removed": {"pre_tokenizer": sequence(split(r"\s+", "Removed"), level())},
        "previous": {"pre_tokenizer": sequence(split(r"\s|\p{P}", "MergedWithPrevious"), level())},
        "next": {"pre_tokenizer": sequence(split(r"\s|\p{P}", "MergedWithNext"), level())},
        "contiguous": {"pre_tokenizer": sequence(split(r"\s|\p{P}", "Contiguous"), level())},
        "inverted": {"pre_tokenizer": sequence(split(r"\p{L}+", "MergedWithPrevious", True), level())},
        "string": {"pre_tokenizer": sequence(split("a.", "Isolated", regex=False), split(" ", "MergedWithNext", regex=False), level())},
        "empty matches": {"pre_tokenizer": sequence(split(r"(?=\p{N})|x*", "Isolated"), level())},
        "digits": {"pre_tokenizer": sequence({"type": "Digits", "individual_digits": True}, {"type": "Punctuation", "behavior": "Isolated"}, level())},
        "runs of digits": {"pre_tokenizer": sequence({"type": "Digits", "individual_digits": False}, {"type": "Punctuation", "behavior": "Contiguous"}, level())},
        "scripts": {"pre_tokenizer": sequence(split(HAN, "Isolated"), level())},
        "signs": {"pre_tokenizer": sequence(split(SIGNS, "Isolated"), level())},
        "whole words": {"model": {"ignore_merges": True}},
        "replace": {"normalizer": {"type": "Sequence", "normalizers": [{"type": "Replace", "pattern": {"String": "aa"}, "content": "b"}, {"type": "NFC"}]}},
    },
    "characters": {
        "as trained": {},
        "no fallback": {"model": {"byte_fallback": False}},
        "each unknown": {"model": {"byte_fallback": False, "fuse_unk": False}},
        "unknown left out": {"model": {"byte_fallback": False, "unk_token": None}},
        "metaspace always": {"normalizer": None, "pre_tokenizer": metaspace("always", True), "decoder": metaspace("always", True)},
        "metaspace first": {"normalizer": None, "pre_tokenizer": metaspace("first", False), "decoder": metaspace("first", False)},
        "metaspace never": {"normalizer": None, "pre_tokenizer": metaspace("never", True), "decoder": metaspace("never", True)},
        "split then metaspace": {"normalizer": None, "pre_tokenizer": sequence(split(r"\p{N}", "Isolated"), metaspace("first", True))},
    },
}


def changed(state, change):
    result = json.loads(json.dumps(state))
    for key, value in change.items():
        if key == "model":
            result["model"].update(value)
        else:
            result[key] = value
    return result


def main():
    random.seed(11)
    expected = []
    for base, tokenizer in (("bytes", bytes_tokenizer()), ("characters", characters_tokenizer())):
        state = json.loads(tokenizer.to_str())
        (HERE / f"{base}.json").write_text(json.dumps(state, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")
        size = tokenizer.get_vocab_size()
        for name, change in VARIANTS[base].items():
            variant = Tokenizer.from_str(json.dumps(changed(state, change)))
            some = texts() if not change else HARD
            encoded = [[text, variant.encode(text, add_special_tokens=False).ids] for text in some]
            decoded = []
            for _ in range(60):
                ids = [random.randrange(size + 3) for _ in range(random.randrange(12))]
                decoded.append([ids, variant.decode(ids), variant.decode(ids, skip_special_tokens=False)])
            expected.append({"base": base, "name": name, "change": change, "encoded": encoded, "decoded": decoded})
    text = json.dumps(expected, separators=(",", ":")).replace('{"base"', '\n{"base"')
    (HERE / "expected.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
