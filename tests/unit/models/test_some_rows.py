"""Outputs of the rows that are asked for alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from positionbias import spec
from positionbias.config.build import build
from positionbias.models.sites import Sites
from positionbias.operators.asked import some_rows

TASK = "associative_recall(pairs=2, keys=4, values=4, delays=3)"
SETS = "set_disjointness(train=[[1, 4], [4, 2]], test=[], vocabulary=16)"
CASES = {
    "one layer": {},
    "two layers": {"model.layers": 2, "model.position": "rope"},
    "no mlp": {"model.mlp": False, "model.norm": "none", "model.readout": "mlp"},
    "wide stream": {"model.residual": "concatenate", "model.layers": 2},
    "recurrence": {"model.operator": "retention"},
    "encoder": {"model.architecture": "encoder_decoder", "model.layers": 2},
    "encoder, bound": {"model.architecture": "encoder_decoder(cross_mask=aligned_cross)"},
    "encoder, recurrence": {"model.architecture": "encoder_decoder", "model.operator": "linear_attention"},
    "merged": {"model.qk": "merged", "model.ov": "merged", "model.position": "alibi"},
    "no residual": {"model.residual": "none", "model.position": "t5_bias"},
    "products": {"model.position": "mirrored_rope"},
    "padding and segments of each example": {"task": SETS, "model.mask": "causal & segments"},
    "named driver": {"model.operator": "softmax(impl='xla_dense')"},
    "priced": {"model.operator": "even_softmax(price=0.1)"},
    "bound": {"model.mask": "causal & random_permutation_window(width=3)"},
    "mask of its own": {"model.operator": "stochastic(width=3)"},
}
UNFUSED = "recurrence", "products", "encoder, recurrence"  # no kernel of attention computes these
WHOLE = "recurrence", "named driver", "encoder, recurrence", "priced"  # of these, attention is of all rows


@pytest.mark.parametrize(("case", "rows"), [*((case, [6, 5]) for case in CASES), ("two layers", [5, 6])])
def test_outputs_of_some_rows_are_those_of_all(case, rows, tiny):
    experiment = build(tiny({"task": TASK, **CASES[case]}))
    task, made = experiment.task, {}
    condition = task.conditions()[0]

    @jax.jit
    def both(key):
        model, batch = experiment.initialise(key), task.batch(key, condition, 2)
        told, site = (batch.inputs, batch.tokens, task.context_length(condition)), Sites(record=["final", "*put"])
        found = model(*told, site, np.array(rows))
        made.update({name: value.shape[1] for name, value in sorted(site.recorded.items())})
        return found, model(*told, Sites())[:, np.array(rows)]

    assert bool(experiment.drivers(2, "cpu")) == (case not in UNFUSED)
    np.testing.assert_allclose(*both(jax.random.key(0)), rtol=1e-5, atol=1e-6)
    assert made["final"] == len(rows)
    spared = {"mlp.input": True, "attention.output": case not in WHOLE, "cross.output": case not in WHOLE}
    for name, is_spared in spared.items():
        last = [count for site, count in made.items() if site.endswith(name) and not site.startswith("encoder")][-1:]
        assert not last or (last[0] == len(rows)) == is_spared, name


def test_gradients_of_some_rows_are_those_of_all(tiny):
    experiment = build(tiny({"task": TASK, "model.position": "rope"}))
    graph, params = nnx.split(experiment.initialise(jax.random.key(0)))
    task = experiment.task
    batch = task.batch(jax.random.key(1), task.conditions()[0], 2)
    rows = np.array([6, 4])

    def of(params, some):
        outputs = nnx.merge(graph, params)(batch.inputs, batch.tokens, 4, Sites(), rows if some else None)
        return jnp.sum(jnp.sin(outputs if some else outputs[:, rows]))

    told = (jax.tree.leaves(jax.jit(jax.grad(of), static_argnums=1)(params, some)) for some in (True, False))
    for found, known in zip(*told, strict=True):
        np.testing.assert_allclose(found, known, rtol=1e-4, atol=1e-6)


def test_neighbours_are_a_slice_whose_gradient_is_no_scatter():
    x = np.arange(12.0).reshape(1, 6, 2)
    for rows, sliced in (([2, 3, 4], True), ([2], True), ([4, 3], False), ([0, 2], False)):
        np.testing.assert_array_equal(some_rows(x, np.array(rows)), x[:, rows])
        program = jax.make_jaxpr(lambda x, rows=rows: some_rows(x, np.array(rows)))(x)
        assert ("gather" not in str(program)) == sliced
    assert some_rows(x, None) is x


@pytest.mark.parametrize(
    ("objective", "rows"),
    [("next_token", [4, 5, 6]), ("answer_only", [4, 5, 6]), ("next_token(others=0.5)", None), ("focus_bilevel", None)],
)
def test_rows_that_may_weigh_are_trained(objective, rows):
    task = spec.build("tasks", TASK, "task")
    found = spec.build("objectives", objective, "objective").trained_rows(task, task.conditions()[0])
    assert (None if found is None else found.tolist()) == rows
