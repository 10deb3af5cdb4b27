"""How many numbers are kept to go on with a sequence, counted by hand."""

import pytest

from positionbias.config.build import build
from positionbias.config.resolve import resolve

# Rows 0 to 7 are the context, 8 to 11 ask; heads of 2 x 4 numbers, a stream of 16.
CONFIG = {
    "name": "kept",
    "task": "associative_recall(pairs=4, keys=8, values=8, delays=4, shift=0)",
    "model": {"layers": 1, "width": 16, "heads": 2, "head_size": 4},
}
PER_KEY = 2 * 2 * 4


@pytest.mark.parametrize(
    ("model", "numbers"),
    [
        ({"mask": "causal"}, 11 * PER_KEY),  # before row 11
        ({"mask": "causal & sliding_window(3)"}, 2 * PER_KEY),
        ({"mask": "causal & window_with_sinks(3, 2)"}, 4 * PER_KEY),
        ({"mask": "prefix(8)"}, 11 * PER_KEY),
        ({"operator": "neighborhood(width=3, causal=True)"}, 2 * PER_KEY),
        ({"operator": "retention"}, 2 * 4 * 4),
        ({"operator": "short_convolution(width=3)"}, 2 * 16),
        ({"layers": 2, "operator": "[short_convolution(width=3), retention]"}, 2 * 16 + 2 * 4 * 4),
        ({"operator": "retention", "ov": "merged"}, 2 * 4 * 16),
        # The encoder's 8 keys are kept for cross attention; the decoder's 4 rows see the three before.
        ({"architecture": "encoder_decoder"}, (8 + 3) * PER_KEY),
        ({"architecture": "looped(loops=3)", "mask": "causal"}, 3 * 11 * PER_KEY),
        ({"residual": "concatenate"}, None),
    ],
)
def test_numbers_kept(model, numbers):
    config = CONFIG | {"model": CONFIG["model"] | model}
    assert build(resolve(config)).state_size == numbers


def test_no_keys_are_kept_that_no_row_to_come_sees():
    """Rows that ask see the first two tokens of the context alone, whatever stands between."""
    config = CONFIG | {"model": CONFIG["model"] | {"mask": "causal & window_with_sinks(1, 2)"}}
    assert build(resolve(config)).state_size == 2 * PER_KEY
