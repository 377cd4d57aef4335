"""The order in which rounds measure their cases."""

import random


def in_order_of(number, cases):
    """The cases in an order of round `number`'s own, the same each time: what drifts with time falls on each alike."""
    order = list(cases)
    random.Random(number).shuffle(order)
    return order
