#!/usr/bin/env python3
"""Compares Atoll with Hugging Face's own implementation of the same weights.

Needs PyTorch and transformers (5 or newer); nothing else of Atoll does:

    python3 -m venv /tmp/peers && /tmp/peers/bin/pip install torch transformers safetensors numpy

Then, after `cmake --preset cpu && cmake --build --preset cpu`, from the root of the repository:

    /tmp/peers/bin/python perf/peers/compare_hf.py folder tests/data/sample-model \\
        --texts tests/data/heldout.jsonl --generate 48
    /tmp/peers/bin/python perf/peers/compare_hf.py variants

`folder` imports one Hugging Face folder, scores the same tokens with both programs and prints the
differences of their log-probabilities. `variants` does so for many small random models that
transformers itself saves, and checks that models which Atoll does not support are refused. Exit
code 1 if greedy texts differ, if an import does not do what was expected, or if a difference
exceeds --max-difference or --mean-difference (float32 only). In that last case both programs are
first held against the same model in float64, and the one nearer to it is right: the peer takes the
angles of the rotary embedding in float32, which shows at large positions and small rope_theta.
"""

import argparse
import json
import math
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM

ROOT = Path(__file__).resolve().parents[2]
LAUNCHER = ROOT / "jobs/launcher.sh"
LENGTHS = (1, 2, 17, 63, 64, 65, 130, 300)  # around the page size of Atoll's KV cache, and longer


def atoll(args, *words, ranks=0):
    """Runs Atoll, under mpirun if `ranks` is given; returns its completed process."""
    command = [str(args.atoll), *map(str, words)]
    if ranks:
        options = subprocess.run(["bash", str(LAUNCHER), "--shared-machine"], check=True,
                                 capture_output=True, text=True).stdout.split()
        command = ["mpirun", "-n", str(ranks), *options, *command]
    environment = dict(os.environ, OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")
    return subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)


def run_atoll(args, model, requests, work, mode, dtype):
    """Results of Atoll for `requests` (dictionaries), in their order."""
    (work / "requests.jsonl").write_text("".join(json.dumps(r) + "\n" for r in requests))
    done = atoll(
        args, "run", "--model", model, "--input", work / "requests.jsonl", "--output",
        work / "results.jsonl", "--mode", mode, "--dtype", dtype, "--threads", 1, "--progress",
        "none", ranks=args.ranks)  # fmt: skip
    if done.returncode != 0:
        raise RuntimeError(f"atoll run failed: {done.stderr.strip()}")
    results = [json.loads(line) for line in (work / "results.jsonl").read_text().splitlines()]
    for result in results:
        if "error" in result:
            raise RuntimeError(f"atoll refused a request: {result['error']}")
    return results


def load(folder, dtype):
    """The peer's plain implementation: its grouped kernels refuse widths that are odd."""
    return AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=getattr(torch, dtype),
        attn_implementation="eager",
        experts_implementation="eager",
    ).eval()


@torch.inference_mode()
def peer_logprobs(model, tokens):
    """Log-probability of every token but the first."""
    ids = torch.tensor([tokens])
    logprobs = torch.log_softmax(model(ids).logits[0, :-1].float(), dim=-1)
    return logprobs.gather(1, ids[0, 1:, None])[:, 0].tolist()


def rms_norm(x, weight, eps):
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps) * weight


def exact_attention(config, weight, x):
    """Attention of one layer in float64; `weight` gives this layer's tensors by name."""
    heads, kv_heads, count = config.num_attention_heads, config.num_key_value_heads, len(x)
    dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    q, k, v = (x @ weight(f"self_attn.{name}_proj.weight").T for name in "qkv")
    q, k, v = q.view(count, heads, dim), k.view(count, kv_heads, dim), v.view(count, kv_heads, dim)
    if config.model_type != "mixtral":  # OLMoE normalises whole rows, Qwen3 each head
        rows = (lambda t: t.flatten(1)) if config.model_type == "olmoe" else (lambda t: t)
        q = rms_norm(rows(q), weight("self_attn.q_norm.weight"), config.rms_norm_eps).view_as(q)
        k = rms_norm(rows(k), weight("self_attn.k_norm.weight"), config.rms_norm_eps).view_as(k)
    steps = torch.arange(0, dim, 2).double() / dim
    angles = torch.arange(count)[:, None] / config.rope_parameters["rope_theta"] ** steps
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]

    def turned(t):
        a, b = t.chunk(2, -1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

    k, v = (t.repeat_interleave(heads // kv_heads, 1) for t in (turned(k), v))
    scores = torch.einsum("thd,uhd->htu", turned(q), k) / math.sqrt(dim)
    scores = scores.masked_fill(torch.ones(count, count).triu(1).bool(), -math.inf).softmax(-1)
    y = torch.einsum("htu,uhd->thd", scores, v).reshape(count, heads * dim)
    return y @ weight("self_attn.o_proj.weight").T


def exact_feed_forward(config, weight, x):
    silu = torch.nn.functional.silu
    if not weight.has("mlp.gate.weight"):
        up = silu(x @ weight("mlp.gate_proj.weight").T) * (x @ weight("mlp.up_proj.weight").T)
        return up @ weight("mlp.down_proj.weight").T
    shares = (x @ weight("mlp.gate.weight").T).softmax(-1)
    shares, experts = shares.topk(config.num_experts_per_tok, -1)
    if config.model_type == "mixtral" or config.norm_topk_prob:
        shares = shares / shares.sum(-1, keepdim=True)
    gate_up, down = weight("mlp.experts.gate_up_proj"), weight("mlp.experts.down_proj")
    y = torch.zeros_like(x)
    for expert in range(len(down)):
        rows, slot = (experts == expert).nonzero(as_tuple=True)
        gate, up = (x[rows] @ gate_up[expert].T).chunk(2, -1)
        y.index_add_(0, rows, (silu(gate) * up @ down[expert].T) * shares[rows, slot, None])
    return y


@torch.inference_mode()
def exact_logprobs(model, tokens):
    """The same as peer_logprobs in plain float64, written for this comparison."""
    config, state = model.config, model.state_dict()
    x = state["model.embed_tokens.weight"][torch.tensor(tokens)].double()
    for layer in range(config.num_hidden_layers):
        prefix = f"model.layers.{layer}."

        def weight(name, prefix=prefix):
            return state[prefix + name].double()

        weight.has = lambda name, prefix=prefix: prefix + name in state
        y = rms_norm(x, weight("input_layernorm.weight"), config.rms_norm_eps)
        x = x + exact_attention(config, weight, y)
        y = rms_norm(x, weight("post_attention_layernorm.weight"), config.rms_norm_eps)
        x = x + exact_feed_forward(config, weight, y)
    x = rms_norm(x, state["model.norm.weight"].double(), config.rms_norm_eps)
    logprobs = (x @ state["lm_head.weight"].double().T).log_softmax(-1)
    return logprobs[:-1].gather(1, torch.tensor(tokens)[1:, None])[:, 0].tolist()


@torch.inference_mode()
def peer_greedy(model, tokens, count, stop_ids):
    """Up to `count` greedy tokens, why they end, and the smallest lead of a logit chosen."""
    ids, cache, chosen, lead = torch.tensor([tokens]), None, [], math.inf
    for _ in range(count):
        output = model(ids, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        best = output.logits[0, -1].float().topk(2)
        lead = min(lead, (best.values[0] - best.values[1]).item())
        if best.indices[0].item() in stop_ids:
            return chosen, "stop", lead
        chosen.append(best.indices[0].item())
        ids = best.indices[:1][None]
    return chosen, "length", lead


def compare_scores(args, model_file, peer, prompts, work, dtype):
    """Differences of log-probabilities as a dictionary of figures."""
    requests = [{"id": str(i), "tokens": tokens} for i, tokens in enumerate(prompts)]
    results = run_atoll(args, model_file, requests, work, "score", dtype)
    ours, theirs = [], []
    for tokens, result in zip(prompts, results, strict=True):
        ours += result["prompt_logprobs"][1:]
        if len(tokens) > 1:
            theirs += peer_logprobs(peer, tokens)
    figures = distance(ours, theirs)
    figures["tokens"] = len(ours)
    figures["perplexity"] = math.exp(-sum(a or 0 for a in ours) / len(ours))
    figures["peer_perplexity"] = math.exp(-sum(theirs) / len(theirs))
    if dtype == "float32" and exceeds(args, figures):
        exact = [p for tokens in prompts if len(tokens) > 1 for p in exact_logprobs(peer, tokens)]
        figures["exact"], figures["peer_exact"] = distance(ours, exact), distance(theirs, exact)
    return figures


def distance(ours, theirs):
    """Mean and largest difference; what is no number on either side is infinitely far."""
    assert len(ours) == len(theirs) and ours
    differences = [math.inf if a is None else abs(a - b) for a, b in zip(ours, theirs)]
    differences = [math.inf if math.isnan(d) else d for d in differences]
    return {"mean": sum(differences) / len(differences), "max": max(differences)}


def show(name, dtype, peer_dtype, f):
    print(
        f"{name:44} atoll {dtype:8} peer {peer_dtype:8} tokens {f['tokens']:5} "
        f"mean {f['mean']:.2e} max {f['max']:.2e} "
        f"perplexity {f['perplexity']:.6g} peer {f['peer_perplexity']:.6g}",
        flush=True,
    )
    for key, who in (("exact", "atoll"), ("peer_exact", "peer")):
        if key in f:
            mean, largest = f[key]["mean"], f[key]["max"]
            print(f"{'':44} {who} against float64: mean {mean:.2e} max {largest:.2e}")


def exceeds(args, figures):
    return not (figures["max"] <= args.max_difference and figures["mean"] <= args.mean_difference)


def is_wrong(args, figures):
    """Too far from the peer, and farther from float64 than the peer is."""
    return exceeds(args, figures) and any(
        not figures["exact"][key] <= figures["peer_exact"][key] for key in ("mean", "max")
    )


def random_prompts(vocab, lengths, seed):
    generator = random.Random(seed)
    return [[generator.randrange(vocab) for _ in range(length)] for length in lengths]


def command_folder(args, work):
    done = atoll(args, "import", args.folder, "--output", work / "model.h5")
    if done.returncode != 0:
        sys.exit(f"import failed: {done.stderr.strip()}")
    peers = {"float32": load(args.folder, "float32"), "bfloat16": load(args.folder, "bfloat16")}
    vocab = peers["float32"].config.vocab_size
    if args.texts:
        requests = [json.loads(line) for line in args.texts.read_text().splitlines()]
        prompts = [r.get("tokens") or list(r["prompt"].encode()) for r in requests]
    else:
        prompts = random_prompts(vocab, LENGTHS, seed=1)
    failures = 0
    for dtype, peer_dtype in [
        ("float32", "float32"),
        ("bfloat16", "float32"),
        ("bfloat16", "bfloat16"),
        ("float16", "float32"),
    ]:
        peer = peers[peer_dtype]
        figures = compare_scores(args, work / "model.h5", peer, prompts, work, dtype)
        show(args.folder.name, dtype, peer_dtype, figures)
        failures += dtype == "float32" and is_wrong(args, figures)
    # How far the peer's own BF16 is from its own float32, for scale.
    pairs = [
        abs(a - b)
        for tokens in prompts
        if len(tokens) > 1
        for a, b in zip(*(peer_logprobs(peer, tokens) for peer in peers.values()))
    ]
    mean = sum(pairs) / len(pairs)
    print(f"peer's bfloat16 against its float32: mean {mean:.2e} max {max(pairs):.2e}")
    if args.generate:
        failures += compare_generation(args, peers["float32"], prompts, work)
    return failures


def compare_generation(args, peer, prompts, work):
    """Greedy tokens in float32 of both programs; returns how many prompts differ."""
    prompts = [tokens[:40] for tokens in prompts]
    requests = [
        {"id": str(i), "tokens": tokens, "max_tokens": args.generate}
        for i, tokens in enumerate(prompts)
    ]
    results = run_atoll(args, work / "model.h5", requests, work, "generate", "float32")
    stop = peer.generation_config.eos_token_id
    stop_ids = set(stop if isinstance(stop, list) else [] if stop is None else [stop])
    different = 0
    least = math.inf
    for tokens, result in zip(prompts, results, strict=True):
        expected, reason, lead = peer_greedy(peer, tokens, args.generate, stop_ids)
        least = min(least, lead)
        if result["tokens"] != expected or result["finish_reason"] != reason:
            different += 1
            print(f"greedy texts differ (smallest lead {lead:.2e}) after prompt {tokens}")
            print(f"  atoll {result['tokens']}\n  peer  {expected}")
    print(
        f"greedy, float32: {len(prompts) - different} of {len(prompts)} prompts have the same "
        f"{args.generate} tokens (smallest lead of a chosen logit {least:.2e})"
    )
    return different


# --- small random models of every supported shape

BASE = {
    "vocab_size": 256,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 4096,
    "initializer_range": 0.2,
    "eos_token_id": 0,
    "pad_token_id": None,
}
FAMILIES = {
    "Qwen3Moe": {"num_experts": 6, "moe_intermediate_size": 32, "intermediate_size": 96},
    "Mixtral": {"num_local_experts": 6, "intermediate_size": 96},
    "Olmoe": {"num_experts": 6, "intermediate_size": 96},
}
ROPE_1E6 = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}
ROPE_100 = {"rope_parameters": {"rope_type": "default", "rope_theta": 100.0}}
STRETCHED = {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}}
COMMON = [
    ("gqa", {}),
    ("mha", {"num_key_value_heads": 4}),
    ("one kv head", {"num_key_value_heads": 1}),
    ("12 heads over 3", {"hidden_size": 96, "num_attention_heads": 12, "num_key_value_heads": 3}),
    ("top-1", {"num_experts_per_tok": 1}),
    ("top-3", {"num_experts_per_tok": 3}),
    ("top-4", {"num_experts_per_tok": 4}),
    ("top-all", {"num_experts_per_tok": 6}),
    ("tied", {"tie_word_embeddings": True}),
    ("theta 1e6", ROPE_1E6),
    ("theta 100", ROPE_100),
    ("eps 1e-3", {"rms_norm_eps": 1e-3}),
    ("eps 1e-12", {"rms_norm_eps": 1e-12}),
    ("vocab 17", {"vocab_size": 17}),
    ("vocab 5003", {"vocab_size": 5003}),
    ("intermediate 33", {"moe_intermediate_size": 33, "intermediate_size": 33}),
    ("intermediate 1", {"moe_intermediate_size": 1, "intermediate_size": 1}),
    ("hidden 36, head 6", {"hidden_size": 36, "num_attention_heads": 6}),
    ("bfloat16", {"dtype": "bfloat16"}),
    ("float16", {"dtype": "float16"}),
    ("scale 0.02", {"initializer_range": 0.02}),
    ("scale 0.5", {"initializer_range": 0.5}),
    ("12 layers", {"num_hidden_layers": 12}),
    ("sharded", {"save": {"max_shard_size": "60KB"}}),
    ("sharded, tied, bfloat16", {"tie_word_embeddings": True, "dtype": "bfloat16",
                                 "save": {"max_shard_size": "60KB"}}),
    ("no eos", {"eos_token_id": None}),
    ("eos list", {"eos_token_id": [3, 5]}),
    ("old keys", {"old": True}),
    ("old keys, bfloat16, theta 1e6", {"old": True, "dtype": "bfloat16", **ROPE_1E6}),
    ("2500 tokens", {"lengths": [2500, 3]}),
    ("refuse rope scaling", {"refuse": "linear", **STRETCHED}),
    ("refuse gelu", {"refuse": "hidden_act", "hidden_act": "gelu"}),
]  # fmt: skip
SPECIAL = {
    "Qwen3Moe": [
        ("norm_topk_prob", {"norm_topk_prob": True}),
        ("norm_topk_prob, top-4", {"norm_topk_prob": True, "num_experts_per_tok": 4}),
        ("head_dim 16", {"head_dim": 16}),
        ("head_dim 40", {"head_dim": 40}),
        ("head_dim 6", {"head_dim": 6}),
        ("head_dim 2", {"head_dim": 2}),
        ("hidden 50, 6 heads of 14", {"hidden_size": 50, "num_attention_heads": 6,
                                      "head_dim": 14}),
        ("mlp_only 0", {"mlp_only_layers": [0]}),
        ("mlp_only 2, 0", {"mlp_only_layers": [2, 0]}),
        ("mlp_only all", {"mlp_only_layers": [0, 1, 2]}),
        ("sparse step 2", {"decoder_sparse_step": 2, "num_hidden_layers": 5}),
        ("sparse step 2, mlp_only 1", {"decoder_sparse_step": 2, "mlp_only_layers": [1],
                                       "num_hidden_layers": 5}),
        ("sparse step 3", {"decoder_sparse_step": 3, "num_hidden_layers": 6}),
        ("128 experts, top-8", {"num_experts": 128, "num_experts_per_tok": 8,
                                "norm_topk_prob": True, "moe_intermediate_size": 16}),
        ("one expert", {"num_experts": 1, "num_experts_per_tok": 1, "ranks": 1}),
        ("window named, not used", {"sliding_window": 32, "use_sliding_window": False}),
        ("refuse window", {"refuse": "sliding_window", "sliding_window": 32,
                           "use_sliding_window": True}),
        ("refuse bias", {"refuse": "attention_bias", "attention_bias": True}),
    ],
    "Mixtral": [
        ("head_dim 24", {"head_dim": 24}),
        ("hidden 50, 6 heads of 14", {"hidden_size": 50, "num_attention_heads": 6,
                                      "head_dim": 14}),
        ("window as long as the context", {"sliding_window": 4096}),
        ("refuse window", {"refuse": "sliding_window", "sliding_window": 32}),
    ],
    "Olmoe": [
        ("norm_topk_prob", {"norm_topk_prob": True}),
        ("norm_topk_prob, top-4", {"norm_topk_prob": True, "num_experts_per_tok": 4}),
        ("64 experts, top-8", {"num_experts": 64, "num_experts_per_tok": 8,
                               "intermediate_size": 16}),
        ("refuse clip_qkv", {"refuse": "clip_qkv", "clip_qkv": 8.0}),
        ("refuse bias", {"refuse": "attention_bias", "attention_bias": True}),
    ],
}  # fmt: skip


def make_folder(family, changes, folder, seed):
    """Saves a random model; every norm and router is random too, so that a mistake shows."""
    changes = dict(changes)
    save = changes.pop("save", {})
    dtype = changes.pop("dtype", "float32")
    is_old = changes.pop("old", False)
    settings = {**BASE, **FAMILIES[family], **changes}
    if family != "Qwen3Moe":
        settings.pop("moe_intermediate_size", None)
    if family == "Mixtral" and "num_experts" in settings:
        settings["num_local_experts"] = settings.pop("num_experts")
    torch.manual_seed(seed)
    config = getattr(transformers, family + "Config")(**settings)
    model = getattr(transformers, family + "ForCausalLM")(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
            else:
                parameter.normal_(0.0, settings["initializer_range"])
    model.to(getattr(torch, dtype)).save_pretrained(folder, **save)
    if is_old:
        rewrite_with_old_keys(folder / "config.json")


def rewrite_with_old_keys(path):
    """The keys of transformers 4: torch_dtype, and rope_theta at the top."""
    config = json.loads(path.read_text())
    if "rope_parameters" in config:
        config["rope_theta"] = config.pop("rope_parameters")["rope_theta"]
        config["rope_scaling"] = None
    if "dtype" in config:
        config["torch_dtype"] = config.pop("dtype")
    config["transformers_version"] = "4.51.0"
    path.write_text(json.dumps(config, indent=2))


def check_variant(args, name, family, changes, work, seed):
    """One line of output; returns whether something is wrong."""
    changes = dict(changes)
    refusal = changes.pop("refuse", None)
    lengths = changes.pop("lengths", LENGTHS)
    args = argparse.Namespace(**{**vars(args), "ranks": changes.pop("ranks", args.ranks)})
    folder = work / "hf"
    make_folder(family, changes, folder, seed)
    done = atoll(args, "import", folder, "--output", work / "model.h5")
    if refusal is not None:
        refused = done.returncode == 1 and refusal in done.stderr
        print(f"{name:44} {'refused' if refused else 'NOT REFUSED'}: {done.stderr.strip()}")
        return not refused
    if done.returncode != 0:
        print(f"{name:44} IMPORT FAILED: {done.stderr.strip()}")
        return True
    peer = load(folder, "float32")
    prompts = random_prompts(peer.config.vocab_size, lengths, seed)
    figures = compare_scores(args, work / "model.h5", peer, prompts, work, "float32")
    show(name, "float32", "float32", figures)
    return is_wrong(args, figures)


def command_variants(args, work):
    failed = []
    count = 0
    for family in FAMILIES:
        for number, (variant, changes) in enumerate(COMMON + SPECIAL[family]):
            name = f"{family}: {variant}"
            if args.only not in name:
                continue
            count += 1
            with tempfile.TemporaryDirectory(dir=work) as place:
                try:
                    wrong = check_variant(args, name, family, changes, Path(place), number)
                except RuntimeError as error:
                    print(f"{name:44} FAILED: {error}")
                    wrong = True
            if wrong:
                failed.append(name)
    print(f"{count - len(failed)} of {count} variants as expected", *failed, sep="\n  ")
    return len(failed)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--atoll", type=Path, default=ROOT / "build/cpu/app/atoll")
    parser.add_argument("--ranks", type=int, default=1, help="MPI ranks for Atoll")
    parser.add_argument("--threads", type=int, default=1, help="threads for the peer")
    parser.add_argument("--max-difference", type=float, default=1e-4)
    parser.add_argument("--mean-difference", type=float, default=1e-5)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("folder", help="compare the model in one Hugging Face folder")
    one.add_argument("folder", type=Path)
    one.add_argument("--texts", type=Path, help="requests (JSONL); otherwise random tokens")
    one.add_argument("--generate", type=int, default=0, help="greedy tokens to compare")
    many = commands.add_parser("variants", help="compare many small random models")
    many.add_argument("--only", default="", help="only variants with this text in their name")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as place:
        run = command_folder if args.command == "folder" else command_variants
        return 1 if run(args, Path(place)) else 0


if __name__ == "__main__":
    sys.exit(main())
