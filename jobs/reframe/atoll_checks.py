"""Atoll for ReFrame (https://reframe-hpc.readthedocs.io), as centres run it after maintenance.

    reframe -C SITE-CONFIGURATION -c jobs/reframe -r -S atoll=$ATOLL [-S atoll_nodes=4]

The program is `atoll` of the programming environment (a module), or -S atoll=PATH. Results are compared with
those of one rank, byte for byte: whatever libraries, links and layouts do, they must not change them. Give each
system its own `reference` for the rates; without one they are logged only.
"""

import os

import reframe as rfm
import reframe.utility.sanity as sn
from reframe.core.builtins import (performance_function, run_after, run_before, sanity_function,
                                   variable)

SHARE = os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir)


class AtollTest(rfm.RunOnlyRegressionTest):
    """What all of them share: who runs, on how many ranks."""

    valid_systems = ["*"]
    valid_prog_environs = ["*"]
    sourcesdir = None
    time_limit = "10m"
    atoll = variable(str, value="atoll")
    atoll_nodes = variable(int, value=2)
    ranks_per_node = variable(int, value=2)

    @run_after("init")
    def take_ranks(self):
        self.executable = self.atoll
        self.num_tasks = self.atoll_nodes * self.ranks_per_node
        self.num_tasks_per_node = self.ranks_per_node


@rfm.simple_test
class AtollCheck(AtollTest):
    """The machine by itself: `atoll check` names what is wrong with it."""

    executable_opts = ["check", "--folder", ".", "--report", "check.json"]

    @sanity_function
    def names_no_problem(self):
        return sn.and_(sn.assert_found(r"^no problem found$", self.stdout),
                       sn.assert_not_found(r"^problem: ", self.stdout))

    @performance_function("MB/s")
    def slowest_pair_of_nodes(self):
        return sn.extractsingle(r"pairs of nodes: (\S+) to", self.stdout, 1, float)


@rfm.simple_test
class AtollRun(AtollTest):
    """A model of random weights generates: the same bytes on all ranks together as on one."""

    executable_opts = ["run", "--model", "model.h5", "--input", "requests.jsonl", "--output",
                       "results.jsonl", "--backend", "cpu", "--report", "report.json",
                       "--progress", "none"]

    @run_before("run")
    def prepare(self):
        requests = os.path.abspath(os.path.join(SHARE, "make-requests.py"))
        self.prerun_cmds = [
            f"{self.atoll} init --preset moe-4l-tiny --output model.h5",
            f"python3 {requests} --sequences 32 --prompt-tokens 24 --max-tokens 16 --vocab 256 "
            "> requests.jsonl",
        ]
        launcher = self.job.launcher  # one rank needs it too: MPI may not start without
        self.postrun_cmds = [
            " ".join([launcher.command(self.job)[0], *launcher.options, "-n 1", self.atoll,
                      "run --model model.h5 --input requests.jsonl --output one.jsonl",
                      "--backend cpu --progress none"]),
            "cmp results.jsonl one.jsonl && echo the same bytes as one rank",
        ]

    @sanity_function
    def has_the_bytes_of_one_rank(self):
        return sn.and_(sn.assert_found(r"^the same bytes as one rank$", self.stdout),
                       sn.assert_not_found(r"^atoll: ", self.stderr))

    @performance_function("tokens/s")
    def prefill(self):
        return sn.extractsingle(r"^prefill\s+\d+\s+(\S+)", self.stdout, 1, float)

    @performance_function("tokens/s")
    def decode(self):
        return sn.extractsingle(r"^decode\s+\d+\s+(\S+)", self.stdout, 1, float)
