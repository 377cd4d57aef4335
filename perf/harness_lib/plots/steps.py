"""Where the time of a step goes: one step across ranks, and shares of all cases."""

import json

from ..results import interval_of_medians
from .overlap import of_medians
from .style import (BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILION, WIDE, WIDTH, YELLOW,
                    between, count, figure, names, percent, place_of, save, usual_place, where)

SHARES = {"compute": BLUE, "communication": ORANGE, "synchronisation": YELLOW, "overhead": GREY}
ARITHMETIC = {"embed": "#BBBBBB", "attention": BLUE, "route": SKY, "experts": GREEN,
              "merge": PURPLE, "head": BLACK}
MESSAGES = {"counts": YELLOW, "dispatch": ORANGE, "combine": VERMILION}
MOST_RANKS = 8  # drawn


def union(spans):
    """Sorted spans without overlaps."""
    found = []
    for begin, end in sorted(spans):
        if found and begin <= found[-1][1]:
            found[-1][1] = max(found[-1][1], end)
        else:
            found.append([begin, end])
    return found


def length(spans):
    return sum(end - begin for begin, end in spans)


def common(a, b):
    """Length of what is in both of two unions."""
    return length(a) + length(b) - length(union(a + b))


def hidden_arithmetic(events, ranks):
    """(share of the step in which a rank computes, share of that while its messages travel)."""
    end = max(event["ts"] + event["dur"] for event in events)
    busy = behind = 0.0
    for rank in range(ranks):
        spans = {True: [], False: []}
        for event in events:
            if event["pid"] == rank:
                spans[event["tid"] == 0].append((event["ts"], event["ts"] + event["dur"]))
        arithmetic, messages = union(spans[True]), union(spans[False])
        busy += length(arithmetic)
        behind += common(arithmetic, messages)
    return busy / end / ranks, behind / busy


def surely_hidden(entry):
    """For sorting: what an interval says of overlap before what too few rounds seem to say."""
    ends = interval_of_medians(entry)
    return ends is not None, ends[0] if ends else of_medians(entry)


def timeline(layers, output):
    """One step of the best overlapped case across ranks, from its trace."""
    traced = [e for e in layers
              if "trace" in e and e["ranks"] > 1 and e["detail"]["config"]["chunks"] > 1]
    if not traced:
        return None
    usual = usual_place(traced)
    entry = max(traced, key=lambda e: (e.get("comparable", False), place_of(e) == usual,
                                       *surely_hidden(e)))
    highest = ("lower end of the overlap efficiency's interval" if interval_of_medians(entry)
               else "overlap efficiency")
    events = json.loads((output / entry["trace"]).read_text(encoding="utf-8"))["traceEvents"]
    events = [event for event in events if event["ph"] == "X"]
    ranks = min(entry["ranks"], MOST_RANKS)
    chunks = entry["detail"]["config"]["chunks"]
    colours = {**ARITHMETIC, **MESSAGES}
    fig, axes = figure(WIDE, 1.5 + ranks * (0.3 + 0.13 * chunks))
    ax = axes[0][0]
    height = chunks + 2.6
    bars = {}  # (colour, height of the bar) -> bars
    for event in events:
        if event["pid"] >= ranks:
            continue
        own = event["tid"] == 0
        lane = event["pid"] * height + (0 if own else event["tid"] + 0.6)
        key = (colours.get(event["name"].split()[-1], GREY), 1.5 if own else 0.8)
        bars.setdefault(key, []).append((lane, event["dur"] / 1e3, event["ts"] / 1e3))
    for (colour, high), found in bars.items():
        lanes, widths, lefts = zip(*found)
        ax.barh(lanes, widths, high, left=lefts, color=colour, linewidth=0)
    ax.set_yticks([rank * height + place for rank in range(ranks) for place in (0, height / 2)],
                  [text for rank in range(ranks)
                   for text in (f"rank {rank}: computes",
                                f"messages of\n{count(chunks, 'chunk')}")],
                  fontsize=8)
    ax.set_ylim(ranks * height - 1.4, -1.2)
    ax.grid(axis="y", visible=False)
    ax.set_xlim(0, max(event["ts"] + event["dur"] for event in events) / 1e3 * 1.005)
    ax.set_xlabel("time since the step began, ms")
    ax.legend([ax.barh(0, 0, color=c) for c in colours.values()], list(colours),
              ncols=len(colours), loc="lower left", bbox_to_anchor=(0, 1.0), handlelength=1.2)
    busy, behind = hidden_arithmetic(events, entry["ranks"])
    return save(fig, output, "timeline",
                f"One step of {names(layers)[entry['id']]}: ranks compute {percent(busy)} of it, "
                f"and {percent(behind)} of that while messages travel",
                f"One step across ranks, from the trace of {entry['id']}, where the {highest} is "
                "highest. White in a rank's upper lane: it computes nothing.",
                place_of(entry) + (f"; the first {ranks} ranks" if ranks < entry["ranks"] else ""))


def breakdown(layers, beside, output):
    """Step time, split by what the ranks did meanwhile: overlapped, serial, and the peer's."""
    label = names(layers)
    peers = {own["id"]: peer["metrics"]["step_s"]["median"] * 1e3 for own, peer in beside}
    lines = [(entry, kind) for entry in layers
             for kind in ("overlapped", "serial", *(["PyTorch"] if entry["id"] in peers else []))]
    fig, axes = figure(WIDTH, 1.3 + 0.21 * len(lines) + 0.12 * len(layers))
    ax = axes[0][0]
    place, ticks, texts = 0.0, [], []
    for number, (entry, kind) in enumerate(lines):
        if kind == "overlapped":
            place += 0.6 * (number > 0)
            ticks.append(place + 0.5 + 0.5 * (entry["id"] in peers))
            texts.append(label[entry["id"]])
        if kind == "PyTorch":
            total = peers[entry["id"]]
            ax.barh(place, total, 0.82, color="white", edgecolor=GREY, hatch="////", linewidth=0.6)
        else:
            total, left = entry["metrics"][f"{kind}_s"]["median"] * 1e3, 0.0
            for name, colour in SHARES.items():
                width = entry["detail"]["share"][kind][name] * total
                ax.barh(place, width, 0.82, left=left, color=colour)
                left += width
        ax.text(total, place, f" {kind} {total:.4g}", va="center", fontsize=8)
        place += 1
    ax.set_yticks(ticks, texts, fontsize=8)
    ax.invert_yaxis()
    ax.margins(x=0.2, y=0.01)
    ax.set_xlim(left=0)
    ax.grid(axis="y", visible=False)
    ax.tick_params(axis="y", length=0)
    ax.set_xlabel("median time of one step, ms")
    ax.legend([ax.barh(0, 0, color=c) for c in SHARES.values()], list(SHARES), ncols=4,
              loc="lower right", bbox_to_anchor=(1.0, 1.0), handlelength=1.2)
    saved = [1 - entry["metrics"]["overlapped_s"]["median"] / entry["metrics"]["serial_s"]["median"]
             for entry in layers if entry["ranks"] > 1]
    finding = "Time of a step on one rank"
    if saved:
        finding = (f"Overlap takes {percent(*saved)} off the step"
                   if min(saved) > 0 else
                   f"Overlap changes the step by {between([-100 * s for s in saved], '{:+.0f}')} %")
    if peers:
        ratios = [peers[own["id"]] / 1e3 / own["metrics"]["overlapped_s"]["median"]
                  for own, _ in beside]
        finding += f"; PyTorch + mpi4py takes {between(ratios, '{:.1f}')} times Atoll's"
    return save(fig, output, "breakdown", finding,
                "Where the time of a step goes. Shares are means over ranks: "
                "communication and synchronisation are times in which a rank computes nothing and "
                "waits: for rows under way, or for another rank to arrive.", where(layers))
