"""What tests of corrected recurrences share: inputs, and all that a driver and the formula find, with gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from positionbias.kernels.delta_recurrence.ladder import DRIVERS
from positionbias.kernels.delta_recurrence.problem import Problem
from positionbias.kernels.drivers import current_platform

# Of the largest entry: what float32 leaves after 130 steps that each read what the ones before them wrote; in bfloat16,
# whose steps are 2**-8, outputs are rounded once, and so are the gradients of what is of that type.
TOLERANCE = {"float32": 4e-6, "bfloat16": 1e-2}


def drivers():
    """Names of all drivers that run here."""
    nothing = np.zeros((1, 8, 1, 8), np.float32)
    plain = Problem(None, nothing, nothing, nothing, nothing[..., :1], (), None)
    return [name for name, one in DRIVERS.items() if one.unsupported_reason(plain, current_platform()) is None]


def drawn(length, heads=2, size=8, values=6, batch=2, seed=0, dtype="float32"):
    """q, keys of norm 1, and v, rounded to `dtype`."""
    random = np.random.default_rng(seed)
    q, k = random.normal(size=(2, batch, length, heads, size))
    v = random.normal(size=(batch, length, heads, values))
    k /= np.linalg.norm(k, axis=-1, keepdims=True)
    return {name: x.astype(jnp.dtype(dtype)) for name, x in (("q", q), ("k", k), ("v", v))}


def gate(params, low, high, seed=1):
    """A number a step, uniform between two."""
    return np.random.default_rng(seed).uniform(low, high, params["q"].shape[:3]).astype(np.float32)


def state(params, seed=2):
    """A state to begin with."""
    (batch, _, heads, size), values = params["q"].shape, params["v"].shape[3]
    return np.random.default_rng(seed).normal(size=(batch, heads, size, values)).astype(np.float32)


@functools.lru_cache(maxsize=64)
def compiled(function, **options):
    """A call with these options, of arrays by name, compiled once for each of their shapes."""
    return jax.jit(lambda **arrays: function(**arrays, **options))


@functools.lru_cache(maxsize=64)
def _sloped(function, **options):
    def weighed(params, more):
        found = function(**params, **more, **options)
        total = 0.0
        for i, x in enumerate(jax.tree.leaves(found)):
            slope = np.cos(1.7 * np.arange(np.prod(x.shape)) + i).reshape(x.shape).astype(np.float32)
            total += jnp.sum(x.astype(jnp.promote_types(x.dtype, np.float32)) * slope)
        return total, found

    return jax.jit(jax.value_and_grad(weighed, has_aux=True))


def with_gradients(function, params, more=None, **options):
    """Outputs and states of `function(**params, **more, **options)`, and the gradients of a sum of them by `params`."""
    (_, found), gradients = _sloped(function, **options)(params, more or {})
    return jax.tree.map(np.asarray, (found, gradients))


def by_formula(function, params, more=None, **options):
    """The same in float64."""
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
        return with_gradients(function, wide, more, **options)


def agree(found, known, tolerance=TOLERANCE["float32"]):
    """Every part is the known one, within so much of its largest entry."""
    flat, same = jax.tree_util.tree_flatten_with_path(found)
    assert same == jax.tree.structure(known)
    for (path, one), other in zip(flat, jax.tree.leaves(known), strict=True):
        one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
        name = jax.tree_util.keystr(path)
        assert one.shape == other.shape, name
        assert np.isfinite(one).all(), name
        worst, most = np.abs(one - other).max(), np.abs(other).max()
        assert worst <= tolerance * most, f"{name}: off by {worst:.2e} of {most:.2e}"
