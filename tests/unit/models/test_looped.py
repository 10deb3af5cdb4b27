"""Looped models: the same layers again, with and without the keys and values of earlier passes."""

import dataclasses

import jax
import numpy as np
import pytest
import toys

from positionbias import spec
from positionbias.config.build import build
from positionbias.masks.base import Mask
from positionbias.masks.order import Causal
from positionbias.models.sites import Sites
from positionbias.spec import ConfigError

LAYERS = {"model.layers": 2, "model.position": "rope"}


def outputs(experiment, model, record=()):
    """Outputs of two examples, and what was recorded."""
    condition = experiment.task.conditions()[0]
    batch = jax.jit(lambda key: experiment.task.batch(key, condition, 2))(jax.random.key(1))

    def call(model):
        sites = Sites(record=record)
        found = model(batch.inputs, batch.tokens, experiment.task.context_length(condition), sites)
        sites.check()
        return found, sites.recorded

    return jax.device_get(jax.jit(call)(model))


def fresh(experiment):
    return jax.jit(experiment.initialise)(jax.random.key(0))


def looped(tiny, arguments, **changes):
    return build(tiny({**LAYERS, "model.architecture": f"looped({arguments})", **changes}))


@pytest.mark.parametrize("arguments", ["1", "1, memory=True", "1, inject=True"])
def test_one_pass_is_decoder_only_to_the_bit(tiny, arguments):
    plain, once = build(tiny(LAYERS)), looped(tiny, arguments)
    ours, theirs = fresh(once), fresh(plain)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(outputs(once, ours)[0], outputs(plain, theirs)[0])


def test_two_passes_are_twice_the_layers_with_the_same_weights(tiny):
    twice = looped(tiny, "2")
    model = fresh(twice)
    deep = build(tiny({**LAYERS, "model.layers": 4}))
    same = fresh(deep)
    same.embedding, same.readout, same.stack.norm = model.embedding, model.readout, model.stack.norm
    for layer in range(4):
        same.stack.blocks[layer] = model.stack.blocks[layer % 2]
    found, expected = outputs(twice, model)[0], outputs(deep, same)[0]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    once = looped(tiny, "1")
    assert np.abs(found - outputs(once, fresh(once))[0]).max() > 1e-3


def test_the_embeddings_come_in_again(tiny):
    experiment = looped(tiny, "2, inject=True", **{"model.layers": 1})
    model = fresh(experiment)
    _, seen = outputs(experiment, model, ["embedding", "passes.*.stream", "passes.1.layers.0.*.output"])
    added = seen["passes.1.layers.0.attention.output"] + seen["passes.1.layers.0.mlp.output"]
    expected = seen["passes.0.layers.0.stream"] + seen["embedding"] + added
    np.testing.assert_allclose(seen["passes.1.layers.0.stream"], expected, atol=1e-6)


@pytest.mark.parametrize(
    "mask", ["neighborhood(3)", "random_permutation_window(2)", "from_file(None, matrix='8x8:{}')"]
)
def test_masks_that_count_rows_count_those_of_one_pass(tiny, mask):
    mask = mask.format("80c1a3070f55ff11")
    task = {"task": "reversal(pairs=2, both=1)", "objective": "masked_denoising", "model.layers": 1}
    experiment = looped(tiny, "3, memory=True", **task, **{"model.mask": mask})
    model, one = fresh(experiment), experiment.blueprint.masks[0]
    tokens = experiment.task.tokens(experiment.task.conditions()[0])
    for number in range(3):
        name = f"passes.{number}.layers.0.attention.pattern"
        pattern = outputs(experiment, model, [name])[1][name][0, 0] > 0
        np.testing.assert_array_equal(pattern, np.tile(one.dense(tokens, tokens), (1, number + 1)))
    found = experiment.architecture.attentions(experiment.blueprint, tokens, 0)
    np.testing.assert_array_equal(found[2][2].dense(*found[2][3:]), pattern)
    assert spec.canonical(found[2][2]) == spec.canonical(one)


def test_the_number_of_parameters_does_not_depend_on_loops(tiny):
    sizes = {
        arguments: sum(leaf.size for leaf in jax.tree.leaves(looped(tiny, arguments).abstract))
        for arguments in ("1", "2", "5", "3, memory=True")
    }
    assert len(set(sizes.values())) == 1


@dataclasses.dataclass(frozen=True)
class OwnPass(Mask):
    """Causal, and none of the earlier passes."""

    spec_name = "own_pass"

    def allowed(self, q, k):
        return (k.index <= q.index) & ~(k.depth < q.depth)


def test_memory_that_the_mask_hides_is_no_memory(tiny):
    with_memory, without = looped(tiny, "3, memory=True"), looped(tiny, "3")
    model = fresh(with_memory)
    remembers, expected = outputs(with_memory, model)[0], outputs(without, fresh(without))[0]
    model.masks = (OwnPass(),) * 2
    np.testing.assert_allclose(outputs(with_memory, model)[0], expected, atol=1e-6)
    assert np.abs(remembers - expected).max() > 1e-3


def test_memory_holds_the_layers_own_keys_of_earlier_passes(tiny):
    experiment = looped(tiny, "2, memory=True")
    names = ["passes.*.layers.1.attention.key", "passes.*.layers.1.attention.value", "passes.*.pattern"]
    _, seen = outputs(experiment, fresh(experiment), names)
    for kind in ("key", "value"):
        first, both = (seen[f"passes.{number}.layers.1.attention.{kind}"] for number in (0, 1))
        assert (first.shape, both.shape) == ((2, 8, 2, 8), (2, 16, 2, 8))
        np.testing.assert_allclose(both[:, :8], first, atol=1e-6)
        assert np.abs(both[:, 8:] - first).max() > 1e-3
    pattern = seen["passes.1.layers.1.attention.pattern"]
    seen_rows = pattern[0, 0] > 0
    np.testing.assert_array_equal(seen_rows, np.tile(np.tril(np.ones((8, 8), bool)), 2))


def test_masks_are_asked_with_the_pass_of_queries_and_keys(tiny):
    experiment = looped(tiny, "2, memory=True", **{"model.layers": 1, "model.mask": "depth_causal"})
    condition = experiment.task.conditions()[0]
    tokens = experiment.task.tokens(condition)
    (_, _, _, q0, k0), (name, _, _, q, k) = experiment.architecture.attentions(experiment.blueprint, tokens, 4)
    assert name == "layer 0 of pass 1"
    assert (list(q0.depth), list(k0.depth)) == ([0] * 8, [0] * 8)
    assert (list(q.depth), list(k.depth)) == ([1] * 8, [0] * 8 + [1] * 8)
    assert list(k.index) == [*range(8), *range(8)]


def test_reach_of_two_passes_is_literal(tiny):
    window = {"model.layers": 1, "model.mask": "causal & sliding_window(width=2)", "task.n": 2}
    experiment = looped(tiny, "2", **window)
    expected = [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 1]]
    assert experiment.reach(experiment.task.conditions()[0]).astype(int).tolist() == expected


def test_reach_with_memory_has_paths_by_way_of_earlier_passes(tiny):
    # Own rows only by way of the first pass: without a residual a path must leave the second pass at once.
    known = looped(tiny, "2, memory=True", **{"model.layers": 1, "model.residual": "none", "task.n": 2})

    @dataclasses.dataclass(frozen=True)
    class FirstSeesBefore(Mask):
        spec_name = "first_sees_before"

        def allowed(self, q, k):
            inside = (q.depth == 0) & (k.index == q.index - 1)
            return inside | ((q.depth == 1) & (k.depth == 0) & (k.index == q.index - 2))

    blueprint = dataclasses.replace(known.blueprint, masks=(FirstSeesBefore(),))
    condition = known.task.conditions()[0]
    found = known.architecture.reach(blueprint, known.task.tokens(condition), 2)
    # Pass 0 makes of row i the rows i-1 and i (its query), 0 of nothing; pass 1 reads the inputs of pass 0, rows i-2.
    assert found.astype(int).tolist() == [[0, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, 0], [0, 1, 1, 1]]


def test_reach_knows_of_embeddings_that_come_in_again(tiny):
    @dataclasses.dataclass(frozen=True)
    class SecondSeesBefore(Mask):
        spec_name = "second_sees_before"

        def allowed(self, q, k):
            return (q.depth == 1) & (k.index == q.index - 1)

    def reach(arguments):
        known = looped(tiny, arguments, **{"model.layers": 1, "model.residual": "none", "task.n": 2})
        blueprint = dataclasses.replace(known.blueprint, masks=(SecondSeesBefore(),))
        tokens = known.task.tokens(known.task.conditions()[0])
        return known.architecture.reach(blueprint, tokens, 2).astype(int).tolist()

    # Nothing is left of the inputs after a pass in which nothing is seen.
    assert reach("2") == [[0, 0, 0, 0]] * 4
    assert reach("2, inject=True") == [[0, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model.architecture": "looped(0)"},
            "model.architecture: loops = 0 is not allowed; allowed: a whole number from 1 to 1000.",
        ),
        (
            {"model.residual": "concatenate"},
            "model.residual: 'concatenate' widens the stream, which the first layer could not read again in a looped"
            " model; allowed: 'add', 'none'.",
        ),
        (
            {"model.operator": "[softmax, toy_convolution]", "model.position": "none"},
            "model.architecture: memory = True needs keys and values, of which the operator toy_convolution of"
            " layer 1 has none; allowed: memory = False, or another operator.",
        ),
    ],
)
def test_what_cannot_loop_is_refused(tiny, monkeypatch, changes, message):
    toys.register(monkeypatch)
    with pytest.raises(ConfigError) as error:
        build(tiny({**LAYERS, "model.architecture": "looped(2, memory=True)", **changes}))
    assert str(error.value) == message


def test_an_operator_that_reads_the_stream_may_loop_without_memory(tiny, monkeypatch):
    toys.register(monkeypatch)
    experiment = looped(tiny, "2", **{"model.operator": "toy_convolution", "model.position": "none"})
    assert outputs(experiment, fresh(experiment))[0].shape == (2, 8, 8)


def test_causal_is_duo_causal_with_memory(tiny):
    known = looped(tiny, "2, memory=True")
    tokens = known.task.tokens(known.task.conditions()[0])
    for _, _, mask, q, k in known.architecture.attentions(known.blueprint, tokens, 4):
        assert isinstance(mask.inner, Causal)
        np.testing.assert_array_equal(mask.dense(q, k), (k.index <= q.index[:, None]) & (k.depth <= q.depth[:, None]))
