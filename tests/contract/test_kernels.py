"""Every registered mask under every driver of attention that runs on this machine.

Either is found by its registration. The masks are those of `test_masks`, on tokens with every field in play, of two
examples that differ; on long ones where the mask can serve them.
"""

import copy
import datetime
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kernels_oracle import Case, agree, attend, drawn, drivers, formula, posed_with, with_gradients
from test_masks import EXAMPLES as EXAMPLES
from test_masks import made

from positionbias import spec
from positionbias.errors import ConfigError
from positionbias.kernels import attention
from positionbias.kernels.softmax_attention import block_map, ladder, xla
from positionbias.kernels.softmax_attention.block_map import classes
from positionbias.masks.base import EMPTY, FULL, PARTIAL, Mask
from positionbias.tokens import Tokens

AXIS = "masks"
LENGTHS = [(70, 41), (41, 41), (7, 11), (11, 11)]  # the first that a mask can serve
BLOCKS = (16, 16)


def pair(length, seed):
    """Tokens [2, T] of two sequences, the second stored from another place on."""
    first, second = made(length, seed), made(length, seed + 10)
    second = second._replace(index=second.index + 2)
    return Tokens(*(np.stack(fields) for fields in zip(first, second, strict=True)))


def sides(mask):
    """Tokens of queries and keys that the mask can serve."""
    for rows, columns in LENGTHS:
        q, k = pair(rows, 0), pair(columns, 0 if rows == columns else 1)
        try:
            copy.deepcopy(mask).dense(q, k)
        except ConfigError:
            continue
        return q, k
    raise AssertionError("no tokens are such that this mask can serve them; add their lengths to LENGTHS")


@functools.cache
def by_formula():
    """One program for all masks of one size: what they allow is handed in."""
    return formula(Case(lambda seen: lambda b, h, q, k: seen[b, q, k]))


def by_driver(impl, mask, q, k, traced):
    """Parts and gradients, from tokens that are known or traced."""

    def compute(params, q, k):
        arrays = (params[name] for name in "qkv")
        return attend(*arrays, mask=mask, tokens=(q, k), stats=(), impl=impl, block_sizes=BLOCKS)

    def run(params, q, k):
        return with_gradients(lambda params: compute(params, q, k), ("o",))(params)

    if traced:
        return jax.jit(run)
    known = jax.jit(lambda params: run(params, q, k))
    return lambda params, *_: known(params)


def check(mask, impls, traced):
    q, k = sides(mask)
    params = drawn(q.length, k.length)
    known = by_formula()(params | {"captured": np.asarray(mask.dense(q, k))})
    known[1].pop("captured")
    for impl in impls:
        found = by_driver(impl, mask, q, k, traced)(params, *(jax.tree.map(jnp.asarray, side) for side in (q, k)))
        agree(jax.tree.map(np.asarray, found), known, about=f"{spec.canonical(mask)}, {impl}")


SPECS = [text for name in spec.names(AXIS) for text in EXAMPLES.get(name, [name])]


def today(spec_text):
    """The first driver, and every other day one of the others, which are slow to compile: each in its turn."""
    first, *others = drivers()
    day, again = divmod(datetime.date.today().toordinal() + SPECS.index(spec_text), 2)
    return [first] if again or not others else [first, others[day % len(others)]]


def test_every_mask_under_every_driver(built, spec_text):
    """In twice as many days as there are drivers; at once in the slow suite."""
    check(built, today(spec_text), traced=False)


def test_every_mask_of_traced_tokens(built):
    check(built, drivers()[:1], traced=True)


@pytest.mark.slow
@pytest.mark.parametrize("traced", [False, True])
def test_every_mask_under_every_driver_of_known_and_traced_tokens(built, traced):
    check(built, drivers(), traced)


def test_tiles_of_every_mask_are_those_counted(built):
    """Known and traced, of the tiles that the mask classifies itself and of others."""
    q, k = sides(built)
    seen = np.asarray(built.dense(q, k))
    arrays = [jax.ShapeDtypeStruct((2, side.length, 2, 8), jnp.float32) for side in (q, k, k)]

    def found(q, k, blocks):
        return classes(posed_with(*arrays, mask=built, tokens=(q, k), block_sizes=BLOCKS), blocks)

    for blocks in (BLOCKS, (5, 3)):
        rows, columns = (range(0, n, step) for n, step in zip(seen.shape[1:], blocks, strict=True))
        known = [
            [[judged(one[i : i + blocks[0], j : j + blocks[1]], blocks) for j in columns] for i in rows] for one in seen
        ]
        static = found(q, k, blocks)
        assert isinstance(static, np.ndarray)
        np.testing.assert_array_equal(static[:, 0], known)
    traced = jax.jit(lambda q, k: found(q, k, blocks))(*(jax.tree.map(jnp.asarray, side) for side in (q, k)))
    np.testing.assert_array_equal(np.asarray(traced)[:, 0], known)


def judged(tile, blocks):
    return FULL if tile.all() and tile.shape == blocks else PARTIAL if tile.any() else EMPTY


def test_no_mask_is_refused_by_a_fused_driver(built):
    """What a mask reads of both sides at once is a dense operand of bits, which these can read."""
    q, k = sides(built)
    problem = posed_with(
        *(jax.ShapeDtypeStruct((2, side.length, 2, 8), jnp.float32) for side in (q, k, k)), mask=built, tokens=(q, k)
    )
    rule = problem.allowed
    assert all(operand.dtype.itemsize <= 4 for operand in rule.operands)
    assert not any(min(operand.shape[2:]) > 1 and operand.dtype.kind == "f" for operand in rule.operands)


# The suite itself: a driver or a mask that is wrong is caught, and a new one is picked up.


class SeesTooMuch(Mask):
    """Says one thing of whole sequences and another of tiles."""

    def allowed(self, q, k):
        return k.index <= q.index

    def blocks(self, q, k, block):
        return np.full((2, -(-q.length // block[0]), -(-k.length // block[1])), FULL, np.int8)


def test_a_mask_whose_tiles_are_wrong_is_caught(monkeypatch):
    monkeypatch.setattr(block_map, "_KNOWN", {})  # where the tiles of `causal` are, whose rule it has
    with pytest.raises(AssertionError):
        test_tiles_of_every_mask_are_those_counted(SeesTooMuch())


def test_a_driver_that_is_wrong_is_caught(monkeypatch):
    def run(problem):
        o, stats = xla.dense(problem)
        return o.at[0, 0].mul(1.0001), stats

    monkeypatch.setitem(ladder.DRIVERS, "new", ladder.Driver("new", run, lambda problem, platform: None))
    assert "new" in drivers.__wrapped__()
    with pytest.raises(AssertionError, match="causal, new"):
        check(spec.build("masks", "causal", "mask"), ["new"], traced=False)


def test_every_driver_either_runs_here_or_says_why_not():
    plain = drawn(8, 8).values()
    for name in ladder.DRIVERS:
        if name in drivers():
            attention(*plain, impl=name, block_sizes=(8, 8))
        else:
            with pytest.raises(ConfigError, match=r"(the platform|jax|q) is"):
                attention(*plain, impl=name)
