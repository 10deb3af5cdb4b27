"""Eight devices in any layout train what one does: step 1 to 1e-6, 500 steps to 1e-4, in float64 to 1e-9.

The devices are a process's own, as a test session has only two: this file is also its program.
"""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest

STEPS, REPLICAS, DEVICES = 500, 8, 8
# Devices along replica, data and fsdp.
LAYOUTS = [(1, 1, 1), (2, 1, 1), (4, 1, 1), (8, 1, 1), (1, 2, 1), (1, 4, 1), (1, 8, 1), (1, 1, 2), (1, 1, 8), (2, 2, 2)]
CONFIG = {
    "name": "layouts",
    "task": "inverse_permutation(n=4, alphabet=4)",
    "model": {"layers": 1, "width": 16, "heads": 2},
    "train": {"steps": STEPS, "batch_size": 8, "replicas": REPLICAS, "log_every": 100},
}


def curves(kind):
    """Loss and gradient norm of every step and replica, [2, layouts, R, steps]."""
    import jax

    from positionbias import runtime

    runtime.configure(cpu_devices=DEVICES)
    jax.config.update("jax_enable_x64", kind == "float64")
    from positionbias.config.build import build
    from positionbias.config.cli import apply_overrides
    from positionbias.config.resolve import resolve
    from positionbias.training import auto
    from positionbias.training.program import Program, fetch

    found = {"loss": [], "gradient_norm": []}
    for layout in LAYOUTS:
        mesh = dict(zip(("replica", "data", "fsdp"), layout, strict=True))
        config = resolve(apply_overrides(CONFIG, {f"train.mesh.{axis}": count for axis, count in mesh.items()}))
        # Which users cannot ask for: rounding that is this small shows that nothing but rounding differs.
        config = dataclasses.replace(config, train=dataclasses.replace(config.train, dtype=kind))
        experiment = build(config)
        program = Program(experiment, auto.resolve(experiment, "cpu", DEVICES))
        assert program.auto.layout.devices == np.prod(layout)
        compiled, made = program.compile(), []
        state = compiled.fresh()
        for step in range(0, STEPS, program.auto.steps_per_dispatch):
            state, metrics = compiled.advance(state, step)
            made.append(fetch(metrics))
        for name, into in found.items():
            into.append(np.concatenate([one[name] for one in made], axis=1))
    return np.stack([found["loss"], found["gradient_norm"]])


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "first", "all_of_them"), [("float32", 1e-6, 1e-4), ("float64", 1e-12, 1e-9)])
def test_every_layout_trains_the_same(kind, first, all_of_them, tmp_path):
    told = subprocess.run([sys.executable, __file__, kind, tmp_path / "curves.npy"], capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    found = np.load(tmp_path / "curves.npy")
    assert found.dtype == kind
    assert found.shape == (2, len(LAYOUTS), REPLICAS, STEPS)
    known = np.broadcast_to(found[:, :1], found.shape)
    assert (known[0, ..., -1] < 0.9 * known[0, ..., 0]).all(), "nothing was learned"
    np.testing.assert_allclose(found[..., 0], known[..., 0], rtol=first)
    np.testing.assert_allclose(found, known, rtol=all_of_them)


if __name__ == "__main__":
    np.save(sys.argv[2], curves(sys.argv[1]))
