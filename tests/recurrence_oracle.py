"""What tests of recurrences share: inputs, the drivers that run here, and one case by a driver and by steps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from positionbias.kernels import linear_attention
from positionbias.kernels.drivers import current_platform
from positionbias.kernels.linear_recurrence.call import posed
from positionbias.kernels.linear_recurrence.ladder import DRIVERS
from positionbias.kernels.linear_recurrence.reference import recurrence_reference

TOLERANCE = {"float32": 2e-6, "bfloat16": 2e-2}  # of the largest entry, as for attention
GATES = ("none", "scalar", "key", "value", "key and value", "scalar and value")


def drawn(length, gates="none", *, normalise=False, state=True, size=6, values=4, seed=0, dtype="float32", decay=1.0):
    """Random arguments of a call, rounded to `dtype`; with `normalise` such that no denominator is near 0."""
    random = np.random.default_rng(seed)
    batch, heads = 2, 2
    keys = (batch, length, heads, size)
    told = {"q": random.normal(size=keys), "k": random.normal(size=keys)}
    told["v"] = random.normal(size=(*keys[:3], values))
    if "scalar" in gates:
        told["log_decay"] = -decay * random.exponential(size=keys[:3])
    if "key" in gates:
        told["log_decay"] = -decay * random.exponential(size=keys)
    if "value" in gates:
        told["value_log_decay"] = -decay * random.exponential(size=told["v"].shape)
    if state:
        told["initial_state"] = random.normal(size=(batch, heads, size, values + normalise))
    if normalise:
        positive = ("q", "k", "initial_state")
        told |= {name: np.abs(told[name]) for name in positive if name in told}
    rounded = {name: x.astype(jnp.dtype(dtype)) for name, x in told.items()}
    return rounded | {name: told[name].astype(np.float32) for name in ("initial_state",) if name in told}


def drivers(told, **options):
    """Names of all drivers that can do this on this machine."""
    asked = posed(**told, **options)
    return [name for name, one in DRIVERS.items() if one.unsupported_reason(asked, current_platform()) is None]


def with_gradients(function):
    """Outputs, the state and all gradients of a sum of both, each entry weighed otherwise."""

    def weighed(told):
        parts = function(told)
        slopes = (np.cos(1.7 * np.arange(x.size) + i).reshape(x.shape) for i, x in enumerate(parts))
        return sum(jnp.sum(x * slope.astype(np.float32)) for x, slope in zip(parts, slopes, strict=True)), parts

    def both(told):
        (_, (o, state)), gradients = jax.value_and_grad(weighed, has_aux=True)(told)
        return {"o": o, "state": state} | {f"gradient of {name}": x for name, x in gradients.items()}

    return both


@functools.lru_cache(maxsize=64)
def program(call, **options):
    """All of a call with these options, compiled once for arrays of one shape."""
    return jax.jit(with_gradients(lambda told: call(**told, **options)))


def compiled(call, resets=None, **options):
    """The same where steps are cleared, which a program knows."""
    return program(call, **options) if resets is None else program.__wrapped__(call, resets=resets, **options)


def by_steps(told, **options):
    """All of it by the reference."""
    with jax.enable_x64(True):
        wide = {name: np.asarray(x, np.float64) for name, x in told.items()}
        found = compiled(recurrence_reference, **options)(wide)
        return {name: np.asarray(x) for name, x in found.items()}


def by_driver(told, impl=None, chunk=None, **options):
    """All of it by a driver."""
    found = compiled(linear_attention, impl=impl, chunk=chunk, **options)(told)
    assert found["o"].dtype == told["v"].dtype
    assert found["state"].dtype == np.float32
    assert all(found[f"gradient of {name}"].dtype == x.dtype for name, x in told.items())
    return {name: np.asarray(x, np.float64) for name, x in found.items()}


def agree(found, known, tolerance=TOLERANCE["float32"], about=""):
    """All of it is what is known, within so much of the largest entry."""
    assert found.keys() == known.keys()
    for name, x in found.items():
        assert x.shape == known[name].shape, f"{about} {name}"
        assert np.isfinite(x).all(), f"{about} {name}: not finite"
        off, largest = np.abs(x - known[name]).max(), np.abs(known[name]).max()
        assert off <= tolerance * max(largest, 0.5), f"{about} {name}: off by {off:.2e}, the largest is {largest:.2e}"


def check(told, chunks=(None,), tolerance=TOLERANCE["float32"], **options):
    """Every driver that can, with chunks of every length that it takes, against the reference."""
    known = by_steps(told, **options)
    for chunk in chunks:
        for impl in drivers(told, chunk=chunk, **options):
            if impl == "xla_quadratic" and chunk != chunks[0]:
                continue  # it has no chunks
            agree(by_driver(told, impl, chunk, **options), known, tolerance, f"{impl}, chunk {chunk}:")
