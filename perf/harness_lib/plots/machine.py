"""What the machine allows: rooflines, and exchanges by size."""

from math import log10
from statistics import median

from .style import (BLACK, GREY, SERIES, VERMILION, WIDTH, between, figure, names, percent,
                    place_of, save, spread)

SIDES = (("memory", "FLOP per byte of weights read", "memory_bytes_per_s_per_rank"),
         ("link", "FLOP per byte on the busiest link", "link_bytes_per_s"))
LIMITS = {"memory": "GEMM rate or memory", "link": "link"}


def points_of(layers, side, key):
    """[(entry, FLOP per byte, FLOP/s)], and the medians of bandwidth and GEMM rate of one rank."""
    points, machines = [], []
    for entry in layers:
        detail = entry["detail"]
        sharing = entry["ranks"] // entry["nodes"] if side == "link" else 1
        moved = (detail["busiest_link_bytes"] / sharing if side == "link"
                 else detail["weight_bytes_per_rank"])
        speed = detail["machine"][key] / sharing
        if moved <= 0 or speed <= 0:
            continue
        flops = detail["flops_per_rank"]
        points.append((entry, flops / moved, flops / entry["metrics"]["overlapped_s"]["median"]))
        machines.append((speed, detail["machine"]["gemm_flops_per_s_per_rank"]))
    return points, [median(values) for values in zip(*machines)]


def one_roof(ax, points, speed, peak, label, inches):
    """Draws the roof and named points on axes `inches` high; returns their shares of the roof."""
    from matplotlib.ticker import LogLocator

    ridge = peak / speed
    low = min(min(x for _, x, _ in points), ridge) / 3
    high = max(max(x for _, x, _ in points), ridge) * 3
    ax.plot([low, ridge, high], [low * speed / 1e9, peak / 1e9, peak / 1e9], color=BLACK)
    bottom = min(min(y for _, _, y in points) / 1e9 / 2, peak / 1e9 / 10)
    top = peak / 1e9 * 2
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlim(low, high)
    ax.set_ylim(bottom, top)
    start = max(low, bottom * 1e9 / speed)
    ax.annotate(f"{speed / 1e9:.3g} GB/s", (start, start * speed / 1e9), fontsize=8,
                xytext=(14, 2), textcoords="offset points")
    ax.annotate(f"GEMM {peak / 1e9:.0f} GFLOP/s", (high, peak / 1e9), fontsize=8, ha="right",
                xytext=(-2, 3), textcoords="offset points")
    # Names stand in a column at the right, in parts of the axis' height.
    decades = log10(top / bottom)
    places = spread([log10(y / 1e9 / bottom) / decades for _, _, y in points], 0.15 / inches)
    places = [place - min(0.0, min(places) - 0.02) for place in places]
    reached = []
    for (entry, x, y), place in zip(points, places):
        reached.append(y / min(peak, x * speed))
        ax.plot(x, y / 1e9, "o", color=VERMILION, markersize=5, zorder=3)
        ax.annotate(f"{label[entry['id']]}: {y / 1e9:.3g} ({percent(reached[-1])})", (x, y / 1e9),
                    xytext=(1.03, place), textcoords="axes fraction", fontsize=8, va="center",
                    annotation_clip=False,
                    arrowprops={"arrowstyle": "-", "color": GREY, "linewidth": 0.6, "shrinkA": 0,
                                "shrinkB": 3, "relpos": (0, 0.5)})
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter("")
    ax.set_ylabel("GFLOP/s per rank")
    return reached


def roofline(layers, output):
    """One rank's arithmetic against bytes of memory, and against bytes on its link."""
    # Places differ in their links: the place with most cases is drawn.
    places = [place_of(entry) for entry in layers]
    place = max(places, key=places.count)
    layers = [entry for entry, other in zip(layers, places) if other == place]
    label = names(layers)
    found = [(side, text, *points_of(layers, side, key)) for side, text, key in SIDES]
    found = [side for side in found if side[2]]
    inches = max(2.0, 0.5 + 0.16 * len(layers))
    fig, axes = figure(WIDTH, 0.9 + len(found) * (inches + 0.7), len(found))
    reached = {}
    for ax, (side, text, points, (speed, peak)) in zip(axes.flat, found):
        reached[side] = one_roof(ax, points, speed, peak, label, inches)
        ax.set_title(f"one rank and its {side}: steps reach "
                     f"{percent(*reached[side])} of the roof")
        ax.set_xlabel(text)
    nearest = max(reached, key=lambda side: median(reached[side]))
    return save(fig, output, "roofline",
                f"The nearest limit is the {LIMITS[nearest]}: whole steps reach "
                f"{percent(*reached[nearest])} of it",
                f"Roofline of {place}: measured GEMM rate, memory and link bandwidth while all "
                "ranks do the same; points are whole overlapped steps, in brackets their share of "
                "the roof above them.", place)


def message_sizes(entries, output):
    """exchange_bench: time and OSU's overlap against message size."""
    times, overlaps = {}, {}
    for entry in entries:
        for metric, m in entry["metrics"].items():
            name, _, what = metric.partition(" ")
            method, _, size = name.partition("/bytes:")
            if size.isdigit() and what in ("time_s", "overlap"):
                series = times if what == "time_s" else overlaps
                series.setdefault((place_of(entry), method), []).append((int(size), m["median"]))
    if not times:
        return None
    from matplotlib.ticker import EngFormatter

    fig, axes = figure(WIDTH, 6.4, 2)
    upper, lower = axes[0][0], axes[1][0]
    places = sorted({place for place, _ in times})
    methods = sorted({method for _, method in times})
    lines = ("-", "--", ":", "-.")
    for ax, series in ((upper, times), (lower, overlaps)):
        for (place, method), points in series.items():
            points.sort()
            ax.plot(*zip(*points), marker=".", color=SERIES[methods.index(method) % len(SERIES)],
                    linestyle=lines[places.index(place) % 4])
        ax.set_xscale("log", base=2)
        sizes = sorted({size for points in series.values() for size, _ in points})
        ax.set_xticks(sizes, [f"{s >> 20} MiB" if s >= 1 << 20 else f"{s >> 10} KiB"
                              for s in sizes], fontsize=8)
    upper.set_yscale("log")
    upper.yaxis.set_major_formatter(EngFormatter(unit="s"))
    upper.set_ylabel("time of the slowest rank")
    lower.set_ylabel("hidden behind arithmetic, %")
    lower.set_ylim(-3, 105)
    lower.set_xlabel("bytes from each rank to each other rank")
    keys = [upper.plot([], [], color=SERIES[i % len(SERIES)], linewidth=3)[0]
            for i in range(len(methods))]
    keys += [upper.plot([], [], color=BLACK, linestyle=lines[i % 4])[0]
             for i in range(len(places))]
    upper.legend(keys, [*("osu's loop" if m == "osu" else m for m in methods), *places],
                 loc="upper left")
    return save(fig, output, "exchange", exchange_finding(overlaps, places, methods),
                "One exchange between all ranks against message size, and how much of it hides "
                "behind arithmetic of the same length, by OSU's definition. osu's loop is "
                "osu_ialltoallv's: arithmetic on the thread that owns MPI.")


def exchange_finding(overlaps, places, methods):
    """What the largest messages hide, in the place where most can be hidden."""
    last = {key: points[-1] for key, points in overlaps.items() if points}
    if "osu" not in methods or not last:
        return "Exchanges by message size"
    place = max(places, key=lambda p: max((v for (q, _), (_, v) in last.items() if q == p),
                                          default=0))
    ours = [v for (q, m), (_, v) in last.items() if q == place and m != "osu"]
    size = max(s for s, _ in last.values()) >> 20
    return (f"At {size} MiB a polling thread hides {between(ours, '{:.0f}')} % of an exchange, "
            f"osu's loop {last[place, 'osu'][1]:.0f} % ({place})")
