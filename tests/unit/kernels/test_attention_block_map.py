"""Tiles that are visited, against a count of every pair."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kernels_oracle import Case, check, drawn, fused, posed_with

from positionbias import spec
from positionbias.kernels import PerKey, PerQuery
from positionbias.kernels.softmax_attention import block_map
from positionbias.kernels.softmax_attention.block_map import classes, walk
from positionbias.masks.base import EMPTY, FULL, PARTIAL
from positionbias.tokens import sequential

SIZES = [((16, 16), (4, 4)), ((17, 23), (4, 8)), ((5, 40), (8, 16)), ((1, 1), (4, 4)), ((33, 7), (1, 3))]


def counted(seen, blocks):
    """Classes of the tiles of [B, N, T, S], by looking at each; those beyond the edge are never full."""
    rows, columns = blocks
    found = np.zeros((*seen.shape[:2], -(-seen.shape[2] // rows), -(-seen.shape[3] // columns)), np.int8)
    for b, n, i, j in np.ndindex(*found.shape):
        tile = seen[b, n, i * rows : (i + 1) * rows, j * columns : (j + 1) * columns]
        whole = tile.shape == blocks
        found[b, n, i, j] = FULL if tile.all() and whole else PARTIAL if tile.any() else EMPTY
    return found


def problem(sizes, blocks, batch=2, heads=2, **told):
    """One with no numbers in it."""
    q, k = (jax.ShapeDtypeStruct((batch, n, heads, 8), jnp.float32) for n in sizes)
    return posed_with(q, k, k, block_sizes=blocks, **told)


def tables(sizes, batch=2, heads=2):
    """Masks as tables, some of them with whole tiles of either kind."""
    random = np.random.default_rng(0)
    shape = (batch, heads, *sizes)
    for density in (0.02, 0.5, 0.98):
        yield random.random(shape) < density
    lag = np.arange(sizes[0])[:, None] - np.arange(sizes[1])
    yield np.broadcast_to(lag >= 0, shape)
    yield (lag >= 0) & (lag < random.integers(1, 9, (batch, heads, 1, 1)))
    yield np.zeros(shape, bool)
    yield np.ones(shape, bool)


@functools.partial(jax.jit, static_argnums=(1, 2))
def traced_classes(table, sizes, blocks):
    asked = problem(sizes, blocks, mask=lambda b, h, q, k: table[b, h, q, k])
    return classes(asked, blocks)


@pytest.mark.parametrize(("sizes", "blocks"), SIZES, ids=str)
def test_classes_are_those_counted(sizes, blocks):
    for table in tables(sizes):
        known = classes(problem(sizes, blocks, mask=lambda b, h, q, k, t=table: jnp.asarray(t)[b, h, q, k]), blocks)
        assert isinstance(known, np.ndarray)
        np.testing.assert_array_equal(known, counted(table, blocks))
        np.testing.assert_array_equal(traced_classes(table, sizes, blocks), counted(table, blocks))


@pytest.mark.parametrize(("sizes", "blocks"), SIZES[:3], ids=str)
@pytest.mark.parametrize("text", ["causal", "sliding_window(width=3)", "prefix(length=6)", "bidirectional"])
def test_classes_of_masks_are_those_counted(text, sizes, blocks):
    """Which come from the mask's own `blocks` for tiles of these sizes, and from its rule for others."""
    mask = spec.build("masks", text, "mask")
    seen = np.asarray(mask.dense(sequential(sizes[0]), sequential(sizes[1])))[None, None]
    asked = problem(sizes, blocks, mask=mask)
    for some in (blocks, (blocks[0] + 1, blocks[1] + 2)):
        np.testing.assert_array_equal(classes(asked, some), counted(seen, some))


def test_a_causal_map_visits_ten_of_sixteen_tiles():
    found = classes(problem((64, 64), (16, 16), mask=spec.build("masks", "causal", "mask")), (16, 16))
    rows, columns = walk(found), walk(found.swapaxes(-1, -2))
    assert rows.count.sum() == columns.count.sum() == 10
    assert rows.count.tolist() == [[[1, 2, 3, 4]]]
    assert columns.count.tolist() == [[[4, 3, 2, 1]]]
    assert (found == FULL).sum() == 6
    assert (rows.any_full, rows.any_partial) == (True, True)


def test_no_mask_is_full_but_for_ragged_tiles():
    found = classes(problem((17, 32), (16, 16)), (16, 16))
    assert found.tolist() == [[[[FULL, FULL], [PARTIAL, PARTIAL]]]]
    assert not walk(classes(problem((32, 32), (16, 16)), (16, 16))).any_partial


def listed(one):
    """The tiles that a walk visits: (b, n, row, column, full)."""
    count, entries = np.asarray(one.count), np.asarray(one.entries)
    return {
        (*at, int(entry) >> 1, bool(entry & 1)) for at in np.ndindex(*count.shape) for entry in entries[at][: count[at]]
    }


@pytest.mark.parametrize("known", [True, False])
def test_a_walk_visits_every_tile_that_is_not_empty_once_and_in_order(known):
    random = np.random.default_rng(0)
    for density in (0.0, 0.1, 0.6, 1.0):
        found = np.where(random.random((2, 3, 5, 7)) < density, random.integers(1, 3, (2, 3, 5, 7)), 0).astype(np.int8)
        one = walk(found) if known else jax.jit(lambda x: dict(vars(walk(x))))(found)
        if not known:
            assert one.pop("any_full")
            assert one.pop("any_partial")
            one = block_map.Walk(**one, any_full=True, any_partial=True)
        wanted = {(*at, bool(found[at] == FULL)) for at in np.ndindex(*found.shape) if found[at] != EMPTY}
        assert listed(one) == wanted
        count, entries = np.asarray(one.count), np.asarray(one.entries)
        assert count.sum() == len(wanted), "no tile twice"
        assert one.width == (max(1, count.max()) if known else 7)
        for at in np.ndindex(*count.shape):
            steps = entries[at] >> 1
            assert (np.diff(steps) >= 0).all()
            assert (steps[max(count[at] - 1, 0) :] == steps[max(count[at] - 1, 0)]).all(), "no copies after the last"


# Memory: lists that are too long are those of what any head, or any example, sees.


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize(
    ("most", "shape"),
    [(2 * 3 * 4 * 6, (2, 3)), (2 * 3 * 4 * 6 - 1, (2, 1)), (2 * 4 * 6, (2, 1)), (2 * 4 * 6 - 1, (1, 1))],
)
def test_lists_that_are_too_long_are_shared(most, shape, known, monkeypatch):
    monkeypatch.setattr(block_map, "MOST_ENTRIES", most)
    random = np.random.default_rng(1)
    corners = random.integers(0, 3, (2, 3, 4, 6))  # classes of tiles, so that some are empty or full for all
    corners[:, :, 0] = corners[:1, :1, 0]
    table = np.repeat(np.repeat(corners == FULL, 4, axis=2), 4, axis=3)
    table[:, :, ::4, ::4] |= np.repeat(np.repeat(corners == PARTIAL, 4, axis=2), 4, axis=3)[:, :, ::4, ::4]
    np.testing.assert_array_equal(counted(table, (4, 4)), corners)

    def judged(table):
        return classes(problem((16, 24), (4, 4), heads=3, mask=lambda b, h, q, k: table[b, h, q, k]), (4, 4))

    found = np.asarray(judged(jnp.asarray(table)) if known else jax.jit(judged)(table))
    assert found.shape[:2] == shape
    axes = tuple(axis for axis in (0, 1) if shape[axis] == 1)
    every, some = (corners == FULL).all(axes, keepdims=True), (corners != EMPTY).any(axes, keepdims=True)
    np.testing.assert_array_equal(found, np.where(every, FULL, np.where(some, PARTIAL, EMPTY)))
    assert {EMPTY, PARTIAL, FULL} == set(found.flat)


def test_shared_lists_change_no_output(monkeypatch):
    monkeypatch.setattr(block_map, "MOST_ENTRIES", 6)
    case = Case(lambda _: lambda b, h, q, k: (k <= q - 8 * b) & (q - k < 12 + 9 * h), options={"block_sizes": (16, 16)})
    check(case, drawn(40, 40), fused(), ("received",))


def test_maps_that_are_remembered_are_not_taken_for_others():
    """Rules that differ by a number in them, by what they read, or by the size of the tiles."""
    lag = np.arange(16)[:, None] - np.arange(16)
    for width in (3, 4, 3):
        for blocks in ((4, 4), (4, 8)):
            for begun in (0, 6):
                seen = (lag < width) & (np.arange(16) >= begun)
                first = np.full(16, begun)
                asked = problem(
                    (16, 16),
                    (4, 4),
                    mask=lambda b, h, q, k, first, w=width: (q - k < w) & (k >= first),
                    aux={"first": PerKey(first)},
                )
                np.testing.assert_array_equal(classes(asked, blocks), counted(seen[None, None], blocks))


# What is known without running anything, and what is not.


def test_the_map_is_known_unless_a_tracer_shapes_the_mask():
    begun = np.arange(16, dtype=np.int32) // 4

    def documents(told):
        aux = {"one": PerQuery(told), "other": PerKey(told)}
        asked = problem((16, 16), (4, 4), mask=lambda b, h, q, k, one, other: one == other, aux=aux)
        return classes(asked, (4, 4))

    assert isinstance(documents(begun), np.ndarray)
    np.testing.assert_array_equal(documents(begun)[0, 0], 2 * np.eye(4))
    np.testing.assert_array_equal(jax.jit(documents)(begun)[0, 0], 2 * np.eye(4))


def test_the_map_is_known_under_jit_where_nothing_traced_shapes_the_mask():
    kinds = []

    @jax.jit
    def run(x):
        kinds.append(type(classes(problem((16, 16), (4, 4), mask=lambda b, h, q, k: k <= q), (4, 4))))
        return x

    run(0)
    assert kinds == [np.ndarray]
