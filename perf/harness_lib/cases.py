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
    if not isinstance(declared, dict):
        raise BadSweep(f"{path} is not a table of keys")
    known = {"name", "rounds", "warm_up_rounds", "timeout_s", "base", "grid", "launcher",
             "ranks_per_core"}
    unknown = set(declared) - known
    if unknown:
        raise BadSweep(f"{path} has unknown keys {', '.join(sorted(unknown))}; known are "
                       f"{', '.join(sorted(known))}")
    if not declared.get("grid"):
        raise BadSweep(f"{path} declares no [[grid]], so there is nothing to measure")
    check_sweep(declared, path)
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


def check_sweep(declared, path):
    def number(key, least, whole):
        value = declared.get(key, least)
        kinds = int if whole else (int, float)
        if isinstance(value, bool) or not isinstance(value, kinds) or value < least:
            raise BadSweep(f"{path}: {key} = {value!r} is not a {'whole ' * whole}number from "
                           f"{least:g}")

    number("rounds", 1, True)
    number("warm_up_rounds", 0, True)
    number("timeout_s", 0.001, False)
    number("ranks_per_core", 0.001, False)
    if not isinstance(declared.get("name", ""), str):
        raise BadSweep(f"{path}: name = {declared['name']!r} is not a text")
    launcher = declared.get("launcher", [])
    if not isinstance(launcher, list) or not all(isinstance(word, str) for word in launcher):
        raise BadSweep(f"{path}: launcher = {launcher!r} is not a list of words")
    for word in launcher:
        try:
            word.format(ranks=1, nodes=1, ranks_per_node=1)
        except (KeyError, IndexError, ValueError) as error:
            raise BadSweep(f"{path}: launcher has '{word}' ({error}); known are {{ranks}}, "
                           "{nodes}, {ranks_per_node}") from error
    grids = declared["grid"]
    if not isinstance(grids, list) or not all(isinstance(grid, dict) for grid in grids):
        raise BadSweep(f"{path}: grid is not a list of tables; write [[grid]], not [grid]")
    if not isinstance(declared.get("base", {}), dict):
        raise BadSweep(f"{path}: base is not a table; write [base]")


def check(case, path):
    if not isinstance(case.mpi, dict):
        raise BadSweep(f"{path}: mpi = {case.mpi!r} is not a table of MCA parameters")
    if not isinstance(case.rate, str):
        raise BadSweep(f"{path}: rate = {case.rate!r} is not a text, as \"1gbit\"")
    if case.program not in PROGRAMS:
        raise BadSweep(f"{path}: there is no program '{case.program}'; choose from "
                       f"{', '.join(PROGRAMS)}")
    for key in ("nodes", "ranks"):
        value = getattr(case, key)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise BadSweep(f"{path}: {key} = {value!r} is not a number from 1")
    if isinstance(case.cores, bool) or not isinstance(case.cores, int) or case.cores < 0:
        raise BadSweep(f"{path}: cores = {case.cores!r} is not a number from 0")
    if case.ranks % case.nodes != 0:
        raise BadSweep(f"{path}: {case.ranks} ranks do not spread evenly over {case.nodes} nodes")
