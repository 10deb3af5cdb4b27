"""Edges: which there are, what patching some of them leaves, and what gradients foretell of them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from positionbias.analysis.base import Subject
from positionbias.analysis.edge_attribution import EdgeAttribution
from positionbias.analysis.edge_scores import agreement, error, estimated, exact
from positionbias.analysis.edges import Pair, graph
from positionbias.analysis.pairs import corrupted
from positionbias.analysis.path_patching import PathPatching
from positionbias.errors import ConfigError
from positionbias.evaluation.loading import load
from positionbias.models import edits

RAW = {
    "name": "edges",
    "task": "associative_recall(pairs=2, keys=4, values=4, delays=2)",
    "model": {"layers": 2, "width": 8, "heads": 2, "operator": "[gated_linear_attention, softmax]", "position": "none"},
    "optimizer": {"learning_rate": 1e-2},
    "train": {"steps": 30, "batch_size": 16, "replicas": 1, "log_every": 30},
    "evaluation": {"items": 4, "batch_size": 4, "influence_items": 4},
}


@pytest.fixture(scope="module")
def subject(tmp_path_factory, unmeasured_run):
    run = load(unmeasured_run(RAW, tmp_path_factory.mktemp("run")))
    return Subject(run, run.task.conditions()[0], 8)


@pytest.fixture(scope="module")
def told(subject):
    """All that is asked of one pair of batches, in one program."""
    parts = graph(subject)
    names = parts.labels["sender"], parts.labels["reader"]

    def edge(*pairs):
        share = np.zeros(parts.real.shape, np.float32)
        for sender, reader in pairs:
            share[names[0].index(sender), names[1].index(reader)] = 1
        return jnp.asarray(share)

    def everything():
        batch = subject.batch(jax.random.key(0))
        pair = Pair.of(subject, parts, batch, corrupted(batch))
        (m, clean), (m_other, other) = pair.sent(pair.clean), pair.sent(pair.corrupted)
        sites = ["layers.0.attention.value", "layers.1.mlp.output"]
        theirs = subject.apply(pair.corrupted, sites)[1]
        value = edits.replace(theirs["layers.0.attention.value"], heads=1)
        last = {"layers.1.stream": edits.add(theirs["layers.1.mlp.output"] - clean[-1][0])}
        value_edge, last_edge = edge(("input", "a0.1.v")), edge(("m1", "output"))
        every = jnp.asarray(parts.real, jnp.float32)
        of_clean = [0 * every, every, value_edge, last_edge, 1e-2 * value_edge, edge(("input", "a0.gate"))]
        of_other = [every, edge(*((name, "output") for name in names[0]))]
        found = [*jax.lax.map(lambda share: pair.patched(pair.clean, other, share), jnp.stack(of_clean))]
        found += [*jax.lax.map(lambda share: pair.patched(pair.corrupted, clean, share), jnp.stack(of_other))]
        kinds = ("none", "all", "value", "last", "small", "gates", "all back", "all to output")

        def along(at):  # m by the embeddings
            return pair.margin(subject.apply(batch, (), {"embedding": edits.replace(at)})[0])

        begin, end = other[0][0], clean[0][0]
        steps = jnp.arange(1, 4) / 3
        slopes = jax.lax.map(lambda k: jax.grad(along)(begin + k * (end - begin)), steps)
        stream = subject.apply(batch, ["layers.1.stream"])[1]["layers.1.stream"]
        return dict(zip(kinds, found, strict=True)) | {
            "clean": m,
            "corrupted": m_other,
            "value known": pair.margin(subject.apply(pair.clean, (), {"layers.0.attention.value": value})[0]),
            "last known": pair.margin(subject.apply(pair.clean, (), last)[0]),
            "lost": exact(pair, pair.clean, other),
            "eap": estimated(pair, clean, other, 1),
            "eap_ig": estimated(pair, clean, other, 3),
            "slopes": [jnp.sum((begin - end) * slope) for slope in (slopes[-1], jnp.mean(slopes, axis=0))],
            "sum": jnp.sum(jnp.concatenate(clean), axis=0) - stream,
        }

    return parts, jax.jit(everything)()


def test_the_graph_has_all_parts_and_only_ways_forward(told):
    parts, _ = told
    heads = [f"a1.{head}.{part}" for part in "qkv" for head in range(2)]
    assert parts.labels["sender"] == ("input", "a0.0", "a0.1", "m0", "a1.0", "a1.1", "m1")
    assert parts.labels["reader"] == (
        *("a0.gate", "a0.0.q", "a0.1.q", "a0.0.k", "a0.1.k", "a0.0.v", "a0.1.v"),
        *("m0", *heads, "m1", "output"),
    )
    before = dict(zip(parts.labels["reader"], parts.real.sum(axis=0).tolist(), strict=True))
    assert before == {
        **dict.fromkeys([name for name in before if name.startswith("a0")], 1),
        "m0": 3,
        **dict.fromkeys(heads, 4),
        "m1": 6,
        "output": 7,
    }
    feeds = {
        reader: [parts.labels["sender"][i] for i in np.flatnonzero(row)]
        for reader, row in zip(parts.labels["reader"], parts.feeds, strict=True)
    }
    assert (feeds["a0.gate"], feeds["a1.1.k"], feeds["m1"], feeds["output"]) == (["a0.0", "a0.1"], ["a1.1"], ["m1"], [])


def test_what_senders_send_is_the_stream(told):
    np.testing.assert_allclose(told[1]["sum"], 0, atol=1e-5)


def test_no_edge_leaves_a_run_as_it_is_and_all_make_it_the_other(told):
    _, found = told
    assert abs(found["clean"] - found["corrupted"]) > 0.1
    assert float(found["none"]) == pytest.approx(float(found["clean"]), rel=1e-6)  # of another program
    for name, known in (("all", "corrupted"), ("all back", "clean"), ("all to output", "clean")):
        assert float(found[name]) == pytest.approx(float(found[known]), abs=1e-5), name


def test_an_edge_is_what_one_reader_alone_is_told(told):
    """The value of one head of the first layer, which has one sender; and what the last MLP adds to the output."""
    parts, found = told
    row, column = (parts.labels[axis].index(name) for axis, name in (("sender", "input"), ("reader", "a0.1.v")))
    for name in ("value", "last"):
        assert float(found[name]) == pytest.approx(float(found[f"{name} known"]), abs=1e-5)
        assert abs(float(found[name] - found["clean"])) > 1e-4
    assert float(found["lost"][row, column]) == pytest.approx(float(found["value"]), abs=1e-6)
    assert abs(float(found["gates"] - found["clean"])) > 1e-6
    assert float(found["lost"][0, 0]) == pytest.approx(float(found["gates"]), abs=1e-6)
    assert not np.any(found["lost"][~parts.real])
    slope = (found["small"] - found["clean"]) / 1e-2
    assert float(found["eap"][row, column]) == pytest.approx(float(slope), rel=0.05)
    assert not np.any(found["eap"][~parts.real])


def test_estimates_of_edges_from_the_input_add_up_to_the_gradient_by_the_embeddings(told):
    """Which reach the rest of the model by these edges alone: at the clean ones, or the mean of three steps to them."""
    _, found = told
    for name, known in zip(("eap", "eap_ig"), found["slopes"], strict=True):
        assert float(found[name][0].sum()) == pytest.approx(float(known), rel=1e-4)
    assert float(found["slopes"][0]) != pytest.approx(float(found["slopes"][1]), rel=1e-3)


def test_path_patching_takes_all_that_there_is(subject):
    found = jax.jit(lambda: PathPatching().measure(subject, [0, 1], jax.random.key(2)))()
    assert float(found["all_lost"]) == pytest.approx(1, abs=1e-4)
    assert float(found["all_restored"]) == pytest.approx(1, abs=1e-4)
    assert found["clean"] != found["corrupted"]


def test_ranks_agree_as_they_are_known_to():
    """Spearman's correlation with equal numbers, by hand and of what is too small to be told from nothing."""
    a, b = jnp.array([1.0, 2.0, 2.0, 9.0]), jnp.array([3.0, 1.0, 4.0, 5.0])
    ranks = np.array([1, 2.5, 2.5, 4]), np.array([2, 1, 3, 4])
    assert float(agreement(a, b)) == pytest.approx(np.corrcoef(*ranks)[0, 1], abs=1e-6)
    assert float(agreement(a, -a)) == pytest.approx(-1)
    assert float(agreement(a, jnp.zeros(4))) == 0
    assert float(agreement(jnp.array([1e-9, -1e-9, 1.0]), jnp.array([0.0, 0.0, 2.0]))) == pytest.approx(1)


def test_an_error_is_of_all_that_edges_are_worth():
    exact, estimates = jnp.array([2.0, -1.0, 0.0, 1.0]), jnp.array([1.0, 1.0, -0.5, 1.0])
    assert float(error(estimates, exact)) == (1 + 2 + 0.5 + 0) / 4
    assert float(error(exact, exact)) == 0
    assert float(error(0 * exact, exact)) == 1
    assert float(error(estimates, 0 * exact)) == 0


def test_errors_are_told_by_method_and_of_the_values_dealt_anew(subject):
    found = jax.jit(lambda: EdgeAttribution(steps=2).measure(subject, [0, 1], jax.random.key(0)))()
    real = graph(subject).real
    exact, *both = (np.asarray(found[name])[real] for name in ("exact", "eap", "eap_ig"))
    known = [np.abs(x - exact).sum() / np.abs(exact).sum() for x in both]
    np.testing.assert_allclose(found["error"][:2], known, rtol=1e-5)
    assert known[0] != known[1]
    ranked = jax.random.normal(jax.random.split(jax.random.key(0))[1], (8, len(exact)))
    dealt = [np.abs(exact[np.argsort(x)] - exact).sum() / np.abs(exact).sum() for x in np.asarray(ranked)]
    assert float(found["error"][2]) == pytest.approx(np.mean(dealt), rel=1e-5)


def test_a_stream_that_is_no_sum_is_refused(subject):
    model = dataclasses.replace(subject.run.config.model, residual="none")
    config = dataclasses.replace(subject.run.config, model=model)
    run = dataclasses.replace(subject.run, experiment=dataclasses.replace(subject.run.experiment, config=config))
    with pytest.raises(ConfigError, match=r"model\.residual = 'none' has no stream that is a sum"):
        EdgeAttribution().check(dataclasses.replace(subject, run=run))
    with pytest.raises(ConfigError, match="steps"):
        EdgeAttribution(steps=0)
