"""`jit` for programs that a test runs once or twice, where compiling is nearly all the time they take."""

import functools

import jax

# Slower code from the same program. jax 0.10 also has simpler kernels, which later ones have not.
HASTE = {"xla_backend_optimization_level": 0}
if jax.__version_info__ < (0, 11):
    HASTE["xla_cpu_use_fusion_emitters"] = False

hasty_jit = functools.partial(jax.jit, compiler_options=HASTE)
