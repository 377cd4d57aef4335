"""Runs on hosts of the virtual cluster whose links have a stated rate."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def command(*words):
    """What a command prints; the measurement ends with its output where it fails."""
    done = subprocess.run([str(w) for w in words], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, words))}\nended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


class Ranks:
    """Of one host, over shared memory."""

    def __init__(self, ranks):
        self.ranks = ranks
        self.launcher = ["mpirun", "--allow-run-as-root", "--oversubscribe", "--bind-to", "none"]

    @contextlib.contextmanager
    def up(self, _):
        yield

    def start(self, *words):
        """What all ranks say, ended with them."""
        return command(*self.launcher, "-n", self.ranks, *words)

    def run(self, folder, program, *options):
        """Runs `program` with options of `atoll run`: what it prints, its report, its results."""
        for left in folder.glob("results.jsonl*"):  # of a run that was interrupted
            left.unlink()
        said = self.start(*program, "--model", folder / "model.h5", "--output", folder / "results.jsonl",
                          "--report", folder / "report.json", "--threads", 1, "--progress", "none", *options)
        report = json.loads((folder / "report.json").read_text())
        return said, report, (folder / "results.jsonl").read_bytes()


class ShapedHosts(Ranks):
    def __init__(self, name, hosts, ranks_per_host):
        if os.geteuid() != 0:
            sys.exit("the virtual cluster needs root")
        super().__init__(hosts * ranks_per_host)
        self.hosts = hosts
        self.program = [ROOT / "jobs/cluster/cluster", "--name", name]
        self.launcher = [*self.program, "run"]

    @contextlib.contextmanager
    def up(self, rate):
        command(*self.program, "up", self.hosts, "--rate", rate, "--no-slurm")
        try:
            yield
        finally:
            command(*self.program, "down")

    def shape(self, host, rate):
        """Another rate for the link of one host, in both directions."""
        words = ["root", "tbf", "rate", rate, "burst", "72k", "latency", "50ms"]
        command(*self.program, "on", f"h{host}", "tc", "qdisc", "change", "dev", "eth0", *words)
        command(*self.program, "on", "head", "tc", "qdisc", "change", "dev", f"h{host}", *words)


def mixtral(layers, hidden, inner, heads, experts, top_k, vocab):
    """The description of a model without dense layers, whose heads share no keys and values."""
    return {
        "model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "vocab_size": vocab,
        "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": heads, "head_dim": hidden // heads,
        "num_local_experts": experts, "num_experts_per_tok": top_k, "hidden_act": "silu",
        "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "max_position_embeddings": 4096,
        "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    }


def make_model(folder, config):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    command(ROOT / "build/cpu/app/atoll", "init", "--config", folder / "config.json",
            "--output", folder / "model.h5")


def make_requests(file, sequences, prompt, new, vocab):
    file.write_text(command("python3", ROOT / "jobs/make-requests.py", "--sequences", sequences,
                            "--prompt-tokens", prompt, "--max-tokens", new, "--vocab", vocab))
