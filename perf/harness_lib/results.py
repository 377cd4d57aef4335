"""From runs to one JSON of medians and spread, and its Markdown summary."""

import datetime
import json
import os
import platform
import subprocess
from math import isfinite
from pathlib import Path
from statistics import median

from .stats import interval, summary

ROOT = Path(__file__).resolve().parents[2]
TO_SECONDS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0}
AIMS = {"uniform": 0.9, "log-normal": 0.8}  # of the overlap efficiency
LINK_AIM = 0.8
# Below this ratio of the shorter half to the longer one, overlap efficiency is mostly noise.
COMPARABLE = 0.3
# Beyond these a measurement contradicts itself; the margins are what drifts between two steps.
LEAST_SERIAL = 0.95  # of compute + communication
MOST_LINK_USE = 1.05


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


def collect(sweep, cases, running, earlier=None):
    """The outcome of the sweep; `earlier`, an outcome of the same sweep, is added to."""
    before = {entry["id"]: entry for entry in (earlier or {}).get("cases", [])}
    chosen = {case.id for case in cases}
    outcome = {
        "format": "atoll-perf", "version": 1, "name": sweep.name,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": one_line(["git", "describe", "--always", "--dirty", "--abbrev=12"]),
        "machine": machine(), "rounds": running.rounds_done + (earlier or {}).get("rounds", 0),
        "declared": sweep.declared,
        "notes": list(running.notes), "cases": []}
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
    """By the definition the medians are put together, not the quotients of single steps; with the
    90 % interval of just this figure. Its steps are drawn whole: what was measured in turn stays
    together."""
    steps = [list(zip(*of_round)) for of_round in zip(
        *(rounds[key] for key in ("compute_s", "communication_s", "overlapped_s")))]

    def efficiency(chosen):
        compute, communication, overlapped = (median(values) for values in zip(*chosen))
        return (compute + communication - overlapped) / min(compute, communication)

    found = efficiency([step for of_round in steps for step in of_round])
    low, high = interval(efficiency, steps)
    # With few steps the figure itself can lie beyond what is drawn again.
    return {"of_medians": found, "of_medians_low": min(low, found),
            "of_medians_high": max(high, found)}


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


def not_the_same(cases, earlier):
    """Why the rounds of `cases` cannot be added to those of `earlier`; empty if they can."""
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
        return row + ["-", "-", f"{m['tokens_per_s']['median']:.0f}"]
    efficiency = m["overlap_efficiency"]
    text = (f"{efficiency['of_medians']:.2f} ({efficiency['of_medians_low']:.2f} to "
            f"{efficiency['of_medians_high']:.2f})")
    if not entry["comparable"]:
        text += " *"
    return row + [text, f"{m['link_use_communication']['median']:.2f} / "
                        f"{m['link_use_overlapped']['median']:.2f}",
                  f"{m['tokens_per_s']['median']:.0f}"]


LAYERS_HEAD = ["case", "compute, ms", "communication, ms", "overlapped, ms", "serial, ms",
               "overlap efficiency (90 % interval)", "link use alone / overlapped", "tokens/s"]


def tables(outcome):
    """[(title, head, rows, remark)] for the summary and the report."""
    found = []
    measured = [entry for entry in outcome["cases"] if entry["metrics"]]
    layers = [entry for entry in measured if entry["program"] == "layers"]
    if layers:
        remark = ("Median ± median absolute deviation of the slowest rank's time of one step. "
                  "Overlap efficiency is (compute + communication - overlapped) / min(compute, "
                  "communication), of the medians, with its bootstrap interval; link use is the "
                  "bytes on the busiest link over time, against what a plain stream between all "
                  "nodes carried in the same run.")
        if not all(entry.get("comparable", True) for entry in layers):
            remark += (f" *: one half is less than {COMPARABLE:g} of the other, so that the "
                       "efficiency is mostly noise.")
        found.append(("Layers", LAYERS_HEAD, [layers_row(entry) for entry in layers], remark))
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
             f"{m['cpu'] or 'an unknown CPU'}, {outcome['rounds']} rounds.", ""]
    lines += [f"- {note}" for note in outcome["notes"]] + [""]
    for title, head, rows, remark in tables(outcome):
        lines += [f"## {title}", "", "| " + " | ".join(head) + " |",
                  "|" + "---|" * len(head)]
        lines += ["| " + " | ".join(str(c).replace("\n", " ").replace("|", "/") for c in row) + " |"
                  for row in rows]
        lines += ["", remark, ""] if remark else [""]
    path.write_text("\n".join(lines), encoding="utf-8")
