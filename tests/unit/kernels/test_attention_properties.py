"""What must not matter: the order of keys, the size of tiles, how a call is traced, vectorized, split or spread."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as Along
from kernels_oracle import Case, agree, attend, drawn, drivers, kernel, with_gradients

from positionbias import spec
from positionbias.kernels import PerHead, PerKey, PerQuery, merge
from positionbias.kernels.softmax_attention.tiles import kept

BLOCKS = {"block_sizes": (32, 16)}
FEW = settings(max_examples=4, deadline=None)


def by_aux(_):
    """A mask that knows of keys only what their operands say."""
    return lambda b, h, q, k, begun, of_query: (begun <= q) & ((begun + h) % 3 != of_query)


def slanted(captured):
    return lambda s, b, h, q, k, begun, weight, slope: (
        captured["cap"] * jnp.tanh(s / captured["cap"]) + weight - 0.1 * slope * jnp.abs(q - begun)
    )


KINDS = {"begun": PerKey, "weight": PerKey, "of_query": PerQuery, "slope": PerHead}
CASE = Case(by_aux, slanted, KINDS, BLOCKS)


def told(seed, rows=70, columns=41, heads=2, groups=1):
    random = np.random.default_rng(seed)
    aux = {
        "begun": random.integers(0, 50, (2, columns)).astype(np.int32),
        "weight": random.normal(size=(2, columns)).astype(np.float32),
        "of_query": random.integers(0, 3, rows).astype(np.int32),
        "slope": np.linspace(0.2, 1, heads, dtype=np.float32),
    }
    captured = {"cap": np.float32(3)}
    return drawn(rows, columns, heads, groups, seed=seed) | {"aux": aux, "captured": captured}


@functools.cache
def compiled(impl, stats, blocks=(32, 16)):
    """One program for all examples of a property."""
    case = Case(by_aux, slanted, KINDS, {"block_sizes": blocks})
    return kernel(case, impl, stats, ("o", *stats))


@pytest.mark.parametrize("impl", drivers())
@FEW
@given(seed=st.integers(0, 2**31))
def test_the_order_of_keys_and_their_operands_does_not_matter(impl, seed):
    """Nor to gradients, which move with them."""
    params, order = told(seed), np.random.default_rng(seed).permutation(41)
    run = compiled(impl, ("lse", "entropy"))

    def moved(tree):
        aux = {name: x[:, order] if name in ("begun", "weight") else x for name, x in tree["aux"].items()}
        return tree | {"k": tree["k"][:, order], "v": tree["v"][:, order], "aux": aux}

    parts, gradients = run(params)
    agree(run(moved(params)), (parts, moved(gradients)))


@pytest.mark.parametrize("impl", drivers())
@FEW
@given(seed=st.integers(0, 2**31))
def test_attention_received_moves_with_the_keys(impl, seed):
    params, order = drawn(70, 41, seed=seed), np.random.default_rng(seed).permutation(41)
    moved = {name: x if name == "q" else x[:, order] for name, x in params.items()}
    found, known = (received(impl)(one)[0] for one in (moved, params))
    agree((found, {}), (known | {"received": known["received"][..., order]}, {}))


@functools.cache
def received(impl):
    return kernel(Case(options=BLOCKS), impl, ("received",))


@pytest.mark.parametrize("impl", drivers())
def test_the_size_of_tiles_does_not_matter(impl):
    params = told(0)
    known = compiled(impl, ("lse",))(params)
    for blocks in [(16, 64), (8, 8)]:
        agree(compiled(impl, ("lse",), blocks)(params), known, about=blocks)


def test_drivers_agree_where_all_read_the_same_dropout():
    params = drawn(70, 41, heads=4, groups=2)
    case = Case(by_lag, options=BLOCKS | {"dropout": (0.5, np.int32(3))})
    known = kernel(case, drivers()[0])(params)
    for impl in drivers()[1:]:
        agree(kernel(case, impl)(params), known, about=impl)


def by_lag(_):
    return lambda b, h, q, k: (k <= q) & (q - k < 20 + 5 * h)


# Split keys.


@functools.cache
def halved(impl):
    """Attention over all keys, and over the two sides of a split of them merged, with gradients."""

    def part(params, side):
        def mask(b, h, q, k, on):
            return (on == side) & (k <= q + 5)

        o, stats = attend(
            *(params[name] for name in "qkv"),
            mask=mask,
            aux={"on": PerKey(params["on"])},
            stats=("lse",),
            impl=impl,
            **BLOCKS,
        )
        return o, stats.lse

    def whole(params):
        o, stats = attend(
            *(params[name] for name in "qkv"), mask=lambda b, h, q, k: k <= q + 5, stats=("lse",), impl=impl, **BLOCKS
        )
        return o, stats

    def split(params):
        o, lse = merge(part(params, 0), part(params, 1))
        return o, whole(params)[1]._replace(lse=lse)

    return [jax.jit(with_gradients(compute, ("o", "lse"))) for compute in (whole, split)]


@pytest.mark.parametrize("impl", drivers())
@FEW
@given(seed=st.integers(0, 2**31), share=st.sampled_from([0.0, 0.1, 0.5, 1.0]))
def test_two_sets_of_keys_merge_to_the_whole(impl, seed, share):
    """Where a set is empty for a query too, and with no gradient that is not finite."""
    params = drawn(70, 41, seed=seed)
    params["on"] = (np.random.default_rng(seed).random((2, 41)) < share).astype(np.int32)
    whole, split = halved(impl)
    agree(*(jax.tree.map(np.asarray, run(params)) for run in (split, whole)), tolerance=4e-6)


def test_two_sets_of_keys_that_see_nothing_merge_to_nothing():
    o, lse = jnp.zeros((1, 3, 2, 4)), jnp.full((1, 2, 3), -1e30)
    merged = merge((o, lse), (o, lse))
    np.testing.assert_array_equal(merged[0], 0)
    assert (np.asarray(merged[1]) < -9e29).all()


def test_merging_keeps_the_type():
    o, lse = jnp.ones((1, 3, 2, 4), jnp.bfloat16), jnp.zeros((1, 2, 3))
    merged = merge((o, lse), (o, lse))
    assert (merged[0].dtype, merged[1].dtype) == (jnp.bfloat16, jnp.float32)
    np.testing.assert_array_equal(merged[0], o)


# Tracing.


@pytest.mark.parametrize("impl", drivers())
def test_replicas_by_vmap_are_those_of_a_loop(impl):
    run = with_gradients(functools.partial(CASE.by_kernel, impl, ("lse", "received")), ("o", "lse", "received"))
    replicas = [told(seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *xs: np.stack(xs), *replicas)
    found = jax.jit(jax.vmap(run))(stacked)
    one = jax.jit(run)
    for i, params in enumerate(replicas):
        known = jax.tree.map(np.asarray, one(params))
        agree(jax.tree.map(lambda x, i=i: np.asarray(x[i]), found), known, about=i)


@pytest.mark.parametrize("impl", drivers())
def test_replicas_with_a_mask_of_their_own(impl):
    """The classes of tiles, and the lists that the kernel reads, are then each replica's own."""
    tables = np.random.default_rng(0).random((3, 40, 40)) < np.array([0.1, 0.5, 1.0])[:, None, None]
    tables[:, :16] = False
    tables[1, :, 16:32] = True
    params = drawn(40, 40)

    def run(table):
        case = Case(lambda _: lambda b, h, q, k: table[q, k], options={"block_sizes": (16, 16)})
        return with_gradients(functools.partial(case.by_kernel, impl, ("received",)), ("o", "received"))(params)

    found, one = jax.jit(jax.vmap(run))(tables), jax.jit(run)
    for i, table in enumerate(tables):
        agree(*(jax.tree.map(np.asarray, x) for x in (jax.tree.map(lambda x, i=i: x[i], found), one(table))), about=i)


@pytest.mark.parametrize("impl", drivers())
def test_jit_inside_and_outside_of_grad_is_the_same(impl):
    """And so is a call that nothing compiles, with a Mask, which reads numpy tokens."""
    q, k, v = (jnp.asarray(x) for x in drawn(20, 24).values())
    mask = spec.build("masks", "sliding_window(width=3)", "mask")

    def loss(q, k, v):
        return jnp.sum(jnp.sin(attend(q, k, v, mask=mask, impl=impl, block_sizes=(16, 16))))

    plain = jax.grad(loss, (0, 1, 2))(q, k, v)
    for run in (jax.jit(jax.grad(loss, (0, 1, 2))), jax.grad(jax.jit(loss), (0, 1, 2))):
        for found, known in zip(run(q, k, v), plain, strict=True):
            np.testing.assert_allclose(found, known, rtol=0, atol=2e-6)


@pytest.mark.parametrize("impl", drivers())
def test_under_checkpoint_and_scan(impl):
    q, k, v = (jnp.asarray(x) for x in drawn(20, 20, heads=1).values())

    def layers(q):
        @jax.checkpoint
        def layer(x, slope):
            o = attend(
                x,
                k,
                v,
                mask=lambda b, h, q, k: k <= q,
                score=lambda s, b, h, q, k: s - slope * (q - k),
                impl=impl,
                block_sizes=(16, 16),
            )
            return x + o, None

        return layer

    def by_scan(q, slopes):
        return jnp.sum(jnp.sin(jax.lax.scan(layers(q), q, slopes)[0]))

    def by_loop(q, slopes):
        x = q
        for slope in slopes:
            x = layers(q)(x, slope)[0]
        return jnp.sum(jnp.sin(x))

    slopes = jnp.asarray([0.1, 0.3])
    found, known = (jax.jit(jax.grad(run, (0, 1)))(q, slopes) for run in (by_scan, by_loop))
    for one, other in zip(found, known, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("impl", drivers())
def test_spread_over_devices_it_is_the_same(impl):
    """Examples along a data axis; what all share has its gradients summed over devices."""
    if len(jax.devices()) < 2:
        pytest.skip("one device")
    params = told(0)
    shared = {"aux": {name: params["aux"].pop(name) for name in ("of_query", "slope")}, "captured": params["captured"]}
    own = {name: params[name] for name in ("q", "k", "v", "aux")}

    def summed(own, shared):
        joined = own | {"aux": own["aux"] | shared["aux"], "captured": shared["captured"]}
        o, stats = CASE.by_kernel(impl, ("entropy", "received"), joined)
        return jnp.sum(jnp.sin(o)) + jnp.sum(stats.entropy**2) + jnp.sum(jnp.cos(stats.received)), o

    def gradients(own, shared):
        (_, o), found = jax.value_and_grad(summed, (0, 1), has_aux=True, allow_int=True)(own, shared)
        return o, jax.tree.map(lambda g: jnp.zeros(()) if g.dtype == jax.dtypes.float0 else g, found)

    mesh = Mesh(jax.devices()[:2], ("data",))

    def on_each(own, shared):
        o, (by_own, by_shared) = gradients(own, shared)
        return o, by_own, jax.tree.map(lambda g: jax.lax.psum(g, "data"), by_shared)

    by_own = dict.fromkeys("qkv", Along("data")) | {"aux": {"begun": Along(), "weight": Along("data")}}
    spread = jax.shard_map(
        on_each,
        mesh=mesh,
        in_specs=(Along("data"), Along()),
        out_specs=(Along("data"), by_own, Along()),
        check_vma=False,
    )
    o, mine, ours = jax.jit(spread)(own, shared)
    known_o, (known_mine, known_ours) = jax.jit(gradients)(own, shared)
    np.testing.assert_allclose(o, known_o, rtol=0, atol=2e-6)
    for found, known in zip(jax.tree.leaves((mine, ours)), jax.tree.leaves((known_mine, known_ours)), strict=True):
        np.testing.assert_allclose(found, known, rtol=0, atol=4e-6 * max(1, np.abs(known).max()))


# What functions capture.


@pytest.mark.parametrize("impl", drivers())
def test_traced_lengths_and_documents(impl):
    """One program for all lengths and all ways to pack documents."""

    def by_documents(captured):
        return lambda b, h, q, k: (
            (captured["document"][b, q] == captured["document"][b, k]) & (k < captured["length"][b]) & (k <= q)
        )

    case = Case(by_documents, options={"block_sizes": (16, 16)})
    run = kernel(case, impl)
    random = np.random.default_rng(0)
    for seed in range(3):
        captured = {
            "document": np.sort(random.integers(0, 4, (2, 40)), axis=1).astype(np.int32),
            "length": random.integers(0, 41, 2).astype(np.int32),
        }
        params = drawn(40, 40, seed=seed)
        o = run(params | {"captured": captured})[0]["o"]
        for b in range(2):
            document, length = captured["document"][b], captured["length"][b]
            for name in range(4):
                rows = document == name
                seen = rows & (np.arange(40) < length)
                alone = {
                    key: x[b : b + 1, rows if key == "q" else seen] for key, x in params.items() if key != "captured"
                }
                late = np.flatnonzero(rows)
                if not seen.any():
                    np.testing.assert_array_equal(o[b, rows], 0)
                elif rows.any():
                    early = np.flatnonzero(seen)
                    scores = np.einsum("tnh,sh->nts", alone["q"][0], alone["k"][0, :, 0]) / np.sqrt(8)
                    scores = np.where(early <= late[:, None], scores, -np.inf)
                    a = np.exp(scores - scores.max(-1, keepdims=True))
                    known = np.einsum("nts,sk->tnk", a / a.sum(-1, keepdims=True), alone["v"][0, :, 0])
                    np.testing.assert_allclose(o[b, rows], known, rtol=0, atol=2e-6)


@pytest.mark.parametrize("impl", drivers())
def test_what_a_closure_captures_has_gradients_by_differences(impl):
    """Against differences of the loss, and so against nothing that this package says."""
    q, k, v = (jnp.asarray(x) for x in drawn(20, 20, heads=1, batch=1).values())

    def loss(slope, table):
        o = attend(
            q,
            k,
            v,
            mask=lambda b, h, q, k: k <= q,
            score=lambda s, b, h, q, k: s - slope * (q - k) + table[k % 4] * table[q % 4],
            impl=impl,
            block_sizes=(16, 16),
        )
        return jnp.sum(jnp.sin(3 * o))

    run = jax.jit(loss)
    at = jnp.float32(0.2), jnp.asarray([0.3, -0.5, 1.0, 0.1])
    found = jax.jit(jax.grad(loss, (0, 1)))(*at)
    step = 1e-2

    def slope(move):
        return (run(*move(step)) - run(*move(-step))) / (2 * step)

    np.testing.assert_allclose(found[0], slope(lambda d: (at[0] + d, at[1])), rtol=0.01, atol=0.02)
    for i in range(4):
        np.testing.assert_allclose(found[1][i], slope(lambda d, i=i: (at[0], at[1].at[i].add(d))), rtol=0.01, atol=0.02)


# Dropout.


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_so_many_weights_are_kept(rate):
    """Overall, and for every head, query and key: within five standard deviations, and each way with every seed."""
    at = np.ix_(*(np.arange(n, dtype=np.int32) for n in (2, 4, 128, 128)))
    draws = [np.asarray(kept(np.int32(seed), rate, *at)) for seed in (0, 1)]
    assert {float(x) for x in np.unique(draws[0])} == {0.0, float(np.float32(1 / (1 - rate)))}
    for draw in draws:
        for axes in [(0, 1, 2, 3), (1, 2, 3), (0, 2, 3), (0, 1, 3), (0, 1, 2)]:
            share = (draw > 0).mean(axis=axes)
            count = draw.size / max(1, share.size)
            assert np.abs(share - (1 - rate)).max() < 5 * np.sqrt(rate * (1 - rate) / count)
    both = ((draws[0] > 0) & (draws[1] > 0)).mean()
    assert abs(both - (1 - rate) ** 2) < 0.01, "other seeds draw independently"


def test_neighbors_are_dropped_independently():
    at = np.ix_(*(np.arange(n, dtype=np.int32) for n in (2, 4, 128, 128)))
    drawn_once = np.asarray(kept(np.int32(5), 0.5, *at)) > 0
    for axis in range(4):
        pairs = np.take(drawn_once, range(1, drawn_once.shape[axis]), axis), np.delete(drawn_once, -1, axis)
        assert abs((pairs[0] == pairs[1]).mean() - 0.5) < 0.015
    assert abs((drawn_once == np.swapaxes(drawn_once, 2, 3)).mean() - 0.5) < 0.015


@pytest.mark.parametrize("impl", drivers())
def test_outputs_under_dropout_are_those_without_on_average(impl):
    params = drawn(16, 16)

    @jax.jit
    def run(seed, q, k, v):
        return attend(q, k, v, dropout=(0.3, seed), impl=impl, block_sizes=(16, 16))

    draws = np.stack([run(np.int32(seed), *params.values()) for seed in range(200)])
    known = attend(*(jnp.asarray(x) for x in params.values()))
    assert (draws.std(axis=0) > 0.01).all(), "every seed drops others"
    assert np.abs((draws.mean(axis=0) - known) / draws.std(axis=0)).max() < 5 / np.sqrt(200)
    np.testing.assert_array_equal(draws[7], run(np.int32(7), *params.values()))
