"""What the terminal tells of an analysis."""

import numpy as np

from positionbias.analysis.causal_tracing import CausalTracing
from positionbias.analysis.edge_attribution import METHODS, EdgeAttribution
from positionbias.analysis.induction import Induction
from positionbias.analysis.rollout import Rollout
from positionbias.analysis.run import Asked
from positionbias.analysis.state_reweaving import StateReweaving
from positionbias.analysis.table import table


def test_places_have_their_names_and_single_numbers_their_intervals():
    analysis = CausalTracing()
    found = {
        name: np.zeros((2, *(2 if axis == "layer" else 5 for axis in axes))) for name, axes in analysis.axes.items()
    }
    found["stream"][:, 1, 3] = (0.25, 0.75)
    found["total"][:] = (0.5, 0.7)
    text = table(
        Asked(
            analysis,
            {"layer": ("0", "2"), **analysis.labels},
            found,
            {name: np.zeros_like(x) for name, x in found.items()},
        )
    )
    told = "evidence 0.000 (before training 0.000), context 0.000 (0.000), after 0.000 (0.000), answer 0.500 (0.000)"
    assert f"  stream of layer 2: {told}" in text
    assert "  total: 0.600 [-0.671, 1.871], before training 0.000" in text


def of_zeros(analysis, labels, **sizes):
    """Arrays of zeros, to be changed, and what the terminal then tells of them."""
    found = {name: np.zeros((2, *(sizes[axis] for axis in axes))) for name, axes in analysis.axes.items()}
    return found, lambda: table(Asked(analysis, labels, found, {name: np.zeros_like(x) for name, x in found.items()}))


def test_the_largest_of_many_numbers_are_named():
    senders, readers = [f"s{i}" for i in range(9)], [f"r{i}" for i in range(9)]
    labels = {"sender": senders, "reader": readers, "method": METHODS}
    found, told = of_zeros(EdgeAttribution(), labels, sender=9, reader=9, method=3)
    found["exact"][:, 2, 3], found["exact"][:, 4, 0], found["exact"][:, 8, 8] = (0.1, 0.3), -0.5, 0.1
    words = "-0.500 at sender s4, reader r0 (before training 0.000); 0.200 at sender s2, reader r3 (before"
    assert f"  exact: 9 senders x 9 readers, largest {words}" in told()


def test_every_number_has_the_name_of_its_layer_or_head():
    _, told = of_zeros(Rollout(), {"layer": ("1", "3")}, layer=2, position=3)
    assert "  source: layer 1 0.000 (before training 0.000), layer 3 0.000 (0.000)\n" in told()
    found, told = of_zeros(Rollout(), {"layer": ("0", "1")}, layer=2, position=3)
    found["influence"][:, 1, 2] = (0.25, 0.75)
    assert "of layer 1: position 0 0.000 (before training 0.000), position 1 0.000 (0.000), position 2 0.500" in told()
    assert "  source: layer 0 0.000 (before training 0.000), layer 1 0.000 (0.000)\n" in told()
    _, told = of_zeros(Rollout(), {"layer": ("0",), "position": ("-0.5", "end")}, layer=1, position=2)
    assert "position -0.5 0.000 (before training 0.000), end 0.000 (0.000)\n" in told(), "words need no axis"
    _, told = of_zeros(Induction(), {"layer": ("0",)}, layer=1, head=2)
    assert "  evidence of layer 0: head 0 0.000 (before training 0.000), head 1 0.000 (0.000)\n" in told()
    two = ("0", "1")
    _, told = of_zeros(StateReweaving(), {"from_layer": two, "to_layer": two}, from_layer=2, to_layer=2, way=2)
    assert "  accuracy of from_layer 1: to_layer 0 0.000 (before training 0.000), to_layer 1 0.000" in told()
