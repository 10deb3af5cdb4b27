"""The compiled step: the same whichever way it is laid out, cut up or dispatched."""

import functools

import jax
import numpy as np
import pytest

from positionbias import runtime
from positionbias.config.build import build
from positionbias.replicas import Layout
from positionbias.training.auto import Auto
from positionbias.training.program import Program, fetch


@pytest.fixture(scope="module")
def advance():
    """`advance(config, auto, dispatches)`: the state and metrics then; programs are compiled once."""
    return functools.partial(advanced, {})


def advanced(kept, config, auto, dispatches=1):
    if (repr(config), auto) not in kept:
        kept[repr(config), auto] = Program(build(config), auto).compile()
    compiled = kept[repr(config), auto]
    state, metrics = compiled.fresh(), []
    for i in range(dispatches):
        state, found = compiled.advance(state, i * auto.steps_per_dispatch)
        metrics.append(fetch(found))
    joined = {name: np.concatenate([m[name] for m in metrics], axis=1) for name in metrics[0]}
    return jax.device_get(compiled.unpack(state)), joined


def near(a, b, tolerance):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    "auto",
    [
        Auto(Layout("vmap"), 8, 1),
        Auto(Layout("loop", 2), 8, 1),
        Auto(Layout("vmap", 2), 4, 1),
        Auto(Layout("loop"), 2, 1),
        Auto(Layout("loop", data=2), 2, 1),
        Auto(Layout("vmap", data=2), 4, 1),
        Auto(Layout("loop", fsdp=2), 2, 1),
        Auto(Layout("vmap", fsdp=2), 4, 1),
    ],
    ids=str,
)
def test_step_one_does_not_depend_on_layout_or_micro_batches(tiny, advance, auto):
    config = tiny()
    _, expected = advance(config, Auto(Layout("loop"), 8, 1))
    _, found = advance(config, auto)
    near(expected, found, 1e-6)


def test_dispatches_of_any_size_make_the_same_run(tiny, advance):
    one, many = (advance(tiny(), Auto(Layout("loop"), 8, k), 4 // k) for k in (1, 4))
    near(one, many, 1e-5)


CLIPPED = {"optimizer.clip_norm": 0.1, "optimizer.name": "adamw(weight_decay=0.1)"}


@pytest.mark.parametrize("form", ["loop", "vmap"])
@pytest.mark.parametrize("shares", [{"data": 2}, {"fsdp": 2}], ids=str)
def test_devices_that_share_a_batch_or_parameters_make_the_same_run(tiny, advance, form, shares):
    expected = advance(tiny(CLIPPED), Auto(Layout("loop"), 8, 4))
    near(expected, advance(tiny(CLIPPED), Auto(Layout(form, **shares), 4, 4)), 1e-5)


def test_a_device_keeps_a_part_of_every_array_and_the_whole_comes_back_to_the_bit(tiny):
    layout = Layout("loop", fsdp=2)
    compiled = Program(build(tiny(CLIPPED)), Auto(layout, 4, 4)).compile()
    packed = compiled.fresh()
    state = jax.device_get(compiled.unpack(packed))
    leaves = jax.tree.leaves(state)
    sizes = {str(x.dtype): 0 for x in leaves}
    for leaf in leaves:
        sizes[str(leaf.dtype)] += -(-leaf[0].size // 2) if leaf.ndim > 1 else 1
    assert {kind: x.addressable_shards[0].data.shape for kind, x in packed.items()} == {
        k: (2, n) for k, n in sizes.items()
    }
    near(state, jax.device_get(compiled.unpack(compiled.pack(state))), 0)
    whole = Program(build(tiny(CLIPPED)), Auto(Layout("loop"), 4, 4)).compile()
    near(state, jax.device_get(whole.unpack(whole.fresh())), 0)


def test_training_lowers_the_loss_and_replicas_differ(tiny, advance):
    _, metrics = advance(tiny({"train.steps": 400}), Auto(Layout("loop"), 8, 100), 4)
    assert (metrics["loss"][:, -20:].mean(axis=1) < metrics["loss"][:, :20].mean(axis=1) - 0.3).all()
    assert metrics["loss"][0, 0] != metrics["loss"][1, 0]


def test_equal_seeds_make_equal_replicas_and_other_rates_do_not(tiny, advance):
    state, metrics = advance(tiny({"train.vary": {"seed": [5, 6]}}), Auto(Layout("loop"), 8, 4))
    _, swapped = advance(tiny({"train.vary": {"seed": [6, 5]}}), Auto(Layout("loop"), 8, 4))
    assert np.array_equal(metrics["loss"], swapped["loss"][::-1])
    grid = {"train.vary": {"seed": [5, 6], "learning_rate": [0.01, 0.1]}, "train.replicas": 4}
    _, rates = advance(tiny(grid), Auto(Layout("loop"), 8, 4))
    assert np.array_equal(metrics["loss"], rates["loss"][:2])
    assert np.array_equal(metrics["loss"] == rates["loss"][2:], [[True, False, False, False]] * 2)
    assert {"params", "frozen", "optimizer"} == set(state)


def test_frozen_matrices_stay_as_they_started(tiny):
    config = tiny({"model.frozen": ["embedding", "query"]})
    compiled = Program(build(config), Auto(Layout("loop"), 8, 4)).compile()
    before = jax.device_get(compiled.unpack(compiled.fresh()))
    after = compiled.unpack(compiled.advance(compiled.fresh(), 0)[0])
    assert len(jax.tree.leaves(before["frozen"])) == 2
    near(before["frozen"], after["frozen"], 0)
    assert not np.array_equal(jax.tree.leaves(before["params"])[0], jax.tree.leaves(after["params"])[0])


def test_the_gradient_is_that_of_the_mean_loss(tiny, advance):
    # One plain gradient step by hand: parameters move by minus rate times the gradient of the whole batch's mean loss.
    from flax import nnx

    from positionbias.models.sites import Sites
    from positionbias.replicas import replica_keys, stream

    config = tiny({"optimizer.name": "sgd", "optimizer.schedule": "constant", "train.replicas": 1})
    experiment = build(config)
    state, _ = advance(config, Auto(Layout("loop"), 2, 1))
    key = replica_keys(0, 1)[0]
    condition = experiment.task.conditions()[0]

    def loss(params, batch):
        outputs = nnx.merge(nnx.graphdef(experiment.abstract), params)(batch.inputs, batch.tokens, 4, Sites())
        chosen = jax.nn.log_softmax(outputs)[np.arange(8)[:, None], batch.query, batch.targets[:, 4:]]
        return -chosen.mean()

    @jax.jit
    def stepped():
        params = nnx.state(experiment.initialise(stream(key, "initialise")), nnx.Param)
        batch = experiment.task.batch(jax.random.fold_in(stream(key, "data"), 0), condition, 8)
        return jax.tree.map(lambda p, g: p - 0.01 * g, params, jax.grad(loss)(params, batch))

    expected = stepped()
    near(jax.tree.map(lambda x: x[0], state["params"]), expected, 1e-6)


def test_the_step_is_compiled_as_runtime_says(tiny, monkeypatch):
    asked = []
    monkeypatch.setattr(runtime, "step_options", lambda platform: asked.append(platform) or {"xla_no_such_option": "1"})
    with pytest.raises(jax.errors.JaxRuntimeError, match="xla_no_such_option"):
        Program(build(tiny()), Auto(Layout("loop"), 8, 2)).compile()
    assert asked == ["cpu"]
