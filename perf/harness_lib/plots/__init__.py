"""The pictures of a result, as PNG (in the report) and SVG; their titles say what they show."""

from ..results import beside_peer
from . import machine, overlap, steps, traffic
from .style import available

__all__ = ["available", "draw_all"]


def draw_all(outcome, output):
    """[Picture] of what the outcome holds, in the order of the report."""
    measured = [entry for entry in outcome["cases"] if entry["metrics"]]
    layers = [entry for entry in measured if entry["program"] == "layers"]
    pictures = []
    if layers:
        pictures += [
            steps.timeline(layers, output),
            steps.breakdown(layers, beside_peer(outcome), output),
            overlap.efficiency(layers, output),
            traffic.bytes_maps(layers, output),
            overlap.scaling(layers, output),
            machine.roofline(layers, output)]
    pictures.append(machine.message_sizes(
        [entry for entry in measured if entry["program"] == "exchange"], output))
    return [picture for picture in pictures if picture]
