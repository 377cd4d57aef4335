"""One run of one engine on one workload. All give the same keys (see llama_driver.cpp)."""

import contextlib
import fcntl
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from .shapes import WORKLOADS

PEERS = Path(__file__).resolve().parents[1]
LIMIT_S = 900  # of one run
TICKS = os.sysconf("SC_CLK_TCK")


class Failure(Exception):
    """An engine did not do what it was asked."""


def write_requests(folder, size):
    """Writes the workloads as Atoll (.jsonl) and the other engines (.txt) read them."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (count, length, new, _) in WORKLOADS.items():
        tokens = random.Random(f"workload {name}")
        prompts = [[tokens.randrange(size["vocab"]) for _ in range(length)] for _ in range(count)]
        lines = [json.dumps({"id": str(i), "tokens": prompt, "max_tokens": new})
                 for i, prompt in enumerate(prompts)]  # fmt: skip
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
        lines = [" ".join(map(str, [new, *prompt])) for prompt in prompts]
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")


@contextlib.contextmanager
def locked(path):
    """Holds the lock of a file, if there is one."""
    if path is None:
        yield
        return
    with open(path, "a", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def busy_seconds():
    """Seconds that all cores together have worked since the machine started."""
    words = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    user, nice, system, _, _, interrupts, soft, stolen = map(int, words[:8])
    return (user + nice + system + interrupts + soft + stolen) / TICKS


def children_seconds():
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def call(command, environment=None):
    """Runs a command to its end; its output. With its message, if it fails."""
    whole = dict(os.environ, OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1",
                 **(environment or {}))  # fmt: skip
    command = list(map(str, command))
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, env=whole)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Failure(f"{command[0]}: {error}") from error
    if done.returncode != 0:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        raise Failure(f"{' '.join(command[:3])} ...: exit code {done.returncode}: "
                      + " / ".join(said[-3:]))  # fmt: skip
    return done.stdout


class Engine:
    """`run_once(workload)` runs it; `note` says what the table should say beside its name."""

    peer = True

    def __init__(self, name, setup):
        self.name, self.setup = name, setup

    def missing(self):
        """What has to be installed or built first; None if all is there."""
        return next((f"{path} is missing" for path in self.needs() if not path.exists()), None)

    def needs(self):
        return []

    def note(self, workload):
        return ""

    def own_seconds(self):
        """CPU seconds of the engine's processes so far."""
        return children_seconds()

    def measured(self, workload):
        """`run_once`, with the load of other processes while it ran, in cores."""
        begin, busy, own = time.monotonic(), busy_seconds(), self.own_seconds()
        result = self.run_once(workload)
        wall = time.monotonic() - begin
        others = busy_seconds() - busy - (self.own_seconds() - own)
        return {**result, "foreign_cores": max(0.0, others / wall)}

    def close(self):
        pass


class Atoll(Engine):
    peer = False

    def __init__(self, name, setup, ranks, threads, dtype="auto"):
        super().__init__(name, setup)
        self.ranks, self.threads, self.dtype = ranks, threads, dtype

    def needs(self):
        return [self.setup.atoll]

    def run_once(self, workload):
        with tempfile.TemporaryDirectory() as folder:
            return self.run_in(Path(folder), workload)

    def run_in(self, folder, workload):
        launcher = ["mpirun", "-n", self.ranks, "--bind-to", "none"] if self.ranks > 1 else []
        call([*launcher, sys.executable, PEERS / "engines_lib/peak_memory.py", folder / "peak",
              self.setup.atoll, "run", "--model", self.setup.model / "model.h5",
              "--input", self.setup.requests / f"{workload}.jsonl",
              "--output", folder / "results.jsonl", "--report", folder / "report.json",
              "--dtype", self.dtype, "--threads", self.threads, "--chunks", 1,
              "--progress", "none"])  # fmt: skip
        report = json.loads((folder / "report.json").read_text())
        results = [json.loads(line)
                   for line in (folder / "results.jsonl").read_text().splitlines()]  # fmt: skip
        for result in results:
            if "error" in result:
                raise Failure(f"{self.name}: a request failed: {result['error']}")
        prefill, decode = (report["phases"][phase] for phase in ("prefill", "decode"))
        return {
            "prefill_s": prefill["wall_s"], "prefill_tokens": prefill["prompt_tokens"],
            "decode_s": decode["wall_s"] if decode else 0.0,
            "decode_tokens": decode["new_tokens"] if decode else 0,
            "load_s": max(rank["load_s"] for rank in report["per_rank"]),
            "peak_bytes": sum(int(path.read_text()) for path in folder.glob("peak.*")),
            "tokens": [result["tokens"] for result in results],
            "logprobs": [result["logprobs"] for result in results],
            "tokens_by_layer": [layer["tokens"] for layer in
                                report["tokens_per_expert"]["by_layer"]],
            "commit": report["build"]["commit"], "isa": report["isa"],
        }  # fmt: skip


class Llama(Engine):
    """llama.cpp or ik_llama.cpp: `program` is the driver built for it, `kind` the GGUF's type."""

    def __init__(self, name, setup, program, kind, repack=False):
        super().__init__(name, setup)
        self.program, self.kind, self.repack = setup.folder / program, kind, repack
        self.without_flash = {}  # workload: what was said with FlashAttention

    def needs(self):
        return [self.program]

    def note(self, workload):
        return "no FlashAttention" if workload in self.without_flash else ""

    def run_once(self, workload):
        try:
            return self.run_with(workload, workload not in self.without_flash)
        except Failure as failure:
            if workload in self.without_flash:
                raise
            result = self.run_with(workload, flash=False)
            self.without_flash[workload] = str(failure)
            return result

    def run_with(self, workload, flash):
        output = call(
            [self.program, "--model", self.setup.model / f"{self.kind}.gguf", "--requests",
             self.setup.requests / f"{workload}.txt", "--threads", self.setup.threads,
             "--flash", "on" if flash else "off", "--repack", "on" if self.repack else "off"],
            {"GGML_NO_BACKTRACE": "1"})  # fmt: skip
        return json.loads(output)


class Vllm(Engine):
    """Loading and compiling take minutes, so one process stays, asleep while others run."""

    def __init__(self, name, setup):
        super().__init__(name, setup)
        self.process = None
        self.python = setup.folder / "vllm/bin/python"
        self.log = setup.output / "vllm.log"

    def needs(self):
        return [self.python]

    def start(self):
        environment = dict(os.environ)
        openmp = self.setup.folder / "vllm/lib/libiomp5.so"  # as vLLM's own documentation wants
        if openmp.exists():
            environment["LD_PRELOAD"] = str(openmp)
        command = [self.python, PEERS / "vllm_worker.py", "--model", self.setup.model / "hf",
                   "--threads", self.setup.threads]  # fmt: skip
        self.process = subprocess.Popen(
            list(map(str, command)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            stderr=open(self.log, "w", encoding="utf-8"), env=environment)  # fmt: skip

    def own_seconds(self):
        if self.process is None:
            return 0.0
        words = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return sum(map(int, words[11:15])) / TICKS

    def run_once(self, workload):
        if self.process is None:
            self.start()
        self.process.stdin.write(f"{self.setup.requests / workload}.txt\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise Failure(f"vLLM ended with exit code {self.process.wait()}; see {self.log}")
        return json.loads(line)

    def close(self):
        if self.process is not None:
            self.process.stdin.close()
            self.process.wait()


def engines(setup):
    """All engines by name, in the order of the table."""
    threads = setup.threads
    made = [
        Atoll("atoll-ranks", setup, threads, 1), Atoll("atoll-threads", setup, 1, threads),
        Llama("llama.cpp-bf16", setup, "llama_driver", "bf16"),
        Llama("llama.cpp-f16", setup, "llama_driver", "f16"),
        Llama("ik-bf16", setup, "ik_driver", "bf16"),
        Llama("ik-f16", setup, "ik_driver", "f16"),
        Llama("ik-bf16-repack", setup, "ik_driver", "bf16", repack=True),
        Llama("ik-f16-repack", setup, "ik_driver", "f16", repack=True),
        Vllm("vllm", setup),
    ]  # fmt: skip
    return {engine.name: engine for engine in made}
