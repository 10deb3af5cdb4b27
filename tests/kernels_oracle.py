"""What tests of kernels share: the drivers that run here, inputs, and the same case by a kernel and by its formula."""

import dataclasses
import datetime
import functools
from collections.abc import Callable, Mapping
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from positionbias.kernels import PerHead, PerKey, PerQuery, Relative, Scalar, attention
from positionbias.kernels.drivers import current_platform
from positionbias.kernels.softmax_attention import xla_chunked
from positionbias.kernels.softmax_attention.call import posed
from positionbias.kernels.softmax_attention.ladder import DRIVERS
from positionbias.kernels.softmax_attention.problem import NOTHING_SEEN
from positionbias.kernels.softmax_attention.reference import attention_reference
from positionbias.kernels.softmax_attention.tiles import kept

# Of the largest entry. In float32, what summing a few hundred terms in another order leaves. In bfloat16, whose steps
# are 2**-8: weights and outputs are rounded once each, and so are what they make of a gradient.
TOLERANCE = {"float32": 2e-6, "bfloat16": 2e-2}


CHUNK = 32
FLOAT0 = jax.dtypes.float0  # of the gradients of whole numbers


def posed_with(*arrays, **told):
    """The problem that a call of `attention` poses."""
    names = ("mask", "tokens", "score", "key_bias", "scale", "dropout", "block_sizes")
    call = {"aux": {}, "stats": (), "normalise": True, **dict.fromkeys(names), **told}
    return posed(*arrays, **call)


@functools.cache
def drivers():
    """Names of all drivers that can do a plain attention on this machine."""
    plain = posed_with(*(np.zeros((1, 8, 1, 8), np.float32),) * 3)
    return [name for name, one in DRIVERS.items() if one.unsupported_reason(plain, current_platform()) is None]


def fused():
    """Those of them that visit tiles."""
    return [name for name in drivers() if not name.startswith("xla")]


def attend(*arrays, **told):
    """`attention`, with chunks of rows small enough for the lengths of tests to have several."""
    with mock.patch.multiple(xla_chunked, CHUNK=CHUNK, FEW=0):
        return attention(*arrays, **told)


def rotating(seeds, count):
    """So many of the seeds, other ones on other days."""
    day = datetime.date.today().toordinal()
    return sorted(int(seed) for seed in np.random.default_rng(day).permutation(seeds)[:count])


def drawn(rows, columns, heads=2, groups=1, size=8, values=None, batch=2, seed=0, dtype="float32"):
    """Random q, k and v, rounded to `dtype` as numpy arrays."""
    random = np.random.default_rng(seed)
    shapes = {
        "q": (batch, rows, heads, size),
        "k": (batch, columns, groups, size),
        "v": (batch, columns, groups, values or size),
    }
    return {name: random.normal(size=shape).astype(jnp.dtype(dtype)) for name, shape in shapes.items()}


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """One attention: `mask(captured)` and `score(captured)` give the functions, so that what these capture is told."""

    mask: Callable[[Any], Any] | None = None
    score: Callable[[Any], Any] | None = None
    kinds: Mapping[str, type] = dataclasses.field(default_factory=dict)  # of the arrays in params["aux"]
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def by_kernel(self, impl, stats, params):
        """Outputs and statistics by a driver."""
        captured, aux = params.get("captured"), params.get("aux", {})
        return attend(
            *(jnp.asarray(params[name]) for name in "qkv"),
            mask=self.mask and self.mask(captured),
            score=self.score and self.score(captured),
            aux={name: self.kinds[name](array) for name, array in aux.items()},
            key_bias=params.get("key_bias"),
            stats=stats,
            impl=impl,
            **self.options,
        )

    def by_formula(self, params):
        """The same with all pairs of all examples written out; float64 where the context allows it."""
        captured = params.get("captured")
        batch, rows, heads, _ = params["q"].shape
        columns, groups = params["k"].shape[1:3]
        b, h, q, k = np.ix_(*(np.arange(n, dtype=np.int32) for n in (batch, heads, rows, columns)))
        aux = {name: _spread(self.kinds[name], array, rows, columns) for name, array in params.get("aux", {}).items()}

        def scored(s):
            if "key_bias" in params:
                s = s + jnp.repeat(params["key_bias"], heads // groups, axis=1)[:, :, None]
            if self.score is None:
                return s
            function = self.score(captured)
            return jnp.broadcast_to(function(s, b, h, q, k, **_read_by(function, aux)), s.shape)

        allowed = np.ones((1, 1, rows, columns), bool)
        if self.mask is not None:
            function = self.mask(captured)
            allowed = jnp.broadcast_to(function(b, h, q, k, **_read_by(function, aux)), (batch, heads, rows, columns))
        options = dict(self.options)
        keep, dropout = None, options.pop("dropout", None)
        if dropout is not None:
            keep = kept(dropout[1], dropout[0], b, h, q, k)
        return attention_reference(params["q"], params["k"], params["v"], allowed, scored, keep=keep, **options)


def _read_by(function, aux):
    names = function.__code__.co_varnames[: function.__code__.co_argcount + function.__code__.co_kwonlyargcount]
    return {name: array for name, array in aux.items() if name in names}


def _spread(kind, array, rows, columns):
    """An operand as it broadcasts to [B, N, T, S]."""
    array = jnp.asarray(array)
    if kind is PerQuery:
        return array[:, None] if array.ndim == 1 else array[:, None, :, None]
    if kind is PerKey:
        return array if array.ndim == 1 else array[:, None, None]
    if kind is PerHead:
        return array[:, None, None]
    if kind is Scalar:
        return array
    assert kind is Relative
    return array[..., np.arange(rows)[:, None] - np.arange(columns) + columns - 1]


def with_gradients(compute, through):
    """A function of params: all that `compute` finds, by name, and the gradients of a sum of the parts `through`.

    It may be told a share of each of these in the sum, 1 by default.
    """

    def weighed(params, shares):
        o, stats = compute(params)
        parts = {"o": o, **{name: x for name, x in stats._asdict().items() if x is not None}}
        total = 0.0
        for name in through:
            x = parts[name]
            slope = np.cos(1.7 * np.arange(np.prod(x.shape)) + len(name)).reshape(x.shape).astype(np.float32)
            share = 1.0 if shares is None else shares[name]
            total += share * jnp.sum(x.astype(jnp.promote_types(x.dtype, np.float32)) * slope)
        return total, parts

    def both(params, shares=None):
        (_, parts), gradients = jax.value_and_grad(weighed, has_aux=True, allow_int=True)(params, shares)
        return parts, gradients

    return both


def widened(params):
    """Floats as float64."""
    return jax.tree.map(lambda x: np.asarray(x, np.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x, params)


def formula(case, stats=(), through=("o",)):
    """A function of params, compiled once: parts and gradients by the formula."""

    def compute(params):
        o, found = case.by_formula(params)
        return o, type(found)(**{name: getattr(found, name) for name in stats})

    run = jax.jit(with_gradients(compute, through))

    def of(params, shares=None):
        with jax.enable_x64(True):
            return jax.tree.map(np.asarray, run(widened(params), shares))

    return of


def kernel(case, impl, stats=(), through=("o",)):
    """A function of params, compiled once: parts and gradients by a driver."""
    run = jax.jit(with_gradients(functools.partial(case.by_kernel, impl, tuple(stats)), through))
    return lambda params, shares=None: jax.tree.map(np.asarray, run(params, shares))


def agree(found, known, tolerance=TOLERANCE["float32"], about=""):
    """Parts and gradients are those known, within so much of the largest entry; of rows without keys, exactly.

    Gradients of operands and of what is captured are sums over many pairs, whose terms cancel: they are known to five
    times as much of the largest of them all.
    """
    shared = [
        np.abs(x).max()
        for name in ("aux", "captured")
        for x in jax.tree.leaves(known[1].get(name))
        if x.dtype != FLOAT0
    ]
    flat, same = jax.tree_util.tree_flatten_with_path(found)
    assert same == jax.tree.structure(known), f"{about}: other parts"
    for (path, one), other in zip(flat, jax.tree.leaves(known), strict=True):
        name = f"{about} {jax.tree_util.keystr(path)}"
        assert one.shape == other.shape, name
        if one.dtype == FLOAT0:
            continue
        one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
        assert np.isfinite(one).all(), f"{name}: not finite"
        blind = other <= NOTHING_SEEN
        np.testing.assert_array_equal(one <= 0.99 * NOTHING_SEEN, blind, f"{name}: other rows see nothing")
        one, other = one[~blind], other[~blind]
        if one.size == 0:
            continue
        summed = path[1].key in ("aux", "captured")
        off, largest = np.abs(one - other).max(), max(shared) if summed else np.abs(other).max()
        allowed = (5 if summed else 1) * tolerance * max(largest, 0.5)
        assert off <= allowed, f"{name}: off by {off:.2e}, the largest entry is {largest:.2e}"


def check(case, params, impls=None, stats=(), through=None, tolerance=TOLERANCE["float32"]):
    """Every driver of `impls`, by default all that run here, against the formula."""
    through = through or ("o", *stats)
    known = formula(case, stats, through)(params)
    for impl in drivers() if impls is None else impls:
        agree(kernel(case, impl, stats, through)(params), known, tolerance, impl)
