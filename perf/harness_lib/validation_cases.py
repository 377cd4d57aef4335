"""Cases that `atoll plan` is held to, and the jobs, models and routing that they are made of."""

import random
from dataclasses import dataclass

from .folded_routing import fold_routing, write_npy
from .shaped_hosts import mixtral

VOCAB = 256
LAYERS = 4
# name: layers, hidden, inner, heads, experts, experts of a token
MODELS = {"base": (LAYERS, 512, 1024, 8, 16, 2), "fine": (LAYERS, 256, 128, 4, 64, 6)}
FLOPS, BYTES = 8e9, 200e6  # of a paced rank


@dataclass(frozen=True)
class Case:
    kind: str  # a class of cases
    hosts: int
    ranks: int  # of a host
    link: str  # of each host, as tc writes it; memory: one host, shared memory
    phase: str  # prefill, decode, or job: all of it
    size: int  # tokens of a rank's pass; in decode and job: sequences of a rank
    skew: float  # sigma of the experts' log-normal loads
    options: str
    arithmetic: str = "paced"  # or real: as it is, on cores
    model: str = "base"
    trace: str = ""  # a real router's choices in place of skew, folded to the model's experts
    slow_ranks: str = ""  # FIRST-LAST:TIMES: whose arithmetic takes so many times as long
    slow_host: str = ""  # HOST:TIMES: whose link is so much slower

    @property
    def machine(self):
        """Cases with the same one are measured together."""
        return f"{self.hosts}x{self.ranks}-{self.link}{'-real' if self.arithmetic == 'real' else ''}"

    @property
    def num_ranks(self):
        return self.hosts * self.ranks


def prefill(kind, options="--route flat --chunks 4", hosts=2, ranks=4, link="160mbit", tokens=128, skew=0.0, **more):
    return Case(kind, hosts, ranks, link, "prefill", tokens, skew, options, **more)


def decode(kind, sequences, options="--route flat --chunks 1", hosts=2, ranks=4, link="160mbit", skew=0.0, **more):
    return Case(kind, hosts, ranks, link, "decode", sequences, skew, options, **more)


def real(kind, make, *arguments, **more):
    return make(kind, *arguments, arithmetic="real", **more)


MEMORY = {"hosts": 1, "ranks": 2, "link": "memory"}
LINKED = {"hosts": 2, "ranks": 1, "link": "320mbit"}
CASES = {
    "base": prefill("base"),
    "link-80": prefill("links", link="80mbit"),
    "link-320": prefill("links", link="320mbit"),
    "hosts-4": prefill("hosts", hosts=4, ranks=2),
    "tokens-32": prefill("tokens", "--route flat --chunks 2", tokens=32),
    "tokens-256": prefill("tokens", tokens=256),
    "chunks-1": prefill("chunks", "--route flat --chunks 1"),
    "serial": prefill("chunks", "--route flat --chunks 4 --no-overlap"),
    "skewed": prefill("skew", skew=1.0),
    "nodes": prefill("routes", "--route nodes --chunks 4"),
    "nodes-4": prefill("routes", "--route nodes --chunks 2", hosts=4, ranks=2, skew=1.0),
    "tp": prefill("layouts", "--route flat --chunks 2 --tp 4 --tp-output columns"),
    "tp-pp": prefill("layouts", "--layout tp4-pp2 --tp-output rows --route flat"),
    "decode-4": decode("decode", 4),
    "decode-16": decode("decode", 16, link="80mbit", skew=1.0),
    "slow-host": prefill("slow", slow_ranks="4-7:2"),
    "slow-link": prefill("slow", slow_host="2:2"),
    "slow-link-nodes": prefill("slow", "--route nodes --chunks 4", slow_host="2:2"),
    "trace-law": prefill("traces", trace="deepseek-v2-lite_law_prefill.npy"),
    "trace-summary": prefill("traces", "--route nodes --chunks 4", trace="deepseek-v2-lite_summary_prefill.npy"),
    "trace-decode": decode("traces", 8, trace="gpt-oss-20b_32prompts_decode.npy"),
    "fine": prefill("models", model="fine"),
    "fine-decode": decode("models", 8, model="fine", skew=1.0),
    "memory": real("memory", prefill, "--route flat --chunks 1", tokens=256, **MEMORY),
    "memory-chunks": real("memory", prefill, "--route flat --chunks 4", tokens=512, **MEMORY),
    "memory-skewed": real("memory", prefill, "--route flat --chunks 1", tokens=256, skew=1.0, **MEMORY),
    "memory-tp": real("memory", prefill, "--route flat --chunks 1 --tp 2 --tp-output columns", tokens=256, **MEMORY),
    "memory-decode": real("memory", decode, 8, **MEMORY),
    "memory-fine": real("memory", prefill, "--route flat --chunks 1", tokens=256, model="fine", **MEMORY),
    "real": real("real", prefill, "--route flat --chunks 4", tokens=256, **LINKED),
    "real-serial": real("real", prefill, "--route flat --chunks 4 --no-overlap", tokens=256, **LINKED),
    "real-decode": real("real", decode, 16, **LINKED),
    "real-trace": real("real", prefill, "--route flat --chunks 4", tokens=256,
                       trace="deepseek-v2-lite_intent_prefill.npy", **LINKED),
}
# What the host adds to paced cases is taken from this one, which is no case.
CALIBRATION = decode("calibration", 1, link="320mbit")
# Its layouts are ranked; the first three are measured, each as a case of its own.
RANKED = Case("ranked", 2, 4, "160mbit", "job", 4, 0.5, "")


def model_config(case):
    return mixtral(*MODELS[case.model], VOCAB)


def job_of(case):
    """Requests, prompt tokens, new tokens, tokens of a rank's pass, sequences of a rank."""
    if case.phase == "decode":
        new = 40 if case.arithmetic == "real" else 10
        return case.num_ranks * case.size, 4, new, max(32, 4 * case.size), case.size
    if case.phase == "job":
        return case.num_ranks * case.size, 64, 8, 128, case.size
    passes = 12 if case.arithmetic == "real" else 4
    return case.num_ranks * passes, case.size, 1, case.size, passes


def write_routing(path, case, traces):
    """What tokens choose, as --replay-routing and --routing read it; False: there is no such trace here."""
    sequences, prompt, new, _, _ = job_of(case)
    tokens = sequences * (prompt + new - 1)
    layers, _, _, _, experts, top_k = MODELS[case.model]
    if case.trace:
        if traces is None or not (traces / case.trace).exists():
            return False
        fold_routing([traces / case.trace], path, tokens, layers, experts, top_k)
        return True
    rng = random.Random(11)
    weights = [[rng.lognormvariate(0, case.skew) for _ in range(experts)] for _ in range(layers)]
    rows = []
    for _ in range(tokens):
        for layer in range(layers):
            chosen = []
            while len(chosen) < top_k:
                expert = rng.choices(range(experts), weights[layer])[0]
                if expert not in chosen:
                    chosen.append(expert)
            rows += chosen
    write_npy(path, (tokens, layers, top_k), rows)
    return True
