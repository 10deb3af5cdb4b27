"""The architecture protocol, over every registered architecture."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from positionbias import spec
from positionbias.config.build import build
from positionbias.models.base import visible
from positionbias.models.contextual_token import ContextualToken
from positionbias.models.decoder_only import DecoderOnly
from positionbias.models.looped import Looped
from positionbias.models.sites import Sites
from positionbias.models.summary_token import SummaryToken
from positionbias.models.token_prepending import TokenPrepending

AXIS = "architectures"
EXAMPLES = {
    "encoder_decoder": ["encoder_decoder", "encoder_decoder(encoder_mask=causal, cross_mask=sliding_window(width=5))"],
    "contextual_token": ["contextual_token", "contextual_token(encoder_layers=2, concatenated=False)"],
    "token_prepending": ["token_prepending", "token_prepending(start=0, stop=1)"],
    "summary_token": ["summary_token", "summary_token(bottleneck=False)"],
    "two_stacks": ["two_stacks"],
    "looped": ["looped(loops=2)", "looped(loops=2, inject=True)", "looped(loops=2, memory=True, inject=True)"],
}
MASKS = {"add": "causal & sliding_window(width=2)", "none": "causal & ~sliding_window(width=2)"}


@pytest.fixture
def setting(tiny):
    """`setting(architecture, residual)`: an experiment of two layers whose windows keep reach from being everything."""

    def make(architecture, residual="add"):
        config = tiny(
            {
                "task": "inverse_permutation(n=3, alphabet=4, scratch=True)",
                "model.mask": MASKS[residual],
                "model.residual": residual,
                "model.layers": 2,
                "model.norm": "none",
            }
        )
        known = build(config)
        experiment = dataclasses.replace(known, architecture=architecture)
        architecture.check(experiment.blueprint)
        return experiment

    return make


def called(experiment):
    """Outputs of two examples, and max |d output[i] / d embedding[j]|."""
    (condition, *_), task = experiment.task.conditions(), experiment.task
    shape = (2, task.length(condition), experiment.config.model.width)

    @jax.jit
    def both(model_key, batch_key):
        model, batch = experiment.initialise(model_key), task.batch(batch_key, condition, 2)

        def outputs(shift):
            site = Sites(edit={"embedding": ("add", shift)})
            return model(batch.inputs, batch.tokens, task.context_length(condition), site)

        slopes = jax.jacrev(lambda shift: outputs(shift).sum(axis=-1))(jnp.zeros(shape))
        return outputs(jnp.zeros(shape)), slopes

    found, slopes = both(jax.random.key(1), jax.random.key(2))
    return found, np.abs(np.asarray(slopes)).max(axis=(0, 2, 4))


def check_outputs(setting, architecture):
    """[B, T, V] in float32, zero before the first row that answers."""
    experiment = setting(architecture)
    condition = experiment.task.conditions()[0]
    outputs, _ = called(experiment)
    assert outputs.shape == (2, experiment.task.length(condition), experiment.task.output.size)
    assert outputs.dtype == jnp.float32
    first = architecture.first_row(experiment.task.context_length(condition))
    assert (outputs[:, :first] == 0).all()
    assert (np.abs(outputs[:, first:]).max(axis=-1) > 0).all(), "a row that should answer is silent"


def check_reach(setting, architecture):
    """Gradients are zero outside reach, and with a residual non-zero inside; traced tokens give the same reach."""
    for residual in MASKS:
        experiment = setting(architecture, residual)
        condition = experiment.task.conditions()[0]
        _, slopes = called(experiment)
        reach = experiment.reach(condition)
        first = architecture.first_row(experiment.task.context_length(condition))
        assert (slopes[first:][~reach[first:]] == 0).all(), "a gradient leaks outside reach"
        # Without a residual a row that sees one key weighs it by 1 whatever the query, which reach does not know.
        assert residual == "none" or (slopes[first:][reach[first:]] > 0).all(), "reach claims what has no influence"
        traced = jax.jit(lambda t, e=experiment, c=condition: e.reach(c, t))(experiment.task.tokens(condition))
        np.testing.assert_array_equal(traced, reach, "reach is not written with array operators only")


def check_attentions(setting, architecture):
    """Every edge of every attention is within reach, and every path of reach is made of such edges.

    Rows that the architecture adds are no inputs: they only lie on paths.
    """
    experiment = setting(architecture)
    condition = experiment.task.conditions()[0]
    tokens, context = experiment.task.tokens(condition), experiment.task.context_length(condition)
    found = architecture.attentions(experiment.blueprint, tokens, context)
    assert len({name for name, *_ in found}) == len(found) > 0
    reach = experiment.reach(condition)
    edges = architecture.outside(tokens, context)
    edges |= np.eye(len(edges), dtype=bool)
    stands = np.full(len(edges), -1)
    for name, operator, mask, q, k in found:
        seen = np.asarray(visible(operator, mask, q, k))
        assert seen.shape == (q.length, k.length)
        held_q, held_k = (architecture.held(name, side, context) for side in (q, k))
        told = np.ix_(held_q >= 0, held_k >= 0)
        assert not (seen[told] & ~reach[np.ix_(held_q[held_q >= 0], held_k[held_k >= 0])]).any(), "sees past reach"
        if (held_q >= 0).any():
            np.logical_or.at(edges, np.ix_(q.index, k.index), seen)  # a row may stand there more than once
            stands[q.index] = held_q
    for _ in found:
        edges = edges | (edges.astype(int) @ edges.astype(int) > 0)
    rows = np.flatnonzero(stands >= 0)
    assert stands[rows].tolist() == list(range(tokens.length)), "a row is forgotten, or stands in another's place"
    assert not (reach & ~edges[np.ix_(rows, rows)]).any(), "reach holds a path that no attention makes"


CHECKS = [check_outputs, check_reach, check_attentions]


@pytest.mark.parametrize("check", CHECKS)
def test_protocol(setting, built, check):
    check(setting, built)


def test_text_round_trips(built):
    assert spec.build("architectures", spec.canonical(built), "architecture") == built


class HalfPrecision(DecoderOnly):
    """Outputs in bfloat16."""

    def create(self, blueprint, noise):
        model = super().create(blueprint, noise)

        class Half(type(model)):
            def __call__(self, *args):
                return super().__call__(*args).astype(jnp.bfloat16)

        model.__class__ = Half
        return model


class OneLayerOfReach(DecoderOnly):
    """Reach of the first layer only."""

    def reach(self, blueprint, tokens, context_length):
        return blueprint.masks[0].dense(tokens, tokens)


class EndlessReach(DecoderOnly):
    """Reach of a causal model."""

    def reach(self, blueprint, tokens, context_length):
        return tokens.columns().index <= tokens.rows().index


class ForgetsALayer(DecoderOnly):
    """Tells of no attention after the first row."""

    def attentions(self, blueprint, tokens, context_length):
        return [(name, op, mask, q.cut(0, 1), k) for name, op, mask, q, k in super().attentions(blueprint, tokens, 0)]


@dataclasses.dataclass(frozen=True)
class OnePass(Looped):
    """Reach of the first pass only."""

    def reach(self, blueprint, tokens, context_length):
        return Looped(1).reach(blueprint, tokens, context_length)


@dataclasses.dataclass(frozen=True)
class ForgetsTheReadout(ContextualToken):
    """Reach without the row in front that every row is read beside."""

    def reach(self, blueprint, tokens, context_length):
        return ContextualToken(concatenated=False).reach(blueprint, tokens, context_length)


@dataclasses.dataclass(frozen=True)
class NeverOverwritten(TokenPrepending):
    """Says of the row in front that it stays what it was."""

    def outside(self, tokens, context_length):
        return np.zeros((tokens.length + 1,) * 2, bool)


@dataclasses.dataclass(frozen=True)
class Untold(TokenPrepending):
    """Tells of its rows as if none stood in front."""

    def attentions(self, blueprint, tokens, context_length):
        return DecoderOnly().attentions(blueprint, tokens, context_length)

    def reach(self, blueprint, tokens, context_length):
        return TokenPrepending().reach(blueprint, tokens, context_length)


@dataclasses.dataclass(frozen=True)
class LeaksPastTheSummary(SummaryToken):
    """Tells of the masks as they are without a summary."""

    def attentions(self, blueprint, tokens, context_length):
        found = super().attentions(blueprint, tokens, context_length)
        return [(name, operator, mask.inner, q, k) for name, operator, mask, q, k in found]

    def reach(self, blueprint, tokens, context_length):
        return SummaryToken().reach(blueprint, tokens, context_length)


class AnswersLate(DecoderOnly):
    """Says that the context does not answer, and answers there."""

    def first_row(self, context_length):
        return context_length


@pytest.mark.parametrize(
    ("broken", "check"),
    [
        (HalfPrecision, check_outputs),
        (AnswersLate, check_outputs),
        (OneLayerOfReach, check_reach),
        (EndlessReach, check_reach),
        (EndlessReach, check_attentions),
        (ForgetsALayer, check_attentions),
        (lambda: OnePass(2), check_reach),
        (ForgetsTheReadout, check_reach),
        (NeverOverwritten, check_attentions),
        (Untold, check_attentions),
        (LeaksPastTheSummary, check_attentions),
    ],
)
def test_a_broken_architecture_is_caught(setting, broken, check):
    with pytest.raises(AssertionError):
        check(setting, broken())
