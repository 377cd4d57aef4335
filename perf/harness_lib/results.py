"""From runs to one JSON of medians and spread, and its Markdown summary."""

import datetime
import json
import os
import platform
import subprocess
from math import isfinite
from pathlib import Path
from statistics import median

from .stats import LEAST_ROUNDS, interval, summary

ROOT = Path(__file__).resolve().parents[2]
TO_SECONDS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0}
AIMS = {"uniform": 0.9, "log-normal": 0.8}  # of the overlap efficiency
LINK_AIM = 0.8
# Below this ratio of the shorter half to the longer one, overlap efficiency is mostly noise.
COMPARABLE = 0.3
# Beyond these a measurement contradicts itself; the margins are what drifts between two steps.
LEAST_SERIAL = 0.95  # of compute + communication
MOST_LINK_USE = 1.05
CORES_LIMIT = 0.95  # share of the cores that is busy, above which they limit the overlap
# The kernel counts cores' time in ticks of 10 ms: of shorter steps the busy share says nothing.
LEAST_BUSY_STEP = 0.1


def one_line(command):
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT)
    except OSError:
        return ""
    return done.stdout.strip()


def machine():
    model = ""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    except OSError:
        pass
    return {"cpu": model, "cores": len(os.sched_getaffinity(0)), "kernel": platform.release(),
            "host": platform.node()}


def metrics_of(report, program):
    """{metric: [values]} of one run. Names ending in `_s` are times: less is better."""
    if program == "torch":
        return {f"{key}_s": values for key, values in report["seconds"].items()}
    if program != "layers":
        metrics = {}
        for entry in report["benchmarks"]:
            if entry.get("run_type") == "aggregate" or entry.get("error_occurred"):
                continue
            name = entry["name"].split("/repeats:")[0].split("/iterations:")[0]
            name = name.split("/manual_time")[0]
            seconds = entry["real_time"] * TO_SECONDS[entry["time_unit"]]
            metrics.setdefault(f"{name} time_s", []).append(seconds)
            for key, value in entry.items():
                if key.startswith("value_"):
                    metrics.setdefault(f"{name} {key[6:]}", []).append(value)
        return metrics
    seconds = report["seconds"]
    metrics = {f"{key}_s": values for key, values in seconds.items()}
    tokens = report["config"]["tokens"] * report["ranks"]
    metrics["tokens_per_s"] = [tokens / value for value in seconds["overlapped"]]
    for kind, values in report.get("cores_busy", {}).items():
        metrics[f"cores_busy_{kind}"] = values
    if report["ranks"] > 1:
        metrics["overlap_efficiency"] = report["overlap_efficiency"]["each"]
        stream = report["machine"]["link_bytes_per_s"]
        for kind in ("communication", "overlapped"):
            metrics[f"link_use_{kind}"] = [
                report["busiest_link_bytes"] / value / stream for value in seconds[kind]]
    return metrics


def add_earlier(entry, earlier):
    """Puts the rounds of an earlier result of the same case before this one's."""
    entry["runs"] = earlier["runs"] + entry["runs"]
    for metric, rounds in earlier["rounds"].items():
        entry["rounds"][metric] = rounds + entry["rounds"].get(metric, [])
    for key in ("detail", "trace"):
        if key in earlier:
            entry.setdefault(key, earlier[key])


def doubts(metrics):
    """What cannot be if links carry no more than the stream did: said, since it flatters."""
    found = []
    both = metrics["compute_s"]["median"] + metrics["communication_s"]["median"]
    serial = metrics["serial_s"]["median"]
    if serial < LEAST_SERIAL * both:
        found.append(f"the serial step takes {serial / both:.2f} of compute + communication: "
                     "its messages met faster links than communication alone")
    for kind in ("communication", "overlapped"):
        use = metrics[f"link_use_{kind}"]["median"]
        if use > MOST_LINK_USE:
            found.append(f"link use {use:.2f} ({kind}): the links carried more than a plain stream")
    return found


def collect(sweep, cases, running, environment, earlier=None):
    """The outcome of the sweep; `earlier`, an outcome of the same sweep, is added to.

    `environment`: the variables for MPI that all programs ran with.
    """
    before = {entry["id"]: entry for entry in (earlier or {}).get("cases", [])}
    chosen = {case.id for case in cases}
    outcome = {
        "format": "atoll-perf", "version": 1, "name": sweep.name,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": one_line(["git", "describe", "--always", "--dirty", "--abbrev=12"]),
        "machine": machine(), "rounds": running.rounds_done + (earlier or {}).get("rounds", 0),
        "declared": dict(sweep.declared),
        "notes": list(running.notes), "cases": []}
    if earlier is None or "environment" in earlier.get("declared", {}):
        outcome["declared"]["environment"] = environment  # that of the earlier rounds as well
    for case in cases:
        if case.id in running.impossible and case.id in before:
            outcome["cases"].append(before[case.id])
            outcome["notes"].append(f"not added to: {case.id}: {running.impossible[case.id]}")
            continue
        entry = {**described(case), "status": "ok", "reason": "", "rounds": {}, "metrics": {},
                 "runs": []}
        outcome["cases"].append(entry)
        if case.id in running.impossible:
            entry["status"], entry["reason"] = "not measured", running.impossible[case.id]
            continue
        for run in running.runs.get(case.id, []):
            entry["runs"].append({"round": run.round, "code": run.code, "error": run.error,
                                  "seconds": round(run.seconds, 3)})
            if run.error or run.round < 0:
                continue
            for metric, values in metrics_of(run.report, case.program).items():
                entry["rounds"].setdefault(metric, []).append(values)
            entry["detail"] = run.report
            trace = running.output / (
                "trace-" + "".join(c if c.isalnum() else "-" for c in case.id) + ".json")
            if trace.exists():
                entry["trace"] = trace.name
        if case.id in before:
            add_earlier(entry, before[case.id])
        failed = [run for run in entry["runs"] if run["error"]]
        if failed:
            entry["reason"] = f"{len(failed)} of {len(entry['runs'])} runs: {failed[-1]['error']}"
        if not entry["rounds"]:
            entry["status"] = "failed" if failed else "not measured"
            entry["reason"] = entry["reason"] or "the sweep ended before it was this case's turn"
        elif failed:
            entry["status"] = "partly failed"
        for metric, rounds in entry["rounds"].items():
            entry["metrics"][metric] = summary([v for values in rounds for v in values])
    # What this call was not to measure stays as it was.
    outcome["cases"] += [entry for name, entry in before.items() if name not in chosen]
    for entry in outcome["cases"]:
        metrics = entry["metrics"]
        if entry["program"] != "layers" or "overlap_efficiency" not in metrics:
            continue
        entry["doubts"] = doubts(entry["metrics"])
        halves = [metrics[key]["median"] for key in ("compute_s", "communication_s")]
        metrics["overlap_efficiency"].update(efficiency_of_medians(entry["rounds"]))
        entry["comparable"] = min(halves) / max(halves) >= COMPARABLE
    return outcome


def efficiency_of_medians(rounds):
    """By the definition the medians are put together, not the quotients of single steps.

    From LEAST_ROUNDS rounds on with the 90 % interval of just this figure (`of_medians_low`,
    `of_medians_high`); its steps are drawn whole: what was measured in turn stays together. Of
    fewer rounds with the range of single steps' figures (`of_steps_low`, `of_steps_high`), since
    too few rounds to draw from make an interval that is far too narrow.
    """
    steps = [list(zip(*of_round)) for of_round in zip(
        *(rounds[key] for key in ("compute_s", "communication_s", "overlapped_s")))]

    def efficiency(chosen):
        compute, communication, overlapped = (median(values) for values in zip(*chosen))
        return (compute + communication - overlapped) / min(compute, communication)

    flat = [step for of_round in steps for step in of_round]
    found = efficiency(flat)
    if len(steps) < LEAST_ROUNDS:
        each = [efficiency([step]) for step in flat]
        return {"of_medians": found, "of_steps_low": min(each), "of_steps_high": max(each)}
    low, high = interval(efficiency, steps)
    # With few steps the figure itself can lie beyond what is drawn again.
    return {"of_medians": found, "of_medians_low": min(low, found),
            "of_medians_high": max(high, found)}


def interval_of_medians(entry):
    """(low, high) of the case's overlap efficiency; None where too few rounds were measured."""
    efficiency = entry["metrics"]["overlap_efficiency"]
    if "of_medians_low" not in efficiency:
        return None
    return efficiency["of_medians_low"], efficiency["of_medians_high"]


class BadResults(Exception):
    """The file holds no results; the message says why."""


def read_json(path):
    """An outcome as write_json left it, with everything that the callers rely on."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadResults(f"cannot read {path} ({error})") from error
    if not isinstance(content, dict) or content.get("format") != "atoll-perf":
        raise BadResults(f"{path} is not a result file of perf/harness")

    def need(holder, where, **kinds):
        for key, kind in kinds.items():
            if not isinstance(holder, dict) or not isinstance(holder.get(key), kind):
                raise BadResults(f"{path}: {where} has no {key}, or not of the kind it should be")

    need(content, "the file", machine=dict, cases=list, rounds=int)
    for entry in content["cases"]:
        need(entry, "a case", id=str)
        need(entry, entry["id"], status=str, rounds=dict, metrics=dict, options=dict, runs=list)
        for metric, rounds in entry["rounds"].items():
            lists = isinstance(rounds, list) and rounds and all(
                isinstance(values, list) and values for values in rounds)
            if not lists or not all(is_number(v) for values in rounds for v in values):
                raise BadResults(f"{path}: {entry['id']}: {metric} is not rounds of numbers")
            if is_time(metric) and min(min(values) for values in rounds) <= 0:
                raise BadResults(f"{path}: {entry['id']}: {metric} has times that are not above 0")
    return content


def is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool) and isfinite(value)


def is_time(metric):
    return metric.endswith("_s") and not metric.endswith("per_s")


CASE_KEYS = ("program", "nodes", "ranks", "rate", "cores", "mpi")


def differing(a, b):
    """What two entries of one id differ in, options first: texts like `tokens 64, then 128`."""
    keys = dict.fromkeys([*a["options"], *b["options"]])
    pairs = [(key, a["options"].get(key), b["options"].get(key)) for key in keys]
    pairs += [(key, a[key], b[key]) for key in CASE_KEYS if key in a and key in b]
    return [f"{key} {one}, then {two}" for key, one, two in pairs if one != two]


def listed(environment):
    return ", ".join(f"{key}={value}" for key, value in environment.items()) or "none"


def environment_text(outcome):
    environment = outcome["declared"].get("environment")
    if environment is None:  # an old file, or one that was added to
        return "not recorded of all rounds"
    inside = any(entry["nodes"] > 1 for entry in outcome["cases"])
    return listed(environment) + (
        "; the hosts of a virtual cluster add what jobs/cluster/host.sh sets"
        if inside and not outcome["declared"].get("launcher") else "")


def not_the_same(cases, earlier, environment):
    """Why the rounds of `cases` cannot be added to those of `earlier`; empty if they can."""
    # Results from before the environment was kept do not say it.
    known = earlier.get("declared", {}).get("environment", environment)
    if known != environment:
        return f"environment: {listed(known)}, then {listed(environment)}"
    before = {entry["id"]: entry for entry in earlier["cases"]}
    for case in cases:
        if case.id in before and differing(before[case.id], described(case)):
            return f"{case.id}: {'; '.join(differing(before[case.id], described(case)))}"
    return ""


def described(case):
    return {"id": case.id, "program": case.program, "nodes": case.nodes, "ranks": case.ranks,
            "rate": case.rate if case.nodes > 1 else None, "cores": case.cores, "mpi": case.mpi,
            "options": case.options}


def write_json(outcome, path):
    """Whole or not at all: a reader never sees half of it."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(outcome, indent=1) + "\n", encoding="utf-8")
    part.replace(path)


def ms(metric):
    return f"{metric['median'] * 1e3:.2f} ± {metric['mad'] * 1e3:.2f}"


def layers_row(entry):
    m = entry["metrics"]
    row = [entry["id"].removeprefix("layers: ")]
    row += [ms(m[key]) for key in ("compute_s", "communication_s", "overlapped_s", "serial_s")]
    if "overlap_efficiency" not in m:
        return row + ["-", "-", busy_text(m), f"{m['tokens_per_s']['median']:.0f}"]
    return row + [efficiency_text(entry), f"{m['link_use_communication']['median']:.2f} / "
                                          f"{m['link_use_overlapped']['median']:.2f}",
                  busy_text(m), f"{m['tokens_per_s']['median']:.0f}"]


def efficiency_text(entry):
    efficiency = entry["metrics"]["overlap_efficiency"]
    found = interval_of_medians(entry)
    text = f"{efficiency['of_medians']:.2f} "
    if found:
        text += "({:.2f} to {:.2f})".format(*found)
    else:
        text += f"(steps {efficiency['of_steps_low']:.2f} to {efficiency['of_steps_high']:.2f})"
    return text if entry["comparable"] else text + " *"


def busy_text(metrics):
    """Share of the cores that was busy in overlapped steps; `-` where it was not found out."""
    busy = metrics.get("cores_busy_overlapped")
    if busy is None or metrics["overlapped_s"]["median"] < LEAST_BUSY_STEP:
        return "-"
    return f"{busy['median']:.2f}"


def layers_table(layers):
    """(title, head, rows, remark)"""
    judged = [entry for entry in layers if "overlap_efficiency" in entry["metrics"]]
    few = [entry for entry in judged if interval_of_medians(entry) is None]
    spread = "90 % interval, or range of steps" if few else "90 % interval"
    if few and len(few) == len(judged):
        spread = "range of steps"
    head = ["case", "compute, ms", "communication, ms", "overlapped, ms", "serial, ms",
            f"overlap efficiency ({spread})", "link use alone / overlapped",
            "cores busy, overlapped", "tokens/s"]
    remark = ("Median ± median absolute deviation of the slowest rank's time of one step. "
              "Overlap efficiency is (compute + communication - overlapped) / min(compute, "
              "communication), of the medians")
    if len(few) < len(judged):
        remark += ", with its bootstrap interval"
    remark += ("; link use is the bytes on the busiest link over time, against what a plain stream "
               "between all nodes carried in the same run. Cores busy is the share of the cores of "
               "rank 0's machine that worked during overlapped steps, for whomever: above about "
               f"{CORES_LIMIT:g} the cores limit the overlap, because messages need them too; -: "
               f"not reported, or steps under {LEAST_BUSY_STEP * 1e3:g} ms, for which the kernel "
               "counts too coarsely.")
    if few:
        remark += (f" steps: fewer than {LEAST_ROUNDS} rounds are too few for an interval; this is "
                   "the range of single steps' figures.")
    if not all(entry.get("comparable", True) for entry in layers):
        remark += (f" *: one half is less than {COMPARABLE:g} of the other, so that the "
                   "efficiency is mostly noise.")
    return "Layers", head, [layers_row(entry) for entry in layers], remark


def tables(outcome):
    """[(title, head, rows, remark)] for the summary and the report."""
    found = []
    measured = [entry for entry in outcome["cases"] if entry["metrics"]]
    layers = [entry for entry in measured if entry["program"] == "layers"]
    if layers:
        found.append(layers_table(layers))
    for entry in measured:
        if entry["program"] == "layers":
            continue
        rows = [[name.removesuffix("_s"), f"{m['median']:.4g}", f"{m['mad']:.2g}", str(m["n"])]
                for name, m in entry["metrics"].items()]
        found.append((entry["id"], ["what (times in s)", "median", "deviation", "n"], rows, ""))
    peers = peer_rows(outcome)
    if peers:
        found.append(("Against PyTorch + mpi4py", ["same place and shapes", "Atoll, ms",
                                                   "PyTorch, ms", "PyTorch / Atoll",
                                                   "busiest rank's rows / mean, Atoll / PyTorch"],
                      peers, "Both send every token to the same experts; rows are of each layer's "
                             "busiest rank over the mean of its ranks, averaged over layers."))
    doubtful = [[entry["id"], text] for entry in layers for text in entry.get("doubts", [])]
    doubtful += [[peer["id"], doubts_of_peer(own, peer)] for own, peer in beside_peer(outcome)
                 if doubts_of_peer(own, peer)]
    if doubtful:
        found.append(("Warnings: what contradicts itself", ["case", "why"], doubtful, ""))
    wrong = [[entry["id"], entry["status"], entry["reason"]]
             for entry in outcome["cases"] if entry["status"] != "ok"]
    if wrong:
        found.append(("Not measured, or failed", ["case", "state", "why"], wrong, ""))
    return found


SAME_SHAPES = ("layers", "hidden", "intermediate", "experts", "top_k", "tokens", "sequence", "skew")


def beside_peer(outcome):
    """[(Atoll's fastest case of the same place and shapes, the peer's case)]"""
    def key(entry):
        options = {name: entry["options"].get(name) for name in SAME_SHAPES}
        return json.dumps([entry["nodes"], entry["ranks"], entry["rate"], entry["mpi"], options])

    ours = {}
    for entry in outcome["cases"]:
        if entry["program"] == "layers" and "overlapped_s" in entry["metrics"]:
            best = ours.get(key(entry))
            if best is None or (entry["metrics"]["overlapped_s"]["median"] <
                                best["metrics"]["overlapped_s"]["median"]):
                ours[key(entry)] = entry
    return [(ours[key(entry)], entry) for entry in outcome["cases"]
            if entry["program"] == "torch" and "step_s" in entry["metrics"] and key(entry) in ours]


def rows_of_layer(entry):
    """[layers][ranks]: rows that each rank's experts computed; None in old results of the peer."""
    return entry.get("detail", {}).get("expert_rows_of_layer")


def busiest_over_mean(rows_of_layers):
    """Rows on the busiest rank of a layer over the mean of its ranks, averaged over layers."""
    ratios = [max(rows) * len(rows) / sum(rows) for rows in rows_of_layers if sum(rows)]
    return sum(ratios) / len(ratios) if ratios else 1.0


def peer_rows(outcome):
    rows = []
    for own, peer in beside_peer(outcome):
        mine, theirs = own["metrics"]["overlapped_s"], peer["metrics"]["step_s"]
        skews = [f"{busiest_over_mean(found):.3f}" if found else "unknown"
                 for found in map(rows_of_layer, (own, peer))]
        rows.append([own["id"], ms(mine), ms(theirs), f"{theirs['median'] / mine['median']:.2f}",
                     " / ".join(skews)])
    return rows


def doubts_of_peer(own, peer):
    """The peer must have had the same work."""
    if rows_of_layer(peer) is None:
        return "it did not report its rows per expert: its work may be another"
    if rows_of_layer(peer) != rows_of_layer(own):
        return "its ranks computed other rows than Atoll's: the ratio compares other work"
    return ""


def write_markdown(outcome, path):
    m = outcome["machine"]
    lines = [f"# {outcome['name']}", "",
             f"{outcome['date']}, commit {outcome['commit'] or 'unknown'}, {m['cores']} cores of "
             f"{m['cpu'] or 'an unknown CPU'}, {outcome['rounds']} rounds.", "",
             f"Environment of all programs, for MPI: {environment_text(outcome)}.", ""]
    lines += [f"- {note}" for note in outcome["notes"]] + [""]
    for title, head, rows, remark in tables(outcome):
        lines += [f"## {title}", "", "| " + " | ".join(head) + " |",
                  "|" + "---|" * len(head)]
        lines += ["| " + " | ".join(str(c).replace("\n", " ").replace("|", "/") for c in row) + " |"
                  for row in rows]
        lines += ["", remark, ""] if remark else [""]
    path.write_text("\n".join(lines), encoding="utf-8")
