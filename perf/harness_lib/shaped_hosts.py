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


class ShapedHosts:
    def __init__(self, name, hosts, ranks_per_host):
        if os.geteuid() != 0:
            sys.exit("the virtual cluster needs root")
        self.hosts = hosts
        self.ranks = hosts * ranks_per_host
        self.program = [ROOT / "jobs/cluster/cluster", "--name", name]

    @contextlib.contextmanager
    def up(self, rate):
        command(*self.program, "up", self.hosts, "--rate", rate, "--no-slurm")
        try:
            yield
        finally:
            command(*self.program, "down")

    def run(self, folder, program, *options):
        """Runs `program` with options of `atoll run`: what it prints, its report, its results."""
        for left in folder.glob("results.jsonl*"):  # of a run that was interrupted
            left.unlink()
        said = command(*self.program, "run", "-n", self.ranks, *program, "--model", folder / "model.h5",
                       "--output", folder / "results.jsonl", "--report", folder / "report.json",
                       "--threads", 1, "--progress", "none", *options)
        report = json.loads((folder / "report.json").read_text())
        return said, report, (folder / "results.jsonl").read_bytes()


def make_model(folder, config):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    command(ROOT / "build/cpu/app/atoll", "init", "--config", folder / "config.json",
            "--output", folder / "model.h5")


def make_requests(file, sequences, prompt, new, vocab):
    file.write_text(command("python3", ROOT / "jobs/make-requests.py", "--sequences", sequences,
                            "--prompt-tokens", prompt, "--max-tokens", new, "--vocab", vocab))
