"""Set disjointness: the paper's generator, layout and padding, and ceilings against enumeration."""

import functools
import itertools
from collections import Counter, defaultdict

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from positionbias import spec
from positionbias.evaluation.interventions import Swap, rearranged
from positionbias.tasks.base import Batch, batch_axes
from positionbias.tasks.set_disjointness import SetDisjointness
from positionbias.tokens import sequential

MIXED = SetDisjointness(train=((2, 4), (5, 2), (1, 3), (3, 3)), test=((2, 9),), vocabulary=32)
TWICE = SetDisjointness(train=((2, 4), (3, 2)), test=(), vocabulary=32, repeats=2)
THREES = SetDisjointness(train=((2, 3), (3, 2)), test=(), vocabulary=32)
TINY = 12  # tokens: 8 ordinary ones, of which the second pool has two
LEVEL = 1e-4


@functools.cache
def drawn(task, number, condition=0):
    """Samples of a condition, as numpy."""
    made = jax.jit(lambda key: task.batch(key, task.conditions()[condition], number))(jax.random.key(0))
    return jax.tree.map(np.asarray, made)


def generated(first, second, vocabulary, pool_size=None):
    """Every equally likely (A, B, common) of the paper's generator: pools, draws, one element overwritten.

    There a pool has half of the vocabulary; which size it has makes no difference as long as the lists fit.
    """
    ordinary = range(4, vocabulary)
    for pool in itertools.combinations(ordinary, pool_size or vocabulary // 2):
        rest = [token for token in ordinary if token not in pool]
        for a, b in itertools.product(itertools.permutations(pool, first), itertools.permutations(rest, second)):
            for common, place in itertools.product(a, range(second)):
                yield a, (*b[:place], common, *b[place + 1 :]), common


def lists(inputs):
    """The (A, B) of every time they are shown, and the number of tokens in front, read from the tokens alone."""
    tokens = inputs.tolist()
    padding = tokens.index(1)
    assert tokens[:padding] == [0] * padding
    assert tokens[-1] == 3
    starts = [at for at, token in enumerate(tokens) if token == 1]
    shown = []
    for start, stop in itertools.pairwise([*starts, len(tokens) - 1]):
        middle = tokens.index(2, start)
        shown.append((tokens[start + 1 : middle], tokens[middle + 1 : stop]))
    return shown, padding


# --------------------------------------------------------------------------------------------------------- samples


@pytest.mark.parametrize(("task", "condition"), [(MIXED, 0), (MIXED, 1), (TWICE, 0), (SetDisjointness(), 0)])
def test_samples_are_what_the_definition_says(task, condition):
    pairs = task.conditions()[condition]["pairs"]
    batch = drawn(task, 64, condition)
    for i in range(64):
        shown, padding = lists(batch.inputs[i])
        assert len(shown) == task.repeats
        assert all(one == shown[0] for one in shown)
        a, b = shown[0]
        assert (len(a), len(b)) == pairs[batch.query_slot[i, 0]]
        assert len(set(a)) == len(a)
        assert len(set(b)) == len(b)
        assert min(a + b) >= 4
        (common,) = set(a) & set(b)

        last = len(batch.inputs[i]) - 1
        assert batch.query[i].tolist() == [last]
        assert batch.targets[i].tolist() == [0] * last + [common]
        assert batch.weights[i].tolist() == [0] * last + [1]
        assert batch.evidence[i].tolist() == [np.flatnonzero(batch.inputs[i] == common).tolist()]
        assert batch.distance[i].tolist() == [len(b) - b.index(common)]
        assert batch.n_distractors[i].tolist() == [len(set(a + b)) - 1]
        same = len(a) == len(b) or min(len(a), len(b)) == 1
        assert batch.order[i].tolist() == [-1 if same else int(len(a) > len(b))]
        slot = batch.evidence_slot[i, 0]
        assert b.index(common) / len(b) < (slot + 1) / 8, "the eighth begins after the place"
        assert slot / 8 < (b.index(common) + 1) / len(b), "the eighth ends before the place"

        one = [1, *[2] * len(a), 1, *[3] * len(b)]
        tokens = batch.tokens
        assert tokens.role[i].tolist() == [0] * padding + one * task.repeats + [4]
        assert tokens.valid[i].tolist() == [False] * padding + [True] * (last + 1 - padding)
        assert tokens.position[i].tolist() == [0] * padding + list(range(last + 1 - padding))
        numbers = [2 * (j // len(one)) + (1 if j % len(one) <= len(a) else 2) for j in range(len(one) * task.repeats)]
        assert tokens.segment[i].tolist() == [0] * padding + numbers + [0]
        assert max(numbers) == task.segments(task.conditions()[condition])


def test_the_mixtures_of_the_paper():
    train, test = SetDisjointness().conditions()
    small = [(4, 16), (8, 32), (16, 64), (4, 128), (16, 256), (4, 256)]
    large = [(1, 32), (4, 32), (4, 128), (16, 256), (4, 256), (16, 512), (4, 512), (8, 768), (16, 768), (4, 768)]
    for condition, pairs in ((train, small), (test, large)):
        assert sorted(condition["pairs"]) == sorted(pairs + [pair[::-1] for pair in pairs])
    assert (train.name, test.name) == ("train", "test")
    assert [SetDisjointness().length(c) for c in (train, test)] == [275, 787]
    assert SetDisjointness().input.size == 2048


def test_every_outcome_of_the_papers_generator_is_as_likely_as_there():
    expected = Counter((a, b) for a, b, _ in generated(2, 2, TINY))
    assert set(expected) == {(a, b) for a, b, _ in generated(2, 2, TINY, 4)}
    assert len(set(expected.values())) == 1
    batch = drawn(SetDisjointness(train=((2, 2),), test=(), vocabulary=TINY), 40000)
    found = Counter((tuple(row[1:3].tolist()), tuple(row[4:6].tolist())) for row in batch.inputs)
    assert set(found) <= set(expected)
    assert stats.chisquare([found[outcome] for outcome in expected]).pvalue > LEVEL


def test_pairs_places_and_eighths_are_uniform_and_independent():
    batch = drawn(THREES, 40000)
    table = np.zeros((2, 8))
    np.add.at(table, (batch.query_slot[:, 0], batch.evidence_slot[:, 0]), 1)
    assert stats.chisquare(table.ravel()).pvalue > LEVEL
    for pair, (first, second) in enumerate(THREES.train):
        chosen = batch.query_slot[:, 0] == pair
        in_first = batch.evidence[chosen, 0, 0] - 1
        in_second = batch.evidence[chosen, 0, 1] - first - 2
        places = np.bincount(in_first * second + in_second, minlength=first * second)
        assert stats.chisquare(places).pvalue > LEVEL


def test_rounding_down_to_eighths_would_not_be_uniform():
    batch = drawn(THREES, 40000)
    second = np.array([3, 2])[batch.query_slot[:, 0]]
    naive = (second - batch.distance[:, 0]) * 8 // second
    assert stats.chisquare(np.bincount(naive, minlength=8)).pvalue < LEVEL


def test_a_test_of_no_sizes_is_no_condition():
    assert [c.name for c in TWICE.conditions()] == ["train"]


def test_stretching_multiplies_both_sizes():
    task = SetDisjointness(train=((2, 4), (1, 3)), test=((3, 5),), vocabulary=32, repeats=2)
    assert task.stretched(2) == SetDisjointness(train=((4, 8), (2, 6)), test=((6, 10),), vocabulary=32, repeats=2)


def test_stretching_leaves_out_a_test_that_does_not_fit():
    task = SetDisjointness(train=((2, 4), (1, 3)), test=((1, 2), (3, 5)), vocabulary=32)
    assert task.stretched(3).test == ((3, 6), (9, 15))
    assert task.stretched(4) == SetDisjointness(train=((8, 16), (4, 12)), test=(), vocabulary=32)
    with pytest.raises(spec.ConfigError, match=r"^train = \[10, 20\] is not allowed"):
        task.stretched(5)


# ----------------------------------------------------------------------------------------------------------- moved


TWO_SIZES = SetDisjointness(train=((1, 2), (2, 3)), test=(), vocabulary=12)


def drawn_with(evidence, eighths=range(8)):
    """An example of `TWO_SIZES` with the common element at these rows and in one of these eighths."""
    batch = drawn(TWO_SIZES, 256)
    is_it = (batch.evidence[:, 0] == evidence).all(axis=-1) & np.isin(batch.evidence_slot[:, 0], eighths)
    number = np.flatnonzero(is_it)[0]
    return jax.tree.map(lambda leaf: leaf[number], batch)


def swapped(item):
    swap, condition = Swap(), TWO_SIZES.conditions()[0]
    swap.check(TWO_SIZES, condition)
    return jax.jit(lambda item: swap.change(jax.random.key(0), item, TWO_SIZES, condition))(item)


def test_swapped_lists_are_marked_and_told_anew():
    item = drawn_with([1, 6])
    _, x, a, _, b, c, again, _ = item.inputs.tolist()
    assert x == again
    assert (item.order.tolist(), item.distance.tolist()) == ([0], [1])
    assert item.evidence_slot[0] in (5, 6, 7)
    moved = swapped(item)
    assert moved.inputs.tolist() == [1, b, c, x, 2, x, a, 3]
    assert moved.tokens.role.tolist() == [1, 2, 2, 2, 1, 3, 3, 4]
    assert moved.evidence.tolist() == [[3, 5]]
    assert (moved.order.tolist(), moved.distance.tolist()) == ([1], [2])
    assert moved.evidence_slot.tolist() == [2], "where the first of two places has its middle"
    for name in ("targets", "weights", "query", "query_slot", "n_distractors", "source"):
        np.testing.assert_array_equal(getattr(moved, name), getattr(item, name), name)
    for name in ("index", "position", "valid"):
        np.testing.assert_array_equal(getattr(moved.tokens, name), getattr(item.tokens, name), name)


def test_behind_padding_lists_swap_and_single_elements_have_no_order():
    item = drawn_with([3, 5])
    x, a = item.inputs.tolist()[5:7]
    assert item.inputs.tolist() == [0, 0, 1, x, 2, x, a, 3]
    moved = swapped(item)
    assert moved.inputs.tolist() == [0, 0, 1, x, a, 2, x, 3]
    assert moved.tokens.role.tolist() == [0, 0, 1, 2, 2, 1, 3, 4]
    assert (moved.order.tolist(), moved.distance.tolist(), moved.evidence.tolist()) == ([-1], [1], [[3, 6]])
    assert moved.evidence_slot.tolist() == [4]


def test_lists_that_stay_are_what_they_were():
    item = drawn_with([1, 6], [5])  # of 5, 6 and 7; the middle of the place is in 6
    stayed = jax.jit(lambda item: rearranged(item, jnp.array([0, 1]), TWO_SIZES))(item)
    jax.tree.map(np.testing.assert_array_equal, stayed, item)


def test_lists_shown_again_are_not_moved():
    with pytest.raises(spec.ConfigError, match="has no segments that may stand in any order"):
        Swap().check(TWICE, TWICE.conditions()[0])


# ---------------------------------------------------------------------------------------------------------- judged


def as_batch(worlds, repeats, padding=0):
    """The fields of a batch that ceilings and baselines read, laid out here."""
    (first, second, _), size = worlds[0], len(worlds)
    role = [0] * padding + [1, *[2] * len(first), 1, *[3] * len(second)] * repeats + [4]
    rows = [[0] * padding + [1, *a, 2, *b] * repeats + [3] for a, b, _ in worlds]
    targets = [[0] * (len(role) - 1) + [common] for _, _, common in worlds]
    tokens = sequential(len(role), role=np.array(role, np.int32), valid=np.array(role) > 0)
    fields = dict.fromkeys(Batch._fields)
    fields |= {"inputs": jnp.asarray(rows, jnp.int32), "targets": jnp.asarray(targets, jnp.int32)}
    fields |= {"query": jnp.full((size, 1), len(role) - 1), "tokens": tokens}
    return Batch(**fields)


@functools.cache
def judging(judge):
    return jax.jit(jax.vmap(judge, in_axes=(batch_axes(0, True), None)))


def over(judge, batch, visible):
    """`judge` over every example, whose tokens are shared."""
    return jax.tree.map(np.asarray, judging(judge)(batch, jnp.asarray(visible)))


def enumerated_ceiling(inputs, targets, visible):
    """Per example: the posterior's peak, given what the last row sees."""
    views = [tuple(row[visible[-1]].tolist()) for row in inputs]
    posterior = defaultdict(Counter)
    for view, target in zip(views, targets, strict=True):
        posterior[view][target] += 1
    return [max(posterior[view].values()) / sum(posterior[view].values()) for view in views]


@pytest.mark.parametrize(
    ("first", "second", "vocabulary", "repeats", "padding"),
    [(2, 2, 12, 1, 0), (3, 2, 12, 1, 1), (2, 2, 12, 2, 0), (1, 3, 14, 1, 0), (3, 1, 10, 2, 0), (2, 4, 10, 1, 0)],
)
def test_ceiling_is_the_enumerated_posterior(first, second, vocabulary, repeats, padding):
    task = SetDisjointness(train=((first, second),), test=(), vocabulary=vocabulary, repeats=repeats)
    worlds = sorted(set(generated(first, second, vocabulary, first)))
    batch = as_batch(worlds, repeats, padding)
    inputs, targets = np.asarray(batch.inputs), np.asarray(batch.targets)[:, -1].tolist()
    size = inputs.shape[1]
    random = np.random.default_rng(0)
    cases = [np.tri(size, dtype=bool), ~np.tri(size, dtype=bool), np.eye(size, dtype=bool)]
    cases += [random.random((size, size)) < share for share in (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)]
    cases += [np.broadcast_to((batch.tokens.role == list_role)[None], (size, size)) for list_role in (2, 3)]
    for visible in cases:
        found = over(task.ceiling, batch, visible)[:, 0]
        np.testing.assert_allclose(found, enumerated_ceiling(inputs, targets, visible), rtol=1e-5, err_msg=visible[-1])


@pytest.mark.parametrize(("roles", "ceiling"), [((1, 2, 3, 4), 1), ((2,), 1 / 16), ((3,), 1 / 64), ((), 1 / 2044)])
def test_ceiling_of_the_papers_sizes(roles, ceiling):
    batch = as_batch([(range(4, 20), (5, *range(20, 83)), 5)], 1)
    size = batch.inputs.shape[1]
    seen = np.isin(batch.tokens.role, roles)
    found = over(SetDisjointness().ceiling, batch, np.broadcast_to(seen, (size, size)))
    assert found.tolist() == [pytest.approx([ceiling])]


def test_baselines_on_a_literal_item():
    task = SetDisjointness(train=((2, 3),), test=(), vocabulary=24)
    a, b, c, d = 4, 5, 6, 7
    item = as_batch([((a, b), (c, b, d), b)], 1)
    size = item.inputs.shape[1]

    def right(seen):
        columns = np.isin(np.arange(size), list(seen))
        found = over(task.baselines, item, np.broadcast_to(columns, (size, size)))
        return {name: value[0].tolist() for name, value in found.items()}

    any_token = pytest.approx([1 / 20])
    half, third = pytest.approx([1 / 2]), pytest.approx([1 / 3])
    assert right(range(size)) == {"chance": half, "majority": any_token, "nearest": [0.0], "order_free": [1.0]}
    assert right([1, 2, 4, 5]) == {"chance": half, "majority": any_token, "nearest": [1.0], "order_free": [1.0]}
    assert right([4, 5, 6]) == {"chance": third, "majority": any_token, "nearest": [0.0], "order_free": third}
    assert right([1, 4, 6]) == {"chance": half, "majority": any_token, "nearest": [0.0], "order_free": [0.0]}
    assert right([0, 3, 7]) == dict.fromkeys(("chance", "majority", "nearest", "order_free"), any_token)


# --------------------------------------------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("vocabulary=5", ": vocabulary = 5 is not allowed; allowed: a whole number from 6 to 65536."),
        ("vocabulary=65537", ": vocabulary = 65537 is not allowed; allowed: a whole number from 6 to 65536."),
        ("repeats=0", ": repeats = 0 is not allowed; allowed: a whole number from 1 to 8192."),
        ("train='papr'", ".train: 'papr' is not allowed; allowed: 'paper' or a list of lists of whole numbers."),
        ("train=[4, 16]", ".train: [4, 16] is not allowed; allowed: 'paper' or a list of lists of whole numbers."),
        ("train=[]", ": train = () is not allowed; allowed: 1 to 256 pairs [|A|, |B|]."),
        ("train=[[4]]", ": train = [4] is not allowed; allowed: pairs [|A|, |B|]."),
        ("test=[[4, 8, 2]]", ": test = [4, 8, 2] is not allowed; allowed: pairs [|A|, |B|]."),
        (
            "train=[[4, 16], [0, 4]]",
            ": train = [0, 4] is not allowed; allowed: |A| and |B| from 1, at most 2044 together, the ordinary tokens"
            " of vocabulary = 2048.",
        ),
        (
            "test=[[4, 2041]]",
            ": test = [4, 2041] is not allowed; allowed: |A| and |B| from 1, at most 2044 together, the ordinary tokens"
            " of vocabulary = 2048.",
        ),
        (
            "train=[[4, 8]], vocabulary=128",
            ": test (the paper's) = [4, 128] is not allowed; allowed: |A| and |B| from 1, at most 124 together, the"
            " ordinary tokens of vocabulary = 128.",
        ),
        (
            "train=[[511, 511]], test=[], repeats=8",
            ": train = [511, 511] is not allowed; allowed: at most 8192 tokens with repeats = 8,"
            " (|A| + |B| + 2) * repeats + 1.",
        ),
    ],
)
def test_bad_arguments_are_refused_in_one_sentence(arguments, message):
    with pytest.raises(spec.ConfigError) as error:
        spec.build("tasks", f"set_disjointness({arguments})", "task")
    assert str(error.value) == f"task{message}"


def test_the_largest_sizes_are_allowed():
    SetDisjointness(train=((1, 2043), (2043, 1)), test=())
    longest = SetDisjointness(train=((510, 511),), test=(), repeats=8)
    assert longest.length(longest.conditions()[0]) == 8185
