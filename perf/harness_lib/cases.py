"""A sweep file and the cases it declares."""

import itertools
import json
from dataclasses import dataclass, field
from pathlib import Path

# What decides where a case runs; everything else is an option of its program.
PLACE_KEYS = ("program", "nodes", "rate", "cores", "ranks", "mpi")
PROGRAMS = ("layers", "kernels", "exchange", "torch")


class BadSweep(Exception):
    """The sweep file cannot be used; the message says why."""


@dataclass
class Case:
    program: str = "layers"
    nodes: int = 1
    rate: str = "1gbit"  # of each host's link, where nodes > 1
    cores: int = 0  # of the machine, per host; 0: all
    ranks: int = 2
    mpi: dict = field(default_factory=dict)  # MCA parameters
    options: dict = field(default_factory=dict)  # of the program

    @property
    def id(self):
        place = f"{self.ranks} ranks"
        if self.nodes > 1:
            place += f" on {self.nodes} hosts, {self.rate}"
        words = [f"{key} {value}" for key, value in sorted(self.options.items())
                 if key in self.shown]
        words += [f"{key} {value}" for key, value in sorted(self.mpi.items())]
        return ", ".join([f"{self.program}: {place}", *words])

    shown: tuple = ()  # options that differ between cases


@dataclass
class Sweep:
    name: str
    rounds: int
    warm_up_rounds: int
    timeout_s: float
    cases: list
    launcher: list
    ranks_per_core: float
    declared: dict


def read_file(path):
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise BadSweep(f"cannot read {path} ({error.strerror}); give a sweep file") from error
    try:
        if str(path).endswith(".json"):
            return json.loads(text)
        import tomllib  # Python 3.11

        return tomllib.loads(text)
    except ImportError as error:
        raise BadSweep(f"{path} is TOML, which needs Python 3.11; use JSON instead") from error
    except ValueError as error:
        raise BadSweep(f"{path} cannot be parsed ({error})") from error


def expand(grid, base):
    """One case for each combination of the lists in `grid`."""
    values = {**base, **grid}
    keys = list(values)
    lists = [value if isinstance(value, list) else [value] for value in values.values()]
    for combination in itertools.product(*lists):
        chosen = dict(zip(keys, combination))
        place = {key: chosen.pop(key) for key in PLACE_KEYS if key in chosen}
        yield Case(**place, options=chosen)


def load(path):
    declared = read_file(path)
    known = {"name", "rounds", "warm_up_rounds", "timeout_s", "base", "grid", "launcher",
             "ranks_per_core"}
    unknown = set(declared) - known
    if unknown:
        raise BadSweep(f"{path} has unknown keys {', '.join(sorted(unknown))}; known are "
                       f"{', '.join(sorted(known))}")
    if not declared.get("grid"):
        raise BadSweep(f"{path} declares no [[grid]], so there is nothing to measure")
    cases = []
    for grid in declared["grid"]:
        try:
            cases += expand(grid, declared.get("base", {}))
        except TypeError as error:
            raise BadSweep(f"{path}: {error}") from error
    for case in cases:
        check(case, path)
    by_program = {}
    for case in cases:
        by_program.setdefault(case.program, []).append(case.options)
    for case in cases:
        others = by_program[case.program]
        case.shown = tuple(key for key in case.options
                           if any(o.get(key) != case.options[key] for o in others))
    unique = {case.id: case for case in cases}
    return Sweep(declared.get("name", Path(path).stem), declared.get("rounds", 3),
                 declared.get("warm_up_rounds", 1), declared.get("timeout_s", 120), list(unique.values()),
                 declared.get("launcher", []), declared.get("ranks_per_core", 16), declared)


def check(case, path):
    if case.program not in PROGRAMS:
        raise BadSweep(f"{path}: there is no program '{case.program}'; choose from "
                       f"{', '.join(PROGRAMS)}")
    for key in ("nodes", "ranks"):
        value = getattr(case, key)
        if not isinstance(value, int) or value < 1:
            raise BadSweep(f"{path}: {key} = {value!r} is not a number from 1")
    if case.ranks % case.nodes != 0:
        raise BadSweep(f"{path}: {case.ranks} ranks do not spread evenly over {case.nodes} nodes")
