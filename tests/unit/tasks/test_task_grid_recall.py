"""Grid recall: samples solved by reading them, what its tokens tell and who reads it, the ceiling, and simple rules."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from judges import drawn, enumerated_ceiling, judging_alike
from scipy import stats

from positionbias import spec
from positionbias.config.build import build
from positionbias.config.resolve import resolve
from positionbias.evaluation.interventions import Swap
from positionbias.tasks.base import Batch
from positionbias.tasks.grid_recall import GridRecall

FILM = GridRecall(frames=2, side=3, objects=20, colours=4)


def tokens_of(task):
    return task.tokens(task.conditions()[0])


def check(task, item):
    """Decode an example, solve it, and hold every field to what was found; returns the asked cell."""
    cells = task.frames * task.side**2
    words = task.words(np.asarray(item.inputs), task.input)
    objects = [word.rstrip("0123456789") for word in words[:-1]]
    assert len(words) == cells + 1
    assert len(set(objects)) == cells
    assert words[-1][-1] == "?"
    asked = objects.index(words[-1][:-1])
    target = task.words(np.asarray(item.targets), task.output)
    assert objects[asked] + target[-1] == words[asked]
    assert np.flatnonzero(item.weights).tolist() == item.query.tolist() == [cells]
    assert item.evidence.tolist() == [[asked]]
    assert item.distance.tolist() == [cells - asked]
    assert item.n_distractors.tolist() == [cells - 1]
    assert (item.order.tolist(), item.source.tolist(), item.query_slot.tolist()) == ([0], [-1], [0])
    assert item.evidence_slot.tolist() == [asked]
    return asked


@pytest.mark.parametrize("task", [FILM, GridRecall(side=2, objects=4, colours=3)], ids=["film", "image"])
def test_reading_a_sample_gives_its_answer_and_where_it_lies(task):
    batch = drawn(task, 200)["train"]._replace(tokens=None)
    asked = {check(task, jax.tree.map(lambda x, b=b: x[b], batch)) for b in range(200)}
    assert asked == set(range(task.frames * task.side**2))


def test_objects_colours_and_cells_are_uniform_and_independent():
    batch = drawn(FILM, 4000)["train"]
    number, colour = np.divmod(batch.inputs[:, :-1] - 24, 4)
    assert stats.chisquare(np.bincount(number.reshape(-1), minlength=20)).pvalue > 1e-4
    asked = np.arange(4000), batch.evidence_slot[:, 0]
    for one, size in ((number, 20), (colour, 4)):
        table = np.zeros((size, 18))
        np.add.at(table, (one[asked], asked[1]), 1)
        assert stats.chisquare(table.ravel()).pvalue > 1e-4
    table = np.zeros((4, 4))
    np.add.at(table, (colour[:, 0], colour[:, 1]), 1)
    assert stats.chisquare(table.ravel()).pvalue > 1e-4


def test_the_vocabulary_is_colours_then_names_then_cells():
    task = GridRecall(side=1, objects=3, colours=2)
    words = [task.word(token) for token in range(task.input.size)]
    assert words == ["0", "1", "a?", "b?", "c?", "a0", "a1", "b0", "b1", "c0", "c1"]


# ------------------------------------------------------------------------------------------- what its tokens tell


def test_tokens_of_two_grids():
    tokens = tokens_of(FILM)
    assert tokens.role.tolist() == [1] * 18 + [2]
    assert tokens.frame.tolist() == [1] * 9 + [2] * 9 + [0]
    assert tokens.segment.tolist() == [1] * 9 + [2] * 9 + [0]
    assert tokens.scale.tolist() == [0, 0, 0, 0, 1, 0, 0, 0, 0] * 2 + [1]
    assert tokens.position.tolist() == list(range(19))
    assert {field.dtype for field in (tokens.role, tokens.frame, tokens.segment, tokens.scale)} == {np.dtype("int32")}


def dense(text, tokens):
    return np.asarray(spec.build("masks", text, "mask").dense(tokens, tokens))


# What each mask lets cell 4, the middle of the first grid, and cell 9, a corner of the second, see of the inputs.
FIRST, SECOND, QUESTION = range(9), range(9, 18), [18]
SEEN = [
    ("causal", range(5), range(10)),
    ("concentric", FIRST, [*FIRST, *(cell for cell in SECOND if cell != 13)]),
    ("block_causal", FIRST, [*FIRST, *SECOND]),
    ("block_causal_with_summary(2)", FIRST, [*FIRST, *SECOND]),
    ("frame_causal | causal", [*FIRST, *QUESTION], range(19)),
    ("causal_cross", [*FIRST, *QUESTION], range(19)),
    ("scale_causal", range(19), [cell for cell in range(18) if cell not in (4, 13)]),
    ("modality_mutual(1, 2)", [*range(5), *QUESTION], [*range(10), *QUESTION]),
    ("condition_causal(1)", range(18), range(18)),
]


@pytest.mark.parametrize(("text", "middle", "corner"), SEEN)
def test_masks_tell_cells_apart_and_the_question_sees_all(text, middle, corner):
    found = dense(text, tokens_of(FILM))
    assert np.flatnonzero(found[4]).tolist() == list(middle)
    assert np.flatnonzero(found[9]).tolist() == list(corner)
    assert found[18].all()


def test_what_is_in_no_frame_sees_no_frame():
    assert np.flatnonzero(dense("frame_causal", tokens_of(FILM))[18]).tolist() == [18]


def test_concentric_positions_are_the_rings_of_each_grid():
    found = spec.build("assignments", "concentric", "assignment").positions(tokens_of(FILM))
    assert found.tolist() == [0, 0, 0, 0, 1, 0, 0, 0, 0, 2, 2, 2, 2, 3, 2, 2, 2, 2, 4]


def test_dual_rope_turns_grids_apart():
    tokens = tokens_of(FILM).told_context(18)
    dual, alone = (spec.build("positions", text, "position") for text in ("dual_rope(gamma=3.0)", "rope"))
    x = jnp.broadcast_to(jax.random.normal(jax.random.key(0), (1, 1, 8)), (19, 1, 8))
    seen = np.append(tokens.frame[:-1], 2)  # the question comes after both grids
    shifted = tokens._replace(position=tokens.position + 3 * seen)
    found = np.asarray(dual.rotate(x, tokens, {}, "query"))
    np.testing.assert_allclose(found, alone.rotate(x, shifted, {}, "query"), rtol=1e-6)
    differs = np.abs(found - np.asarray(alone.rotate(x, tokens, {}, "query"))).max(axis=(1, 2)) > 1e-3
    assert differs.all()


def test_multimodal_softmax_leaves_cells_to_themselves():
    tokens = tokens_of(FILM)
    operator = spec.build("operators", "multimodal_softmax(1)", "operator")
    found = operator.visible(tokens, tokens, dense("causal", tokens))
    np.testing.assert_array_equal(found[:18], np.eye(18, 19, dtype=bool))
    assert found[18].all()
    weights = operator.told_weights(
        jnp.zeros((1, 1, 19, 19)), jnp.asarray(dense("causal", tokens)), None, tokens, tokens, {}, None
    )
    np.testing.assert_allclose(weights[0, 0, 18], [1 / 18] * 18 + [1], rtol=1e-6)


READERS = [
    *({"mask": text} for text, _, _ in SEEN),
    {"assignment": "concentric"},
    {"position": "dual_rope"},
    {"operator": "multimodal_softmax(1)"},
    {"architecture": "encoder_decoder(encoder_mask=block_causal, cross_mask=causal_cross)"},
]


@pytest.mark.parametrize("model", READERS, ids=lambda model: " ".join(model.values()))
def test_what_reads_them_is_named_in_a_config(model):
    build(resolve({"name": "read", "task": spec.canonical(FILM), "model": model}))


# ---------------------------------------------------------------------------------------------------------- judged


@functools.cache
def every_case(task):
    """(inputs, target) of all that training may show, by the definition; all are equally likely."""
    cells, first = task.frames * task.side**2, task.colours + task.objects
    cases = []
    for shown in itertools.permutations(range(task.objects), cells):
        for colours in itertools.product(range(task.colours), repeat=cells):
            row = [first + task.colours * one + colour for one, colour in zip(shown, colours, strict=True)]
            pairs = zip(shown, colours, strict=True)
            cases.extend(([*row, task.colours + one], colour) for one, colour in pairs)
    return cases


def as_batch(cases):
    """The fields that ceilings and baselines read."""
    inputs = np.array([case[0] for case in cases])
    targets = np.zeros_like(inputs)
    targets[:, -1] = [case[1] for case in cases]
    fields = dict.fromkeys(Batch._fields)
    fields.update(inputs=inputs, targets=targets, query=np.full((len(cases), 1), inputs.shape[1] - 1))
    return Batch(**{name: None if value is None else jnp.asarray(value) for name, value in fields.items()})


@pytest.mark.parametrize("task", [GridRecall(1, 2, 4, 2), GridRecall(2, 1, 3, 3), GridRecall(3, 1, 3, 2)], ids=str)
def test_ceiling_is_the_enumerated_posterior(task):
    cases = every_case(task)
    batch = as_batch(cases)
    judge, inputs = judging_alike(task.ceiling, batch), np.asarray(batch.inputs)
    answers = np.array([target for _, target in cases])
    for seen in itertools.product([False, True], repeat=inputs.shape[1]):
        wanted = enumerated_ceiling(inputs, answers, seen)
        np.testing.assert_allclose(judge(seen)[:, 0], wanted, rtol=1e-5, err_msg=str(seen))


def test_baselines_on_a_literal_item():
    task = GridRecall(side=2, objects=5, colours=4)
    #       a3 c1 b1 e0, c? -> 1; names are 4 .. 8, cells from 9, four of an object
    text = [9 + 3, 17 + 1, 13 + 1, 25 + 0, 6]
    assert task.words(np.array(text), task.input) == ["a3", "c1", "b1", "e0", "c?"]

    def rules(seen):
        found = judging_alike(task.baselines, as_batch([(text, 1)]))(np.isin(np.arange(5), list(seen)))
        assert (found["chance"].tolist(), found["majority"].tolist()) == ([[0.25]], [[0.25]])
        return [found[name].tolist()[0][0] for name in ("nearest", "order_free")]

    assert rules(range(5)) == [0, 1]
    assert rules([0, 1, 2, 4]) == [1, 1]
    assert rules([0, 2, 3, 4]) == [0, 0.25], "the asked cell is hidden"
    assert rules([0, 1, 2, 3]) == [0, 1], "the commonest colour, where the question is hidden"
    assert rules([0, 1]) == [1, 0.5]
    assert rules([0, 3]) == [0, 0]
    assert rules([4]) == rules([]) == [0.25, 0.25]


# -------------------------------------------------------------------------------------------------------- the rest


def test_swapped_grids_keep_their_answer_and_tell_their_cell_anew():
    condition, swap = FILM.conditions()[0], Swap(first=0, second=1)
    swap.check(FILM, condition)

    @jax.jit
    def swapped(key):
        item = FILM.sample(key, condition)
        return item, swap.change(key, item, FILM, condition)

    for seed in range(8):
        item, changed = jax.device_get(swapped(jax.random.key(seed)))
        assert check(FILM, changed) == (int(item.evidence_slot[0]) + 9) % 18
        np.testing.assert_array_equal(changed.inputs, np.r_[item.inputs[9:18], item.inputs[:9], item.inputs[18]])
        assert changed.targets.tolist() == item.targets.tolist()
        assert changed.tokens.frame.tolist() == [2] * 9 + [1] * 9 + [0]
        assert changed.tokens.scale.tolist() == item.tokens.scale.tolist()


def test_stretched_has_more_grids_of_the_same_objects():
    assert GridRecall().stretched(4) == GridRecall(frames=4)
    with pytest.raises(spec.ConfigError) as error:
        GridRecall().stretched(5)
    assert str(error.value) == (
        "objects = 64 is not allowed; allowed: a whole number from 80, one for each cell of 5 times the frames,"
        " set before training."
    )
    with pytest.raises(spec.ConfigError, match=r"^frames \* side \*\* 2 = 16000 is not allowed"):
        GridRecall().stretched(1000)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("frames=0", "frames = 0 is not allowed; allowed: a whole number from 1."),
        ("side=0", "side = 0 is not allowed; allowed: a whole number from 1."),
        ("side=91", "frames * side ** 2 = 8281 is not allowed; allowed: at most 8191, for one more asks."),
        ("colours=1", "colours = 1 is not allowed; allowed: a whole number from 2 to 4096."),
        ("colours=4097", "colours = 4097 is not allowed; allowed: a whole number from 2 to 4096."),
        (
            "objects=15",
            "objects = 15 is not allowed; allowed: a whole number from 16, one for each cell, to 8192,"
            " 65536 with their colours.",
        ),
        (
            "objects=8193",
            "objects = 8193 is not allowed; allowed: a whole number from 16, one for each cell, to 8192,"
            " 65536 with their colours.",
        ),
    ],
)
def test_bad_arguments_are_refused_in_one_sentence(text, message):
    with pytest.raises(spec.ConfigError) as error:
        spec.build("tasks", f"grid_recall({text})", "task")
    assert str(error.value) == f"task: {message}"
