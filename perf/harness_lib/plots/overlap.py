"""What overlap and more ranks are worth."""

import json

from ..results import AIMS, LINK_AIM, interval_of_medians
from ..stats import LEAST_ROUNDS
from .style import (AIM, BLUE, GREY, MARKERS, ORANGE, SERIES, WIDTH, between, count, empty_figure,
                    figure, names, percent, place_of, save, skew_of, spread, usual_place, where)


def of_medians(entry):
    return entry["metrics"]["overlap_efficiency"]["of_medians"]


def against_chunks(ax, series):
    """Lines of the cases that differ in chunks alone, with the aim of each skew at the right."""
    aims = {}
    for number, (label, entries) in enumerate(series.items()):
        shift = 1 + 0.025 * (number - (len(series) - 1) / 2)
        places = [entry["options"]["chunks"] * shift for entry in entries]
        colour = SERIES[number % len(SERIES)]
        ax.plot(places, [of_medians(entry) for entry in entries],
                marker=MARKERS[number % len(MARKERS)], label=label, color=colour)
        for place, entry in zip(places, entries):
            ends = interval_of_medians(entry)
            if ends:
                middle = of_medians(entry)
                ax.errorbar(place, middle, [[middle - ends[0]], [ends[1] - middle]], fmt="none",
                            capsize=3, ecolor=colour)
        if skew_of(entries[0]) in AIMS:
            aims.setdefault(skew_of(entries[0]), colour)
    for skew, colour in aims.items():
        ax.axhline(AIMS[skew], **{**AIM, "color": colour})
    low, high = ax.get_ylim()
    ax.set_ylim(low, max(high, 1.02))
    places = spread([AIMS[skew] for skew in aims], 0.09 * (ax.get_ylim()[1] - low))
    for (skew, colour), place in zip(aims.items(), places):
        ax.annotate(f" aim, {skew}: {AIMS[skew]}", (1, place), fontsize=8, va="center",
                    xycoords=("axes fraction", "data"), color=colour, annotation_clip=False)
    every = sorted({entry["options"]["chunks"] for found in series.values() for entry in found})
    ax.set_xscale("log", base=2)
    ax.set_xticks(every, [str(c) for c in every])
    ax.set_xlabel("chunks")
    ax.set_ylabel("overlap efficiency")
    ax.legend(loc="lower right")


def by_case(axes, entries):
    """One row a case: its efficiency, and how much of a plain stream its links carry."""
    label = names(entries)
    overlap, link = axes
    for place, entry in enumerate(entries):
        if entry["comparable"]:
            middle, ends = of_medians(entry), interval_of_medians(entry)
            if ends:
                overlap.plot(ends, [place, place], color=BLUE, linewidth=2.2, alpha=0.45)
            overlap.plot(middle, place, "o", color=BLUE, markersize=6, zorder=4)
            overlap.annotate(f"{middle:.2f}", (middle, place), xytext=(0, 4.5), fontsize=7.5,
                             textcoords="offset points", ha="center",
                             bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.4})
        else:
            overlap.annotate("halves too unequal", (0.02, place), fontsize=7.5, color=GREY,
                             xycoords=("axes fraction", "data"), va="center")
        aim = AIMS.get(skew_of(entry))
        if aim is not None:
            overlap.plot([aim, aim], [place - 0.42, place + 0.42], **{**AIM, "linestyle": "-",
                                                                     "linewidth": 1.8})
        alone, beside = (entry["metrics"][f"link_use_{kind}"]["median"]
                         for kind in ("communication", "overlapped"))
        link.plot([alone, beside], [place, place], color=GREY, linewidth=1)
        link.plot(alone, place, "o", color=ORANGE, markerfacecolor="white", markersize=6,
                  label="messages alone" if place == 0 else None)
        link.plot(beside, place, "o", color=ORANGE, markersize=6,
                  label="while computing" if place == 0 else None)
    link.axvline(LINK_AIM, **AIM)
    link.annotate(f"aim {LINK_AIM}", (LINK_AIM, 0), xycoords=("data", "axes fraction"),
                  xytext=(3, 3), textcoords="offset points", fontsize=8)
    overlap.set_yticks(range(len(entries)), [label[entry["id"]] for entry in entries], fontsize=8)
    overlap.set_ylim(len(entries) - 0.4, -0.7)
    low, high = overlap.get_xlim()
    overlap.set_xlim(min(low, 0.7), max(high, 1.03))
    overlap.set_title("overlap efficiency (upright bar: aim)")
    link.set_xlim(0, max(1.05, link.get_xlim()[1]))
    link.set_title("link use")
    link.tick_params(axis="y", labelleft=False)
    link.set_ylim(overlap.get_ylim())
    link.legend(loc="upper right", bbox_to_anchor=(1.04, -0.3 / (0.27 * len(entries) + 0.4)),
                handletextpad=0.1, borderpad=0)


def finding_of(entries):
    """Ranges of the skews that have an aim, in the usual place."""
    place = usual_place(entries)
    entries = [entry for entry in entries if place_of(entry) == place]
    words = []
    for skew, aim in AIMS.items():
        found = [of_medians(entry) for entry in entries
                 if skew_of(entry) == skew and entry["comparable"]]
        if found:
            words.append(f"{skew} {between(found)} (aim {aim})")
    use = between([entry["metrics"]["link_use_overlapped"]["median"] for entry in entries])
    if not words:
        return (f"Link use {use} (aim {LINK_AIM}); the halves of a step are too unequal to judge "
                "overlap")
    return f"Overlap efficiency: {', '.join(words)}; link use {use} (aim {LINK_AIM})"


def efficiency(layers, output):
    entries = [entry for entry in layers if "overlap_efficiency" in entry["metrics"]]
    if not entries:
        return None
    series = {}
    label = names(entries, without=("chunks",))
    for entry in entries:
        if entry["comparable"] and "chunks" in entry["options"]:
            series.setdefault(label[entry["id"]], []).append(entry)
    series = {name: sorted(found, key=lambda entry: entry["options"]["chunks"])
              for name, found in series.items() if len(found) > 1}
    rows = 0.9 + 0.27 * len(entries)
    above = 2.6 if series else 0.0
    fig = empty_figure(WIDTH, rows + above + 0.8)
    parts = fig.subfigures(2, 1, height_ratios=[above, rows]) if series else [fig]
    if series:
        against_chunks(parts[0].subplots(), series)
    by_case(parts[-1].subplots(1, 2, width_ratios=[3, 2]), entries)
    bars = "Bars are its 90 % interval. "
    if any(interval_of_medians(entry) is None for entry in entries):
        bars = (f"Bars are its 90 % interval; without one, fewer than {LEAST_ROUNDS} rounds were "
                "measured, which is too few for it. ")
    return save(fig, output, "overlap-efficiency", finding_of(entries),
                "Overlap efficiency is (compute + communication - overlapped) / min(compute, "
                f"communication): 1 where the shorter half hides entirely. {bars}"
                "Link use is the bytes on the busiest link over the time of a step, "
                "against what a plain stream carried in the same run.", where(entries))


def series_of(layers):
    """{(kind, options): {ranks: entry}}: same options on so many hosts, or so many ranks a host."""
    groups = {}
    for entry in layers:
        common = json.dumps([entry["options"], entry["mpi"], entry["cores"],
                             entry["rate"] if entry["nodes"] > 1 else ""], sort_keys=True)
        per_host = entry["ranks"] // entry["nodes"]
        kinds = [(f"{entry['nodes']} hosts" if entry["nodes"] > 1 else "shared memory")]
        if entry["nodes"] > 1:
            kinds.append(f"{count(per_host, 'rank')} per host")
        for kind in kinds:
            groups.setdefault((kind, common), {})[entry["ranks"]] = entry
    return {key: by_ranks for key, by_ranks in groups.items() if len(by_ranks) > 1}


def scaling_finding(groups):
    """What is left of tokens per second and rank at each line's end; its ranks where all agree."""
    ends = [(min(by_ranks), max(by_ranks)) for by_ranks in groups.values()]
    kept = []
    for (first, last), by_ranks in zip(ends, groups.values()):
        at_first, at_last = (by_ranks[r]["metrics"]["tokens_per_s"]["median"]
                             for r in (first, last))
        kept.append(at_last / at_first * first / last)
    if len(set(ends)) == 1:
        first, last = ends[0]
        return (f"From {count(first, 'rank')} to {last}, each keeps {percent(*kept)} of its "
                "tokens per second")
    return (f"From the fewest ranks of a line to its most, each keeps {percent(*kept)} of its "
            "tokens per second")


def scaling(layers, output):
    groups = series_of(layers)
    if not groups:
        return None
    drawn = [entry for by_ranks in groups.values() for entry in by_ranks.values()]
    label = names(drawn, without=("place",))
    rates = {entry["rate"] for entry in drawn if entry["nodes"] > 1}
    fig, axes = figure(WIDTH, 3.6 + 0.13 * len(groups))
    ax = axes[0][0]
    for number, ((kind, _), by_ranks) in enumerate(groups.items()):
        ranks = sorted(by_ranks)
        values = [by_ranks[r]["metrics"]["tokens_per_s"] for r in ranks]
        middle = [value["median"] for value in values]
        first = by_ranks[ranks[0]]
        rate = f", {first['rate']}" if first["nodes"] > 1 and len(rates) > 1 else ""
        colour = SERIES[number % len(SERIES)]
        ax.errorbar(ranks, middle, [[m - v["low"] for m, v in zip(middle, values)],
                                    [v["high"] - m for m, v in zip(middle, values)]],
                    marker=MARKERS[number % len(MARKERS)], capsize=3, color=colour,
                    label=f"{kind}{rate}: {label[first['id']]}")
        ax.plot(ranks, [middle[0] * r / ranks[0] for r in ranks], linestyle=":", color=colour,
                linewidth=1)
    every = sorted({entry["ranks"] for entry in drawn})
    if every[-1] > 8 * every[0]:
        ax.set_xscale("log", base=2)
        ax.set_yscale("log")
    else:
        ax.set_ylim(bottom=0)
    ax.set_xticks(every, [str(r) for r in every])
    ax.yaxis.set_major_formatter("{x:,.0f}")
    ax.set_xlabel("ranks, with equal tokens each (dotted: in proportion to ranks)")
    ax.set_ylabel("tokens per second")
    ax.legend(loc="upper left", bbox_to_anchor=(0, -0.16))
    return save(fig, output, "scaling", scaling_finding(groups),
                "Tokens per second of overlapped steps against ranks; bars are the quartiles. "
                "Lines join cases of the same number of hosts, or of ranks per host.",
                "Hosts of a virtual cluster share this machine's cores: more ranks have no more "
                "arithmetic." if any(entry["nodes"] > 1 for entry in drawn) else "")
