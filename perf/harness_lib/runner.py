"""Starts the programs of a sweep, round by round, on this machine or on virtual clusters."""

import functools
import json
import os
import re
import signal
import subprocess
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

from .results import metrics_of
from .rounds import in_order_of

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = ROOT / "jobs/cluster/cluster"
LAUNCHER = ROOT / "jobs/launcher.sh"


@dataclass
class Run:
    round: int  # -1 warms up
    code: int
    seconds: float
    error: str = ""
    report: dict = field(default_factory=dict)


def last_words(text, count=6):
    """What a program said of its failure, without what mpirun adds."""
    lines = [line for line in text.strip().splitlines() if line.strip()]
    outside, inside = [], False  # mpirun's own words stand between two rules
    for line in lines:
        if re.match(r"-{20,}\s*$", line):
            inside = not inside
        elif not inside:
            outside.append(line)
    lines = outside or lines
    own = list(dict.fromkeys(line for line in lines if re.match(r"\w+(_bench|_moe)?(\.py)?: ", line)
                             and not line.startswith("NOTE")))
    return "\n".join((own or lines)[-count:])


def environment():
    """What all programs run in, peers and cases of one rank included: MPI behaves alike for all.

    Atoll's programs turn UCX's writes over TCP off unless told otherwise; here it is told to all.
    """
    found = dict(os.environ, OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1",
                 OMP_NUM_THREADS="1")
    found.setdefault("UCX_TCP_PUT_ENABLE", "n")
    return found


@functools.cache
def shared_machine_options():
    """mpirun's, for ranks that may outnumber the cores; one script knows them."""
    return subprocess.run(["bash", str(LAUNCHER), "--shared-machine"], check=True,
                          capture_output=True, text=True).stdout.split()


def environment_of_mpi():
    """The variables that UCX and Open MPI read, as every program gets them."""
    return {key: value for key, value in sorted(environment().items())
            if key.startswith(("UCX_", "OMPI_MCA_"))}


def as_layers(case):
    """The case of layers_bench with the place and options of a peer's."""
    return replace(case, program="layers")


class Runner:
    """Runs cases; what it started is gone when the `with` block ends, however it ends."""

    def __init__(self, sweep, build, output, prefix=(), rank_prefix=()):
        self.sweep = sweep
        self.prefix = list(prefix)  # of every command, on this machine
        self.rank_prefix = list(rank_prefix)  # of every rank's program
        self.build = build
        self.output = output
        self.runs = {}  # case id -> [Run]
        self.impossible = {}  # case id -> reason
        self.notes = []
        self.rounds_done = 0
        self.routings = {}  # case id of a peer -> file
        self.clusters = {}  # (nodes, rate, cores) -> name, or "" where it cannot be
        self.reasons = {}

    def __enter__(self):
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._stop)
        return self

    def __exit__(self, *_):
        for name in filter(None, self.clusters.values()):
            subprocess.run([CLUSTER, "--name", name, "down"], check=False,
                           stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    @staticmethod
    def _stop(number, _frame):
        signal.signal(number, signal.SIG_IGN)  # what was measured is being written
        raise SystemExit(128 + number)

    def run(self, cases, first_round=0, after_round=lambda: None):
        """Calls `after_round` after every round, so that a long sweep can keep what it has."""
        possible = []
        for case in cases:
            reason = self.why_not(case)
            if reason:
                self.impossible[case.id] = reason
                print(f"cannot measure {case.id}: {reason}", flush=True)
            else:
                possible.append(case)
        for case in possible:
            self.runs[case.id] = []
        for number in range(-self.sweep.warm_up_rounds, self.sweep.rounds):
            order = in_order_of(first_round + number, possible)
            for place, case in enumerate(order):
                word = "warm-up" if number < 0 else f"round {number + 1} of {self.sweep.rounds}"
                print(f"{word}, {place + 1} of {len(order)}: {case.id}", flush=True)
                outcome = self.run_safely(case, number + first_round if number >= 0 else number)
                self.runs[case.id].append(outcome)
                if outcome.error:
                    print(f"  failed (exit code {outcome.code}): {outcome.error}", flush=True)
            if number >= 0:
                self.rounds_done = number + 1
                after_round()

    def why_not(self, case):
        """A reason for which this machine cannot run the case, or an empty text."""
        cores = len(os.sched_getaffinity(0))
        if not self.sweep.launcher:
            if case.ranks > cores * self.sweep.ranks_per_core:
                return (f"{case.ranks} ranks on {cores} cores would measure the waiting for cores; "
                        f"up to {self.sweep.ranks_per_core:g} per core are run (ranks_per_core)")
            if case.ranks > cores and case.nodes == 1:
                self.note(f"{case.ranks} ranks share {cores} cores: their times contain waiting "
                          "for a core")
            if case.nodes > 1:
                self.cluster_of(case)
                if not self.clusters[self.cluster_key(case)]:
                    return self.reasons[self.cluster_key(case)]
                if case.cores == 0 and case.ranks > cores:
                    self.note(f"the {case.nodes} hosts of a virtual cluster share {cores} cores: "
                              "arithmetic, MPI and the kernel's packets of all hosts compete")
        if case.options.get("skew") == "hot-node" and case.nodes == 1 and not self.sweep.launcher:
            return "a hot node needs at least two nodes"
        needed = [case] + ([as_layers(case)] if case.program == "torch" else [])
        for program in map(self.program, needed):
            if not program.exists():
                return f"{program} is not there; build it (cmake --build)"
        if case.program == "torch":
            tried = subprocess.run([self.peer_python(), "-c", "import torch, mpi4py"], check=False,
                                   capture_output=True, text=True)
            if tried.returncode != 0:
                return "PyTorch or mpi4py is not installed (perf/peers/install.sh)"
        return ""

    def note(self, text):
        if text not in self.notes:
            self.notes.append(text)
            print(text, flush=True)

    @staticmethod
    def cluster_key(case):
        return (case.nodes, case.rate, case.cores)

    def cluster_of(self, case):
        key = self.cluster_key(case)
        if key in self.clusters:
            return self.clusters[key]
        name = f"perf-{os.getpid()}-{len(self.clusters)}"
        self.clusters[key] = name  # before it is up: taken down also if this is interrupted
        command = [CLUSTER, "--name", name, "up", str(case.nodes), "--rate", case.rate,
                   "--no-slurm"]
        if case.cores:
            command += ["--cores", str(case.cores)]
        try:
            done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
        except (OSError, subprocess.TimeoutExpired) as error:
            done = subprocess.CompletedProcess(command, 1, "", str(error))
        if done.returncode != 0:
            self.clusters[key] = ""
            self.reasons[key] = f"no virtual cluster here: {last_words(done.stderr, 2)}"
        return self.clusters[key]

    def program(self, case):
        if case.program == "torch":
            return ROOT / "perf/peers/torch_moe.py"
        return self.build / "perf" / f"{case.program}_bench"

    @staticmethod
    def peer_python():
        return os.environ.get("ATOLL_PEER_PYTHON", "/usr/bin/python3")

    def command(self, case, report, trace):
        words = [str(self.program(case))]
        if case.program == "torch":
            words = [self.peer_python(), *words]
        if case.program in ("layers", "torch"):
            words += ["--json", str(report)]
            if case.program == "torch":
                words += ["--routing", str(self.routings[case.id])]
            if trace:
                words += ["--trace", str(trace)]
        else:
            words += [f"--benchmark_out={report}", "--benchmark_out_format=json"]
        return self.started(case, words)

    def started(self, case, words):
        """The whole command of a case: what starts ranks, the program's `words`, its options."""
        words = list(words)
        for key, value in case.options.items():
            # Google Benchmark's own options have underscores.
            option = "--" + (key if key.startswith("benchmark_") else key.replace("_", "-"))
            if value is False:
                continue
            if value is True:
                words.append(option)
            elif case.program in ("layers", "torch"):
                words += [option, str(value)]
            else:
                words.append(f"{option}={value}")
        return self.prefix + self.launcher(case) + self.rank_prefix + words

    def launcher(self, case):
        mpi = [word for key, value in case.mpi.items() for word in ("--mca", key, str(value))]
        if self.sweep.launcher:
            numbers = {"ranks": case.ranks, "nodes": case.nodes,
                       "ranks_per_node": case.ranks // case.nodes}
            return [word.format(**numbers) for word in self.sweep.launcher]
        if case.nodes > 1:
            return [str(CLUSTER), "--name", self.cluster_of(case), "run", "-n", str(case.ranks),
                    "--ranks-per-node", str(case.ranks // case.nodes), *mpi, "--"]
        return ["mpirun", "-n", str(case.ranks), *shared_machine_options(), *mpi]

    def run_safely(self, case, number):
        """An error nobody thought of is one failed run, not the end of the sweep."""
        try:
            outcome = self.run_once(case, number)
            if not outcome.error:
                metrics_of(outcome.report, case.program)  # a report without the keys that count
            return outcome
        except Exception as error:  # pylint: disable=broad-except
            return Run(number, -1, 0.0, f"unexpected {type(error).__name__}: {error}")

    def run_once(self, case, number):
        """One run; before a peer's first one layers_bench writes the routing that it follows."""
        safe = "".join(c if c.isalnum() else "-" for c in case.id)
        if case.program == "torch" and case.id not in self.routings:
            file = self.output / f"routing-{safe}.json"
            layers = as_layers(case)
            code, said, seconds = self.execute(self.started(
                layers, [str(self.program(layers)), "--routing-only", str(file)]))
            if code != 0:
                return Run(number, code, seconds, f"no routing for the peer: {said}")
            self.routings[case.id] = file
        report = self.output / f"run-{safe}.json"
        report.unlink(missing_ok=True)
        trace = None
        if case.program == "layers":
            trace = self.output / f"trace-{safe}.json"
        code, said, seconds = self.execute(self.command(case, report, trace))
        if code != 0:
            return Run(number, code, seconds, said)
        try:
            content = json.loads(report.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            return Run(number, 0, seconds, f"no usable report ({error})")
        report.unlink()
        return Run(number, 0, seconds, "", content)

    def execute(self, command):
        """(exit code, what it said of its failure, seconds); ended when it takes too long."""
        begin = time.monotonic()
        try:
            process = subprocess.Popen(command, text=True, stdout=subprocess.PIPE,
                                       stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
                                       env=environment())
            try:
                _, said = process.communicate(timeout=self.sweep.timeout_s)
            except BaseException:  # also when this program is stopped
                process.terminate()  # mpirun ends its ranks on this, not on being killed
                try:
                    process.communicate(timeout=10)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.communicate()
                raise
        except subprocess.TimeoutExpired:
            return (124, f"did not end within {self.sweep.timeout_s:g} s",
                    time.monotonic() - begin)
        except OSError as error:
            return 127, str(error), time.monotonic() - begin
        return (process.returncode, last_words(said) or "it said nothing",
                time.monotonic() - begin)
