"""The plots, each as PNG (in the report) and SVG."""

import json
from collections import namedtuple
from statistics import median

from .results import AIMS

Picture = namedtuple("Picture", "path caption")
SHARES = ("compute", "communication", "synchronisation", "overhead")
COLOURS = {"compute": "#3b75af", "communication": "#e1812c", "synchronisation": "#c9b13c",
           "overhead": "#8c8c8c"}


def available():
    try:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot  # noqa: F401
    except ImportError:
        return False
    return True


def figure(width, height, rows=1, columns=1):
    import matplotlib.pyplot as plt

    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False,
                         "axes.grid": True, "grid.alpha": 0.3, "svg.fonttype": "none"})
    return plt.subplots(rows, columns, figsize=(width, height), squeeze=False,
                        layout="constrained")


def save(fig, output, name, caption):
    import matplotlib.pyplot as plt

    path = output / f"{name}.png"
    fig.savefig(path, dpi=110)
    fig.savefig(output / f"{name}.svg")
    plt.close(fig)
    return Picture(path, caption)


def short(entry):
    return entry["id"].removeprefix("layers: ").replace(" on ", "\non ", 1)


def breakdown(layers, output):
    """Step time, split by what the ranks' arithmetic did meanwhile: overlapped above serial."""
    fig, axes = figure(9, 1.2 + 0.55 * len(layers))
    ax = axes[0][0]
    for place, entry in enumerate(layers):
        for offset, kind, metric in ((-0.2, "overlapped", "overlapped_s"),
                                     (0.2, "serial", "serial_s")):
            left = 0.0
            total = entry["metrics"][metric]["median"] * 1e3
            for share in SHARES:
                width = entry["detail"]["share"][kind][share] * total
                ax.barh(place + offset, width, 0.36, left=left, color=COLOURS[share],
                        label=share if place == 0 and offset < 0 else None)
                left += width
            ax.text(left, place + offset, f" {kind} {total:.1f} ms", va="center", fontsize=7)
    ax.set_yticks(range(len(layers)), [short(entry) for entry in layers], fontsize=7)
    ax.invert_yaxis()
    ax.margins(x=0.16)
    ax.set_xlim(left=0)
    ax.grid(axis="y", visible=False)
    ax.set_xlabel("time of one step, ms (shares are means over ranks)")
    ax.legend(ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
    return save(fig, output, "breakdown", "Where the time of a step goes, overlapped and serial.")


def efficiency(layers, output):
    groups = {}
    for entry in layers:
        if not entry.get("comparable") or "chunks" not in entry["options"]:
            continue
        options = {k: v for k, v in entry["options"].items() if k != "chunks"}
        label = ", ".join([options.get("skew", "uniform")]
                          + ([f"{entry['ranks']} ranks"])
                          + [f"{k} {v}" for k, v in options.items()
                             if k != "skew" and any(o["options"].get(k) != v for o in layers)])
        groups.setdefault(label, []).append(entry)
    if not groups:
        return None
    fig, axes = figure(8, 4.2)
    ax = axes[0][0]
    for number, (label, entries) in enumerate(groups.items()):
        entries.sort(key=lambda entry: entry["options"]["chunks"])
        chunks = [entry["options"]["chunks"] for entry in entries]
        m = [entry["metrics"]["overlap_efficiency"] for entry in entries]
        middle = [x["of_medians"] for x in m]
        errors = [[max(0, y - x["low"]) for x, y in zip(m, middle)],
                  [max(0, x["high"] - y) for x, y in zip(m, middle)]]
        shift = 1 + 0.02 * (number - len(groups) / 2)
        ax.errorbar([c * shift for c in chunks], middle, errors, marker="o", capsize=2, label=label)
    for skew, aim in AIMS.items():
        ax.axhline(aim, linestyle="--", linewidth=0.8, color="#555")
        ax.annotate(f"aim, {skew}", (1, aim), xycoords=("axes fraction", "data"), fontsize=7,
                    ha="right", va="bottom")
    all_chunks = sorted({e["options"]["chunks"] for es in groups.values() for e in es})
    ax.set_xscale("log", base=2)
    ax.set_xticks(all_chunks, [str(c) for c in all_chunks])
    ax.set_xlabel("chunks")
    ax.set_ylabel("overlap efficiency")
    ax.set_ylim(top=1.15)
    ax.legend(fontsize=7)
    return save(fig, output, "overlap-efficiency",
                "Overlap efficiency against chunks, by skew; bars are the quartiles of single "
                "steps.")


def bytes_matrix(layers, output):
    chosen = {}
    for entry in layers:
        if entry["ranks"] > 1:
            chosen.setdefault((entry["options"].get("skew", "uniform"), entry["ranks"],
                               entry["options"].get("tokens")), entry)
    entries = list(chosen.values())[:6]
    if not entries:
        return None
    columns = min(3, len(entries))
    rows = (len(entries) + columns - 1) // columns
    fig, axes = figure(3.4 * columns, 3.1 * rows, rows, columns)
    top = max(max(map(max, entry["detail"]["bytes_from_to"])) for entry in entries) / 1e6
    image = None
    for place, entry in enumerate(entries):
        ax = axes[place // columns][place % columns]
        matrix = [[value / 1e6 for value in row] for row in entry["detail"]["bytes_from_to"]]
        image = ax.imshow(matrix, vmin=0, vmax=top, cmap="viridis")
        ax.grid(visible=False)
        ax.set_title(f"{entry['options'].get('skew', 'uniform')}, {entry['ranks']} ranks",
                     fontsize=9)
        ax.set_xlabel("to rank")
        ax.set_ylabel("from rank")
        ticks = range(0, len(matrix), max(1, len(matrix) // 8))
        ax.set_xticks(list(ticks))
        ax.set_yticks(list(ticks))
        if len(matrix) <= 8:
            for y, row in enumerate(matrix):
                for x, value in enumerate(row):
                    ax.text(x, y, f"{value:.2g}", ha="center", va="center", fontsize=7,
                            color="white" if value < 0.6 * top else "black")
    for place in range(len(entries), rows * columns):
        axes[place // columns][place % columns].axis("off")
    fig.colorbar(image, ax=axes, label="MB per step", shrink=0.8)
    return save(fig, output, "bytes-matrix", "Bytes of token rows between ranks in one step.")


def scaling(layers, output):
    groups = {}
    for entry in layers:
        options = {k: v for k, v in entry["options"].items() if k != "experts"}
        key = json.dumps([entry["nodes"] > 1, entry["rate"], options], sort_keys=True)
        groups.setdefault(key, {})[entry["ranks"]] = entry
    groups = {key: by_ranks for key, by_ranks in groups.items() if len(by_ranks) > 1}
    if not groups:
        return None
    fig, axes = figure(7, 4)
    ax = axes[0][0]
    for by_ranks in list(groups.values())[:6]:
        ranks = sorted(by_ranks)
        first = by_ranks[ranks[0]]
        values = [by_ranks[r]["metrics"]["tokens_per_s"]["median"] for r in ranks]
        label = ", ".join(f"{k} {v}" for k, v in first["options"].items()
                          if any(e["options"].get(k) != v for e in layers))
        place = "shared memory" if first["nodes"] == 1 else f"one rank per host, {first['rate']}"
        line = ax.plot(ranks, values, marker="o", label=", ".join(filter(None, (place, label))))
        ax.plot(ranks, [values[0] * r / ranks[0] for r in ranks], linestyle=":",
                color=line[0].get_color(), linewidth=0.8)
    every = sorted({r for by_ranks in groups.values() for r in by_ranks})
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.set_xticks(every, [str(r) for r in every])
    ax.set_xlabel("ranks (equal tokens per rank; dotted: in proportion)")
    ax.set_ylabel("tokens/s")
    ax.legend(fontsize=7)
    return save(fig, output, "scaling", "Tokens per second against ranks.")


def roofline(layers, output):
    """One rank's arithmetic against bytes of memory, and against bytes on its link."""
    fig, axes = figure(10, 4.2, 1, 2)
    sides = (("memory", "FLOP per byte of weights read", "memory_bytes_per_s_per_rank"),
             ("link", "FLOP per byte on the busiest link", "link_bytes_per_s"))
    # Places differ in their links: the place with most cases is drawn.
    places = [(entry["nodes"], entry["ranks"], entry["rate"]) for entry in layers]
    place = max(places, key=places.count)
    layers = [entry for entry, other in zip(layers, places) if other == place]
    for ax, (name, label, key) in zip(axes[0], sides):
        points = []
        machines = []
        for entry in layers:
            detail = entry["detail"]
            ranks_on_link = entry["ranks"] // entry["nodes"] if name == "link" else 1
            moved = (detail["busiest_link_bytes"] / ranks_on_link if name == "link"
                     else detail["weight_bytes_per_rank"])
            speed = detail["machine"][key] / ranks_on_link
            if moved <= 0 or speed <= 0:
                continue
            flops = detail["flops_per_rank"]
            points.append((flops / moved, flops / entry["metrics"]["overlapped_s"]["median"]))
            machines.append((speed, detail["machine"]["gemm_flops_per_s_per_rank"]))
        if not points:
            ax.axis("off")
            continue
        speed, peak = (median(values) for values in zip(*machines))
        ridge = peak / speed
        low = min(min(x for x, _ in points), ridge) / 4
        high = max(max(x for x, _ in points), ridge) * 4
        ax.plot([low, ridge, high], [low * speed / 1e9, peak / 1e9, peak / 1e9], color="#333")
        ax.annotate(f"{speed / 1e9:.3g} GB/s", (low, low * speed / 1e9), fontsize=8,
                    xytext=(6, 2), textcoords="offset points")
        ax.annotate(f"GEMM {peak / 1e9:.0f} GFLOP/s", (high, peak / 1e9), fontsize=8, ha="right",
                    xytext=(0, 3), textcoords="offset points")
        ax.scatter([x for x, _ in points], [y / 1e9 for _, y in points], s=18, zorder=3,
                   color="#c03d3e")
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.set_ylim(top=peak / 1e9 * 2)
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_formatter("{x:g}")
            axis.set_minor_formatter("")
        ax.yaxis.set_minor_formatter("{x:g}")
        ax.tick_params(axis="y", which="minor", labelsize=7)
        ax.set_title(f"one rank and its {name}", fontsize=9)
        ax.set_xlabel(label)
        ax.set_ylabel("GFLOP/s per rank")
    return save(fig, output, "roofline",
                "Roofline: measured GEMM rate, memory and link bandwidth while all ranks do the "
                "same; points are whole overlapped steps.")


def message_sizes(entries, output):
    """exchange_bench: time and OSU's overlap against message size."""
    times, overlaps = {}, {}
    for entry in entries:
        place = entry["id"].split(": ")[1]
        for metric, m in entry["metrics"].items():
            name, _, what = metric.partition(" ")
            method, _, size = name.partition("/bytes:")
            if size.isdigit() and what in ("time_s", "overlap"):
                series = times if what == "time_s" else overlaps
                scale = 1e6 if what == "time_s" else 1
                series.setdefault((place, method), []).append((int(size), m["median"] * scale))
    if not times:
        return None
    fig, axes = figure(11, 4.6, 1, 2)
    places = sorted({place for place, _ in times})
    methods = sorted({method for _, method in times})
    for ax, series in zip(axes[0], (times, overlaps)):
        for (place, method), points in series.items():
            points.sort()
            ax.plot(*zip(*points), marker=".", label=f"{method}, {place}",
                    color=f"C{methods.index(method)}",
                    linestyle=("-", "--", ":", "-.")[places.index(place) % 4])
        ax.set_xscale("log", base=2)
        sizes = sorted({size for points in series.values() for size, _ in points})
        ax.set_xticks(sizes, [f"{s >> 20}M" if s >= 1 << 20 else f"{s >> 10}K" for s in sizes])
        ax.set_xlabel("bytes from each rank to each other rank")
    axes[0][0].set_yscale("log")
    axes[0][0].set_ylabel("µs, the slowest rank")
    axes[0][1].set_ylabel("overlap by OSU's definition, %")
    axes[0][1].set_ylim(-3, 105)
    axes[0][0].legend(fontsize=7)
    return save(fig, output, "exchange", "One exchange between all ranks against message size, and "
                "how much of it hides behind arithmetic of the same length.")


def timeline(layers, output):
    """One step of the best overlapped case across ranks, from its trace."""
    traced = [e for e in layers
              if "trace" in e and e["ranks"] > 1 and e["detail"]["config"]["chunks"] > 1]
    if not traced:
        return None
    entry = max(traced, key=lambda e: (e.get("comparable", False), min(e["ranks"], 4),
                                       e["metrics"]["overlap_efficiency"]["of_medians"]))
    events = json.loads((output / entry["trace"]).read_text(encoding="utf-8"))["traceEvents"]
    ranks = min(entry["ranks"], 8)
    chunks = entry["detail"]["config"]["chunks"]
    kinds = {"attention": "#3b75af", "route": "#7fb0dd", "experts": "#2f5d50", "merge": "#80b59e",
             "head": "#777777", "embed": "#777777", "counts": "#f4c89c", "dispatch": "#e1812c",
             "combine": "#c03d3e"}
    fig, axes = figure(12, 0.9 + ranks * (0.32 + 0.16 * chunks))
    ax = axes[0][0]
    height = chunks + 2.2
    for event in events:
        if event["ph"] != "X" or event["pid"] >= ranks:
            continue
        kind = event["name"].split()[-1]
        lane = event["pid"] * height + (0 if event["tid"] == 0 else event["tid"] + 0.4)
        ax.barh(lane, event["dur"] / 1e3, 1.3 if event["tid"] == 0 else 0.8,
                left=event["ts"] / 1e3, color=kinds.get(kind, "#999"), linewidth=0)
    ax.set_yticks([rank * height for rank in range(ranks)],
                  [f"rank {rank}" for rank in range(ranks)])
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    ax.set_xlim(left=0)
    ax.set_xlabel("ms; of each rank the upper lane is arithmetic, the lower ones the messages of "
                  "each chunk")
    ax.legend([ax.barh(0, 0, color=c) for c in kinds.values()], list(kinds), ncols=9, fontsize=7,
              loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
    return save(fig, output, "timeline", f"One step across ranks: {entry['id']}.")


def draw_all(outcome, output):
    layers = [e for e in outcome["cases"] if e["program"] == "layers" and e["metrics"]]
    pictures = []
    if layers:
        for draw in (timeline, breakdown, efficiency, bytes_matrix, scaling, roofline):
            pictures.append(draw(layers, output))
    pictures.append(message_sizes(
        [e for e in outcome["cases"] if e["program"] == "exchange" and e["metrics"]], output))
    return [picture for picture in pictures if picture]
