"""Fields of tokens that members read: who tells them, and where they tell nothing apart."""

import dataclasses

import numpy as np
import pytest

from positionbias import spec
from positionbias.config import fields
from positionbias.config.build import build
from positionbias.masks.base import Mask, from_first_key
from positionbias.models.looped import OverPasses
from positionbias.models.summary_token import AroundSummary
from positionbias.spec import ConfigError
from positionbias.tokens import sequential


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("bidirectional", {"index"}),
        ("causal & segments", {"index", "segment"}),
        ("~masked_keys", {"hidden"}),
        ("switch(causal, by_rank | block_causal('segment'))", {"index", "mode", "rank", "segment"}),
        ("neighborhood(3)", {"index"}),
        ("causal_cross", {"index", "frame"}),
        ("concentric", {"index", "frame", "scale"}),
        ("context_bidirectional", {"index", "context"}),
    ],
)
def test_what_a_mask_reads(text, wanted):
    found = fields.read_by_mask(spec.build("masks", text, "mask"), sequential(5), sequential(5))
    assert found == wanted


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model.mask": "causal & ~masked_keys"},
            "model.mask: causal & ~masked_keys reads 'hidden' of the tokens, which the objective next_token does not"
            " tell; allowed: objectives that do (bidirectional_causal, masked_denoising, masked_diffusion), or another"
            " mask.",
        ),
        (
            {"model.mask": "[causal, causal & by_rank]", "model.layers": 2},
            "model.mask: causal & by_rank reads 'rank' of the tokens, which the objective next_token does not tell;"
            " allowed: objectives that do (random_order), or another mask.",
        ),
        (
            {"model.mask": "by_rank", "objective": "masked_denoising", "task": "reversal(pairs=2, both=1)"},
            "model.mask: by_rank reads 'rank' of the tokens, which the objective masked_denoising does not tell;"
            " allowed: objectives that do (random_order), or another mask.",
        ),
    ],
)
def test_a_mask_that_reads_what_nobody_tells_is_refused(tiny, changes, message):
    with pytest.raises(ConfigError) as error:
        build(tiny(changes))
    assert str(error.value) == message


@dataclasses.dataclass(frozen=True)
class Bound(Mask):
    """Reads a rank when it is bound, and a segment of tokens that were cut."""

    def bind(self, q, k):
        k.cut(0, 2).rank.max()
        return self

    def allowed(self, q, k):
        return q._replace(index=0).segment == k.segment


def test_what_is_read_is_seen_through_masks_around_a_mask():
    tokens = sequential(5)
    for mask in (Bound(), OverPasses(Bound()), AroundSummary(Bound(), 3, True)):
        assert fields.read_by_mask(mask, tokens, tokens) >= {"rank", "segment"}
    assert fields.read_by_mask(from_first_key(Bound(), tokens), tokens, tokens) >= {"segment"}


def test_masks_of_an_encoder_are_told_by_their_field(tiny):
    task = {"task": "associative_recall(pairs=2, keys=4, values=4, delays=1)", "model.layers": 2}
    for text, said in (("encoder_mask=by_rank", "encoder_mask"), ("cross_mask=~masked_keys", "cross_mask")):
        with pytest.raises(ConfigError, match=rf"^model\.architecture\.{said}: .* reads '"):
            build(tiny({**task, "model.architecture": f"encoder_decoder({text})"}))
    found = build(tiny({**task, "model.architecture": "encoder_decoder(encoder_mask=block_causal)"})).idle
    assert found == [
        "model.architecture.encoder_mask: block_causal reads the frame of tokens, the same for all of this task's"
    ]


def test_operators_that_tell_nothing_apart_are_said(tiny):
    assert build(tiny({"model.operator": "multimodal_softmax(image=1)", "task": "needle"})).idle == []
    assert build(tiny({"model.operator": "multimodal_softmax(image=1)"})).idle == [
        "model.operator: multimodal_softmax(image=1) reads the role of tokens, the same for all of this task's"
    ]


def test_a_role_that_no_token_has_is_said(tiny):
    pairs = {"task": "associative_recall(pairs=2, keys=4, values=4, delays=1)"}
    task = build(tiny(pairs)).task
    roles = {int(role) for condition in task.conditions() for role in task.tokens(condition).role}
    they = f"they have {', '.join(map(str, sorted(roles)))}"
    assert build(tiny({**pairs, "model.operator": "multimodal_softmax(image=1)"})).idle == []
    found = build(
        tiny(
            {
                **pairs,
                "model.operator": "multimodal_softmax(image=99)",
                "model.mask": "causal & ~modality_mutual(98, question=1) | causal",
            }
        )
    ).idle
    assert found == [
        "model.mask: no token of this task has the modality of (causal & ~modality_mutual(modality=98, question=1)) |"
        f" causal, role 98; {they}",
        f"model.operator: no token of this task has the image of multimodal_softmax(image=99), role 99; {they}",
    ]


def test_what_tells_nothing_apart_is_said(tiny):
    pairs = {"task": "associative_recall(pairs=2, keys=4, values=4, delays=1)", "model.mask": "shared_prompt"}
    assert build(tiny(pairs)).idle == []
    plain = tiny(
        {
            "model.mask": "[block_causal, concentric & causal]",
            "model.layers": 2,
            "model.position": "dual_rope",
            "model.assignment": "concentric",
        }
    )
    assert build(plain).idle == [
        "model.mask: block_causal reads the frame of tokens, the same for all of this task's",
        "model.mask: concentric & causal reads the frame and the scale of tokens, the same for all of this task's",
        "model.position: dual_rope reads the frame of tokens, the same for all of this task's",
        "model.assignment: concentric reads the frame and the scale of tokens, the same for all of this task's",
    ]


def test_of_a_task_whose_examples_differ_nothing_is_said(tiny):
    task = {"task": "set_disjointness", "model.mask": "causal | segments & ~segments"}
    experiment = build(tiny(task))
    assert not experiment.task.shared_tokens
    assert np.ptp(experiment.task.tokens(experiment.task.conditions()[0]).segment) == 0
    assert experiment.idle == []
