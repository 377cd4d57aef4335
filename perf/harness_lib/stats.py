"""Medians, spread, and whether two sets of measurements differ."""

import random
from statistics import median


def quantile(values, q):
    ordered = sorted(values)
    at = q * (len(ordered) - 1)
    low = int(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (at - low)


def summary(values):
    """Median, quartiles and the median absolute deviation."""
    middle = median(values)
    return {"median": middle, "low": quantile(values, 0.25), "high": quantile(values, 0.75),
            "mad": median([abs(value - middle) for value in values]), "n": len(values)}


def ratio_interval(a_rounds, b_rounds, confidence=0.99, samples=4000, seed=1):
    """Interval of median(b) / median(a) by the bootstrap.

    Values of one round share what the machine was doing just then, so whole rounds are drawn first,
    and values within them second.
    """
    generator = random.Random(seed)

    def draw(rounds):
        values = []
        for _ in rounds:
            chosen = generator.choice(rounds)
            values += [generator.choice(chosen) for _ in chosen]
        return median(values)

    ratios = sorted(draw(b_rounds) / draw(a_rounds) for _ in range(samples))
    tail = (1 - confidence) / 2
    return quantile(ratios, tail), quantile(ratios, 1 - tail)


def verdict(a_rounds, b_rounds, least_effect=0.02):
    """('faster' | 'slower' | 'no difference' | 'too few rounds', ratio, low, high); times."""
    flat = [[value for values in rounds for value in values] for rounds in (a_rounds, b_rounds)]
    ratio = median(flat[1]) / median(flat[0])
    low, high = ratio_interval(a_rounds, b_rounds)
    if min(len(a_rounds), len(b_rounds)) < 3:
        # Rounds of one or two cannot show how much the machine drifts between rounds.
        spread = max(max(values) / min(values) for values in flat)
        if max(ratio, 1 / ratio) <= spread or low <= 1 <= high:
            return "no difference", ratio, low, high
        return "too few rounds", ratio, low, high
    if high < 1 - least_effect:
        return "faster", ratio, low, high
    if low > 1 + least_effect:
        return "slower", ratio, low, high
    return "no difference", ratio, low, high
