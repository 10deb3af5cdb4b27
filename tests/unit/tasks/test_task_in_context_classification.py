"""In-context classification: samples re-read from their vectors, ceilings against enumeration, priors."""

import dataclasses
import functools
import itertools
from collections import Counter, defaultdict

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from positionbias import spec
from positionbias.evaluation.interventions import rearranged
from positionbias.evaluation.summary import summarise
from positionbias.tasks.base import batch_axes, find_condition
from positionbias.tasks.in_context_classification import InContextClassification

TASKS = {
    "of one label at times": InContextClassification(
        items=6, dimension=8, classes=9, labels=3, burstiness=2, noise=0.0
    ),
    "of different labels": InContextClassification(
        items=6, dimension=8, classes=12, labels=4, burstiness=3, noise=0.0, assignment="balanced"
    ),
    "one of each": InContextClassification(
        items=4, dimension=8, classes=8, labels=8, burstiness=1, noise=0.0, scale="1/d", zipf=1.0, position_slots=12
    ),
    "one shared vector": InContextClassification(
        items=4, dimension=8, classes=8, labels=4, burstiness=2, fixed_vocabulary=True, assignment="balanced"
    ),
}
LEVEL = 1e-4  # of the chi-square tests; seeds are fixed
KEY = jax.random.key(0)


def compiled(function, *inputs):
    """What `function` gives, as numpy."""
    return jax.tree.map(np.asarray, jax.jit(function)(*inputs))


@functools.cache
def world_of(task):
    """A world, made without compiling anything."""
    random = np.random.default_rng(0)
    sizes = {"means": (task.classes, task.dimension), "labels": (task.labels, task.dimension), "shared": task.dimension}
    world = {name: random.normal(0, task.deviation, size).astype(np.float32) for name, size in sizes.items()}
    uniform = random.integers(task.labels, size=task.classes)
    label = np.arange(task.classes) % task.labels if task.assignment == "balanced" else uniform
    return {**world, "label": label.astype(np.int32)}


@functools.cache
def drawn(task, name, size=300):
    """A batch of a condition and its world, as numpy."""
    condition, world = find_condition(task, name, "test"), world_of(task)
    return compiled(lambda key: task.batch(key, condition, size, jax.tree.map(jnp.asarray, world)), KEY), world


def which(vectors, table):
    """The row of `table` that each vector is, -1 where it is none."""
    near = np.abs(vectors[..., None, :] - table).max(axis=-1) < 1e-6
    return np.where(near.any(axis=-1), near.argmax(axis=-1), -1)


def means(task, world):
    """The vectors of items without noise."""
    return (
        (world["means"] + task.noise * world["shared"]) / np.sqrt(1 + task.noise**2) if task.noise else world["means"]
    )


def judged(judge, batch, visible):
    """A judge over a batch; `visible` is what the last row sees of each example, bool [B, T]."""

    def one(example, seen):
        table = jnp.zeros((seen.shape[0],) * 2, bool).at[-1].set(seen)
        return judge(example, table)

    return compiled(jax.vmap(one, in_axes=(batch_axes(0, True), 0)), batch, jnp.asarray(visible))


def repeated(batch, times):
    """The examples of a batch, all of them that many times."""
    fields = {name: np.concatenate([value] * times) for name, value in batch._asdict().items() if name != "tokens"}
    return batch._replace(**fields)


def rows_seen(items, labels, query):
    """What the last row sees, from what it sees of items bool[B, n], labels bool[B, n] and the query bool[B]."""
    pairs = np.stack([items, labels], axis=-1).reshape(len(items), -1)
    return np.concatenate([pairs, np.asarray(query)[:, None]], axis=1)


# --------------------------------------------------------------------------------------------------------- samples


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("of one label at times", "in_weights"),
        ("of different labels", "swapped"),
        ("of different labels", "in_context"),
        ("one of each", "in_context"),
        ("one shared vector", "in_context"),
    ],
)
def test_samples_follow_the_rule(kind, name):
    task = TASKS[kind]
    batch, world = drawn(task, name)
    n, rows = task.items, 2 * task.items + 1
    items, labels = batch.inputs[:, ::2, : task.dimension], batch.inputs[:, 1::2, : task.dimension]
    label = which(labels, world["labels"])
    assert (label >= 0).all()
    np.testing.assert_array_equal(label, batch.targets[:, : 2 * n : 2])
    np.testing.assert_array_equal(batch.targets[:, 1::2], 0)
    np.testing.assert_array_equal(batch.weights, np.eye(rows)[-1][None].repeat(300, axis=0))
    known = which(items, means(task, world))
    assert (known == -1).all() if name == "in_context" else (known >= 0).all()
    for b in range(300):
        kind = which(items[b], items[b])  # the first item or query that is the same
        answer, copies = batch.targets[b, -1], np.flatnonzero(kind[:n] == kind[n])
        if name != "in_context":
            shift = name == "swapped"
            np.testing.assert_array_equal(label[b], (world["label"][known[b, :n]] + shift) % task.labels)
            assert answer == (world["label"][known[b, n]] + shift) % task.labels
        if name == "in_weights":
            assert len(copies) == 0
            assert batch.evidence[b, 0].tolist() == [2 * n] + [-1] * (2 * task.burstiness - 1)
            assert (batch.distance[b, 0], batch.evidence_slot[b, 0]) == (0, n)
        else:
            assert sorted(Counter(kind[:n].tolist()).values()) == [task.burstiness] * (n // task.burstiness)
            slot = batch.evidence_slot[b, 0]
            order = [i for i in copies if i != slot] + [slot]
            assert slot in copies
            assert batch.evidence[b, 0].tolist() == [row for i in order for row in (2 * i, 2 * i + 1)]
            assert batch.distance[b, 0] == 2 * n - (2 * copies.max() + 1)
            assert (label[b, copies] == answer).all()
            if task.assignment == "balanced":
                assert len(set(label[b].tolist())) == task.kinds
        assert batch.n_distractors[b, 0] == (label[b] != answer).sum()
    assert (batch.order == -1).all()
    assert (batch.query_slot == 0).all()
    assert (batch.query == 2 * n).all()


@pytest.mark.parametrize("task", list(TASKS.values())[:3], ids=list(TASKS)[:3])
def test_a_conflict_is_a_copied_item_with_its_label_left(task):
    batch, world = drawn(task, "conflict")
    n, first, middle, last = task.items, 0, task.items // 2, task.items - 1
    pairs = [(first, middle), (middle, first), (first, last), (last, first), (middle, last), (last, middle)]
    items = batch.inputs[:, ::2, : task.dimension]
    label = which(batch.inputs[:, 1::2, : task.dimension], world["labels"])
    assert (which(items, means(task, world)) == -1).all()
    differs = 0
    for b in range(300):
        right, wrong = pairs[batch.query_slot[b, 0]]
        np.testing.assert_array_equal(items[b, right], items[b, wrong])
        kind = which(items[b], items[b])
        assert kind[n] == kind[right], "the query is of the class at a"
        copies = set(np.flatnonzero(kind[:n] == kind[n]).tolist())
        assert batch.targets[b, -1] == label[b, right]
        assert batch.evidence_slot[b, 0] == right
        assert batch.order[b, 0] == (right > wrong)
        given = set((batch.evidence[b, 0] // 2).tolist())
        assert given in (copies, copies - {wrong})
        assert len(given) == task.burstiness
        assert (label[b, list(given)] == label[b, right]).all()
        differs += wrong not in given
    share = 1 - (task.burstiness - 1) / (n - 1)
    assert stats.binomtest(differs, 300, share).pvalue > LEVEL


@pytest.mark.parametrize(("scale", "deviation"), [("1/sqrt(d)", 1 / 8), ("1/d", 1 / 64)])
def test_items_are_means_and_noise_of_the_scale(scale, deviation):
    task = InContextClassification(classes=64, noise=0.75, scale=scale)
    made = task.world(KEY)
    assert [made[name].std() for name in ("means", "labels", "shared")] == [
        pytest.approx(deviation, rel=tolerance) for tolerance in (0.05, 0.05, 0.3)
    ]
    batch, world = drawn(task, "train", 100)
    items = batch.inputs[:, ::2].reshape(-1, 64)
    nearest = np.square(items[:, None] - world["means"] / 1.25).sum(axis=-1).argmin(axis=1)
    noise = (1.25 * items - world["means"][nearest]) / 0.75
    assert noise.std() == pytest.approx(deviation, rel=0.02)
    # Fresh for each item and for the query: those of a sequence do not correlate.
    each = noise.reshape(100, 9, 64) / deviation
    assert abs((each[:, :1] * each[:, 1:]).mean()) < 4 / np.sqrt(100 * 8 * 64)


def test_the_position_is_one_hot_at_a_random_offset():
    task = TASKS["one of each"]
    batch, _ = drawn(task, "train", 2000)
    code = batch.inputs[:, :, 8:]
    assert task.input.size == 8 + 12
    offset = code[:, 0].argmax(axis=-1)
    np.testing.assert_array_equal(code, np.eye(12)[offset[:, None] + np.arange(9)])
    assert stats.chisquare(np.bincount(offset, minlength=4)).pvalue > LEVEL
    assert len(np.bincount(offset)) == 4


def test_the_asked_item_is_among_the_answer_positions_in_training_only():
    task = InContextClassification(items=6, dimension=2, classes=8, labels=4, burstiness=2, answer_positions=(0, 5))
    asked = drawn(task, "train", 1000)[0].evidence_slot[:, 0]
    assert task.prior(find_condition(task, "in_context", "test"))["evidence"].tolist() == [1 / 6] * 6
    share = task.prior(task.conditions()[0])["evidence"]
    assert share.tolist() == [0.5, 0, 0, 0, 0, 0.5]
    assert stats.chisquare(np.bincount(asked, minlength=6)[[0, 5]], [500, 500]).pvalue > LEVEL


def test_kinds_of_training_sequences_come_in_their_shares():
    task = InContextClassification(
        items=4, dimension=4, classes=64, labels=8, burstiness=2, noise=0.0, p_bursty=0.75, p_novel=0.4
    )
    batch, world = drawn(task, "train", 4000)
    apart = batch.distance[:, 0] == 0
    novel = (which(batch.inputs[:, ::2], world["means"]) == -1).all(axis=1)
    assert not (apart & novel).any()
    counts = [novel.sum(), apart.sum(), (~novel & ~apart).sum()]
    assert stats.chisquare(counts, [4000 * 0.4, 4000 * 0.15, 4000 * 0.45]).pvalue > LEVEL
    np.testing.assert_array_equal(batch.evidence_slot[:, 0] == 4, apart)
    prior = task.prior(task.conditions()[0])["evidence"]
    np.testing.assert_allclose(prior, [0.85 / 4] * 4 + [0.15])


def test_the_world_depends_on_no_length():
    short = InContextClassification(classes=64, answer_positions=(0, 4, 7))
    long = short.stretched(4)
    assert (long.items, long.burstiness, long.answer_positions) == (32, 4, (0, 18, 31))
    jax.tree.map(np.testing.assert_array_equal, short.world(KEY), long.world(KEY))


def test_gaps_are_read_off_the_summary():
    batch, _ = drawn(TASKS["one of each"], "conflict")
    # A model that says the label of the earlier of two equal items.
    columns = {
        name: getattr(batch, name)[:, 0] for name in ("query", "query_slot", "evidence_slot", "distance", "order")
    }
    zero = np.zeros(300)
    rows = {
        **columns,
        **dict.fromkeys(("replica", "condition", "log_probability"), zero.astype(int)),
        "evidence": batch.evidence[:, 0, -1],
        "correct": batch.order[:, 0] == 0,
        **dict.fromkeys(("ceiling", "baseline/chance", "baseline/order_free"), zero),
        "conditions": ["conflict"],
    }
    found = summarise(rows)["by_condition"]["conflict"]
    assert [(row["position"], row["mean"]) for row in found["by_query_position"]] == [
        (0, 1.0), (1, 0.0), (2, 1.0), (3, 0.0), (4, 1.0), (5, 0.0)
    ]  # fmt: skip
    assert found["order_gap"]["mean"] == 1.0
    assert [row["position"] for row in found["by_evidence_position"]] == [0, 2, 3]


def moved(task, name, place):
    """A batch before and after its items are moved: item i goes to `place[i]`."""
    batch, _ = drawn(task, name)
    axes = batch_axes(0, True)
    after = compiled(jax.vmap(lambda example: rearranged(example, jnp.array(place), task), in_axes=(axes,)), batch)
    return batch, after._replace(tokens=batch.tokens)


def test_slots_and_order_follow_items_that_are_moved():
    task = TASKS["one of each"]
    batch, after = moved(task, "conflict", [3, 1, 2, 0])  # first and last change places
    differs = np.array([len(set(row)) == 4 for row in batch.targets[:, :8:2].tolist()])
    assert 0.3 < differs.mean() < 1
    label, slot = after.targets[:, :8:2], after.evidence_slot[:, 0]
    assert slot.tolist() == [[3, 1, 2, 0][at] for at in batch.evidence_slot[:, 0]]
    np.testing.assert_array_equal(np.take_along_axis(label, slot[:, None], axis=1)[:, 0], after.targets[:, -1])
    # Both among first and last: the other order. One of them and the middle: the order turns too, since they pass it.
    np.testing.assert_array_equal(after.order[differs], 1 - batch.order[differs])
    np.testing.assert_array_equal(after.query_slot, batch.query_slot)
    np.testing.assert_array_equal(after.inputs[:, :, 8:], batch.inputs[:, :, 8:], "positions are told in order")
    np.testing.assert_array_equal(after.inputs[:, [0, 6], :8], batch.inputs[:, [6, 0], :8])
    everything = np.ones((300, 9), bool)
    np.testing.assert_allclose(judged(task.ceiling, after, everything)[differs], 0.5, rtol=1e-5)


def test_distance_is_to_the_nearest_copy_after_a_move():
    place = [5, 4, 3, 2, 1, 0]
    batch, after = moved(TASKS["of one label at times"], "in_context", place)
    nearest = [max(place[i] for i in row // 2) for row in batch.evidence[:, 0]]
    assert after.distance[:, 0].tolist() == [12 - (2 * i + 1) for i in nearest]
    assert (after.order == -1).all()


def test_a_query_apart_stays_apart_after_a_move():
    batch, after = moved(TASKS["of one label at times"], "in_weights", [5, 4, 3, 2, 1, 0])
    for name in ("evidence", "evidence_slot", "distance", "order"):
        np.testing.assert_array_equal(getattr(after, name), getattr(batch, name))
    assert (after.evidence_slot == 6).all()


# ---------------------------------------------------------------------------------------------------------- judges


def log_marginal(task, vectors):
    """Log-density of items [m, d] of one novel class, its mean unknown, up to a factor that all hypotheses share."""
    if not len(vectors):
        return 0.0
    covariance = (np.ones((len(vectors),) * 2) + task.noise**2 * np.eye(len(vectors))) / (1 + task.noise**2)
    normal = stats.multivariate_normal(np.zeros(len(vectors)), covariance * task.deviation**2)
    return sum(float(normal.logpdf(vectors[:, feature])) for feature in range(task.dimension))


def novel_posterior(task, item, label, sees_item, sees_query, conflict):
    """The posterior's peak by enumeration of groups, labels and asked items; every label is seen.

    In a conflict two items are equal, which no other pair is but by chance, and the overwritten one counts once.
    """
    n, kinds = task.items, task.kinds
    pairs = [(0, n // 2), (0, n - 1), (n // 2, n - 1)]
    answers = defaultdict(float)
    for group in set(itertools.permutations(np.repeat(np.arange(kinds), task.burstiness).tolist())):
        if task.assignment == "balanced":
            given = itertools.permutations(range(task.labels), kinds)
        else:
            given = itertools.product(range(task.labels), repeat=kinds)
        for names in given:
            if [names[g] for g in group] != label.tolist():
                continue
            asked = (
                [(a, b) for pair in pairs for a, b in (pair, pair[::-1])] if conflict else [(a, a) for a in range(n)]
            )
            for a, b in asked:
                if conflict and not (item[a] == item[b]).all():
                    continue
                log_share = 0.0
                for kind in range(kinds):
                    members = [i for i in range(n) if group[i] == kind and sees_item[i] and not (conflict and i == b)]
                    members += [n] if sees_query and group[a] == kind else []
                    log_share += log_marginal(task, item[members])
                answers[label[a]] += np.exp(log_share)
    return max(answers.values()) / sum(answers.values())


@pytest.mark.parametrize(
    ("name", "burstiness", "assignment"),
    [
        ("in_context", 2, "uniform"),
        ("conflict", 2, "uniform"),
        ("conflict", 1, "balanced"),
    ],
)
def test_the_ceiling_of_novel_classes_is_the_enumerated_posterior(name, burstiness, assignment):
    task = InContextClassification(
        items=4, dimension=2, classes=8, labels=4, burstiness=burstiness, noise=0.6, assignment=assignment
    )
    batch, _ = drawn(task, name, 16)
    random = np.random.default_rng(0)
    conflict = name == "conflict"
    items = np.ones((16, 4), bool) if conflict else random.random((16, 4)) < 0.7
    query = random.random(16) < 0.7
    ceiling = judged(task.ceiling, batch, rows_seen(items, np.ones((16, 4), bool), query))[:, 0]
    wanted = [
        novel_posterior(task, batch.inputs[b, ::2], batch.targets[b, :8:2], items[b], query[b], conflict)
        for b in range(16)
    ]
    np.testing.assert_allclose(ceiling, wanted, rtol=2e-4)
    assert max(wanted) <= 0.5 + 1e-9 if conflict and burstiness == 1 else np.std(wanted) > 0.02


def test_the_ceiling_of_novel_classes_is_a_bound_where_labels_are_hidden():
    task = InContextClassification(items=4, dimension=2, classes=8, labels=4, burstiness=2, noise=0.3)
    batch, _ = drawn(task, "in_context")
    everything = np.ones((1500, 4), bool)
    labels = np.arange(4) < np.repeat(np.arange(5), 300)[:, None]
    seen = rows_seen(everything, labels, everything[:, 0])
    ceilings = judged(task.ceiling, repeated(batch, 5), seen).reshape(5, 300).mean(axis=1).tolist()
    assert ceilings == sorted(ceilings)
    assert ceilings[0] == pytest.approx(0.25)
    assert ceilings[-1] > 0.8


def test_a_conflict_of_single_items_is_a_coin_toss_and_the_others_of_a_class_settle_it():
    for kind, wanted in (("one of each", 0.5), ("of different labels", 1.0)):
        task = TASKS[kind]
        batch, _ = drawn(task, "conflict")
        ceiling = judged(task.ceiling, batch, np.ones((300, 2 * task.items + 1), bool))[:, 0]
        label = batch.targets[:, : 2 * task.items : 2]
        differs = [len(set(row)) == task.kinds for row in label.tolist()]
        np.testing.assert_allclose(ceiling[differs], wanted, rtol=1e-5)


def known_posterior(task, world, batch, b, seen):
    """The posterior's peak by enumeration of every sequence of classes of the world, without noise, labels shifted."""
    n, classes = task.items, which(batch.inputs[b, ::2], world["means"])
    answers = Counter()
    for group in set(itertools.permutations(np.repeat(np.arange(task.kinds), task.burstiness).tolist())):
        for chosen in itertools.permutations(range(task.classes), task.kinds):
            label = [(world["label"][chosen[g]] + 1) % task.labels for g in group]
            if len({*label}) < task.kinds:
                continue
            for slot in range(n):
                rows = [x for i in range(n) for x in (chosen[group[i]], label[i])] + [chosen[group[slot]]]
                real = [x for i in range(n) for x in (classes[i], batch.targets[b, 2 * i])] + [classes[n]]
                if all(one == other for one, other, is_seen in zip(rows, real, seen, strict=True) if is_seen):
                    answers[label[slot]] += 1
    return max(answers.values()) / sum(answers.values())


def test_the_ceiling_of_classes_of_the_world_is_the_enumerated_posterior():
    task = InContextClassification(
        items=4, dimension=4, classes=6, labels=3, burstiness=2, noise=0.0, assignment="balanced"
    )
    batch, world = drawn(task, "swapped", 40)
    seen = np.random.default_rng(0).random((40, 9)) < np.repeat([0.2, 0.5], 20)[:, None]
    ceiling = judged(task.ceiling, batch, seen)[:, 0]
    wanted = [known_posterior(task, world, batch, b, seen[b]) for b in range(40)]
    np.testing.assert_allclose(ceiling, wanted, rtol=1e-5)
    assert len(set(wanted)) > 2


def test_a_query_that_is_not_of_the_context_is_known_or_guessed():
    task = InContextClassification(items=4, dimension=4, classes=8, labels=4, burstiness=2, assignment="balanced")
    batch, _ = drawn(task, "in_weights", 2)
    context, query = np.array([[False] * 4, [True] * 4]), np.array([True, False])
    for zipf, blind in ((0.0, 0.25), (1.0, np.nan)):
        ceiling = judged(dataclasses.replace(task, zipf=zipf).ceiling, batch, rows_seen(context, context, query))
        np.testing.assert_allclose(ceiling[:, 0], [1.0, blind], rtol=1e-6)


def test_baselines_on_literal_items():
    task = TASKS["one of each"]
    batch = drawn(task, "conflict")[0]
    batch = type(batch)(*(value if value is batch.tokens else value[:5] for value in batch))
    vectors = np.zeros((5, 9, 20), np.float32)
    vectors[:, ::2, :2] = [[0, 0], [3, 0], [1, 1], [1, 1.5], [1, 1]]
    batch = batch._replace(inputs=vectors, targets=np.array([[5, 0, 5, 0, 5, 0, 2, 0, 5]] * 5))
    items, labels = np.zeros((2, 5, 4), bool)
    query = np.array([True, True, True, False, True])
    views = [(range(4), range(4)), ([0, 3], [0, 2, 3]), (range(4), [1, 3]), ([0], [0, 1]), (range(4), [])]
    for view, (of_items, of_labels) in enumerate(views):
        items[view, of_items] = labels[view, of_labels] = True
    found = judged(task.baselines, batch, rows_seen(items, labels, query))
    assert {name: value[:, 0].tolist() for name, value in found.items()} == {
        "chance": [0.125] * 5,
        "order_free": [1.0, 1.0, 0.5, 1.0, 0.125],
        "majority": [1.0, 1.0, 0.5, 1.0, 0.125],
        "context_label": [0.75, pytest.approx(2 / 3), 0.5, 1.0, 0.125],
        "nearest": [0.0, 0.0, 0.0, 1.0, 0.125],
        "nearest_vector": [1.0, 0.0, 0.0, 0.125, 0.125],
    }


@pytest.mark.parametrize(
    ("name", "novel"), [("train", 0.25), ("swapped", 0), ("in_weights", 0), ("in_context", 1), ("conflict", 1)]
)
def test_order_free_remembers_the_classes_of_the_world(name, novel):
    task = InContextClassification(
        items=4, dimension=4, classes=8, labels=4, burstiness=2, assignment="balanced", p_novel=0.25
    )
    batch, _ = drawn(task, name, 2)
    context, query = np.ones((2, 4), bool), np.array([True, False])
    found = judged(task.baselines, batch, rows_seen(context, context, query))
    known = (1 - novel) * query
    np.testing.assert_allclose(found["order_free"][:, 0], known + (1 - known) * found["majority"][:, 0], rtol=1e-6)


def test_training_on_novel_classes_alone_has_the_ceiling_of_novel_classes():
    task = InContextClassification(items=4, dimension=4, classes=8, labels=4, burstiness=2, noise=1.0, p_novel=1.0)
    assert [c.name for c in task.conditions()] == ["train", "conflict", "in_context"], "no world is ever seen"
    batch, _ = drawn(task, "train", 40)
    seen = np.ones((40, 9), bool)
    at_training = judged(task.ceiling, batch, seen)
    others = drawn(task, "in_context", 40)[0].tokens
    np.testing.assert_array_equal(at_training, judged(task.ceiling, batch._replace(tokens=others), seen))
    assert at_training.mean() < 0.95, "noise hides of which class an item is"


def test_words_are_a_letter_a_class_and_a_capital_a_label():
    for task in (
        InContextClassification(noise=0.25, classes=64),
        InContextClassification(fixed_vocabulary=True, position_slots=65, classes=64),
    ):
        batch, _ = drawn(task, "in_context", 20)
        for b in range(20):
            words = task.words(batch.inputs[b], task.input)
            slot = batch.evidence_slot[b, 0]
            assert words[16] == words[2 * slot]
            same = (batch.inputs[b, 16, :64] == batch.inputs[b, 2 * slot, :64]).all()
            assert same == task.fixed_vocabulary, "a query is a fresh item, and no copy"
            assert sorted(Counter(words[:16:2]).values()) == [4, 4]
            assert words[1::2] == [word.upper() for word in words[:16:2]] or len(set(words[1::2])) == 1
            said = task.words(batch.targets[b], task.output)
            assert [*said[:16:2], said[16]] == [*words[1::2], words[2 * slot + 1]]


def test_a_label_that_no_item_has_is_a_number():
    task = InContextClassification(labels=30, classes=64)
    batch, _ = drawn(task, "in_weights", 20)
    said = [task.words(targets, task.output)[16] for targets in batch.targets]
    absent = [targets[16] not in targets[:16:2] for targets in batch.targets]
    assert 0 < sum(absent) < 20
    assert [word.isdecimal() for word in said] == absent
    assert all(word == str(targets[16]) for word, targets in zip(said, batch.targets, strict=True) if word.isdecimal())


# ------------------------------------------------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("items=1", "items = 1 is not allowed; allowed: a whole number from 2 to 4095."),
        ("items=4096", "items = 4096 is not allowed; allowed: a whole number from 2 to 4095."),
        ("burstiness=3", "burstiness = 3 is not allowed; allowed: a divisor of items = 8 below it."),
        ("burstiness=8", "burstiness = 8 is not allowed; allowed: a divisor of items = 8 below it."),
        ("burstiness=0", "burstiness = 0 is not allowed; allowed: a divisor of items = 8 below it."),
        ("dimension=1", "dimension = 1 is not allowed; allowed: a whole number from 2 to 4096."),
        ("labels=1", "labels = 1 is not allowed; allowed: a whole number from 2 to 65536."),
        (
            "labels=4, burstiness=1, assignment='balanced'",
            "labels = 4 is not allowed; allowed: a whole number from 8 to 65536; the items / burstiness classes of a"
            " sequence have different labels.",
        ),
        ("labels=65537", "labels = 65537 is not allowed; allowed: a whole number from 2 to 65536."),
        ("dimension=4096, labels=4097", "labels = 4097 is not allowed; allowed: a whole number from 2 to 4096."),
        (
            "classes=1, burstiness=4",
            "classes = 1 is not allowed; allowed: a whole number from 2, items / burstiness, to 65536.",
        ),
        (
            "classes=100, assignment='balanced'",
            "classes = 100 is not allowed; allowed: a multiple of labels = 32 up to 65536.",
        ),
        (
            "dimension=4096, classes=4097",
            "classes = 4097 is not allowed; allowed: a whole number from 2, items / burstiness, to 4096.",
        ),
        ("noise=-0.5", "noise = -0.5 is not allowed; allowed: a number from 0 to 1000."),
        (
            "answer_positions=[0, 8]",
            "answer_positions = [0, 8] is not allowed; allowed: different whole numbers from 0 to 7, or none for all.",
        ),
        (
            "answer_positions=[3, 3]",
            "answer_positions = [3, 3] is not allowed; allowed: different whole numbers from 0 to 7, or none for all.",
        ),
        ("p_bursty=1.5", "p_bursty = 1.5 is not allowed; allowed: a number from 0 to 1."),
        ("p_novel=-1", "p_novel = -1.0 is not allowed; allowed: a number from 0 to 1."),
        ("zipf=6", "zipf = 6.0 is not allowed; allowed: a number from 0 to 5."),
        (
            "position_slots=16",
            "position_slots = 16 is not allowed; allowed: 0 for none, or a whole number from 17, the rows of a"
            " sequence, to 4096.",
        ),
    ],
)
def test_bad_arguments_are_refused_in_one_sentence(text, message):
    with pytest.raises(spec.ConfigError) as error:
        spec.build("tasks", f"in_context_classification({text})", "task")
    assert str(error.value) == f"task: {message}"


def test_two_items_have_no_middle_and_no_conflict():
    names = [c.name for c in InContextClassification(items=2, burstiness=1).conditions()]
    assert names == ["train", "in_context", "in_weights", "swapped"]
