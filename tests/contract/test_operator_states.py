"""The state that an operator declares is large enough for all that later outputs show of the past."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from positionbias import compatibility, spec
from positionbias.models.sites import Sites
from positionbias.operators.base import Operator
from positionbias.positions.base import Dims, Placed
from positionbias.tokens import sequential

PAST, FUTURE = 6, 24
HEADS, SIZE = 1, 4
SMALLEST = 1e-5  # of the largest singular value: what float32 still tells
MASK, NONE = spec.build("masks", "causal", "mask"), Placed(spec.build("positions", "none", "position"))


def sizes(length):
    return Dims(width=HEADS * SIZE, heads=HEADS, head_size=SIZE, length=length)


def shown(operator: Operator) -> int:
    """The rank of the derivatives of later outputs by all that was read before."""
    length = PAST + FUTURE
    tokens = sequential(length, context=(np.arange(length) < PAST).astype(np.int32))
    draw = np.random.default_rng(0)
    rows = {"x": draw.normal(size=(1, length, HEADS * SIZE)).astype(np.float32)}
    if operator.reads == "qkv":
        rows |= {name: draw.normal(size=(1, length, HEADS, SIZE)).astype(np.float32) for name in "qkv"}
    declared = operator.parameters(sizes(length)).items()
    params = {name: jnp.asarray(draw.normal(size=matrix.shape), jnp.float32) / 2 for name, matrix in declared}

    def later(past):
        read = {name: jnp.concatenate([past[name], rows[name][:, PAST:]], axis=1) for name in rows}
        if operator.reads == "stream":
            return operator.mix(read["x"], tokens, MASK, params, Sites())[:, PAST:].ravel()
        more = params | operator.projected(read["x"], read["x"], params)
        given = (read["q"], read["k"], read["v"], tokens, tokens, MASK, NONE, more, Sites())
        return operator(*given)[:, PAST:].ravel()

    found = jax.jit(jax.jacrev(later))({name: value[:, :PAST] for name, value in rows.items()})
    matrix = np.concatenate([np.asarray(part, np.float64).reshape(len(part), -1) for part in found.values()], axis=1)
    singular = np.linalg.svd(matrix, compute_uv=False)
    return int((singular > SMALLEST * singular[0]).sum())


def causal(name):
    told = [compatibility.ARGUMENTS[name]] if name in compatibility.ARGUMENTS else []
    told += ["causal=True"] if "causal" in spec.arguments(spec.load_member("operators", name, "operator")) else []
    return spec.build("operators", f"{name}({', '.join(told)})", "operator")


CAUSAL = [name for name in spec.names("operators") if "causal_self" in causal(name).patterns]


@pytest.mark.parametrize("name", CAUSAL)
def test_no_output_shows_more_of_the_past_than_the_state_holds(name):
    operator = causal(name)
    assert 0 < shown(operator) <= operator.state_size(sizes(PAST))


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("softmax", 2 * PAST * SIZE),
        ("retention", SIZE * SIZE),
        ("gated_linear_attention", SIZE * SIZE),
        ("linear_attention", SIZE * (SIZE + 1)),
        ("ahla", 2 * SIZE * SIZE),
        (
            "hla2",
            SIZE * (SIZE + 1) // 2 + SIZE * SIZE,
        ),  # sums of k k', symmetric, and of what queries make of it times v'
        ("short_convolution", 2 * SIZE),
        ("attention_free", SIZE),  # a sum; the count is no input's doing
    ],
)
def test_what_later_outputs_show_is_known_of_some(text, numbers):
    assert shown(spec.build("operators", text, "operator")) == numbers
