"""What the terminal tells of an analysis."""

import numpy as np

from positionbias.analysis.causal_tracing import CausalTracing
from positionbias.analysis.run import Asked
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
    told = "evidence 0.000, context 0.000, after 0.000, answer 0.500, random 0.000; before training 0.000 0.000"
    assert f"  stream of layer 2: {told}" in text
    assert "  total: 0.600 [-0.671, 1.871], before training 0.000" in text
