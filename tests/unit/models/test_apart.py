"""What each head reads and adds by itself, against the model as it is without."""

import jax
import numpy as np
import pytest
from flax import nnx

from positionbias.config.build import build
from positionbias.models import edits
from positionbias.models.sites import Sites

MODELS = {
    "plain": {"model.position": "rope", "model.bias": True},
    "no output projection": {"model.output_projection": False},
    "merged": {"model.qk": "merged", "model.ov": "merged", "model.position": "none"},
    "gates": {"model.operator": "gated_linear_attention", "model.position": "none"},
    "looped": {"model.architecture": "looped(loops=2)"},
    "memory": {"model.architecture": "looped(loops=2, memory=True)"},
    "two stacks": {
        "model.architecture": "two_stacks",
        "objective": "random_order",
        "task": "reversal(pairs=3, both=1, begin=True)",
        "model.layers": 2,
        "model.mask": "[by_rank, by_rank(strict=True)]",
    },
    "cross": {"model.architecture": "encoder_decoder", "task.scratch": True},
}
INPUTS = ["*.query_input", "*.key_input", "*.value_input"]


@pytest.fixture
def called(tiny):
    """`called(name)` is a function of edits that gives outputs and all sites."""

    def make(name):
        experiment = build(tiny(MODELS[name]))
        task = experiment.task
        condition = task.conditions()[0]
        model = jax.jit(experiment.initialise)(jax.random.key(0))
        graph, drawn = nnx.split(model)
        keys = iter(jax.random.split(jax.random.key(2), len(jax.tree.leaves(drawn))))
        moved = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(next(keys), x.shape), drawn)
        batch = jax.jit(lambda key: task.batch(key, condition, 3))(jax.random.key(1))
        asked = experiment.objective.ask(batch, task, condition)
        tokens = experiment.spread(asked.tokens, 3) if not experiment.shared_tokens else asked.tokens

        def call(edit=None, record=()):
            def read(drawn):
                sites = Sites(record, edit)
                model = nnx.merge(graph, drawn)
                outputs = model(asked.inputs, tokens, task.context_length(condition), sites)
                sites.check()
                return outputs, sites.recorded

            return jax.jit(read)(moved)  # whose biases are not 0

        return call

    return make


@pytest.mark.parametrize("name", MODELS)
def test_heads_that_read_and_add_by_themselves_give_what_all_together_do(called, name):
    """With an edit that changes nothing, as outputs and as the sum of what heads add."""
    call = called(name)
    plain = call()[0]
    outputs, found = call({"*.head_outputs": edits.add(0.0), "*_input": edits.add(0.0)}, ["*"])
    np.testing.assert_allclose(outputs, plain, atol=2e-6)
    added = [site for site in found if site.endswith(".head_outputs")]
    assert added
    for site in added:
        bias = found[site.replace("head_outputs", "output")] - np.sum(found[site], axis=2)
        np.testing.assert_allclose(bias, np.broadcast_to(bias[0, 0], bias.shape), atol=2e-6)
        assert (np.abs(bias).max() > 1e-2) == ("model.bias" in MODELS[name])
    for site in (site for site in found if site.endswith("_input")):
        together = found[site.rpartition(".")[0] + ".input"]
        np.testing.assert_array_equal(found[site], np.repeat(together[:, :, None], found[site].shape[2], axis=2))


@pytest.mark.parametrize("name", ["plain", "merged", "gates"])
def test_inputs_are_those_of_one_head_and_part(called, name):
    """Told another stream, one head makes another query, and all else is as it was."""
    call = called(name)
    record = ["layers.0.attention.query", "layers.0.attention.key", "layers.0.attention.value", "layers.0.*.input"]
    clean, other = call(None, record)[1], call({"embedding": edits.scale(-2.0)}, record)[1]
    for part in ("query", "key", "value"):
        told = edits.replace(other["layers.0.attention.input"][:, :, None], heads=1)
        found = call({f"layers.0.attention.{part}_input": told}, record)[1]
        site = f"layers.0.attention.{part}"
        np.testing.assert_allclose(found[site][:, :, 1], other[site][:, :, 1], atol=1e-6)
        assert not np.allclose(other[site][:, :, 1], clean[site][:, :, 1], atol=1e-3)
        np.testing.assert_allclose(found[site][:, :, 0], clean[site][:, :, 0], atol=1e-6)
        for rest in {"query", "key", "value"} - {part}:
            np.testing.assert_array_equal(found[f"layers.0.attention.{rest}"], clean[f"layers.0.attention.{rest}"])


def test_an_input_is_what_a_part_reads_and_the_stream_goes_past_it(called):
    call = called("plain")
    zero = {"layers.0.attention.input": edits.zero(), "layers.0.mlp.input": edits.zero()}
    found = call(zero, ["*"])[1]
    for part in ("attention", "mlp"):  # of nothing, in every row
        added = found[f"layers.0.{part}.output"]
        np.testing.assert_allclose(added, np.broadcast_to(added[0, 0], added.shape), atol=1e-6)
    both = found["layers.0.attention.output"] + found["layers.0.mlp.output"]
    np.testing.assert_allclose(found["layers.0.stream"], found["embedding"] + both, atol=1e-6)
    assert np.ptp(found["embedding"]) > 0.1


def test_what_a_head_adds_can_be_taken_away(called):
    call = called("plain")
    alone = {f"layers.0.attention.{site}": edits.zero(heads=1) for site in ("heads", "head_outputs")}
    outputs = [call({site: edit})[0] for site, edit in alone.items()]
    np.testing.assert_allclose(*outputs, atol=1e-6)
    assert not np.allclose(outputs[0], call()[0], atol=1e-3)


def test_keys_and_values_have_an_input_where_they_are_of_the_own_stream(called):
    def names(name):
        return {site for site in call_all(name) if site.endswith("_input")}

    def call_all(name):
        return called(name)(None, ["*"])[1]

    assert names("memory") == {f"passes.{p}.layers.0.attention.query_input" for p in range(2)}
    assert names("cross") == {
        *(
            f"{where}layers.0.attention.{part}_input"
            for where in ("", "encoder.")
            for part in ("query", "key", "value")
        ),
        "layers.0.cross.query_input",
    }
    assert {name for name in names("two stacks") if name.startswith("asking")} == {"asking.0.attention.query_input"}


def test_they_are_not_made_unless_they_are_asked_for(called):
    call = called("plain")
    programs = [str(jax.make_jaxpr(lambda edit=edit: call(edit)[0])()) for edit in (None, {INPUTS[0]: edits.add(0.0)})]
    assert ["f32[3,8,2,16]" in program for program in programs] == [False, True]
