"""Which rank gets how many bytes, layer by layer."""

from math import floor, log10

from ..results import busiest_over_mean
from .style import WIDTH, figure, names, place_of, save, skew_of, usual_place, where

MOST_CASES = 6
COLUMNS = 3
EVEN = 1.05  # the busiest over the mean, below which ranks count as equally loaded
MOST_TEXTS = 10  # rows and columns up to which numbers stand in the cells


def cells(ax, matrix, top, text):
    """A heat map; None is an empty row."""
    from numpy import array, nan

    width = len(next(row for row in matrix if row is not None))
    values = array([[nan] * width if row is None else row for row in matrix])
    image = ax.imshow(values, vmin=0, vmax=top, cmap="cividis", aspect="auto")
    ax.grid(visible=False)
    for side in ("left", "bottom"):
        ax.spines[side].set_visible(False)
    ax.tick_params(length=0, labelsize=8)
    step = max(1, -(-width // 8))
    ax.set_xticks(range(0, width, step), [str(i) for i in range(0, width, step)])
    if text:
        decimals = max(0, 1 - floor(log10(top))) if top > 0 else 0
        for y, row in enumerate(matrix):
            for x, value in enumerate(row or []):
                ax.text(x, y, f"{value:.{decimals}f}", ha="center", va="center", fontsize=7,
                        color="white" if value < 0.48 * top else "black")
    return image


def skews(entry):
    """(busiest rank over the mean in a layer, averaged; the same of the whole step's bytes)"""
    by_layer = entry["detail"]["dispatched_bytes_to_of_layer"]
    return busiest_over_mean(by_layer), busiest_over_mean([[sum(to) for to in zip(*by_layer)]])


def bytes_maps(layers, output):
    """Above, bytes dispatched to each rank in each layer and the mean; below, the whole step."""
    layers = [entry for entry in layers
              if entry["ranks"] > 1 and "dispatched_bytes_to_of_layer" in entry["detail"]]
    if not layers:
        return None
    chosen = {}  # the same skew elsewhere says the same, and would need another scale
    for entry in layers:
        if place_of(entry) == usual_place(layers):
            chosen.setdefault((skew_of(entry), entry["options"].get("tokens")), entry)
    entries = list(chosen.values())[:MOST_CASES]
    label = names(entries, without=("chunks", "transport"))
    by_layer = [[[value / 1e6 for value in row]
                 for row in entry["detail"]["dispatched_bytes_to_of_layer"]] for entry in entries]
    total = [[[value / 1e6 for value in row] for row in entry["detail"]["bytes_from_to"]]
             for entry in entries]
    top_layer, top_total = (max(max(map(max, m)) for m in found) for found in (by_layer, total))
    columns = min(COLUMNS, len(entries))
    blocks = -(-len(entries) // columns)
    high = 0.9 + min(3.0, 0.19 * (max(map(len, by_layer)) + 2))
    low = 0.7 + min(2.4, max(0.6, 0.19 * max(map(len, total))))
    fig, axes = figure(WIDTH, 2.2 + blocks * (high + low), 2 * blocks, columns,
                       height_ratios=[high, low] * blocks)
    images = [None, None]
    for place in range(blocks * columns):
        row, column = 2 * (place // columns), place % columns
        pair = axes[row][column], axes[row + 1][column]
        if place >= len(entries):
            for ax in pair:
                ax.axis("off")
            continue
        layer_map = by_layer[place]
        mean = [sum(to) / len(layer_map) for to in zip(*layer_map)]
        small = len(layer_map) <= 2 * MOST_TEXTS and len(mean) <= MOST_TEXTS
        images[0] = cells(pair[0], [*layer_map, None, mean], top_layer, small)
        step = max(1, -(-len(layer_map) // 8))
        ticks = list(range(0, len(layer_map), step))
        pair[0].set_yticks([*ticks, len(layer_map) + 1], [*map(str, ticks), "mean"])
        one, whole = skews(entries[place])
        pair[0].set_title(f"{label[entries[place]['id']]}\n{one:.2f} in a layer,\n"
                          f"{whole:.2f} in the whole step", fontsize=8.5)
        pair[0].set_xlabel("to rank", fontsize=8, labelpad=1)
        images[1] = cells(pair[1], total[place], top_total, len(mean) <= MOST_TEXTS)
        step = max(1, -(-len(mean) // 8))
        pair[1].set_yticks(range(0, len(mean), step))
        pair[1].set_xlabel("to rank", fontsize=8, labelpad=1)
        if column == 0:
            pair[0].set_ylabel("layer")
            pair[1].set_ylabel("whole step,\nfrom rank", fontsize=8)
    for image, what in zip(images, ("MB dispatched to a rank in one layer",
                                    "MB from rank to rank in the whole step, both ways")):
        fig.colorbar(image, ax=axes, label=what, location="bottom", shrink=0.7, pad=0.015,
                     aspect=45)
    return save(fig, output, "bytes-matrix", finding_of(entries, label),
                "Bytes of token rows that other ranks send. Above: to each rank in each layer's "
                "dispatch, and the mean of layers, in one scale. Below: from rank to rank in the "
                "whole step, dispatch and combine. A rank's own rows do not travel.",
                "The numbers in titles are the busiest rank's bytes over the mean of ranks. "
                + where(entries))


def finding_of(entries, label):
    """The largest skew in a layer, and whether the bytes of the whole step hide one."""
    worst = max(entries, key=lambda entry: skews(entry)[0])
    hidden = max(entries, key=lambda entry: skews(entry)[0] - skews(entry)[1])
    most = f"{skews(worst)[0]:.2f} times the mean"
    if skews(worst)[0] < EVEN:
        return f"Ranks get equal bytes: the busiest of a layer at most {most}"
    words = f"The busiest rank of a layer gets up to {most} ({label[worst['id']]})"
    one, whole = skews(hidden)
    if one - whole > EVEN - 1:
        own = "" if hidden is worst else f" {one:.2f} times"
        words += (f"; with {label[hidden['id']]}{own} another one from layer to layer, which the "
                  f"whole step hides ({whole:.2f})")
    return words
