"""FocuSFT's two loops: which matrices are fast, what they become, and at which weights a step is taken."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from positionbias import spec
from positionbias.config.build import build
from positionbias.objectives.focus_bilevel import FocusBilevel, _last_mlps
from positionbias.replicas import Layout
from positionbias.training.auto import Auto
from positionbias.training.program import Program


@pytest.mark.parametrize(
    ("layers", "share", "wanted"),
    [
        (4, 0.35, [3]),
        (5, 0.35, [3, 4]),
        (6, 0.35, [4, 5]),
        (3, 1.0, [0, 1, 2]),
        (1, 0.1, [0]),
        (3, 0.1, [2]),
        (12, 0.2, [10, 11]),
    ],
)
def test_the_last_layers_are_fast(layers, share, wanted):
    paths = [
        ("stack", "blocks", str(i), part, name, "weight")
        for i in range(layers)
        for part, name in (("attention", "query"), ("mlp", "first"), ("mlp", "second"))
    ]
    paths.append(("stack", "blocks", "0", "mlp", "first", "bias"))
    found = _last_mlps(paths, share)
    assert [paths[i] for i in found] == [
        ("stack", "blocks", str(i), "mlp", name, "weight") for i in wanted for name in ("first", "second")
    ]


def test_an_encoder_and_a_decoder_each_have_their_last():
    layers = [("encoder", 2), ("decoder", 5)]
    paths = [(stack, "blocks", str(i), "mlp", "first", "weight") for stack, count in layers for i in range(count)]
    assert _last_mlps(paths, 0.35) == [1, 5, 6]


def params(first, second):
    rest = {"weight": jnp.ones((3, 3))}
    mlp = {"first": {"weight": first}, "second": {"weight": second}}
    return {"blocks": {"0": {"mlp": rest, "attention": rest}, "1": {"mlp": mlp, "attention": rest}}}


@pytest.mark.parametrize(("rate", "clip"), [(0.05, 1e6), (0.05, 0.01), (1.0, 1.0)])
def test_two_steps_of_descent_on_thin_matrices(rate, clip):
    """The loss 0.5 |W - G|^2 of two W, whose gradient is W - G, by hand; their norm is one."""
    objective = FocusBilevel(rank=2, alpha=6.0, steps=2, rate=rate, clip=clip)
    shapes, keys = [(4, 5), (4, 6)], jax.random.split(jax.random.key(2), 2)
    starts = [np.asarray(jax.random.normal(jax.random.key(i), shape)) for i, shape in enumerate(shapes)]
    goals = [np.asarray(jax.random.normal(jax.random.key(9 + i), shape)) for i, shape in enumerate(shapes)]

    def gradient(at):
        return jax.tree.map(lambda w: next((w - goal for goal in goals if w.shape == goal.shape), w), at)

    found = objective.tuned(jax.random.key(2), params(*starts), gradient)
    for kept in (*found["blocks"]["0"].values(), found["blocks"]["1"]["attention"]):
        np.testing.assert_array_equal(kept["weight"], np.ones((3, 3)))
    a = [np.asarray(jax.random.uniform(key, (4, 2), minval=-0.5, maxval=0.5)) for key in keys]
    b, scale = [np.zeros((2, 5)), np.zeros((2, 6))], 3.0
    for _ in range(2):
        slopes = [start + scale * x @ y - goal for start, goal, x, y in zip(starts, goals, a, b, strict=True)]
        by_a = [scale * slope @ y.T for slope, y in zip(slopes, b, strict=True)]
        by_b = [scale * x.T @ slope for slope, x in zip(slopes, a, strict=True)]
        step = rate * min(1, clip / np.sqrt(sum((x**2).sum() for x in by_a + by_b)))
        a = [x - step * d for x, d in zip(a, by_a, strict=True)]
        b = [x - step * d for x, d in zip(b, by_b, strict=True)]
    for name, start, x, y in zip(("first", "second"), starts, a, b, strict=True):
        np.testing.assert_allclose(found["blocks"]["1"]["mlp"][name]["weight"], start + scale * x @ y, atol=1e-5)


def test_a_step_is_taken_at_the_tuned_weights_and_moves_the_slow_ones(tiny):
    """With next to no inner rate it is next_token's step; with a large one it is not, and its loss is lower."""
    losses, steps = {}, {}
    for text in ("next_token", "focus_bilevel(rate=1e-9)", "focus_bilevel(share=1.0)"):
        experiment = build(tiny({"objective": text, "train.batch_size": 32}))
        program = Program(experiment, Auto(Layout("loop"), 8, 1))
        state = jax.tree.map(lambda x: x[0], jax.jit(jax.vmap(program.fresh))(program.replicas()))
        grads, metrics = jax.jit(lambda s, p=program: p._gradient(s, jax.random.key(0), ()))(state)
        losses[text], steps[text] = float(metrics["loss"]), np.concatenate([x.ravel() for x in jax.tree.leaves(grads)])
    plain, still, tuned = losses
    assert losses[still] == pytest.approx(losses[plain], rel=1e-5)
    np.testing.assert_allclose(steps[still], steps[plain], atol=1e-5)
    assert losses[tuned] < losses[plain] - 1e-3
    assert np.abs(steps[tuned] - steps[plain]).max() > 1e-4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("focus_bilevel(rank=0)", "rank = 0 is not allowed; allowed: a whole number from 1 to 65536."),
        ("focus_bilevel(rank=65537)", "rank = 65537 is not allowed; allowed: a whole number from 1 to 65536."),
        ("focus_bilevel(alpha=0)", "alpha = 0.0 is not allowed; allowed: a number above 0."),
        ("focus_bilevel(steps=0)", "steps = 0 is not allowed; allowed: a whole number from 1 to 1000."),
        ("focus_bilevel(steps=1001)", "steps = 1001 is not allowed; allowed: a whole number from 1 to 1000."),
        ("focus_bilevel(rate=0)", "rate = 0.0 is not allowed; allowed: a number above 0."),
        ("focus_bilevel(clip=0)", "clip = 0.0 is not allowed; allowed: a number above 0."),
        ("focus_bilevel(share=1.5)", "share = 1.5 is not allowed; allowed: a number above 0 and at most 1."),
        ("focus_bilevel(share=0)", "share = 0.0 is not allowed; allowed: a number above 0 and at most 1."),
    ],
)
def test_bad_arguments(text, message):
    with pytest.raises(spec.ConfigError) as error:
        spec.build("objectives", text, "objective")
    assert str(error.value) == f"objective: {message}"


@pytest.mark.parametrize(
    ("frozen", "refused"),
    [((), False), (("mlp_in",), False), (("mlp_in", "mlp_out"), True), (("embedding", "mlp_in", "mlp_out"), True)],
)
def test_some_mlp_matrix_must_be_trained(tiny, frozen, refused):
    model = dataclasses.replace(tiny().model, frozen=frozen)
    if refused:
        with pytest.raises(spec.ConfigError, match="leave none; allowed: an MLP that is trained"):
            spec.build("objectives", "focus_bilevel", "objective").check_model(model)
    else:
        spec.build("objectives", "focus_bilevel", "objective").check_model(model)
