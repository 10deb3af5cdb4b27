"""What operators are refused for: the field that may be set, its value, the reason, and what is allowed there."""

import pytest

from positionbias.config.build import build
from positionbias.spec import ConfigError

TASK = "associative_recall(pairs=4, keys=8, values=8, delays=3)"
SOFTMAX = "an operator that does, such as softmax."
ANY_MASK = "allowed: a mask that contains what it mixes, or an operator that honours every mask, such as softmax."
CARRIED = "what it carries is cleared only where no position from there on sees one before, and position"


def refused(tiny, **model):
    with pytest.raises(ConfigError) as caught:
        build(tiny({"task": TASK, **{f"model.{name}": text for name, text in model.items()}}))
    return str(caught.value)


@pytest.mark.parametrize("encoder_mask", ["bidirectional", "causal"])
@pytest.mark.parametrize(
    ("operator", "why"),
    [
        ("delta", "what it carries goes from token to token of one sequence"),
        ("combiner", "spans are summed up by the queries of their own tokens"),
        ("combiner(causal=False)", "spans are summed up by the queries of their own tokens"),
        ("routing", "it is its causal form, and causal=False the other"),
        ("fourier", "it reads one stream, and keys of another sequence are made of a second"),
    ],
)
def test_cross_attention_is_told_before_what_another_mask_would_mend(tiny, operator, why, encoder_mask):
    told = refused(tiny, operator=operator, architecture=f"encoder_decoder(encoder_mask={encoder_mask})")
    assert told == (
        f"model.operator: {operator} does not work as cross attention, which cross attention of decoder layer 0 needs,"
        f" as {why}; allowed: model.architecture = decoder_only, or {SOFTMAX}"
    )


@pytest.mark.parametrize(
    ("model", "needs", "allowed"),
    [
        (
            {"operator": "delta", "mask": "bidirectional"},
            "noncausal self attention, which layer 0 needs under model.mask = bidirectional",
            f"model.mask = causal, or {SOFTMAX}",
        ),
        (
            {"operator": "routing", "mask": "bidirectional"},
            "noncausal self attention, which layer 0 needs under model.mask = bidirectional",
            f"model.mask = causal, model.operator = routing(causal=False), or {SOFTMAX}",
        ),
        (
            {"operator": "combiner(form='logsparse')", "mask": "bidirectional"},
            "noncausal self attention, which layer 0 needs under model.mask = bidirectional",
            f"model.mask = causal, or {SOFTMAX}",
        ),
        (
            {"operator": "reversed"},
            "causal self attention, which layer 0 needs under model.mask = causal",
            f"model.mask = bidirectional, or {SOFTMAX}",
        ),
        (
            {"operator": "routing", "architecture": "encoder_decoder", "mask": "bidirectional"},
            "cross attention, which cross attention of decoder layer 0 needs",
            f"model.architecture = decoder_only, model.operator = routing(causal=False), or {SOFTMAX}",
        ),
        # Its encoder is bidirectional whatever is told, and its stack is causal: no form of the operator serves both.
        (
            {"operator": "routing", "architecture": "contextual_token"},
            "noncausal self attention, which encoder layer 0 needs under the mask bidirectional",
            SOFTMAX,
        ),
        (
            {"operator": "routing", "architecture": "contextual_token", "mask": "bidirectional"},
            "noncausal self attention, which encoder layer 0 needs under the mask bidirectional",
            f"model.operator = routing(causal=False), or {SOFTMAX}",
        ),
    ],
)
def test_a_pattern_is_told_with_what_may_be_set(tiny, model, needs, allowed):
    told = refused(tiny, **model)
    assert told.startswith(f"model.operator: {model['operator']} does not work as {needs}, as ")
    assert told.partition("; allowed: ")[2] == allowed


def test_what_is_allowed_is_built(tiny):
    for operator, mask in (
        ("routing(causal=False)", "bidirectional"),
        ("reversed", "bidirectional"),
        ("delta", "causal"),
    ):
        build(tiny({"task": TASK, "model.operator": operator, "model.mask": mask}))
    split = {"model.architecture": "encoder_decoder", "model.mask": "bidirectional"}
    build(tiny({"task": TASK, "model.operator": "routing(causal=False)"} | split))


@pytest.mark.parametrize(
    ("model", "told"),
    [
        # 8 rows of pairs, 3 of delays with the question, in segment 0 as the padding in front is.
        (
            {"operator": "delta", "mask": "causal & segments", "task": TASK.replace(")", ", padding=2)")},
            f"{CARRIED} 10 sees position 0 (segment 0 is in 2 pieces)",
        ),
        ({"operator": "delta", "mask": "causal & sliding_window(4)"}, f"{CARRIED} 4 sees position 1"),
        (
            {"operator": "combiner", "mask": "causal & sliding_window(4)"},
            "whom its queries read is told by order alone",
        ),
        (
            {"operator": "prefix_linear_attention"},
            "every token reads the whole context, as context_bidirectional lets it",
        ),
        (
            {"operator": "titans", "mask": "causal & segments"},
            "what came before is never cleared, as its chunks are counted from the first token stored",
        ),
    ],
)
def test_what_goes_beyond_a_mask_is_told_with_its_reason(tiny, model, told):
    given = {"task": TASK} | {("task" if name == "task" else f"model.{name}"): text for name, text in model.items()}
    with pytest.raises(ConfigError) as caught:
        build(tiny(given))
    found = str(caught.value)
    assert (
        f" in layer 0, which model.mask = {model.get('mask', 'causal').replace('(4)', '(width=4)')} forbids: " in found
    )
    assert found.partition(" forbids: ")[2] == f"{told}; {ANY_MASK}"


def test_the_field_of_the_encoders_mask_is_named(tiny):
    told = refused(tiny, operator="linear_attention", architecture="encoder_decoder(encoder_mask=sliding_window(2))")
    assert " in encoder layer 0, which model.architecture.encoder_mask = sliding_window(width=2) forbids: " in told


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        ("switch(causal, causal & sliding_window(3))", "lets position 0 influence position 3"),
        ("switch(causal, bidirectional)", "does not work as noncausal self attention"),
    ],
)
def test_an_operator_honours_both_modes_of_a_mask(tiny, mask, said):
    assert said in refused(tiny, operator="delta", mask=mask)
    build(tiny({"task": TASK, "model.mask": mask}))
