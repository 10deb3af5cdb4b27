"""PINE against a scalar reference, and what does not depend on the order of segments under it."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from test_interventions import measured
from toys import Reads

from positionbias import spec
from positionbias.config.build import build
from positionbias.evaluation.pine import Arranging, arranged
from positionbias.evaluation.segment_models import Across, Apart
from positionbias.evaluation.windows import Rescaled
from positionbias.masks.order import Causal
from positionbias.models.sites import Sites
from positionbias.operators.softmax import Softmax
from positionbias.positions.base import Placed
from positionbias.positions.distance import ALiBi, alibi_slopes
from positionbias.positions.rotary import RoPE
from positionbias.spec import ConfigError
from positionbias.tokens import sequential

TASK = "associative_recall(pairs=4, keys=4, values=4, delays=2, shift=0)"
LENGTHS = {1: 4, 2: 6, 3: 3, 4: 5}
PREFIX, SUFFIX = 3, 4
SEGMENT = [0] * PREFIX + [s for s, n in LENGTHS.items() for _ in range(n)] + [0] * SUFFIX


def laid_out(segment, q, k, ranking="importance"):
    """The positions of all keys for every query of one head, line by line as the paper's steps say."""
    rows, size = len(segment), q.shape[-1]
    kinds = sorted(set(segment) - {0})
    members = {s: [i for i in range(rows) if segment[i] == s] for s in kinds}
    first = min(i for i in range(rows) if segment[i])
    end = first + sum(map(len, members.values()))

    def weights(t, others):
        keys = [j for s in others for j in members[s]]
        scores = np.array([q[t] @ k[j] / np.sqrt(size) for j in keys])
        found = np.exp(scores - scores.max())
        return dict(zip(keys, found / found.sum(), strict=True))

    told = np.zeros((rows, rows), int)
    for t in range(rows):
        own = segment[t]
        others = [s for s in kinds if s != own]
        asking = members[own] if own else [t]
        matters = dict.fromkeys(others, 0.0)
        for m in asking:
            found = weights(m, others)
            for s in others:
                matters[s] += sum(found[j] for j in members[s]) / len(members[s])
        ranked = sorted(others, key=lambda s: -matters[s] if ranking == "importance" else matters[s])
        ranked = ([own] if own else []) + ranked
        shift = 0
        told[t] = np.arange(rows)
        for s in ranked:
            for place, j in enumerate(members[s]):
                told[t, j] = end - len(members[s]) - shift + place
            shift += len(members[s])
    return told


def draws(seed=0, heads=2, size=4, scale=2.0):
    keys = jax.random.split(jax.random.key(seed), 3)
    q, k, v = (scale * jax.random.normal(key, (1, len(SEGMENT), heads, size)) for key in keys)
    return q, k, v


TOKENS = sequential(len(SEGMENT), segment=np.array(SEGMENT, np.int32))


@pytest.mark.parametrize("ranking", ["importance", "reverse"])
@pytest.mark.parametrize("seed", range(3))
def test_segments_are_laid_out_as_the_reference_lays_them(seed, ranking):
    q, k, _ = draws(seed)
    found = jax.jit(lambda q, k: arranged(q, k, TOKENS, 4, ranking))(q, k)
    for head in range(2):
        wanted = laid_out(SEGMENT, np.asarray(q)[0, :, head], np.asarray(k)[0, :, head], ranking)
        np.testing.assert_array_equal(found[0, head, PREFIX:], wanted[PREFIX:])
    if ranking == "importance":
        assert len({tuple(row) for row in np.asarray(found[0, 0, -SUFFIX:, :])}) > 1  # each has an order of its own


def test_two_segments_need_no_sort():
    """Segments 1 1 1 2 2 between one token and another: each lies last for itself."""
    tokens = sequential(7, segment=np.array([0, 1, 1, 1, 2, 2, 0], np.int32))
    q = k = jnp.ones((1, 7, 1, 2))
    found = np.asarray(arranged(q, k, tokens, 2, "importance"))[0, 0]
    np.testing.assert_array_equal(found[1], [0, 3, 4, 5, 1, 2, 6])
    np.testing.assert_array_equal(found[5], [0, 1, 2, 3, 4, 5, 6])
    np.testing.assert_array_equal(found[6], [0, 3, 4, 5, 1, 2, 6])  # equal ones keep their order, the first the nearer
    np.testing.assert_array_equal(np.asarray(arranged(q, k, tokens, 2, "none"))[0, 0, 1], np.arange(7))


@pytest.mark.parametrize("scheme", [RoPE(), ALiBi()])
def test_outputs_and_gradients_are_those_of_the_reference(scheme):
    q, k, v = draws(scale=1.0)
    slopes = alibi_slopes(2)
    told = [laid_out(SEGMENT, np.asarray(q)[0, :, n], np.asarray(k)[0, :, n]) for n in range(2)]

    def turned(x, position):
        angle = position[..., None] * 10000.0 ** (-jnp.arange(0, 4, 2) / 4)
        a, b = x[..., 0::2], x[..., 1::2]
        both = a * jnp.cos(angle) - b * jnp.sin(angle), a * jnp.sin(angle) + b * jnp.cos(angle)
        return jnp.stack(both, axis=-1).reshape(*angle.shape[:-1], 4)

    def wanted(q, k, v):
        heads = []
        for n in range(2):
            own = np.diag(told[n])
            if isinstance(scheme, RoPE):
                rows, columns = turned(q[0, :, n], own), turned(k[0, :, n][None], told[n])
                scores = jnp.sum(rows[:, None] * columns, axis=-1) / 2
            else:
                scores = q[0, :, n] @ k[0, :, n].T / 2 - slopes[n] * (own[:, None] - told[n])
            masked = jnp.where(told[n] > own[:, None], -jnp.inf, scores)
            heads.append(jax.nn.softmax(masked) @ v[0, :, n])
        return jnp.stack(heads, axis=1)[None]

    def found(q, k, v):
        operator = Arranging(Softmax(), 4, "importance")
        return operator(q, k, v, TOKENS, TOKENS, Causal() | Across(), Placed(scheme), {}, Sites())

    probe = jax.random.normal(jax.random.key(9), q.shape)
    both = [
        jax.jit(jax.value_and_grad(lambda *x, of=of: jnp.sum(of(*x) * probe), argnums=(0, 1, 2)))(q, k, v)
        for of in (found, wanted)
    ]
    np.testing.assert_allclose(jax.jit(found)(q, k, v), jax.jit(wanted)(q, k, v), atol=2e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), *both)


def orders(permutations=6):
    """Tokens and inputs of one item whose segments stand in several orders."""
    rng = np.random.default_rng(0)
    inputs = rng.integers(0, 8, len(SEGMENT))
    found = []
    for number in range(permutations):
        order = list(LENGTHS) if number == 0 else rng.permutation(list(LENGTHS)).tolist()
        rows = [*range(PREFIX), *(i for s in order for i, own in enumerate(SEGMENT) if own == s)]
        rows += range(len(SEGMENT) - SUFFIX, len(SEGMENT))
        found.append((inputs[rows], np.array(SEGMENT, np.int32)[rows]))
    return jnp.array([one for one, _ in found]), np.stack([two for _, two in found])


def deviation(experiment, intervention):
    """How far the suffix's outputs move when segments do, as a share of their spread."""
    (condition,) = experiment.task.conditions()
    change = spec.build("interventions", intervention, "x") if intervention else None
    changed = change.model(experiment, condition) if change else experiment
    model = experiment.initialise(jax.random.key(1))
    inputs, segment = orders()
    tokens = sequential(len(SEGMENT), valid=np.arange(len(SEGMENT)) > 0)._replace(segment=segment)  # one is padding
    tokens = tokens._replace(position=changed.assignment.positions(tokens))

    def read(state):
        merged = nnx.merge(nnx.graphdef(changed.abstract), state)
        return merged(inputs, tokens, len(SEGMENT) - SUFFIX, Sites())

    said = np.asarray(jax.jit(read)(nnx.state(model)))[:, -SUFFIX:]
    return np.abs(said - said[:1]).max() / said.std()


DEEP = {"task": TASK, "model.layers": 3, "model.heads": 2, "model.width": 32, "model.mlp": True}
LOUD = {"model.init.query": "fan_in(2.0)", "model.init.key": "fan_in(2.0)"}


@pytest.mark.parametrize("position", ["rope", "alibi", "t5_bias", "none", "learned_relative"])
def test_what_is_said_does_not_depend_on_the_order_of_segments(tiny, position):
    experiment = build(tiny({**DEEP, **LOUD, "model.position": position, "model.init.position": "normal(0.5)"}))
    assert deviation(experiment, "pine") < 1e-4
    assert deviation(experiment, "pcw") < 1e-4
    assert deviation(experiment, "structured") < 1e-4
    assert deviation(experiment, None) > 0.05
    if position == "rope":
        assert deviation(experiment, "pine(ranking='reverse')") < 1e-4
    if position != "none":  # told no position, and seeing no order, they have none
        assert deviation(experiment, "pine(ranking='none')") > 0.05
        assert deviation(experiment, "nia") > 0.05


def test_embeddings_are_read_where_segments_share_their_positions(tiny):
    experiment = build(tiny({**DEEP, "model.position": "sinusoidal", "model.assignment": "shared"}))
    assert deviation(experiment, "pine") < 1e-4
    assert deviation(experiment, None) > 0.02


def test_who_depends_on_whom_and_parameters_stay(tiny):
    """Two pairs, then what asks: rows and columns of the pairs."""
    task = "associative_recall(pairs=2, keys=4, values=4, delays=1, padding=0, shift=0)"
    experiment = build(tiny({"task": task, "model.position": "rope"}))
    (condition,) = experiment.task.conditions()
    for text, wanted in (
        ("pine", ["1011", "1111", "1110", "1111", "1111"]),
        ("nia", ["1000", "1100", "0010", "0011", "1111"]),
        ("pcw", ["1000", "1100", "0010", "0011", "1111"]),
        ("structured", ["1000", "1100", "0010", "0011", "1111"]),
    ):
        change = spec.build("interventions", text, "x")
        changed = change.model(experiment, condition)
        rows = np.asarray(change.reach(changed, condition)).astype(int)[:5, :4]
        assert ["".join(map(str, row)) for row in rows] == wanted, text
        states = (nnx.state(one.abstract) for one in (experiment, changed))
        assert len({str(jax.tree.map(jnp.shape, state)) for state in states}) == 1


@pytest.mark.usefixtures("no_influence")
def test_items_are_measured_by_the_changed_model(tiny):
    """Parallel windows are segments apart, in a model that is told shared positions."""
    config = {"task": TASK, "model.position": "rope", "model.layers": 2}
    windows = measured(tiny(config), "pcw")[1]["log_probability"]
    apart = measured(tiny({**config, "model.assignment": "shared"}), "nia")[1]["log_probability"]
    np.testing.assert_allclose(windows, apart, atol=1e-6)
    assert np.abs(windows - measured(tiny(config), None)[1]["log_probability"]).max() > 1e-3


@pytest.mark.usefixtures("no_influence")
def test_answers_that_an_order_changes_under_pine_are_told_apart_from_those_that_pine_changes(tiny):
    """Of a model before training: with `under`, both orders are read so, and rows are of what the order changes."""
    config = tiny({"task": TASK, "model.position": "rope", "model.layers": 2, "model.heads": 2, **LOUD})
    texts = ("pine", "permute(under=pine)", "permute", "permute(under=nia)")
    read, moved, plain, apart = (measured(config, text)[1] for text in texts)
    assert read["answers_changed"].mean() > 0.05
    assert moved["order_sensitivity"].mean() == 0
    np.testing.assert_allclose(moved["log_probability"], read["log_probability"], atol=1e-4)
    for one in (plain, apart):
        assert one["order_sensitivity"].mean() > 0.05
        np.testing.assert_array_equal(one["evidence_slot"], moved["evidence_slot"])  # the same orders, however read
        assert np.abs(one["log_probability"] - moved["log_probability"]).max() > 1e-3
    assert (moved["evidence_slot"] != read["evidence_slot"]).any()


def test_segments_count_for_one_together():
    """Three segments of one token, between two of no segment; scores 0 but for the last row's."""
    tokens = sequential(5, segment=np.array([0, 1, 2, 3, 0], np.int32))
    q, k = jnp.zeros((1, 5, 1, 1)).at[0, 4].set(1.0), jnp.log(jnp.array([1.0, 2, 3, 4, 5])).reshape(1, 5, 1, 1)
    found = {}
    operator = Rescaled(Softmax(), 3)
    site = Reads(lambda name, value: found.setdefault(name, value))
    operator(q, k, k, tokens, tokens, Causal() & Apart(), Placed(ALiBi()), {}, site)
    plain = np.array([1, 2 / 3, 1, 4 / 3, 5]) * np.exp(-alibi_slopes(1)[0] * np.arange(4, -1, -1))
    np.testing.assert_allclose(found["pattern"][0, 0, 4], plain / plain.sum(), rtol=1e-5)
    away = np.exp(-alibi_slopes(1)[0] * np.array([2, 0]))
    np.testing.assert_allclose(found["pattern"][0, 0, 2, [0, 2]], away / away.sum(), rtol=1e-5)  # a segment's own row


def test_operators_that_cannot_be_read_so_are_refused(tiny):
    experiment = build(tiny({"task": TASK, "model.position": "rope", "model.operator": "linear_scores"}))
    (condition,) = experiment.task.conditions()
    told = r"^structured: the operator linear_scores.* of layer 0 cannot be read so; allowed: softmax\.$"
    with pytest.raises(ConfigError, match=told):
        spec.build("interventions", "structured", "x").model(experiment, condition)
    for text in ("pine", "nia"):
        spec.build("interventions", text, "x").model(experiment, condition)

    class Ordered(Softmax):
        def weights(self, scores, allowed):
            return jnp.cumsum(super().weights(scores, allowed), axis=-1)

        def visible(self, tokens_q, tokens_k, allowed):
            return allowed

    ordered = dataclasses.replace(experiment.blueprint, operators=(Ordered(),))
    experiment = dataclasses.replace(experiment, blueprint=ordered)
    for text, allowed in (("pine", "weigh values by scores alone"), ("nia", "mix by any mask, such as softmax")):
        with pytest.raises(ConfigError, match=f"^{text}: the operator softmax.* of layer 0 cannot .*{allowed}"):
            spec.build("interventions", text, "x").model(experiment, condition)


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ({"task": "inverse_permutation"}, "has no segments that may stand in any order"),
        ({"model.position": "sinusoidal"}, "acts on embeddings"),
        ({"model.assignment": "reversed"}, "model.assignment = reversed does not tell positions in order"),
        ({"model.mask": "bidirectional"}, "layer 0 has the mask bidirectional; allowed: causal."),
        ({"model.architecture": "looped(2)"}, "is not read anew; allowed: decoder_only."),
        ({"task": "tree_paths"}, "tokens of no segment stand between segments"),
        ({"task": "rebinding", "model.layers": 2}, "a row would see the answer that it is asked for"),
    ],
)
def test_what_cannot_be_read_so_is_refused(tiny, overrides, told):
    experiment = build(tiny({"task": TASK, "model.position": "rope", **overrides}))
    change, condition = spec.build("interventions", "pine", "x"), experiment.task.conditions()[0]
    with pytest.raises(ConfigError, match="^pine: .*" + re.escape(told)):
        change.model(experiment, condition)
