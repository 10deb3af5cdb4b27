"""Masks of what models and objectives tell: contexts, and the mode of a switch."""

import numpy as np
import pytest

from positionbias import spec
from positionbias.masks.base import one_share
from positionbias.tokens import sequential


def mask(text):
    return spec.build("masks", text, "mask")


@pytest.mark.parametrize("length", [0, 1, 3, 6])
def test_a_context_is_a_prefix_of_its_length(length):
    tokens = sequential(6).told_context(length)
    found = mask("context_bidirectional").dense(tokens, tokens)
    np.testing.assert_array_equal(found, mask(f"prefix({length})").dense(tokens, tokens))


def test_a_context_apart_from_the_rest_is_seen_by_itself_and_from_later_on():
    tokens = sequential(6).told_context(3)
    context, rest = tokens.cut(0, 3), tokens.cut(3, 6)
    assert mask("context_bidirectional").dense(context, context).all()
    assert mask("context_bidirectional").dense(rest, context).all()
    np.testing.assert_array_equal(mask("context_bidirectional").dense(rest, rest), np.tri(3))


def test_a_switch_is_its_first_or_its_second_mask():
    text = "switch(causal & neighborhood(3), ~causal, share=0.2)"
    for mode, wanted in [(0, "causal & neighborhood(3)"), (1, "~causal")]:
        tokens = sequential(6, mode=np.full(6, mode))
        np.testing.assert_array_equal(mask(text).dense(tokens, tokens), mask(wanted).dense(tokens, tokens))
    batch = sequential(6, mode=np.repeat([[0], [1]], 6, axis=1))
    each = [mask(wanted).dense(sequential(6), sequential(6)) for wanted in ("causal & neighborhood(3)", "~causal")]
    np.testing.assert_array_equal(mask(text).dense(batch, batch), each)


def test_both_masks_of_a_switch_are_bound():
    tokens = sequential(8)
    with pytest.raises(spec.ConfigError, match="random_permutation_window shuffles one sequence"):
        mask("switch(causal, random_permutation_window(2))").dense(tokens.cut(0, 3), tokens)
    bound = mask("switch(causal, neighborhood(3), 0.25)").bind(tokens, tokens)
    assert bound.second_share == 0.25


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("causal", None),
        ("~causal & segments", None),
        ("switch(causal, bidirectional)", 0.5),
        ("~switch(causal, bidirectional, 0.25)", 0.25),
        ("segments & (switch(causal, bidirectional, 0) | causal)", 0.0),
        ("switch(causal, bidirectional, 0.25) & ~switch(causal, segments, 0.25)", 0.25),
        ("switch(switch(causal, segments, 0.25), bidirectional, 0.25)", 0.25),
    ],
)
def test_the_share_is_told_through_every_expression(text, share):
    assert mask(text).second_share == share


@pytest.mark.parametrize(
    "text",
    [
        "switch(causal, bidirectional, 0.25) & switch(causal, segments, 0.5)",
        "switch(causal, bidirectional, 0.25) | ~switch(causal, segments, 0.5)",
        "switch(causal, switch(causal, segments, 0.5), 0.25)",
    ],
)
def test_two_shares_are_refused(text):
    with pytest.raises(spec.ConfigError) as caught:
        mask(text)
    assert str(caught.value).removeprefix("mask: ") == (
        "share = 0.25 of one switch and share = 0.5 of another are not allowed together;"
        " allowed: the same share for all, as a batch is read in one mode."
    )


def test_layers_may_be_asked_together():
    assert one_share([mask("causal")]) is None
    assert one_share([mask("causal"), mask("switch(causal, segments, 0.1)")]) == 0.1
    with pytest.raises(spec.ConfigError, match=r"^share = 0\.1 of one switch and share = 0\.5 of another"):
        one_share([mask("switch(causal, segments)"), mask("switch(causal, segments, 0.1)")])
