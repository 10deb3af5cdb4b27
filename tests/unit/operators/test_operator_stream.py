"""Operators that read the stream, and the mean of all values, against what defines them in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from operators_oracle import DIMS, D, H, K, N, T, close, heads, mixed, normed, products, setting, sigmoid, silu

from positionbias import spec
from positionbias.config.build import build
from positionbias.errors import ConfigError
from positionbias.models.sites import Sites
from positionbias.operators.fourier import turned
from positionbias.operators.orthogonal_memory import _orthonormal
from positionbias.operators.softmax import Softmax
from positionbias.positions.base import Dims
from positionbias.tokens import sequential


def mix(one, **changed):
    params = {name: jnp.asarray(value) for name, value in one.params.items()}
    x = jnp.asarray(changed.get("x", one.x))
    found = one.operator.mix(x, changed.get("tokens", one.tokens), one.mask, params, Sites())
    return np.asarray(found, np.float64)


def test_attention_free_is_softmax_of_equal_scores():
    one = setting("attention_free", "causal & sliding_window(3)", valid=np.arange(T) != 4)
    softmax = setting("softmax", "causal & sliding_window(3)", valid=np.arange(T) != 4)
    close(one.run(), softmax.run(q=np.zeros_like(one.q)), 1e-6)
    away = np.arange(T)[:, None] - np.arange(T)
    seen = (away >= 0) & (away < 3) & (np.arange(T) != 4) & (np.arange(T)[:, None] != 4)
    known = mixed(np.broadcast_to(seen / np.maximum(seen.sum(axis=-1, keepdims=True), 1), (2, N, T, T)), one.v)
    close(one.run(), known)
    assert isinstance(softmax.operator, Softmax)


def test_a_short_convolution_of_one_feature():
    one = setting("short_convolution(width=3)")
    kernel = np.array([1.0, 10.0, 100.0])
    x = np.arange(1.0, T + 1)
    params = {"kernel": jnp.broadcast_to(kernel[:, None], (3, D)).astype(jnp.float32)}
    given = jnp.asarray(np.broadcast_to(x[None, :, None], (1, T, D)), jnp.float32)
    found = one.operator.mix(given, sequential(T), one.mask, params, Sites())[0, :, 0]
    assert found[:4].tolist() == [1, 2 + 10, 3 + 20 + 100, 4 + 30 + 200]
    two = spec.build("masks", "causal & segments", "mask")
    tokens = sequential(T, segment=np.array([0] * 3 + [1] * (T - 3)))
    found = one.operator.mix(given, tokens, two, params, Sites())[0, :, 0]
    assert found[2:6].tolist() == [123, 4, 5 + 40, 6 + 50 + 400], "it reaches across segments"


def convolution(x, kernel):
    found = np.zeros(x.shape)
    for lag in range(len(kernel)):
        found[:, lag:] += kernel[lag] * x[:, : x.shape[1] - lag]
    return found


def test_a_gated_convolution_is_a_product():
    one = setting("short_convolution(width=2, gated=True)")
    close(mix(one), convolution(one.x, one.kernel) * (one.x @ one.map))


def test_associative_memory_recalls_by_the_token_itself():
    one = setting("associative_memory(slots=5, width=3)")
    scores = np.exp(one.x @ one.bank.T)
    recalled = scores / scores.sum(axis=-1, keepdims=True) @ one.bank
    local, gates = convolution(one.x, one.kernel) + one.offset, sigmoid(one.x @ one.gates)
    close(mix(one), gates[..., :D] * local + gates[..., D:] * recalled)


def test_associative_memory_hears_of_nothing_farther_back():
    one = setting("associative_memory(slots=5, width=3)")
    other = one.x.copy()
    other[:, 0] += 1
    changed = np.abs(mix(one) - mix(one, x=other)).max(axis=(0, 2))
    assert (changed[:3] > 0).all()
    assert (changed[3:] == 0).all()


def test_fourier_over_all_keys_is_the_transform_of_fnet():
    one = setting(f"fourier(period={T})", "bidirectional")
    close(mix(one), np.fft.fft2(one.x.astype(np.float64), norm="ortho").real)


def test_fourier_turns_places_beyond_46341_by_their_product():
    t, s = np.array([46341, 65535, 70001]), np.array([46341, 65535, 69999])
    np.testing.assert_array_equal(turned(t, s, 65536), t.astype(np.int64) * s % 65536)
    np.testing.assert_array_equal(turned(t, s, 65521), t.astype(np.int64) * s % 65521)


def test_fourier_is_a_sum_of_what_came_and_does_not_depend_on_what_will():
    one = setting("fourier(period=20)")
    made = np.fft.fft(one.x.astype(np.float64), axis=-1, norm="ortho")
    turns = np.exp(-2j * np.pi * np.arange(T)[:, None] * np.arange(T) / 20)
    close(mix(one), (np.tril(turns) @ made).real / np.sqrt(20))
    short = one.operator.mix(jnp.asarray(one.x[:, :4]), sequential(4), one.mask, {}, Sites())
    close(np.asarray(short), mix(one)[:, :4], 1e-6)


@pytest.mark.parametrize("mask", ["causal", "block_causal(group='frame')"])
def test_chunk_hybrid_reads_its_chunk_by_softmax_and_those_before_by_a_state(mask):
    one = setting("chunk_hybrid(chunk=4, slowness=2.0)", mask, frame=(np.arange(T) // 4 + 1).astype(np.int32))
    q, k, v = (normed(np.asarray(getattr(one, name), np.float64)) for name in "qkv")
    k = k / np.sqrt(H)
    decay = np.log(sigmoid(one.x @ one.decay)) / 2
    chunk = np.arange(T) // 4
    seen = (chunk[:, None] == chunk) & (np.tril(np.ones((T, T), bool)) | (mask != "causal"))
    raised = np.where(seen, np.exp(products(q, k)), 0)
    inner = mixed(raised / raised.sum(axis=-1, keepdims=True), v)
    state, cross = np.zeros((2, N, H, K)), np.zeros(v.shape)
    for c in range(3):
        here = np.flatnonzero(chunk == c)
        near = np.exp(decay[:, here].cumsum(axis=1))
        cross[:, here] = np.einsum("btn,btnh,bnhk->btnk", near, q[:, here], state)
        kept = np.exp(decay[:, here].mean(axis=1))
        state = kept[..., None, None] * state + np.einsum("btnh,btnk->bnhk", k[:, here], v[:, here])
    close(one.run(), normed(inner + cross) * heads(silu(one.x @ one.gate)))


def orthogonal(one, mask, window, join):
    q, token = (heads(one.x @ getattr(one, name)) for name in ("query", "token"))
    basis = np.linalg.qr(one.basis)[0]
    found = np.zeros((2, T, N, H))
    for b, t, n in np.ndindex(2, T, N):
        past = token[b, : t + 1, n] if mask == "causal" else token[b, :, n]
        slots = (past @ basis[n]).mean(axis=0) * basis[n]  # [H, R]
        near = token[b, max(0, t - window + 1) : t + 1, n][::-1]
        far_scores = q[b, t, n] @ slots / 2
        near_scores = near @ q[b, t, n] / 2 + (one.by_distance[n, : len(near)] if window else 0)
        if join == "joint":
            raised = np.exp(np.concatenate([far_scores, near_scores]))
            shares = raised / raised.sum()
            far, by_near = shares[: len(far_scores)], shares[len(far_scores) :]
        else:
            far, by_near = (np.exp(x) / np.exp(x).sum() for x in (far_scores, near_scores))
        found[b, t, n] = slots @ far + by_near @ near
    return found.reshape(2, T, -1) @ one.output


@pytest.mark.parametrize("join", ["joint", "sum"])
@pytest.mark.parametrize("window", [0, 1, 4, 7])
@pytest.mark.parametrize("mask", ["causal", "bidirectional"])
def test_orthogonal_memory_attends_to_means_of_coefficients_and_to_a_window(mask, window, join):
    one = setting(f"orthogonal_memory(slots=3, window={window}, join={join!r})", mask)
    close(mix(one), orthogonal(one, mask, window, join))


@pytest.mark.parametrize("mask", ["causal", "causal & segments"])
@pytest.mark.parametrize("window", [3, 4])
@pytest.mark.parametrize("join", ["joint", "sum"])
def test_orthogonal_memory_gives_in_pieces_what_it_does_at_once(join, window, mask, monkeypatch):
    """Three blocks of four rows, or four of three, two at a time: the last piece is filled up."""
    segment = (np.arange(T) // 5).astype(np.int32)
    one = setting(
        f"orthogonal_memory(slots=3, window={window}, join={join!r})", mask, valid=np.arange(T) != 4, segment=segment
    )

    def slope():
        return jax.grad(lambda x: jnp.sum(one.operator.mix(x, one.tokens, one.mask, one.params, Sites()) ** 2))(one.x)

    known, known_slope = mix(one), np.asarray(slope())
    monkeypatch.setattr("positionbias.operators.orthogonal_memory.LEAST_ROWS", 2)
    monkeypatch.setattr("positionbias.operators.orthogonal_memory.ROWS", 8)
    close(mix(one), known, 1e-6)
    close(np.asarray(slope()), known_slope, 1e-5)


def test_orthogonal_memory_tells_apart_no_tokens_behind_the_window_but_by_their_mean():
    one = setting("orthogonal_memory(slots=3, window=2)")
    swapped = one.x.copy()
    swapped[:, [0, 3]] = swapped[:, [3, 0]]
    found, other = mix(one), mix(one, x=swapped)
    close(found[:, 5:], other[:, 5:], 1e-5)
    assert np.abs(found[:, 4] - other[:, 4]).max() > 1e-3


@pytest.mark.parametrize("columns", [np.zeros((1, 4, 2)), np.ones((1, 4, 3)), np.eye(4)[None, :, [0, 0, 1]]])
def test_a_basis_of_columns_that_lie_in_each_other_has_finite_gradients(columns):
    weights = np.random.default_rng(0).normal(size=columns.shape)
    slope = jax.grad(lambda x: jnp.sum(_orthonormal(x) * weights))(jnp.asarray(columns, jnp.float32))
    assert np.isfinite(slope).all()


def test_orthogonal_memory_has_no_more_slots_than_a_head_has_features():
    with pytest.raises(ConfigError, match="slots = 5 is not allowed; allowed: at most the head size, 4"):
        spec.build("operators", "orthogonal_memory(slots=5)", "operator").parameters(DIMS)


@pytest.mark.parametrize(
    "operator",
    ["orthogonal_memory(slots=9)", "lightnet(lrpe=('position', 'frame', 'scale'))", "md_tpe"],
)
def test_sizes_that_an_operator_cannot_have_name_the_field(tiny, operator):
    config = tiny({"model.operator": operator, "model.heads": 3, "model.head_size": 2})
    with pytest.raises(ConfigError, match=r"^model\.operator: .*; allowed: "):
        build(config)


def tpe(text, tokens, x, **params):
    operator, mask = spec.build("operators", text, "operator"), spec.build("masks", "causal", "mask")
    params = {name: jnp.asarray(value, jnp.float32) for name, value in params.items()}
    return np.asarray(operator.mix(jnp.asarray(x, jnp.float32), tokens, mask, params, Sites()))


def test_md_tpe_of_one_feature_a_head():
    """Decays of a half and of a third: of each head's sum its sign is left, over its root mean square."""
    given = {"query": [[[2.0], [-1.0]]], "key": [[[1.0], [1.0]]], "decay": [[0.0, -np.log(2)]]}
    found = tpe("md_tpe", sequential(3), [[[4, 1], [-3, 1], [0, -1]]], output=[np.eye(2)], **given)
    # Sums 4, -1, -1/2 and 1, 4/3, -5/9; times 2 and -1.
    np.testing.assert_allclose(found, [[[1, -1], [-1, -1], [-1, 1]]], rtol=1e-4)


def test_md_tpe_along_rows_and_columns():
    """Six tokens in two rows of three: along each axis a sum of those before on the line, and a matrix an axis."""
    frame, scale = np.divmod(np.arange(6), 3)
    draw = np.random.default_rng(0)
    shapes = {"query": (2, 2, 2), "key": (2, 2, 2), "decay": (2, 2), "output": (2, 4, 4)}
    params = {name: draw.normal(size=shape) for name, shape in shapes.items()}
    x = draw.normal(size=(1, 6, 4))
    known = np.zeros((6, 4))
    for axis, (along, other) in enumerate([(frame, scale), (scale, frame)]):
        for t in range(6):
            made = np.zeros((2, 2))
            for s in range(t + 1):
                if other[s] == other[t]:
                    decay = (1 / (1 + np.exp(-params["decay"][axis]))) ** (along[t] - along[s])
                    made += (decay * (params["query"] * params["key"]).sum(axis=-1)[axis])[:, None] * x[0, s].reshape(
                        2, 2
                    )
            made /= np.sqrt((made**2).mean(axis=-1, keepdims=True) + 1e-6)
            known[t] += made.ravel() @ params["output"][axis]
    tokens = sequential(6, frame=frame.astype(np.int32), scale=scale.astype(np.int32))
    found = tpe("md_tpe(axes=('frame', 'scale'))", tokens, x, **params)
    np.testing.assert_allclose(found[0], known, rtol=1e-4, atol=1e-5)
    operator = spec.build("operators", "md_tpe(axes=('frame', 'scale'))", "operator")
    seen = operator.visible(tokens, tokens, np.ones((6, 6), bool))
    assert seen[4].tolist() == [False, True, False, True, True, False]
    assert operator.whole
    assert operator.reads_tokens == {"frame", "scale"}


@pytest.mark.parametrize(
    ("axes", "told"),
    [
        ((), "one or more different names among context,"),
        (("position", "position"), "one or more different names"),
        (("row",), "one or more different names"),
    ],
)
def test_md_tpe_of_no_axes(axes, told):
    with pytest.raises(ConfigError, match=told):
        spec.build("operators", f"md_tpe(axes={axes})", "operator")


def test_md_tpe_needs_features_that_heads_share():
    with pytest.raises(
        ConfigError, match=r"^md_tpe needs a stream whose features 3 heads share evenly, got 8; allowed"
    ):
        spec.build("operators", "md_tpe", "operator").parameters(Dims(width=8, heads=3, head_size=2, length=4))
