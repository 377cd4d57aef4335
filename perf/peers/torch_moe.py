#!/usr/bin/env python3
"""The layers of perf/layers_bench as a researcher writes them: PyTorch and mpi4py.

    mpirun -n 4 build/cpu/perf/layers_bench --tokens 2048 --routing-only routing.json
    mpirun -n 4 /usr/bin/python3 perf/peers/torch_moe.py --tokens 2048 --routing routing.json

Per layer: attention, router, rows sorted by expert, a blocking all-to-all of the counts, a blocking
Alltoallv of the rows, the rank's experts one after another, a blocking Alltoallv back, and the
weighted sum. Shapes, activation (GELU) and number type (BF16) are those of the same options of
layers_bench, and every token goes to the experts to which layers_bench sends it: they are read from
the file that it writes. One thread per rank. perf/harness runs both in one sweep.
"""

import argparse
import json
import os
import sys
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from mpi4py import MPI  # noqa: E402

HEAD_DIM = 64


def read_routing(comm, args):
    """[layers][tokens, top_k]: experts of this rank's tokens, from what layers_bench wrote."""
    table = None
    try:
        if comm.rank == 0:
            with open(args.routing, encoding="utf-8") as file:
                table = json.load(file)
            told = {"ranks": comm.size, "experts": args.experts, "top_k": args.top_k,
                    "tokens": args.tokens, "layers": args.layers}
            found = {**table, "layers": len(table["expert_of_code"])}
            for key, value in told.items():
                if found[key] != value:
                    raise ValueError(f"it is of {found[key]} {key}, not {value}")
        problem = ""
    except (OSError, ValueError, KeyError, TypeError) as error:
        problem = f"cannot use the routing of {args.routing} ({error}); write it anew with the " \
                  "same options (layers_bench --routing-only)"
    problem = comm.bcast(problem)
    if problem:
        raise SystemExit(f"torch_moe.py: {problem}" if comm.rank == 0 else 1)
    mine = np.array(comm.scatter(table["codes_of_rank"] if comm.rank == 0 else None))
    experts = np.array(comm.bcast(table["expert_of_code"] if comm.rank == 0 else None))
    return [torch.from_numpy(of_code[mine].reshape(args.tokens, args.top_k)) for of_code in experts]


class Layer:
    """One rank's weights of one layer."""

    def __init__(self, args, num_local, num_experts):
        h, inner = args.hidden, args.intermediate

        def matrix(rows, columns):
            return (torch.randn(rows, columns) / columns**0.5).to(torch.bfloat16)

        self.qkv, self.o, self.router = matrix(3 * h, h), matrix(h, h), matrix(num_experts, h)
        self.up = [matrix(inner, h) for _ in range(num_local)]
        self.down = [matrix(h, inner) for _ in range(num_local)]


def attention(x, layer, sequence):
    tokens, hidden = x.shape
    heads = hidden // HEAD_DIM
    qkv = F.linear(F.layer_norm(x, (hidden,)), layer.qkv)
    q, k, v = (part.view(-1, sequence, heads, HEAD_DIM).transpose(1, 2)
               for part in qkv.split(hidden, dim=1))
    scores = torch.matmul(q, k.transpose(2, 3)).float() / HEAD_DIM**0.5
    mask = torch.ones(sequence, sequence, dtype=torch.bool).triu(1)
    weights = torch.softmax(scores.masked_fill(mask, float("-inf")), dim=-1).to(x.dtype)
    context = torch.matmul(weights, v).transpose(1, 2).reshape(tokens, hidden)
    return x + F.linear(context, layer.o)


def all_to_all_rows(comm, rows, send, receive):
    """Blocking; BF16 travels as 16-bit integers."""
    width = rows.shape[1]
    out = rows.contiguous().view(torch.int16).numpy()
    into = np.empty((int(receive.sum()), width), np.int16)
    comm.Alltoallv([out, send * width, MPI.SHORT], [into, receive * width, MPI.SHORT])
    return torch.from_numpy(into).view(torch.bfloat16)


def moe(comm, x, layer, choice, num_experts, local):
    """The layer's output and how many rows this rank's experts computed."""
    tokens, hidden = x.shape
    normed = F.layer_norm(x, (hidden,))
    probabilities = torch.softmax(F.linear(normed, layer.router).float(), dim=-1)
    weights = probabilities.gather(1, choice)
    weights = (weights / weights.sum(1, keepdim=True)).to(x.dtype)
    order = torch.argsort(choice.flatten(), stable=True)
    rows = normed[order // choice.shape[1]]
    counts = torch.bincount(choice.flatten(), minlength=num_experts).numpy()
    counts_in = np.empty((comm.size, local), np.int64)
    comm.Alltoall(counts.reshape(comm.size, local), counts_in)
    send = counts.reshape(comm.size, local).sum(1)
    receive = counts_in.sum(1)
    arrived = all_to_all_rows(comm, rows, send, receive)
    # Rows come rank by rank; experts want theirs together.
    expert = torch.from_numpy(np.concatenate(
        [np.repeat(np.arange(local), counts_in[peer]) for peer in range(comm.size)]))
    result = torch.empty_like(arrived)
    for e in range(local):
        mine = expert == e
        inner = F.gelu(F.linear(arrived[mine], layer.up[e]))
        result[mine] = F.linear(inner, layer.down[e])
    back = all_to_all_rows(comm, result, receive, send)
    unsorted = torch.empty_like(back)
    unsorted[order] = back
    unsorted = unsorted.view(tokens, choice.shape[1], hidden)
    return x + (unsorted * weights.unsqueeze(2)).sum(1), arrived.shape[0]


def check_exchange(comm):
    """Every rank gets the rows meant for it."""
    send = np.array([(comm.rank + peer) % 3 for peer in range(comm.size)])
    receive = np.array([(peer + comm.rank) % 3 for peer in range(comm.size)])
    rows = torch.tensor([[comm.rank * 8 + peer] * 4 for peer in range(comm.size)
                         for _ in range(send[peer])], dtype=torch.bfloat16).reshape(-1, 4)
    got = all_to_all_rows(comm, rows, send, receive)
    wanted = [peer * 8 + comm.rank for peer in range(comm.size) for _ in range(receive[peer])]
    if got[:, 0].tolist() != wanted:
        raise RuntimeError(f"rank {comm.rank} got {got[:, 0].tolist()} instead of {wanted}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("layers", 6), ("hidden", 512), ("intermediate", 512), ("experts", 0),
                          ("top-k", 2), ("tokens", 512), ("sequence", 128), ("repetitions", 5),
                          ("warm-up", 1), ("seed", 1)):
        parser.add_argument("--" + name, type=int, default=default)
    parser.add_argument("--routing", required=True, help="file of layers_bench --routing-only")
    parser.add_argument("--json")
    for name in ("--chunks", "--transport", "--trace", "--shares-cores"):
        parser.add_argument(name, help="of layers_bench; accepted, without effect")
    for name in ("--skew", "--sigma", "--hot-share"):
        parser.add_argument(name, help="accepted; the routing file has it")
    args = parser.parse_args()
    comm = MPI.COMM_WORLD
    torch.set_num_threads(1)
    torch.manual_seed(args.seed + comm.rank)
    experts = args.experts or max(2, comm.size)
    if experts % comm.size != 0:
        raise SystemExit(f"torch_moe.py: {experts} experts do not spread evenly over {comm.size} "
                         "ranks; use a multiple")
    args.experts = experts
    args.sequence = min(args.sequence, args.tokens)
    args.tokens -= args.tokens % args.sequence
    local = experts // comm.size
    check_exchange(comm)
    layers = [Layer(args, local, experts) for _ in range(args.layers)]
    choices = read_routing(comm, args)
    start = torch.randn(args.tokens, args.hidden).to(torch.bfloat16)
    seconds = []
    with torch.no_grad():
        for repetition in range(-args.warm_up, args.repetitions):
            comm.Barrier()
            begin = time.perf_counter()
            x = start
            computed = []
            for layer, choice in zip(layers, choices):
                x = attention(x, layer, args.sequence)
                x, rows = moe(comm, x, layer, choice, experts, local)
                computed.append(rows)
            spent = comm.allreduce(time.perf_counter() - begin, op=MPI.MAX)
            if not bool(torch.isfinite(x.float()).all()):
                raise RuntimeError("the activations are not finite")
            if repetition >= 0:
                seconds.append(spent)
    rows_of_rank = comm.gather(computed)
    if comm.rank == 0:
        print(f"{comm.size} ranks, {args.skew}: {np.median(seconds) * 1e3:.2f} ms a step")
        if args.json:
            with open(args.json, "w", encoding="utf-8") as file:
                json.dump({"format": "atoll-peer", "torch": torch.__version__, "ranks": comm.size,
                           "config": vars(args), "seconds": {"step": seconds},
                           "expert_rows_of_layer": list(zip(*rows_of_rank))}, file)


if __name__ == "__main__":
    try:
        main()
    except Exception as error:  # one rank's failure must not leave the others waiting
        print(f"torch_moe.py: {error}", file=sys.stderr, flush=True)
        MPI.COMM_WORLD.Abort(1)
