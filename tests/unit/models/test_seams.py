"""What members may bring of their own: parameters, the whole stream, tokens an example, inputs an objective changes."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from flax import nnx

from positionbias.config import build as module
from positionbias.config.build import build
from positionbias.evaluation.by_position import Evaluator
from positionbias.evaluation.loading import load
from positionbias.evaluation.rows import read_rows
from positionbias.models.parameters import Frozen
from positionbias.models.sites import Sites
from positionbias.positions.base import Matrix, PositionScheme
from positionbias.replicas import Layout, replica_keys
from positionbias.spec import ConfigError
from positionbias.tasks.base import worlds
from positionbias.tokens import sequential
from positionbias.training.auto import Auto
from positionbias.training.loop import train
from positionbias.training.program import Program, fetch


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    toys.register(monkeypatch)


def trained(config, microbatch=8, steps=3):
    """Weights after some steps, and their metrics."""
    compiled = Program(build(config), Auto(Layout("loop"), microbatch, steps)).compile()
    state, metrics = compiled.advance(compiled.fresh(), 0)
    return jax.device_get(compiled.unpack(state)), fetch(metrics)


def evaluated(config, weights):
    experiment = build(config)
    return Evaluator(experiment, Layout("loop"), replica_keys(0, config.train.replicas)).rows(weights)


# ------------------------------------------------------------------------------------------------------- operators


def test_an_operator_may_read_the_stream(tiny):
    config = tiny({"model.operator": "[toy_convolution, softmax]", "model.layers": 2, "model.mlp": False})
    experiment = build(config)
    model = jax.jit(experiment.initialise)(jax.random.key(0))
    mixing = model.stack.blocks[0].attention
    assert {name: x.shape for name, x in mixing.own.items()} == {"kernel": (2, 16)}
    assert not any(hasattr(mixing, name) for name in ("query", "key", "value", "output"))
    condition = experiment.task.conditions()[0]
    batch = jax.jit(lambda key: experiment.task.batch(key, condition, 2))(jax.random.key(1))

    def read(inputs):
        sites = Sites(record=["*"])
        model(inputs, batch.tokens, 4, sites)
        return sites.recorded

    seen = jax.jit(read)(batch.inputs)
    normed = model.stack.blocks[0].norm_attention(seen["embedding"])
    kernel = mixing.own["kernel"][...]
    expected = normed * kernel[0] + jnp.pad(normed, ((0, 0), (1, 0), (0, 0)))[:, :-1] * kernel[1]
    np.testing.assert_allclose(seen["layers.0.attention.output"], expected, atol=1e-6)
    np.testing.assert_allclose(seen["layers.0.stream"], seen["embedding"] + expected, atol=1e-6)
    state, metrics = trained(config)
    assert np.isfinite(metrics["loss"]).all()
    compiled = Program(experiment, Auto(Layout("loop"), 8, 1)).compile()
    fresh = compiled.unpack(compiled.fresh())
    moved = [jax.tree.leaves(s["params"]["stack"]["blocks"][0]["attention"])[0] for s in (state, fresh)]
    assert np.abs(np.asarray(moved[0]) - np.asarray(moved[1])).max() > 0


def test_an_operator_that_reads_the_stream_widens_a_concatenated_one(tiny):
    wanted = {"model.operator": "toy_convolution", "model.layers": 2, "model.mlp": False}
    experiment = build(tiny({**wanted, "model.residual": "concatenate"}))
    model = jax.jit(experiment.initialise)(jax.random.key(0))
    assert [b.attention.own["kernel"].shape for b in model.stack.blocks] == [(2, 16), (2, 32)]
    assert model.stack.width_out == 64


def test_a_narrower_operator_is_told(tiny):
    assert build(tiny()).narrowed == []
    found = build(tiny({"model.operator": "[softmax, toy_convolution(width=3)]", "model.layers": 2})).narrowed
    assert found == [
        "layer 1: toy_convolution(width=3) mixes 21 of the 36 pairs that the mask causal allows in condition 'train'"
    ]


def test_an_operator_that_reads_the_stream_cannot_cross(tiny):
    wanted = {"model.architecture": "encoder_decoder", "task.scratch": True, "model.operator": "toy_convolution"}
    with pytest.raises(ConfigError, match="cross attention of decoder layer 0 needs"):
        build(tiny(wanted))
    with pytest.raises(ConfigError, match=r"rope.* rotates queries and keys, which the operator toy_convolution"):
        build(tiny({"model.position": "rope", "model.operator": "toy_convolution"}))


def test_where_some_operators_use_a_scheme_a_list_of_schemes_is_proposed(tiny):
    wanted = {"model.operator": "[softmax, gated_delta]", "model.layers": 2}
    with pytest.raises(ConfigError, match=r"of layer 1 does not use; .* or one scheme a layer: '\[alibi, none\]'"):
        build(tiny({**wanted, "model.position": "alibi"}))
    build(tiny({**wanted, "model.position": "[alibi, none]"}))
    with pytest.raises(ConfigError, match=r"allowed: another scheme or operator\.$"):
        build(tiny({**wanted, "model.operator": "gated_delta", "model.position": "alibi"}))
    with pytest.raises(ConfigError, match=r"allowed: another scheme or operator\.$"):
        build(tiny({**wanted, "model.position": "periodic(period=4)"}))  # which embeds, so that layers have one


# ------------------------------------------------------------------------------------------------- position schemes


@dataclasses.dataclass(frozen=True)
class Both(PositionScheme):
    """Adds a table to the embeddings and a trained slope to scores."""

    def embedding_parameters(self, dims):
        return {"table": Matrix((dims.length, dims.width), "position", dims.width)}

    def layer_parameters(self, dims):
        return {"slope": Matrix((dims.heads,), "slope", 1, initializer="constant(value=0.25)")}

    def embed(self, x, tokens, params):
        return x + params["table"][tokens.position]

    def bias(self, q, k, heads, params):
        distance = jnp.abs(jnp.asarray(q.position - k.position))[..., None, :, :]
        return -params["slope"][:, None, None] * distance


def test_a_scheme_may_have_parameters_in_the_embedding_and_in_every_layer(tiny):
    known = build(tiny({"model.layers": 2}))
    blueprint = dataclasses.replace(known.blueprint, positions=(Both(), Both()))
    experiment = dataclasses.replace(known, blueprint=blueprint)
    model = jax.jit(experiment.initialise)(jax.random.key(0))
    assert {n: x.shape for n, x in model.embedding.params.items()} == {"table": (8, 16)}
    assert [list(b.attention.table) for b in model.stack.blocks] == [["slope"], ["slope"]]
    assert model.stack.blocks[1].attention.table["slope"][...].tolist() == [0.25, 0.25]
    condition = experiment.task.conditions()[0]
    batch = jax.jit(lambda key: experiment.task.batch(key, condition, 2))(jax.random.key(1))

    def loss(model):
        return jnp.sum(jnp.square(model(batch.inputs, batch.tokens, 4, Sites())))

    slope = jax.jit(nnx.grad(loss))(model).stack.blocks[0].attention.table["slope"]
    assert np.abs(slope[...]).min() > 0


def test_a_bias_vector_is_frozen_with_its_matrix(tiny):
    experiment = build(tiny({"model.bias": True, "model.frozen": ["query"]}))
    frozen = nnx.state(experiment.abstract, Frozen)
    assert sorted(x.shape for x in jax.tree.leaves(frozen)) == [(16,), (16, 16)]


# ------------------------------------------------------------------------------------------------------- architecture


def test_answers_before_the_first_row_are_refused(tiny):
    experiment = build(tiny())
    assert experiment.architecture.first_row(4) == 0

    class Late(type(experiment.architecture)):
        def first_row(self, context_length):
            return context_length + 2

    with pytest.raises(ConfigError, match="answers at rows 6 and later, but the task asks at row 4"):
        module._check_queries(dataclasses.replace(experiment, architecture=Late()))


def test_reach_of_an_encoder_decoder_under_traced_tokens(tiny):
    experiment = build(tiny({"task.scratch": True, "model.architecture": "encoder_decoder", "model.mask": "causal"}))
    condition = experiment.task.conditions()[0]
    traced = jax.jit(lambda tokens: experiment.reach(condition, tokens))(sequential(12))
    np.testing.assert_array_equal(traced, experiment.reach(condition))


# ------------------------------------------------------------------------------------------------ tokens of an example

LISTS = {"task": "two_lists", "model.mask": "causal & segments"}


@pytest.mark.parametrize(
    "architecture", ["decoder_only", "encoder_decoder(encoder_mask=segments, cross_mask=segments)"]
)
def test_examples_may_have_tokens_of_their_own(tiny, architecture):
    config = tiny({**LISTS, "model.architecture": architecture, "evaluation.items": 64})
    state, whole = trained(config)
    _, pieces = trained(config, microbatch=2)
    np.testing.assert_allclose(whole["loss"], pieces["loss"], rtol=1e-5)
    rows = evaluated(config, {"params": state["params"], "frozen": state["frozen"]})
    # The lists meet at 1..5: slot 2 is in the last row's list if they meet at 1 or 2.
    assert set(np.unique(rows["ceiling"]).tolist()) == {0.25, 1.0}
    assert 0.2 < (rows["ceiling"] == 1).mean() < 0.6
    assert np.isfinite(rows["log_probability"]).all()


def test_rows_see_their_own_examples_list_only(tiny):
    experiment = build(tiny(LISTS))
    (condition,) = experiment.task.conditions()
    batch = jax.jit(lambda key: experiment.task.batch(key, condition, 16))(jax.random.key(0))
    assert batch.tokens.segment.shape == (16, 6)
    model = jax.jit(experiment.initialise)(jax.random.key(1))

    def outputs(shift):
        return model(batch.inputs, batch.tokens, 4, Sites(edit={"embedding": ("add", shift)}))[:, 5].sum(axis=0)

    slopes = np.abs(jax.jit(jax.jacrev(outputs))(jnp.zeros((16, 6, 16)))).max(axis=(0, 3))
    reach = jax.jit(jax.vmap(lambda tokens: experiment.reach(condition, tokens)))(batch.tokens)
    np.testing.assert_array_equal(slopes > 0, reach[:, 5])
    assert len(np.unique(np.asarray(reach[:, 5]), axis=0)) > 2


# --------------------------------------------------------------------------------------------------------- objectives


def test_an_objective_may_change_inputs(tiny):
    wanted = {"objective": "hide_some", "model.mask": "bidirectional", "evaluation.items": 64}
    config = tiny(wanted)
    experiment = build(config)
    assert experiment.abstract.embedding.table.shape == (9, 16)
    assert experiment.abstract.readout.last.weight.shape == (16, 8)
    state, metrics = trained(config, steps=4)
    # Inverse permutation weighs 4 rows of each of 8 sequences; what is hidden is another number at every step.
    assert len(np.unique(metrics["loss"])) == 8
    weights = {"params": state["params"], "frozen": state["frozen"]}
    rows = evaluated(config, weights)
    plain = evaluated(tiny({**wanted, "objective": "next_token"}), weights)
    assert not np.allclose(rows["log_probability"], plain["log_probability"])
    again = evaluated(config, weights)
    np.testing.assert_array_equal(rows["log_probability"], again["log_probability"])


def test_what_is_hidden_is_what_is_learned(tiny):
    config = tiny({"objective": "hide_some(rate=0)"})
    _, metrics = trained(config, steps=2)
    assert (metrics["loss"] == 0).all(), "no row is hidden, so no row weighs"


# ------------------------------------------------------------------------------------------------------------ worlds


def test_every_replica_learns_and_is_measured_in_a_world_of_its_own(tiny, tmp_path):
    config = tiny({"task": "facts", "train.steps": 100, "train.log_every": 50, "model.position": "none"})
    assert train(config, tmp_path / "run", [], lambda line: None).status == "finished"
    run = load(tmp_path / "run", replica="all")
    numbers = np.asarray(worlds(run.task, run.keys)["number"])
    assert not np.array_equal(numbers[0], numbers[1])
    batch = run.sample(16)
    assert batch.inputs.shape == (2, 16, 1)
    outputs, _ = run.apply(batch)
    for replica in range(2):
        np.testing.assert_array_equal(batch.targets[replica], numbers[replica][batch.inputs[replica]])
        np.testing.assert_array_equal(np.argmax(outputs[replica], axis=-1), batch.targets[replica])
    alone = load(tmp_path / "run", replica=1)
    np.testing.assert_array_equal(alone.sample(16).targets, batch.targets[1])
    np.testing.assert_allclose(alone.apply(alone.sample(16))[0], outputs[1], atol=1e-5)
    assert read_rows(tmp_path / "run" / "evals" / "000100.npz")["correct"].mean() == 1
    assert read_rows(tmp_path / "run" / "evals" / "000000.npz")["correct"].mean() < 0.5


# ------------------------------------------------------------------------------------------------------------ corpora


def test_replicas_share_a_corpus_that_resumes_and_reloads(tiny, tmp_path):
    changes = {"task": "text(window=6)", "train.steps": 4, "train.log_every": 2, "evaluation.items": 8}
    config = tiny({**changes, "checkpoint.every": 2, "model.position": "none"})
    for name, stops in (("whole", [None]), ("halves", [2, None])):
        for stop in stops:
            train(config, tmp_path / name, [], lambda line: None, stop)
    whole, halves = (load(tmp_path / name, replica="all") for name in ("whole", "halves"))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(whole.weights), jax.device_get(halves.weights))
    text = bytes(whole.task.corpus()["test"].tolist())
    batch = whole.sample(16, "test")
    assert batch.inputs.shape == (16, 6), "the same for all replicas"
    assert all(bytes(window.tolist()) in text for window in np.asarray(batch.inputs))
    np.testing.assert_array_equal(load(tmp_path / "whole", replica=1).sample(16, "test").inputs, batch.inputs)
    manifest = json.loads((tmp_path / "whole" / "manifest.json").read_text())
    assert manifest["data"] == whole.experiment.data
    assert manifest["data"]["test"].startswith("111414 bytes, crc32 ")
    rows = read_rows(tmp_path / "whole" / "evals" / "000004.npz")
    np.testing.assert_allclose(rows["loss"], -rows["log_probability"], rtol=1e-5)
    assert {"loss/unigram", "loss/bigram"} < set(rows)
    assert rows["loss/bigram"].mean() < rows["loss/unigram"].mean() < np.log(256)


@pytest.mark.parametrize(
    "architecture",
    ["encoder_decoder", "encoder_decoder(encoder_mask=prefix(2))", "encoder_decoder(cross_mask=aligned_cross)"],
)
def test_an_encoder_needs_a_context(tiny, architecture):
    with pytest.raises(ConfigError, match=r"^model\.architecture: encoder_decoder.* has an encoder for the context"):
        build(tiny({"task": "text(window=8)", "model.architecture": architecture}))
