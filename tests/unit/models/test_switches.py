"""Every model switch against its formula, written out in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from positionbias.config.build import build
from positionbias.models.parameters import Frozen
from positionbias.models.sites import Sites
from positionbias.spec import ConfigError

BARE = {
    "model.norm": "none",
    "model.mlp": False,
    "model.position": "none",
    "model.heads": 1,
    "task": "inverse_permutation(n=3, alphabet=5)",  # vocabulary 8
}


def run(config, size=2, key=0):
    experiment = build(config)
    condition = experiment.task.conditions()[0]
    model = jax.jit(experiment.initialise)(jax.random.key(key))
    batch = jax.jit(lambda key: experiment.task.batch(key, condition, size))(jax.random.key(7))
    context = experiment.task.context_length(condition)
    outputs = jax.jit(lambda model: model(batch.inputs, batch.tokens, context, Sites()))(model)
    return model, np.asarray(batch.inputs), np.asarray(outputs, np.float64)


def leaf(parameter):
    return np.asarray(parameter[...], np.float64)


def softmax_causal(scores):
    allowed = np.tril(np.ones(scores.shape[-2:], bool))
    scores = np.where(allowed, scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def test_disentangled_transformer_follows_its_formula(tiny):
    # h1 = [h0, softmax(mask(h0 A h0')) h0], two layers, one-hot inputs, linear readout (Alur et al. 2025).
    config = tiny(
        {
            **BARE,
            "model.layers": 2,
            "model.width": 8,
            "model.inputs": "one_hot",
            "model.residual": "concatenate",
            "model.qk": "merged",
            "model.ov": "identity",
            "model.operator": "softmax(scaled=False)",
        }
    )
    model, inputs, outputs = run(config)
    h = np.eye(8)[inputs]
    for block in model.stack.blocks:
        a = leaf(block.attention.query.weight)
        h = np.concatenate([h, softmax_causal(h @ a @ h.swapaxes(-1, -2)) @ h], axis=-1)
    assert h.shape[-1] == 32
    np.testing.assert_allclose(outputs, h @ leaf(model.readout.last.weight), rtol=1e-4, atol=1e-5)


def test_linear_attention_of_out_of_context_reasoning_follows_its_formula(tiny):
    # f(X) = sum_j (x_i W_Q . x_j) x_j W_V W_O over j <= i; keys frozen to the identity; no residual, no readout.
    config = tiny(
        {
            **BARE,
            "model.width": 8,
            "model.inputs": "one_hot",
            "model.residual": "none",
            "model.operator": "linear_scores",
            "model.readout": "none",
            "model.frozen": ["key"],
            "model.init.key": "identity",
        }
    )
    model, inputs, outputs = run(config)
    attention, x = model.stack.blocks[0].attention, np.eye(8)[inputs]
    assert np.array_equal(leaf(attention.key.weight), np.eye(8))
    assert isinstance(attention.key.weight, Frozen)
    scores = np.tril(x @ leaf(attention.query.weight) @ x.swapaxes(-1, -2))
    expected = scores @ x @ leaf(attention.value.weight) @ leaf(attention.output.weight)
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-5)


def test_merged_ov_with_two_heads_follows_its_formula(tiny):
    config = tiny({**BARE, "model.heads": 2, "model.width": 8, "model.ov": "merged", "model.readout": "tied"})
    model, inputs, outputs = run(config)
    attention, table = model.stack.blocks[0].attention, leaf(model.embedding.table)
    x = table[inputs]
    added = 0
    for head in range(2):
        part = slice(4 * head, 4 * head + 4)
        q, k = x @ leaf(attention.query.weight)[:, part], x @ leaf(attention.key.weight)[:, part]
        weights = softmax_causal(q @ k.swapaxes(-1, -2) / 2.0)
        added = added + weights @ x @ leaf(attention.output.weight)[8 * head : 8 * head + 8]
    np.testing.assert_allclose(outputs, (x + added) @ table.T, rtol=1e-4, atol=1e-5)


def test_full_block_follows_its_formula(tiny):
    config = tiny({**BARE, "model.norm": "layer", "model.mlp": True, "model.activation": "relu", "model.bias": True})
    model, inputs, outputs = run(config)
    block = model.stack.blocks[0]

    def norm(x):
        centred = x - x.mean(axis=-1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-6)

    def dense(layer, x):
        return x @ leaf(layer.weight) + leaf(layer.bias)

    x = leaf(model.embedding.table)[inputs]
    y, at = norm(x), block.attention
    weights = softmax_causal(dense(at.query, y) @ dense(at.key, y).swapaxes(-1, -2) / 4.0)
    x = x + dense(at.output, weights @ dense(at.value, y))
    x = x + dense(block.mlp.second, np.maximum(dense(block.mlp.first, norm(x)), 0))
    np.testing.assert_allclose(outputs, dense(model.readout.last, norm(x)), rtol=1e-4, atol=1e-5)


def test_mlp_readout_has_its_hidden_layers(tiny):
    model, _, _ = run(tiny({**BARE, "model.readout": "mlp", "model.readout_layers": 3}))
    shapes = [layer.weight.shape for layer in model.readout.layers]
    assert shapes == [(16, 16), (16, 16), (16, 16)]
    assert model.readout.last.weight.shape == (16, 8)


def test_no_output_projection_leaves_heads_side_by_side(tiny):
    model, _, _ = run(tiny({**BARE, "model.heads": 2, "model.output_projection": False}))
    assert model.stack.blocks[0].attention.output is None


def test_initial_scales_are_kept(tiny):
    config = tiny({"model.init.embedding": "normal(std=0.5)", "model.width": 512, "model.heads": 2})
    model = jax.jit(build(config).initialise)(jax.random.key(0))
    assert np.std(leaf(model.embedding.table)) == pytest.approx(0.5, rel=0.05)
    assert np.std(leaf(model.stack.blocks[0].attention.query.weight)) == pytest.approx(512**-0.5, rel=0.02)


def test_quickstart_has_the_parameters_it_should(root):
    from positionbias.config.cli import load_config
    from positionbias.config.resolve import resolve

    experiment = build(resolve(load_config(str(root / "configs" / "quickstart.py"))))
    sizes = [x.size for x in jax.tree.leaves(experiment.abstract)]
    block = 4 * 64 * 64 + 2 * 64 * 256 + 2 * 2 * 64
    assert sum(sizes) == 24 * 64 + 16 * 64 + 2 * block + 2 * 64 + 64 * 24


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"model.inputs": "one_hot"}, "model.width = 16"),
        ({"model.inputs": "vector"}, "model.inputs: 'vector' reads vectors"),
        ({"model.readout": "none"}, "model.readout: 'none' needs a stream 8 wide"),
        ({"model.readout": "tied", "model.residual": "concatenate"}, "model.readout: 'tied' needs a stream 16 wide"),
        ({"model.ov": "identity", "model.heads": 2}, "model.residual: 'add'"),
        ({"model.position": "[none, learned]", "model.layers": 2}, "model.position: learned of layer 1"),
        ({"model.position": "learned(length=3)"}, "learned.length = 3"),
        ({"model.position": "rope", "model.width": 6, "model.heads": 2}, "rope needs an even head size"),
        ({"model.position": "sinusoidal", "model.width": 9, "model.heads": 1}, "sinusoidal needs an even model.width"),
        ({"model.init.query": "identity", "model.width": 12, "model.head_size": 5}, "model.init.query: 'identity'"),
        ({"objective": "squared_error"}, "objective: 'squared_error' takes targets that are vectors"),
        ({"model.architecture": "encoder_decoder(encoder_layers=3)"}, "encoder_layers = 3"),
    ],
)
def test_impossible_combinations_are_refused_in_one_sentence(tiny, overrides, words):
    config = tiny({"task": "inverse_permutation(n=3, alphabet=5)", "model.heads": 1, **overrides})
    with pytest.raises(ConfigError) as caught:
        build(config)
    message = str(caught.value)
    assert words in message
    assert "allowed" in message
    assert "\n" not in message


def test_a_mask_that_leaks_the_target_is_refused(tiny):
    from positionbias.config import build as module

    experiment = build(tiny())
    leaks = np.zeros((8, 8), bool)
    leaks[5, 6] = True

    class Leaking(type(experiment.task)):
        def leaks(self, condition):
            return leaks

    task = Leaking(n=4, alphabet=4)
    module._check_rows(module.dataclasses.replace(experiment, task=task))  # causal: row 5 cannot see input 6
    open_mask = build(tiny({"model.mask": "bidirectional"}))
    with pytest.raises(ConfigError, match="lets row 5 depend on input 6"):
        module._check_rows(module.dataclasses.replace(open_mask, task=task))


def test_states_split_into_trained_and_frozen(tiny):
    experiment = build(tiny({"model.frozen": ["embedding"]}))
    frozen = nnx.state(experiment.abstract, Frozen)
    assert [x.shape for x in jax.tree.leaves(frozen)] == [(8, 16)]


def test_bfloat16_activations_give_float32_outputs_near_float32(tiny):
    _, _, exact = run(tiny())
    _, _, rough = run(tiny({"train.dtype": "bfloat16"}))
    assert np.abs(exact - rough).max() < 0.05
    assert np.abs(exact - rough).max() > 0


def test_model_maps_are_pure(tiny):
    experiment = build(tiny())
    model = jax.jit(experiment.initialise)(jax.random.key(0))
    before = [np.asarray(x).copy() for x in jax.tree.leaves(model)]
    condition = experiment.task.conditions()[0]
    batch = jax.jit(lambda key: experiment.task.batch(key, condition, 2))(jax.random.key(1))
    first = model(batch.inputs, batch.tokens, 4, Sites())
    second = jax.jit(lambda: model(batch.inputs, batch.tokens, 4, Sites()))()
    assert jnp.abs(first - second).max() < 1e-5
    assert all(np.array_equal(a, b) for a, b in zip(before, jax.tree.leaves(model), strict=True))
