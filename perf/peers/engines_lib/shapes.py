"""The models that engines are compared on, and the work of a request on them."""

SIZES = {
    # 1.76 G parameters, 3.5 GB in 16 bits: larger than any cache, small enough for 8 GB of memory.
    "full": {"hidden": 1024, "layers": 12, "heads": 16, "kv_heads": 4, "head_dim": 64,
             "experts": 16, "top_k": 2, "inner": 2816, "vocab": 32000},
    # For trying the whole command.
    "small": {"hidden": 256, "layers": 4, "heads": 4, "kv_heads": 2, "head_dim": 64,
              "experts": 16, "top_k": 2, "inner": 512, "vocab": 4096},
}  # fmt: skip
CONTEXT = 8192

# name: (prompts, tokens of each, tokens to generate, what it stands for). The first token comes from
# the prefill, so one more is generated than decode steps are wanted.
WORKLOADS = {
    "a": (4, 1024, 1, "prefill of 4 x 1024 tokens"),
    "b": (1, 32, 129, "a prompt of 32 tokens, then 128 more, alone"),
    "c": (16, 64, 65, "16 sequences: 64 tokens, then 64 more"),
    "d": (2, 3000, 33, "2 contexts of 3000 tokens, then 32 more"),
}
STEP_TOKENS = 2048  # of a prefill step, as the engines have it by default
BYTES = 2  # of a weight, a key and a value


def experts_hit(tokens_of_expert, top_k, rows):
    """Expected number of experts of a layer that `rows` tokens need, from how often each is taken."""
    total = sum(tokens_of_expert)
    shares = [min(1.0, top_k * count / total) for count in tokens_of_expert]
    return sum(1 - (1 - share) ** rows for share in shares)


def work_of_step(size, tokens_by_layer, rows, logit_rows, context):
    """(bytes to read, GEMM operations) of one pass.

    `rows` tokens go through the layers and `logit_rows` of them through the head; `context` is the
    number of positions whose keys and values are read. Attention's own arithmetic is left out, as
    are activations: the floor is that of the weights, the cache and the bare GEMMs.
    """
    hidden, dim = size["hidden"], size["head_dim"]
    attention = 2 * hidden * dim * (size["heads"] + size["kv_heads"])
    router = hidden * size["experts"]
    expert = 3 * hidden * size["inner"]
    head = hidden * size["vocab"]
    hit = sum(experts_hit(layer, size["top_k"], rows) for layer in tokens_by_layer)
    cache = context * size["layers"] * 2 * size["kv_heads"] * dim
    num_bytes = BYTES * (size["layers"] * (attention + router) + hit * expert + head + cache)
    per_token = size["layers"] * (attention + router + size["top_k"] * expert)
    return num_bytes, 2 * (rows * per_token + logit_rows * head)


def steps_of(workload):
    """({phase: [(rows, logit_rows, context)]}): the passes of a workload."""
    count, length, new, _ = WORKLOADS[workload]
    prefill, left = [], count * length
    while left > 0:
        rows = min(left, STEP_TOKENS)
        left -= rows
        prefill.append((rows, count if left == 0 else 0, 0))
    decode = [(count, count, count * (length + step)) for step in range(1, new)]
    return {"prefill": prefill, "decode": decode}


def floor_seconds(size, workload, phase, tokens_by_layer, bandwidth, gemm_rate):
    """Sum over the passes of max(bytes / bandwidth, operations / GEMM rate)."""
    total = 0.0
    for rows, logit_rows, context in steps_of(workload)[phase]:
        num_bytes, operations = work_of_step(size, tokens_by_layer, rows, logit_rows, context)
        total += max(num_bytes / bandwidth, operations / gemm_rate)
    return total
