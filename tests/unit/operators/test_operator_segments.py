"""Masks of segments, on recurrences: which are taken, which are refused, and what is computed of them."""

import numpy as np
import pytest
from operators_oracle import T, close, recurrence, setting

from positionbias import spec
from positionbias.config.build import build
from positionbias.errors import ConfigError
from positionbias.operators.asked import Asked
from positionbias.tokens import sequential

DOCUMENTS = np.array([0, 0, 0, 4, 4, 2, 2, 2, 2])
BEGINS = [3, 5]


def test_a_state_begins_at_nothing_in_every_segment():
    one = setting("linear_attention(feature='identity')", "causal & segments", segment=DOCUMENTS)
    q, k = one.q / 2, one.k  # over the square root of the head size, by halves on either side
    parts = [slice(0, 3), slice(3, 5), slice(5, T)]
    close(one.run(), np.concatenate([recurrence(q[:, x], k[:, x], one.v[:, x]) for x in parts], axis=1))


@pytest.mark.parametrize(
    ("text", "fields", "begins"),
    [
        ("causal & segments", {"segment": DOCUMENTS}, BEGINS),
        ("block_causal & segments", {"segment": DOCUMENTS}, BEGINS),
        ("causal & sliding_window(1)", {}, list(range(1, T))),
        # What is padding is passed over: 3 and 4 are, of another segment or not, and 5 is in the segment of 2.
        (
            "causal & segments",
            {"segment": np.array([0, 0, 0, 4, 4, 0, 0, 2, 2]), "valid": (np.arange(T) - 3) // 2 != 0},
            [7],
        ),
        ("causal & segments", {"segment": DOCUMENTS, "valid": np.arange(T) > 3}, [5]),
        ("causal & segments", {}, None),
        ("prefix(3)", {"segment": DOCUMENTS}, None),
        ("causal", {"segment": DOCUMENTS}, None),
    ],
)
def test_where_segments_begin(text, fields, begins):
    tokens, mask = sequential(T, **fields), spec.build("masks", text, "mask")
    found = Asked.all(tokens, mask).resets()
    assert (None if found is None else np.flatnonzero(found).tolist()) == begins


def test_a_segment_that_comes_back_is_refused(tiny):
    """Its tokens see the earlier part, of which a state that was cleared knows nothing."""
    tokens, mask = sequential(5, segment=np.array([0, 0, 1, 0, 0])), spec.build("masks", "causal & segments", "mask")
    allowed = mask.dense(tokens, tokens)
    seen = spec.build("operators", "retention", "operator").visible(tokens, tokens, allowed)
    assert (seen & ~allowed).any()


TASK = {"task": "reversal_in_context(pairs=3, names=6)", "model.position": "rope"}


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"model.operator": "retention", "model.mask": "causal & sliding_window(3)"}, r"forbids: what it carries"),
        ({"model.operator": "retention", "model.mask": "causal & dilated_window(3, 2)"}, r"forbids: what it carries"),
        ({"model.operator": "prefix_linear_attention", "model.mask": "causal"}, r"forbids: every token reads"),
        (
            {"model.operator": "titans", "model.mask": "causal & segments"},
            r"forbids: what came before is never cleared, as its chunks are counted from the first token",
        ),
        (
            {"model.operator": "prefix_linear_attention", "model.mask": "context_bidirectional & segments"},
            r"forbids: what came before is never cleared, as the context is one, and every token reads it",
        ),
        (
            {"model.operator": "chunk_hybrid(chunk=2)", "model.mask": "causal & segments"},
            r"forbids: what came before is never cleared",
        ),
    ],
    ids=str,
)
def test_what_is_hidden_and_cannot_be_is_refused(tiny, overrides, said):
    with pytest.raises(ConfigError, match=rf"^model\.operator: .* lets position \d+ influence .* {said}"):
        build(tiny(TASK | overrides))


@pytest.mark.parametrize("operator", ["linear_attention", "hla2", "lightnet", "orthogonal_memory(slots=2)"])
def test_a_mask_that_hides_nothing_by_another_name_is_refused(tiny, operator):
    """They told that they see all, and computed what comes before a query."""
    everything = {"model.operator": operator, "model.mask": "prefix(length=64)"}
    with pytest.raises(ConfigError, match=r"^model\.operator: .* read under `bidirectional` alone.*; allowed: the"):
        build(tiny(everything))
    some = build(tiny(everything | {"model.mask": "prefix(length=2)"}))
    assert not np.triu(some.reach(some.task.conditions()[0]), 1).any()
    whole = build(tiny(everything | {"model.mask": "bidirectional"}))
    assert whole.reach(whole.task.conditions()[0]).all()


@pytest.mark.parametrize("operator", ["hla2", "ahla", "hla3"])
def test_a_decay_among_tokens_that_all_see_each_other_is_refused(tiny, operator):
    """It was read as none."""
    overrides = {"model.operator": f"{operator}(decay=0.5)", "model.mask": "bidirectional"}
    with pytest.raises(
        ConfigError,
        match=r"^model\.operator: .* forgets by how much earlier.*; allowed: decay=1\.0, or model\.mask = causal\.$",
    ):
        build(tiny(overrides))


def test_what_segments_hide_is_out_of_reach(tiny):
    experiment = build(tiny(TASK | {"model.operator": "mamba2", "model.mask": "causal & segments", "model.layers": 2}))
    condition = experiment.task.conditions()[0]
    segment = experiment.task.tokens(condition).segment
    same = segment[:, None] == segment
    np.testing.assert_array_equal(experiment.reach(condition), same & np.tri(len(segment), dtype=bool))
