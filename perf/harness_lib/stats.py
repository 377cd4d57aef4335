"""Medians, spread, and whether two sets of measurements differ."""

import random
from statistics import median

# With fewer, drawing rounds again shows next to nothing of how the machine drifts between them.
LEAST_ROUNDS = 3


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


def effect(a, b, difference):
    """How b compares with a: b - a, or b / a."""
    if difference:
        return b - a
    return b / a if a else (1.0 if b == a else float("inf"))


def draw(rounds, generator):
    """Values drawn again as the bootstrap does.

    Values of one round share what the machine was doing just then, so whole rounds are drawn first,
    and values within them second.
    """
    values = []
    for _ in rounds:
        chosen = generator.choice(rounds)
        values += [generator.choice(chosen) for _ in chosen]
    return values


def middle_part(values, confidence):
    tail = (1 - confidence) / 2
    return quantile(values, tail), quantile(values, 1 - tail)


def interval(statistic, rounds, confidence=0.9, samples=1000, seed=1):
    """Interval of `statistic`, a function of a list of values, by the bootstrap.

    Of LEAST_ROUNDS rounds or more: a 90 % interval of one round of two holds the truth less than
    half the time.
    """
    if len(rounds) < LEAST_ROUNDS:
        raise ValueError(f"an interval needs {LEAST_ROUNDS} rounds, not {len(rounds)}")
    generator = random.Random(seed)
    return middle_part([statistic(draw(rounds, generator)) for _ in range(samples)], confidence)


def effect_interval(a_rounds, b_rounds, difference=False, confidence=0.99, samples=4000, seed=1):
    """Interval of the effect on medians by the bootstrap."""
    generator = random.Random(seed)
    effects = [effect(median(draw(a_rounds, generator)), median(draw(b_rounds, generator)),
                      difference) for _ in range(samples)]
    return middle_part(effects, confidence)


def verdict(a_rounds, b_rounds, least_effect=0.02, words=("faster", "slower"), difference=False):
    """(word, effect, low, high): the effect of B, as a ratio or as a difference, and its interval.

    The word is one of `words` (below, above), 'no difference' or 'too few rounds'.
    """
    flat = [[value for values in rounds for value in values] for rounds in (a_rounds, b_rounds)]
    found = effect(median(flat[0]), median(flat[1]), difference)
    low, high = effect_interval(a_rounds, b_rounds, difference)
    neutral = 0 if difference else 1
    if min(len(a_rounds), len(b_rounds)) < LEAST_ROUNDS:
        # Rounds of one or two cannot show how much the machine drifts between rounds.
        spread = max(abs(effect(min(values), max(values), difference)) for values in flat)
        size = abs(found) if difference else max(found, 1 / found if found else float("inf"))
        if size <= spread or low <= neutral <= high:
            return "no difference", found, low, high
        return "too few rounds", found, low, high
    if high < neutral - least_effect:
        return words[0], found, low, high
    if low > neutral + least_effect:
        return words[1], found, low, high
    return "no difference", found, low, high
