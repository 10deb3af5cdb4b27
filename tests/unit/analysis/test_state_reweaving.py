"""States woven into other layers, in networks that forget what they knew, or know it too late, and by hand."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from positionbias.analysis.base import Subject
from positionbias.analysis.state_reweaving import StateReweaving, chosen_rows
from positionbias.errors import ConfigError
from positionbias.models import edits
from positionbias.models.sites import Sites

PAIRS, ITEMS, VOCABULARY = 2, 64, 9  # filler, four keys, four values


@dataclasses.dataclass(frozen=True)
class Forgets(Subject):
    """Three layers that hold the answer in the row that asks, nothing, and what is there; logits are 3 times that."""

    def answer(self, embedded):
        """The value behind the key that the last row asks for, one-hot or nothing, and the one-hot inputs."""
        keys, values = embedded[:, 0 : 2 * PAIRS : 2], embedded[:, 1 : 2 * PAIRS : 2]
        return jnp.einsum("bpv,bv,bpw->bw", keys, embedded[:, -1], values)

    def apply(self, batch, record=(), edit=None):
        sites = Sites(record, edit)
        embedded = sites("embedding", jax.nn.one_hot(batch.inputs, VOCABULARY))
        last = (jnp.arange(batch.inputs.shape[1]) == batch.inputs.shape[1] - 1)[:, None]
        stream = sites("layers.0.stream", last * self.answer(embedded)[:, None])
        stream = sites("layers.1.stream", 0 * stream)
        stream = sites("layers.2.stream", stream)
        sites.check()
        return 3 * stream, sites.recorded


@dataclasses.dataclass(frozen=True)
class TooLate(Forgets):
    """The stream has the token, what is ready to be read, and what was read; layer 1 reads, layer 2 makes ready."""

    def apply(self, batch, record=(), edit=None):
        sites = Sites(record, edit)
        embedded = sites("embedding", jax.nn.one_hot(batch.inputs, VOCABULARY))
        nothing = jnp.zeros_like(embedded)
        stream = sites("layers.0.stream", jnp.concatenate([embedded, nothing, nothing], axis=-1))
        token, ready, read = jnp.split(stream, 3, axis=-1)
        keys, values = token[:, 0 : 2 * PAIRS : 2], ready[:, 1 : 2 * PAIRS : 2]
        found = jnp.einsum("bpv,bv,bpw->bw", keys, token[:, -1], values)
        stream = sites("layers.1.stream", jnp.concatenate([token, ready, read.at[:, -1].add(found)], axis=-1))
        token, ready, read = jnp.split(stream, 3, axis=-1)
        stream = sites("layers.2.stream", jnp.concatenate([token, token, read], axis=-1))
        sites.check()
        return 3 * stream[..., 2 * VOCABULARY :], sites.recorded


@pytest.fixture(scope="module")
def run(drawn_run):
    raw = {
        "name": "woven",
        "task": f"associative_recall(pairs={PAIRS}, keys=4, values=4, delays=1)",
        "model": {"layers": 3, "width": 8, "heads": 1, "init": {"readout": "fan_in(scale=9.0)"}},
    }
    return drawn_run(raw)


def measured(subject, **given):
    analysis, key = StateReweaving(**given), jax.random.key(0)
    found = jax.jit(lambda: analysis.measure(subject, [0, 1, 2], key))()
    return subject.batch(key), {name: np.asarray(x) for name, x in found.items()}


def said_right(weight):
    """log p of the answer where its logit is 3 `weight` and all others are 0."""
    return 3 * weight - math.log(math.exp(3 * weight) + VOCABULARY - 1)


@pytest.mark.parametrize("weight", [1.0, 0.25])
def test_a_state_that_is_forgotten_restores_the_answer_in_a_later_layer(run, weight):
    batch, found = measured(Forgets(run, run.task.conditions()[0], ITEMS), rows="answer", weight=weight)
    restores = np.array([[0, 1, 1], [0, 0, 0], [0, 0, 0]])
    np.testing.assert_array_equal(found["accuracy"], restores)
    known = np.where(restores, said_right(weight), -math.log(VOCABULARY))
    np.testing.assert_allclose(found["log_probability"], known, atol=1e-5)
    assert (found["accuracy_intact"], found["restored"].tolist()) == (0, [1, 0])
    assert float(found["log_probability_intact"]) == pytest.approx(-math.log(VOCABULARY))
    answer = np.asarray(batch.targets)[:, -1]
    same = np.mean(answer == np.roll(answer, -1))
    assert 0 < same < 0.5
    np.testing.assert_allclose(found["accuracy_shuffled"], same * restores, atol=1e-6)
    np.testing.assert_allclose(found["restored_shuffled"], [same, 0], atol=1e-6)


def test_a_state_that_comes_too_late_restores_the_answer_in_an_earlier_layer(run):
    """And in the rows of the evidence alone, which the row that asks reads in layer 1."""
    subject = TooLate(run, run.task.conditions()[0], ITEMS)
    _, found = measured(subject)
    np.testing.assert_array_equal(found["accuracy"], [[0, 0, 0], [0, 0, 0], [1, 0, 0]])
    assert float(found["log_probability"][2, 0]) == pytest.approx(said_right(1), abs=1e-5)
    np.testing.assert_array_equal(found["restored"], [0, 1])
    _, elsewhere = measured(subject, rows="answer")
    np.testing.assert_array_equal(elsewhere["accuracy"], np.zeros((3, 3)))


@pytest.mark.parametrize("rows", ["evidence", "answer", "relevant"])
def test_every_number_is_that_of_streams_put_there_by_hand(run, rows):
    subject = Subject(run, run.task.conditions()[0], ITEMS)
    batch, found = measured(subject, rows=rows, weight=0.75)
    chosen = np.asarray(chosen_rows(subject, batch, rows))
    names = [f"layers.{layer}.stream" for layer in range(3)]
    held = {name: np.asarray(x) for name, x in subject.apply(batch, names)[1].items()}

    @jax.jit  # one program for all that is put anywhere
    def applied(inputs, stream, at):
        edit = {name: edits.replace(stream, rows=at[i]) for i, name in enumerate(names)}
        return subject.answers(subject.apply(batch._replace(inputs=inputs), (), edit)[0], batch)

    at = np.eye(3, dtype=bool)[:, :, None, None] & chosen  # [to, layer, B, T]
    intact = applied(batch.inputs, held[names[0]], np.zeros_like(at[0]))
    for begin, end in np.ndindex(3, 3):
        for of, shift in (("", 0), ("_shuffled", 1)):
            source = np.roll(held[names[begin]], -shift, axis=0)
            known = applied(batch.inputs, 0.25 * held[names[end]] + 0.75 * source, at[end])
            for name in ("accuracy", "log_probability"):
                assert found[f"{name}{of}"][begin, end] == pytest.approx(float(known[name].mean()), abs=1e-4)
    assert float(found["log_probability_intact"]) == pytest.approx(float(intact["log_probability"].mean()), abs=1e-5)
    if rows != "answer":  # which the layers above read, but nothing reads behind the last
        assert len(set(found["log_probability"][:, 0].tolist())) == 3
        assert len(set(found["log_probability"][:, 2].tolist())) == 1


@pytest.mark.parametrize("weight", [0.3, 1.0])
def test_a_layer_woven_into_itself_changes_nothing_to_the_bit(run, weight):
    _, found = measured(Subject(run, run.task.conditions()[0], ITEMS), rows="answer", weight=weight)
    for name in ("accuracy", "log_probability"):
        np.testing.assert_array_equal(np.diag(found[name]), found[f"{name}_intact"])
    assert (found["log_probability"] != found["log_probability_intact"]).sum() == 6
    assert (np.diag(found["log_probability_shuffled"]) != found["log_probability_intact"]).all()


@dataclasses.dataclass(frozen=True)
class Weighs(Subject):
    """Logits are a sum of all one-hot inputs, with these weights of the rows."""

    def apply(self, batch, record=(), edit=None):
        sites = Sites(record, edit)
        embedded = sites("embedding", jax.nn.one_hot(batch.inputs, VOCABULARY))
        logits = jnp.einsum("t,btv->bv", jnp.array([0.5, -2.0, 1.0, 0.1, 9.0]), embedded)
        return jnp.broadcast_to(logits[:, None], embedded.shape), sites.recorded


def test_relevant_rows_are_as_many_as_are_needed_by_gradient_times_input(run):
    """Of one-hot inputs that is a row's weight times (1 for the answer's token, or 0, minus its probability)."""
    subject = Weighs(run, run.task.conditions()[0], ITEMS)
    batch = subject.batch(jax.random.key(3))
    inputs, answer = np.asarray(batch.inputs), np.asarray(batch.targets)[:, -1]
    outputs = np.asarray(subject.apply(batch)[0])[:, -1]
    p = np.exp(outputs) / np.exp(outputs).sum(-1, keepdims=True)
    slope = (answer[:, None] == np.arange(VOCABULARY)) - p
    relevance = np.abs(np.array([0.5, -2.0, 1.0, 0.1, 9.0]) * np.take_along_axis(slope, inputs, axis=1))
    needed = [len(set(row.tolist()) - {-1}) for row in np.asarray(batch.evidence).reshape(ITEMS, -1)]
    assert set(needed) <= {1, 2}
    known = np.zeros((ITEMS, 5), bool)
    for item, count in enumerate(needed):
        known[item, np.argsort(-relevance[item, :4])[:count]] = True  # the row that answers is not among them
    np.testing.assert_array_equal(chosen_rows(subject, batch, "relevant"), known)
    assert (known != np.asarray(chosen_rows(subject, batch, "evidence"))).any()


def test_what_cannot_be_woven_is_refused(run):
    with pytest.raises(ConfigError, match="rows = 'last' is not allowed; allowed: one of evidence, answer, relevant"):
        StateReweaving(rows="last")
    for weight in (0.0, 1.5):
        with pytest.raises(ConfigError, match="weight"):
            StateReweaving(weight=weight)
    with pytest.raises(ConfigError, match="items"):
        StateReweaving().check(Subject(run, run.task.conditions()[0], 1))
