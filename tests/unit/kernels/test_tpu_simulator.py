"""The kernels for TPU in the simulator of one: its memories, its copies, and two cores that share the grid."""

import os
import subprocess
import sys

import pytest

# In a process of its own: simulation can hang unless jax waits for what it dispatches, which is told at the start.
ATTENTION = """
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas import tpu
from positionbias.kernels import PerHead
from positionbias.kernels.softmax_attention import mosaic_tpu, xla
from positionbias.kernels.softmax_attention.call import posed

draw = np.random.default_rng(0)
q, k, v = (jnp.asarray(draw.normal(size=(1, 60, n, 8)), jnp.float32) for n in (2, 1, 1))
lengths, slope = jnp.asarray([40]), jnp.asarray([0.5, 1.0])

def told(slope):
    return {
        "mask": lambda b, h, q, k: k < lengths[b],
        "score": lambda s, b, h, q, k, slope: s - slope * abs(q - k),
        "aux": {"slope": PerHead(slope)},
        "dropout": (0.2, jnp.asarray(3)),
        "stats": ("received",),
    }

def loss(run, slope, *arrays):
    o, stats = run(posed(*arrays, **told(slope), block_sizes=(32, 32)))
    return jnp.sum(o**2) + sum(jnp.sum(x**2) for x in stats if x is not None)

def simulated(asked):
    return mosaic_tpu.run(asked, tpu.InterpretParams(detect_races=True, num_cores_or_threads=2))

found, wanted = (
    jax.jit(jax.value_and_grad(lambda *x, run=run: loss(run, *x), (0, 1, 2, 3)))(slope, q, k, v)
    for run in (simulated, xla.dense)
)
for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
    np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-5 * float(jnp.abs(other).max()))
print("agree")
"""


RECURRENCES = """
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas import tpu
from positionbias.kernels.delta_recurrence import mosaic_tpu as delta, xla_chunked as delta_xla
from positionbias.kernels.delta_recurrence.call import posed_delta, posed_memory
from positionbias.kernels.linear_recurrence import mosaic_tpu as linear, xla_chunked as linear_xla
from positionbias.kernels.linear_recurrence.call import posed

draw = np.random.default_rng(0)
q, k, v, decay, value_decay = draw.normal(size=(5, 1, 40, 2, 8)).astype(np.float32)
state, speed = draw.normal(size=(2, 1, 2, 8, 8)).astype(np.float32)
rate, momentum, forget = draw.uniform(0, 0.3, size=(3, 1, 40, 2)).astype(np.float32)
k /= np.linalg.norm(k, axis=-1, keepdims=True)
arrays = {"q": q, "k": k, "v": v}
cases = (
    (
        lambda **x: posed(**x, chunk=16),
        arrays | {"log_decay": -abs(decay), "value_log_decay": -abs(value_decay), "initial_state": state},
        linear,
        linear_xla,
    ),
    (
        lambda q, k, v, state, **gates: posed_delta(q, k, v, gates, state, chunk=16),
        arrays | {"state": state, "strength": rate, "log_decay": -forget},
        delta,
        delta_xla,
    ),
    (
        lambda q, k, v, states, **gates: posed_memory(q, k, v, gates, None, states, 16),
        arrays | {"states": (state, speed), "rate": rate, "momentum": momentum, "forget": forget},
        delta,
        delta_xla,
    ),
)
for asked, told, mosaic, xla in cases:
    def loss(run, told):
        return sum(jnp.sum(x**2) for x in jax.tree.leaves(run(asked(**told))))

    def simulated(problem):
        return mosaic.run(problem, tpu.InterpretParams(detect_races=True, num_cores_or_threads=2))

    found, wanted = (
        jax.jit(jax.value_and_grad(lambda told, run=run: loss(run, told)))(told) for run in (simulated, xla.chunked)
    )
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-5 * float(jnp.abs(other).max()))
print("agree")
"""


@pytest.mark.parametrize("program", [ATTENTION, RECURRENCES], ids=["attention", "recurrences"])
def test_simulated_kernels_agree_with_xla_and_have_no_races(root, program):
    environment = os.environ | {"JAX_CPU_ENABLE_ASYNC_DISPATCH": "0", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "agree", done.stdout  # a race would be printed here
    assert "RACE" not in done.stderr
