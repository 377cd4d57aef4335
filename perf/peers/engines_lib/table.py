"""Agreement, medians and the table."""

from statistics import median

from .shapes import WORKLOADS, floor_seconds

LEAST_EQUAL = 0.5  # of first tokens; random weights make near-ties, which rounding decides
LARGEST_DIFFERENCE = 0.3  # mean, of log-probabilities of equal first tokens


def agreement(reference, found):
    """Of first tokens of all workloads: how many are equal, of how many, and how far apart."""
    differences, count = [], 0
    for workload, result in found.items():
        expected = reference[workload]
        for r, tokens in enumerate(result["tokens"]):
            count += 1
            if tokens[0] == expected["tokens"][r][0]:
                differences.append(abs(result["logprobs"][r][0] - expected["logprobs"][r][0]))
    mean = sum(differences) / len(differences) if differences else float("nan")
    largest = max(differences, default=float("nan"))
    agrees = len(differences) >= LEAST_EQUAL * count and mean <= LARGEST_DIFFERENCE
    return {"equal": len(differences), "of": count, "mean": mean, "largest": largest,
            "agrees": agrees}  # fmt: skip


def speed(run, phase):
    """Tokens a second, or None where the workload has no such phase."""
    seconds = run[f"{phase}_s"]
    return run[f"{phase}_tokens"] / seconds if run[f"{phase}_tokens"] else None


def phases_of(workload):
    return ("prefill", "decode") if WORKLOADS[workload][2] > 1 else ("prefill",)


def medians(runs, phase):
    """{(workload, engine): (median, least, greatest)} tokens a second."""
    found = {}
    for key in {(run["workload"], run["engine"]) for run in runs}:
        speeds = [speed(run, phase) for run in runs if (run["workload"], run["engine"]) == key]
        speeds = [one for one in speeds if one is not None]
        if speeds:
            found[key] = median(speeds), min(speeds), max(speeds)
    return found


def best(of_phase, workload, names):
    """(name, median) of the fastest of these engines, or None."""
    known = [(of_phase[workload, name][0], name) for name in names if (workload, name) in of_phase]
    return max(known)[::-1] if known else None


def of_floor(facts, workload, phase, tokens_per_s):
    """Share of the speed that the machine's bandwidth and GEMMs allow."""
    count, length, new, _ = WORKLOADS[workload]
    tokens = count * (length if phase == "prefill" else new - 1)
    floor = floor_seconds(facts["size"], workload, phase, facts["tokens_by_layer"][workload],
                          facts["bandwidth"], facts["gemm_rate"])  # fmt: skip
    return tokens_per_s / (tokens / floor)


def markdown(runs, facts, ours, peers):
    """The one table: every engine on every workload; what is bold is the fastest peer."""
    of_phase = {phase: medians(runs, phase) for phase in ("prefill", "decode")}
    lines = [
        "| workload | engine | n | prefill tokens/s | of floor | Atoll over it "
        "| decode tokens/s | of floor | Atoll over it | peak GB | others' load |",
        "|" + "---|" * 11,
    ]
    for workload in facts["workloads"]:
        for name in [*ours, *peers]:
            mine = [r for r in runs if (r["workload"], r["engine"]) == (workload, name)]
            if not mine:
                continue
            note = next((f" ({r['note']})" for r in mine if r["note"]), "")
            cells = [workload, name + note, str(len(mine))]
            for phase in ("prefill", "decode"):
                cells += phase_cells(of_phase[phase], facts, workload, phase, name, ours, peers)
            cells += [f"{median(r['peak_bytes'] for r in mine) / 1e9:.2f}",
                      f"{max(r['foreign_cores'] for r in mine):.2f}"]  # fmt: skip
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def phase_cells(found, facts, workload, phase, name, ours, peers):
    if (workload, name) not in found:
        return ["-", "-", "-"]
    middle, low, high = found[workload, name]
    text = f"{middle:.1f} [{low:.1f}, {high:.1f}]"
    ratio = "-"
    if name in peers:
        atoll, fastest = best(found, workload, ours), best(found, workload, peers)
        if atoll is not None:
            ratio = f"{atoll[1] / middle:.2f}"
        if fastest[0] == name:
            text, ratio = f"**{text}**", f"**{ratio}**"
    return [text, f"{of_floor(facts, workload, phase, middle):.2f}", ratio]


def agreement_table(found):
    lines = ["| engine | equal first tokens | difference of log-probability there, mean | largest |",
             "|---|---|---|---|"]  # fmt: skip
    for name, one in found.items():
        lines.append(f"| {name} | {one['equal']} of {one['of']} | {one['mean']:.4f} "
                     f"| {one['largest']:.4f} |")  # fmt: skip
    return "\n".join(lines)
