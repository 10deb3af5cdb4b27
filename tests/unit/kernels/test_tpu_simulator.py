"""The kernels for TPU in the simulator of one: its memories, its copies, and two cores that share the grid."""

import os
import subprocess
import sys

# In a process of its own: simulation can hang unless jax waits for what it dispatches, which is told at the start.
PROGRAM = """
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


def test_simulated_kernels_agree_with_xla_and_have_no_races(root):
    environment = os.environ | {"JAX_CPU_ENABLE_ASYNC_DISPATCH": "0", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "agree", done.stdout  # a race would be printed here
    assert "RACE" not in done.stderr
