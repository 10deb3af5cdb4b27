"""The position-scheme protocol, over every registered scheme."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from positionbias import spec
from positionbias.config import schema
from positionbias.positions.base import Dims, Matrix, Placed, PositionScheme
from positionbias.positions.buckets import T5Bias
from positionbias.tokens import Tokens, sequential

AXIS = "positions"
EXAMPLES = {
    "rope": [
        "rope",
        "rope(fraction=0.5, pairs='halves')",
        "rope(scaling='linear', factor=2.0)",
        "rope(scaling='ntk', factor=2.0, pairs='halves')",
    ],
    "fire": ["fire", "fire(threshold=2.0)"],
    "periodic": ["periodic(period=3)", "periodic(period=3, stepped_bias=False)"],
    "one_hot": ["one_hot", "one_hot(slots=14)"],
}

DIMS = Dims(width=16, heads=3, head_size=4, length=12)
KINDS = {f.name for f in dataclasses.fields(schema.Init)}
BATCH, T, S = 2, 5, 7
POSITIONS = np.stack([np.arange(T), np.arange(T)[::-1] + 4]).astype(np.int32)
FRAMES = np.array([1, 1, 2, 2, 3], np.int32)


def tokens_at(position):
    """Tokens told these positions, in frames."""
    return sequential(T, position=position, frame=FRAMES).told_context(0)


def parameters(declared):
    made = {}
    for i, (name, matrix) in enumerate(declared.items()):
        made[name] = jax.random.normal(jax.random.key(i), matrix.shape)
    return made


def check_parameters(scheme):
    """Parameters have a shape, a kind that `model.init` knows or an initializer, a fan-in, and somewhere to act."""
    scheme.check(DIMS)
    embedding, layer = scheme.embedding_parameters(DIMS), scheme.layer_parameters(DIMS)
    assert scheme.embeds or not embedding, "parameters of the embedding that nothing reads"
    assert scheme.rotates or scheme.biases or scheme.multiplies or not layer, "parameters of layers that nothing reads"
    assert 0 <= scheme.own_features(DIMS) <= DIMS.width
    assert scheme.embeds or not scheme.own_features(DIMS), "features that nothing fills"
    assert scheme.reads <= set(Tokens._fields)
    for name, matrix in [*embedding.items(), *layer.items()]:
        assert isinstance(name, str)
        assert isinstance(matrix, Matrix)
        assert all(isinstance(n, int) and n > 0 for n in matrix.shape), "sizes are positive whole numbers"
        assert matrix.kind in KINDS or matrix.initializer, f"{matrix.kind} is not a field of model.init"
        assert matrix.fan_in > 0


def check_acts_on_arrays(act, active, shape, what):
    """`act(x, tokens)` keeps shape and precision, treats a batch like its rows, and is idle iff it says so."""
    for dtype in (jnp.float32, jnp.bfloat16):
        x = jax.random.normal(jax.random.key(9), (BATCH, T, *shape), dtype)
        found = act(x, tokens_at(POSITIONS))
        assert found.shape == x.shape, f"{what} changed the shape"
        assert found.dtype == dtype, f"{what} changed the precision"
        assert np.isfinite(np.asarray(found, np.float32)).all()
        moved = not np.array_equal(found, x)
        assert moved == active, f"the flag of {what} does not match what it does"
        for row in range(BATCH):
            alone = act(x[row : row + 1], tokens_at(POSITIONS[row]))
            np.testing.assert_allclose(
                np.asarray(alone[0], np.float32), np.asarray(found[row], np.float32), rtol=1e-6, atol=1e-6
            )


def check_embed(scheme):
    """`embed` acts on [B, T, D]."""
    params = parameters(scheme.embedding_parameters(DIMS))
    check_acts_on_arrays(jax.jit(lambda x, t: scheme.embed(x, t, params)), scheme.embeds, (16,), "embed")
    check_reads(scheme, lambda tokens: scheme.embed(jnp.ones((1, T, 16)), tokens, params))


def check_rotate(scheme):
    """`rotate` acts on [B, T, N, H], on queries as on keys."""
    params = parameters(scheme.layer_parameters(DIMS))
    for side in ("query", "key"):
        turned = jax.jit(lambda x, t, side=side: scheme.rotate(x, t, params, side))
        check_acts_on_arrays(turned, scheme.rotates, (3, 4), "rotate")
        check_reads(scheme, lambda t, side=side: scheme.rotate(jnp.ones((1, T, 3, 4)), t, params, side))


def check_bias(scheme):
    """`bias` is None or finite numbers that broadcast to [..., N, T, S]."""
    params = parameters(scheme.layer_parameters(DIMS))
    q, k = sequential(T), sequential(S, position=np.arange(S, dtype=np.int32) * 2)
    found = scheme.bias(q.rows(), k.columns(), 3, params)
    assert (found is not None) == scheme.biases, "the flag of bias does not match what it does"
    if found is None:
        return
    assert jnp.issubdtype(found.dtype, jnp.floating)
    np.broadcast_to(found, (3, T, S))
    assert np.isfinite(found).all()
    assert np.ptp(found) > 0, "a bias that is the same everywhere tells nothing"
    check_reads(scheme, lambda tokens: scheme.bias(tokens.rows(), k.columns(), 3, params))
    batched = q._replace(position=POSITIONS)
    both = np.broadcast_to(scheme.bias(batched.rows(), k.columns(), 3, params), (BATCH, 3, T, S))
    for row in range(BATCH):
        alone = scheme.bias(q._replace(position=POSITIONS[row]).rows(), k.columns(), 3, params)
        np.testing.assert_allclose(both[row], np.broadcast_to(alone, (3, T, S)), rtol=1e-5, atol=1e-5)
    check_table(scheme, params)
    tile = np.broadcast_to(scheme.bias(q.cut(1, 3).rows(), k.cut(2, 6).columns(), 3, params), (3, 2, 4))
    np.testing.assert_allclose(tile, np.broadcast_to(found, (3, T, S))[:, 1:3, 2:6], rtol=1e-5, atol=1e-5)


def check_table(scheme, params):
    """A bias that is looked up by differences has a table of them, where positions go on by one, and only there."""
    on = sequential(T, position=np.arange(4, 4 + T)), sequential(S, position=np.arange(2, 2 + S))
    table = Placed(scheme, params).table(*on, 3)
    assert (table is not None) == (type(scheme).looked_up is not PositionScheme.looked_up)
    if table is not None:
        known = scheme.bias(on[0].rows(), on[1].columns(), 3, params)
        np.testing.assert_array_equal(table[:, np.arange(T)[:, None] - np.arange(S) + S - 1], known)
        for odd in (POSITIONS, POSITIONS[1], jnp.arange(T)):
            assert Placed(scheme, params).table(on[0]._replace(position=odd), on[1], 3) is None


def check_products(scheme):
    """`products` is None or finite float32 [B, N, T, S], linear in queries and in keys."""
    params = parameters(scheme.layer_parameters(DIMS))
    k_tokens = sequential(S, position=np.arange(S, dtype=np.int32) * 2)
    q, k = (jax.random.normal(jax.random.key(i), (BATCH, n, 3, 4)) for i, n in enumerate((T, S)))

    def products(q, k, tokens=None):
        return scheme.products(q, k, tokens_at(POSITIONS) if tokens is None else tokens, k_tokens, params)

    found = products(q, k)
    assert (found is not None) == scheme.multiplies, "the flag of products does not match what it does"
    if found is None:
        return
    assert found.shape == (BATCH, 3, T, S)
    assert found.dtype == products(q.astype(jnp.bfloat16), k.astype(jnp.bfloat16)).dtype == jnp.float32
    assert np.isfinite(found).all()
    np.testing.assert_allclose(products(2 * q, k) - products(q, k), found, rtol=1e-5, atol=1e-5)
    for row in range(BATCH):
        alone = products(q[row : row + 1], k[row : row + 1], tokens_at(POSITIONS[row]))
        np.testing.assert_allclose(alone[0], found[row], rtol=1e-5, atol=1e-5)
    check_reads(scheme, lambda tokens: products(q[:1], k[:1], tokens))


def check_reads(scheme, act):
    """`act` depends on the fields of the tokens that the scheme says it reads, and on no others."""
    tokens = tokens_at(POSITIONS[0])
    other = {name: tokens.index[::-1] for name in Tokens._fields if name not in (*scheme.reads, "valid")}
    first, second = act(tokens), act(tokens._replace(**other))
    np.testing.assert_array_equal(first, second, "it reads a field that it does not name")


CHECKS = [check_parameters, check_embed, check_rotate, check_bias, check_products]


@pytest.mark.parametrize("check", CHECKS)
def test_protocol(built, check):
    check(built)


def test_text_round_trips(built):
    assert spec.build("positions", spec.canonical(built), "position") == built
    assert hash(built) is not None


def test_is_documented(built):
    assert type(built).__doc__.strip().splitlines()[0].endswith(".")


def test_a_bias_of_a_schemes_own_is_in_no_table():
    """One that is looked up and then added to: the table of differences would lack what is added."""

    class Adds(T5Bias):
        def bias(self, q, k, heads, params):
            return super().bias(q, k, heads, params) + 1.0

    params, on = parameters(T5Bias().layer_parameters(DIMS)), sequential(T)
    assert Placed(T5Bias(), params).table(on, on, 3) is not None
    assert Placed(Adds(), params).table(on, on, 3) is None


class ForgetsToDeclare(PositionScheme):
    """Names a kind of matrix that no initializer serves."""

    def embedding_parameters(self, dims):
        return {"table": Matrix((4, 4), "positional", 4)}

    def embed(self, x, tokens, params):
        return x + 1


class BiasesFromTheEmbedding(PositionScheme):
    """Declares the parameters of its bias where only `embed` gets them."""

    def embedding_parameters(self, dims):
        return {"slope": Matrix((1,), "position", 1)}

    def bias(self, q, k, heads, params):
        return jnp.abs(q.position - k.position) * params["slope"]


class Widens(PositionScheme):
    """Returns float32 whatever came in."""

    def embed(self, x, tokens, params):
        return x.astype(jnp.float32) + tokens.position[..., None]


class Idle(PositionScheme):
    """Overrides `rotate` and does nothing."""

    def rotate(self, x, tokens, params, side):
        return x


class OneLength(PositionScheme):
    """A bias for self attention only."""

    def bias(self, q, k, heads, params):
        return -jnp.abs(jnp.arange(q.position.shape[-2])[:, None] - jnp.arange(q.position.shape[-2])) * 1.0


class ReadsIndex(PositionScheme):
    """A bias on where tokens are stored."""

    def bias(self, q, k, heads, params):
        return (k.index - q.index) * jnp.float32(1)


class KeysOnly(PositionScheme):
    """Turns keys and forgets queries."""

    def rotate(self, x, tokens, params, side):
        return x if side == "query" else x * (1 + tokens.position[..., None, None]).astype(x.dtype)


class Transposed(PositionScheme):
    """Gives products of keys with queries."""

    def products(self, q, k, tokens_q, tokens_k, params):
        return jnp.einsum("BTNH,BSNH->BNST", q, k, preferred_element_type=jnp.float32)


class TellsNothing(PositionScheme):
    """Products in half precision."""

    def products(self, q, k, tokens_q, tokens_k, params):
        return jnp.einsum("BTNH,BSNH->BNTS", q, k).astype(jnp.bfloat16)


class EmptyFeatures(PositionScheme):
    """Keeps features for itself that it leaves empty."""

    def own_features(self, dims):
        return 2


@pytest.mark.parametrize(
    ("broken", "check"),
    [
        (ForgetsToDeclare, check_parameters),
        (BiasesFromTheEmbedding, check_parameters),
        (Widens, check_embed),
        (Idle, check_rotate),
        (OneLength, check_bias),
        (ReadsIndex, check_bias),
        (KeysOnly, check_rotate),
        (Transposed, check_products),
        (TellsNothing, check_products),
        (EmptyFeatures, check_parameters),
    ],
)
def test_a_broken_scheme_is_caught(broken, check):
    with pytest.raises((AssertionError, ValueError)):
        check(broken())
