"""What all pictures share: colours, sizes, names of cases, placing of labels."""

import textwrap
from collections import namedtuple

# Okabe and Ito's colours, which people with any kind of colour blindness can tell apart.
BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
YELLOW, BLUE, VERMILION, PURPLE = "#F0E442", "#0072B2", "#D55E00", "#CC79A7"
GREY = "#8C8C8C"
SERIES = (BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, BLACK, GREY)
MARKERS = "osD^vP*X"
AIM = {"color": "#333333", "linestyle": (0, (4, 3)), "linewidth": 1.1}

WIDTH = 7.2  # inches: 9 point text is then 12 pixels high in a window of 700
WIDE = 12.0

# `finding`: the title, what it shows; `caption`: how to read it; `wide`: takes a whole row.
Picture = namedtuple("Picture", "path finding caption wide")


def available():
    try:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot  # noqa: F401
    except ImportError:
        return False
    return True


def empty_figure(width, height):
    import matplotlib.pyplot as plt

    plt.rcParams.update({"font.size": 9, "axes.titlesize": 9, "axes.titlelocation": "left",
                         "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
                         "axes.axisbelow": True, "grid.alpha": 0.3, "svg.fonttype": "none",
                         "legend.frameon": False, "legend.fontsize": 8})
    return plt.figure(figsize=(width, height), layout="constrained")


def figure(width, height, rows=1, columns=1, **grid):
    fig = empty_figure(width, height)
    return fig, fig.subplots(rows, columns, squeeze=False, gridspec_kw=grid)


def save(fig, output, name, finding, caption, foot=""):
    """Writes the figure under its finding; `foot` stands small below it."""
    import matplotlib.pyplot as plt

    width = fig.get_size_inches()[0]
    fig.suptitle(textwrap.fill(finding, int(width * 11)), x=0.01, ha="left", fontsize=10.5,
                 fontweight="bold")
    if foot:
        fig.supxlabel(textwrap.fill(foot, int(width * 16)), x=0.01, ha="left", fontsize=7.5,
                      color="#444444")
    path = output / f"{name}.png"
    fig.savefig(path, dpi=150)
    fig.savefig(output / f"{name}.svg")
    plt.close(fig)
    return Picture(path, finding, caption, width > WIDTH)


def skew_of(entry):
    return entry["options"].get("skew", "uniform")


def count(number, what):
    return f"{number} {what}{'' if number == 1 else 's'}"


def place_of(entry):
    if entry["nodes"] == 1:
        return count(entry["ranks"], "rank")
    return f"{count(entry['ranks'], 'rank')} on {entry['nodes']} hosts, {entry['rate']}"


def usual_place(entries):
    """Where most of them ran; the names of these do not say it."""
    places = [place_of(entry) for entry in entries]
    return max(dict.fromkeys(places), key=places.count)


def where(entries):
    """The foot line that goes with names()."""
    usual = usual_place(entries)
    others = any(place_of(entry) != usual for entry in entries)
    return usual + (", unless a name says otherwise." if others else ".")


def names(entries, without=()):
    """{id: short name} from what tells these cases apart; where() says the place of most."""
    usual = usual_place(entries)
    rates = {entry["rate"] for entry in entries if entry["nodes"] > 1}
    cores = {entry["cores"] for entry in entries}

    def varies(key):
        return key not in without and len({str(e["options"].get(key)) for e in entries}) > 1

    found = {}
    for entry in entries:
        words = [] if "skew" in without else [skew_of(entry)]
        for key, value in entry["options"].items():
            if key != "skew" and varies(key):
                words.append(count(value, "chunk") if key == "chunks" else
                             f"{key} {value}" if key != "transport" else str(value))
        words += [f"{key} {value}" for key, value in entry["mpi"].items()]
        if place_of(entry) != usual and "place" not in without:
            place = place_of(entry)
            words.append(place if len(rates) > 1 else place.split(",")[0])
        if len(cores) > 1:
            words.append(f"{entry['cores'] or 'all'} cores")
        found[entry["id"]] = ", ".join(words) or place_of(entry)
    return found


def between(values, text="{:.2f}"):
    """`0.65 to 0.88`, or one number where they read the same."""
    low, high = text.format(min(values)), text.format(max(values))
    return low if low == high else f"{low} to {high}"


def percent(*parts):
    """`65 to 83 %`"""
    return between([100 * part for part in parts], "{:.0f}") + " %"


def spread(places, least):
    """The places, moved apart as little as needed that neighbours are `least` apart; same order."""
    order = sorted(range(len(places)), key=lambda i: places[i])
    groups = []  # [middle, members]: labels that touch, laid out evenly around their middle
    for i in order:
        groups.append([places[i], [i]])
        while len(groups) > 1:
            (a, first), (b, second) = groups[-2:]
            if b - a >= least * (len(first) + len(second)) / 2:
                break
            middle = (a * len(first) + b * len(second)) / (len(first) + len(second))
            groups[-2:] = [[middle, first + second]]
    moved = list(places)
    for middle, members in groups:
        for place, i in enumerate(members):
            moved[i] = middle + (place - (len(members) - 1) / 2) * least
    return moved
