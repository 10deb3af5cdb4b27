"""Outputs of the rows that are asked for alone."""

import jax
import numpy as np
import pytest

from positionbias import spec
from positionbias.config.build import build
from positionbias.models.sites import Sites
from positionbias.operators.asked import some_rows

TASK = "associative_recall(pairs=2, keys=4, values=4, delays=3)"
CASES = {
    "one layer": {},
    "two layers": {"model.layers": 2, "model.position": "rope"},
    "no mlp": {"model.mlp": False, "model.norm": "none", "model.readout": "mlp"},
    "wide stream": {"model.residual": "concatenate", "model.layers": 2},
    "recurrence": {"model.operator": "retention"},
    "encoder": {"model.architecture": "encoder_decoder"},
}


@pytest.mark.parametrize("rows", [[4, 5, 6], [6, 4]], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_outputs_of_some_rows_are_those_of_all(case, rows, tiny):
    experiment = build(tiny({"task": TASK, **CASES[case]}))
    model, task = experiment.initialise(jax.random.key(0)), experiment.task
    condition = task.conditions()[0]
    batch = task.batch(jax.random.key(1), condition, 2)
    told, site = (batch.inputs, batch.tokens, task.context_length(condition)), Sites(record=["final", "*.mlp.input"])
    found = model(*told, site, np.array(rows))
    np.testing.assert_allclose(found, model(*told, Sites())[:, rows], rtol=1e-5, atol=1e-6)
    if case == "encoder":  # which computes all and gives some
        return
    assert site.recorded["final"].shape[1] == len(rows)
    fed = [site.recorded[name].shape[1] for name in sorted(site.recorded) if name.endswith("mlp.input")]
    assert fed[-1:] == ([] if case == "no mlp" else [len(rows)]), "what the last MLP of other rows costs is spared"


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
