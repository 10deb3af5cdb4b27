"""States and convolutions that make no sense are refused before anything is compiled."""

import pytest

from positionbias.config.build import build
from positionbias.spec import ConfigError

TASK = "associative_recall(pairs=4, keys=8, values=8, delays=3)"


@pytest.mark.parametrize(
    ("operator", "model", "sentence"),
    [
        # 1 + 600 + 600 * 601 / 2 features, times 16 values and their sum of weights; the window keeps no more than 19
        # keys and values, and the convolution 2 tokens of each of queries, keys and values.
        (
            "based(features=600)",
            {},
            r"carries on \d{7} numbers a head; allowed: 2097152, by smaller arguments of it or a smaller"
            r" model\.head_size, now 16\.",
        ),
        (
            "gated_slot(slots=65536)",
            {"model.head_size": 32},
            "carries on 4194304 numbers a head; allowed: 2097152, by ",
        ),
        (
            "linear_attention(feature='taylor')",
            {"model.head_size": 256},
            "carries on 8520321 numbers a head; allowed: ",
        ),
        (
            "gated_delta(convolution=65536)",
            {},
            "convolves 65536 tokens, and the task's longest sequence has 19; allowed: up",
        ),
        (
            "short_convolution(width=20)",
            {},
            "convolves 20 tokens, and the task's longest sequence has 19; allowed: up to 19",
        ),
    ],
)
def test_what_is_too_large_is_refused_with_its_number(tiny, operator, model, sentence):
    of = operator.replace("(", r"\(").replace(")", r"\)")
    with pytest.raises(ConfigError, match=rf"^model\.operator: {of} of layer 0 {sentence}"):
        build(tiny({"task": TASK, "model.operator": operator, "model.head_size": 16, **model}))


@pytest.mark.parametrize(
    ("operator", "head_size"),
    [
        ("short_convolution(width=19)", 16),
        ("based", 64),
        ("linear_attention(feature='taylor')", 128),
        ("hla3", 256),  # 3 matrices of 256 by 256 are allowed, for all that they are 196,608 numbers
        ("titans", 256),
        ("gated_linear_attention", 1024),
        ("mamba2", 512),
    ],
)
def test_what_large_heads_carry_is_allowed(tiny, operator, head_size):
    build(tiny({"task": TASK, "model.operator": operator, "model.heads": 1, "model.head_size": head_size}))


def test_a_default_convolution_is_allowed_of_any_sequence(tiny):
    build(tiny({"task": "modular_addition(modulus=5)", "model.operator": "mamba2(convolution=8)"}))
    with pytest.raises(ConfigError, match=r"longest sequence has 3; allowed: up to 8\.$"):
        build(tiny({"task": "modular_addition(modulus=5)", "model.operator": "mamba2(convolution=9)"}))


def test_a_run_may_be_measured_on_shorter_sequences(tiny):
    config = tiny({"task": TASK, "model.operator": "short_convolution(width=20)"})
    assert build(config, length=20).blueprint.length == 20
