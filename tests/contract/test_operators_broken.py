"""What the operators' suite is worth: right operators pass its checks, and broken ones do not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_operators import (
    check_flags,
    check_mixes_queries,
    check_padding,
    check_pattern,
    check_patterns,
    check_priced,
    check_read_once,
    check_segments,
    check_state,
    check_state_size,
    check_step,
    check_stream,
    check_unseen,
    check_visible,
    checks_of,
)
from toys import ToyConvolution

from positionbias.masks.order import Causal
from positionbias.operators.base import Operator
from positionbias.operators.even_softmax import EvenSoftmax
from positionbias.operators.retention import Retention
from positionbias.operators.reversed import Reversed
from positionbias.operators.short_convolution import ShortConvolution
from positionbias.operators.softmax import Softmax


class Average(Operator):
    """The mean of the values a row may see: right, and the base of the broken ones."""

    patterns = frozenset({"causal_self"})
    uses_rotation = False
    uses_bias = False
    whole = "it is a toy"

    def __call__(self, q, k, v, tokens_q, tokens_k, mask, position, params, site):
        weights = jnp.asarray(mask.dense(tokens_q, tokens_k), v.dtype)
        total = jnp.maximum(weights.sum(axis=-1, keepdims=True), 1)
        return jnp.einsum("...TS,BSNK->BTNK" if weights.ndim == 2 else "BTS,BSNK->BTNK", weights / total, v)

    def state_size(self, dims):
        return dims.heads * dims.values


@pytest.mark.parametrize("operator", [Average(), ToyConvolution()], ids=["values", "stream"])
def test_a_right_operator_passes(operator):
    for check in checks_of(operator):
        check(operator)


class IgnoresTheMask(Average):
    """Averages everything."""

    def __call__(self, q, k, v, tokens_q, *rest):
        return jnp.broadcast_to(v.mean(axis=1, keepdims=True), (*q.shape[:3], v.shape[-1]))


class OrdersByFuture(Average):
    """Doubles what it gives where the first key of all is the largest, which no gradient tells."""

    def __call__(self, q, k, v, *rest):
        best = jnp.argmax(jnp.sum(k, axis=(2, 3)), axis=1)
        return jnp.where((best == 0)[:, None, None, None], 2.0, 1.0) * super().__call__(q, k, v, *rest)


class DividesByZero(Average):
    """NaN where nothing is seen."""

    def __call__(self, q, k, v, tokens_q, tokens_k, mask, *rest):
        weights = jnp.asarray(mask.dense(tokens_q, tokens_k), v.dtype)
        weights = jnp.broadcast_to(weights / weights.sum(axis=-1, keepdims=True), (len(q), *weights.shape[-2:]))
        return jnp.einsum("BTS,BSNK->BTNK", weights, v)


class SlopesAtZero(Average):
    """Zero where nothing is seen, and so steep there that the gradient is NaN."""

    def __call__(self, q, k, *rest):
        squares = super().__call__(q, jnp.square(k), jnp.square(rest[0]), *rest[1:])
        return jnp.sqrt(squares)


class PadsOneForAll(Average):
    """Takes the padding of the first sequence for that of all."""

    def __call__(self, q, k, v, tokens_q, tokens_k, *rest):
        if tokens_q.valid.ndim == 2:
            tokens_q = tokens_k = tokens_q._replace(valid=tokens_q.valid[0])
        return super().__call__(q, k, v, tokens_q, tokens_k, *rest)


class ClaimsMore(Average):
    """Says it sees its whole mask, and reads the diagonal."""

    def __call__(self, q, k, v, *rest):
        return v


class ClaimsTooLittle(Average):
    """Sees more than it says."""

    def visible(self, tokens_q, tokens_k, allowed):
        return allowed & np.eye(*allowed.shape, dtype=bool)


class ClaimsPastTheMask(Average):
    """Says it sees everything."""

    def visible(self, tokens_q, tokens_k, allowed):
        return allowed | True


class TracesNothing(Average):
    """A visible that only numpy can compute."""

    def visible(self, tokens_q, tokens_k, allowed):
        return np.asarray(allowed)


class ConvolvesThroughTheMask(ToyConvolution):
    """A convolution that knows no segments."""

    def mix(self, x, tokens, mask, params, site):
        return x * params["kernel"][0].astype(x.dtype) + jnp.roll(x, 1, axis=1) * params["kernel"][1].astype(x.dtype)


class ConvolvesScores(ToyConvolution):
    """Reads the stream and claims to hear rotations."""

    uses_rotation = True


class PromisesAPattern(Average):
    """Never shows the pattern it declares."""

    has_pattern = True


class PromisesABias(Average):
    """Declares that it listens to biases."""

    uses_bias = True


class NoPatterns(Average):
    """Serves nothing."""

    patterns = frozenset()


class StepsFromTheFront(Softmax):
    """Takes the rows of a step for the first ones."""

    def step(self, q, k, v, tokens_q, tokens_k, *more):
        return self(q, k, v, tokens_k.cut(0, tokens_q.length), tokens_k, *more)


class CountsKeysForValues(Average):
    """Takes values for as wide as keys."""

    def state_size(self, dims):
        return dims.heads * dims.head_size


class SaysNotWhy(Average):
    """Cannot read each row once, and does not say why."""

    whole = ""


class ForgetsTheRowsBefore(Retention):
    """Begins anew at every call."""

    def advance(self, *given):
        return super().advance(*given[:-1], None)


class NeverCleared(Retention):
    """Carries on what it holds into the next segment."""

    def advance(self, q, k, v, asked, *more):
        return super().advance(q, k, v, asked._replace(mask=Causal()), *more)


class EndlessInSecret(Retention):
    """Tells that it is cleared where it is not: a mask of segments would not be refused."""

    endless = "it is a toy"

    def visible(self, tokens_q, tokens_k, allowed):
        return allowed


class PricesInSecret(EvenSoftmax):
    """Adds a penalty to the loss and does not tell, so that training would price some rows alone."""

    priced = False


class MixesQueriesInSecret(Reversed):
    """Does not tell that a row depends on the others' queries, so that reach would lack them."""

    mixes_queries = False


class MixesNoQueries(Reversed):
    """Softmax, said to mix queries."""

    def __call__(self, *given):
        return Softmax()(*given)


class MixesQueriesRowByRow(Reversed):
    """Reversed attention of a few rows at a time, which then tell of those alone."""

    whole = ""


class CountsCalls(ShortConvolution):
    """Carries on a number of another shape with every call."""

    def advance_stream(self, x, asked, params, site, state):
        found, after = super().advance_stream(x, asked, params, site, None if state is None else state[0])
        return found, (after, jnp.zeros((len(x), 1 if state is None else state[1].shape[1] + 1)))


@pytest.mark.parametrize(
    ("broken", "check"),
    [
        (SaysNotWhy, check_read_once),
        (CountsKeysForValues, check_state_size),
        (ForgetsTheRowsBefore, check_state),
        (CountsCalls, check_state),
        (PricesInSecret, check_priced),
        (NeverCleared, check_segments),
        (EndlessInSecret, check_segments),
        (StepsFromTheFront, check_step),
        (IgnoresTheMask, check_visible),
        (ClaimsMore, check_visible),
        (ClaimsTooLittle, check_visible),
        (ClaimsPastTheMask, check_visible),
        (TracesNothing, check_visible),
        (ConvolvesThroughTheMask, check_stream),
        (ConvolvesScores, check_stream),
        (OrdersByFuture, check_unseen),
        (MixesQueriesInSecret, check_unseen),
        (MixesNoQueries, check_mixes_queries),
        (MixesQueriesRowByRow, check_mixes_queries),
        (DividesByZero, check_padding),
        (SlopesAtZero, check_padding),
        (PadsOneForAll, check_padding),
        (PromisesAPattern, check_pattern),
        (PromisesABias, check_flags),
        (NoPatterns, check_patterns),
    ],
)
def test_a_broken_operator_is_caught(broken, check):
    with pytest.raises((AssertionError, jax.errors.TracerArrayConversionError)):
        check(broken())
