"""Tree paths: samples solved by reading them, the law of trees by enumeration, and what observers and rules can say."""

import functools
import itertools
from collections import Counter, defaultdict
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from judges import drawn, judging_alike
from scipy import stats

from positionbias import spec
from positionbias.evaluation.interventions import Permute, rearranged
from positionbias.tasks.base import Batch, find_condition
from positionbias.tasks.tree_paths import TreePaths

SMALL = TreePaths(nodes=4, longest=3, labels=4)
SHORT = TreePaths(nodes=5, longest=2, labels=5)


@functools.cache
def trees(nodes, longest):
    """{(length, gone, parents, nodes of the path): chance}, by the definition; nodes in the order they are grown."""
    share = defaultdict(Fraction)
    pairs = [(length, gone) for length in range(1, longest + 1) for gone in range(length)]
    for length, gone in pairs:
        kinds = [(length, second) for second in range(1, nodes - length)] or [(length, 0)]
        for _, second in kinds:
            rest = nodes - 1 - length - second
            orders = sorted(set(itertools.permutations("p" * length + "s" * second + "." * rest)))
            for order in orders:
                chance = Fraction(1, len(pairs) * len(kinds) * len(orders))
                for grown, likely in growths(order):
                    path = tuple(node + 1 for node, kind in enumerate(order) if kind == "p")
                    share[length, gone, grown, path] += chance * likely
    assert sum(share.values()) == 1
    return dict(share)


def growths(order):
    """(parents, chance) of every tree that grows from these kinds of nodes: of the path, the second path, others."""
    partial = [((), Fraction(1))]
    for number, kind in enumerate(order):
        longer = []
        for parents, chance in partial:
            own = [node + 1 for node in range(number) if order[node] == kind and kind != "."]
            if kind == "p" or own:
                choices = [own[-1] if own else 0]
            else:
                choices = [node for node in range(number + 1) if has_room(node, order, parents)]
            longer += [((*parents, choice), chance / len(choices)) for choice in choices]
        partial = longer
    return partial


def has_room(node, order, parents):
    kind = order[node - 1] if node else "p"
    goes_on = kind in "ps" and kind in order[node:]
    if kind == "p" and not goes_on:
        return False  # the goal
    of_own_kind = any(parent == node and order[child] == kind for child, parent in enumerate(parents))
    return parents.count(node) + (goes_on and not of_own_kind) < 2


@functools.cache
def every_case(task):
    """(chance, inputs, row, evidence, target) of all that training may show, by the definition; equal ones repeat."""
    n, cases = task.nodes, []
    shuffled = list(itertools.permutations(range(n - 1)))
    orders = dict.fromkeys(shuffled, Fraction(1, 2 * len(shuffled)))
    orders[tuple(range(n - 1))[::-1]] += Fraction(1, 2)
    names = list(itertools.permutations(range(task.labels), n))
    for (_, gone, parents, path), share in trees(n, task.longest).items():
        for order, likely in orders.items():
            edge_rows = {edge + 1: 3 * slot for slot, edge in enumerate(order)}
            needs = [row for node in path[gone:][::-1] for row in (edge_rows[node], edge_rows[node] + 1)]
            for name in names:
                text = [x for edge in order for x in (3 + name[parents[edge]], 3 + task.labels + name[edge + 1], 0)]
                text[-1] = 1
                text += [3 + name[path[-1]], 2, 3 + name[0]]
                text += [3 + task.labels + name[node] for node in path[:gone]] + [0] * (task.longest - 1 - gone)
                answer = 3 + task.labels + name[path[gone]]
                row = 3 * (n - 1) + 2 + gone
                evidence = needs + [-1] * (2 * task.longest - len(needs))
                cases.append((share * likely / len(names), text, row, evidence, answer))
    return cases


def as_batch(cases):
    """The fields that ceilings and baselines read."""
    _, inputs, row, evidence, target = (np.array(column) for column in zip(*cases, strict=True))
    targets = np.zeros_like(inputs)
    targets[np.arange(len(cases)), row] = target
    fields = dict.fromkeys(Batch._fields)
    fields.update(inputs=inputs, targets=targets, query=row[:, None], evidence=evidence[:, None])
    return Batch(**{name: None if value is None else jnp.asarray(value) for name, value in fields.items()})


# ------------------------------------------------------------------------------------------------- samples


def check(task, item, order):
    """Decode an example, solve it, and hold every field to what was found; `order` None: any."""
    words = task.words(np.asarray(item.inputs), task.input)
    edges = [(words[3 * slot], words[3 * slot + 1].removeprefix(">")) for slot in range(task.nodes - 1)]
    assert [words[3 * slot + 1][0] for slot in range(task.nodes - 1)] == [">"] * (task.nodes - 1)
    assert [words[3 * slot + 2] for slot in range(task.nodes - 1)] == [","] * (task.nodes - 2) + ["|"]
    goal, colon, *said = words[3 * (task.nodes - 1) :]
    parent = {end: start for start, end in edges}
    slot = {end: number for number, (_, end) in enumerate(edges)}
    sources = [start for start, _ in edges]
    assert colon == ":"
    assert len(parent) == task.nodes - 1
    assert goal not in sources
    assert max(Counter(sources).values()) <= 2

    path = [goal]
    while path[0] in parent:
        path.insert(0, parent[path[0]])
    assert len(path) - 1 <= task.longest
    assert set(sources) | set(parent) == {*parent, path[0]}
    gone = len(said) - said.count(",") - 1
    assert said == path[:1] + [">" + node for node in path[1 : gone + 1]] + [","] * (task.longest - gone - 1)
    left = path[gone + 1 :]
    row = 3 * task.nodes - 1 + gone
    needs = [3 * slot[node] for node in reversed(left)]
    target = task.words(np.asarray(item.targets), task.output)
    assert target[row] == ">" + left[0]
    assert np.flatnonzero(item.targets).tolist() == [row]
    assert np.flatnonzero(item.weights).tolist() == item.query.tolist() == [row]
    assert item.evidence[0].tolist() == [x for need in needs for x in (need, need + 1)] + [-1] * (
        2 * (task.longest - len(needs))
    )
    rises = {a < b for a, b in itertools.pairwise(needs)}
    assert item.order.tolist() == [-1 if len(rises) != 1 else int(rises == {False})]
    assert item.distance.tolist() == [row - needs[-1] - 1]
    assert item.n_distractors.tolist() == [task.nodes - 2]
    assert item.source.tolist() == [-1]
    assert item.query_slot.tolist() == [len(left) - 1]
    assert item.evidence_slot.tolist() == [slot[left[0]]]

    early = [slot[start] > number for number, (start, _) in enumerate(edges) if start in parent]
    if order == "forward":
        assert not any(early), "an edge stands before the one to its source"
    if order == "backward":
        assert all(early)
    segment = np.zeros(len(words), int)
    segment[: 3 * task.nodes - 3] = [x for number in range(1, task.nodes) for x in (number, number, 0)]
    if order is None:  # segments keep their numbers where they go
        assert sorted(item.tokens.segment) == sorted(segment)
    else:
        assert item.tokens.segment.tolist() == segment.tolist()
    assert item.tokens.role.tolist() == [0, 1, 2] * (task.nodes - 1) + [3, 2] + [4] * task.longest
    return tuple(early)


@pytest.mark.parametrize("task", [TreePaths(nodes=9, longest=6, labels=30), TreePaths(nodes=5, longest=4, labels=5)])
def test_reading_a_sample_gives_its_answer_and_where_it_lies(task):
    for order, batch in drawn(task, 60).items():
        tokens = jax.tree.map(lambda x: np.broadcast_to(x, (60, x.shape[-1])), batch.tokens)
        items = [jax.tree.map(lambda x, b=b: x[b], batch._replace(tokens=tokens)) for b in range(60)]
        inverted = [check(task, item, order) for item in items]
        assert any(any(one) and not all(one) for one in inverted) == (order in ("train", "shuffled"))
        if order == "train":
            assert 20 < sum(all(one) for one in inverted) < 50


@pytest.mark.parametrize("task", [SMALL, SHORT], ids=["whole", "short"])
def test_trees_follow_the_definition(task):
    share = trees(task.nodes, task.longest)

    def grown(key):
        one, other = jax.random.split(key)
        length, gone = task._path(one)
        return length, gone, *task._grown(other, length)

    length, gone, parents, on_path = jax.device_get(jax.jit(jax.vmap(grown))(jax.random.split(jax.random.key(0), 8000)))
    seen = Counter(
        (int(a), int(b), tuple(c.tolist()), tuple((np.flatnonzero(d) + 1).tolist()))
        for a, b, c, d in zip(length, gone, parents, on_path, strict=True)
    )
    assert set(seen) <= set(share)
    assert stats.chisquare([seen[k] for k in share], [8000 * float(p) for p in share.values()]).pvalue > 1e-4


def test_prior_is_the_enumerated_one():
    for task in (SMALL, SHORT):
        left, slots = defaultdict(Fraction), defaultdict(Fraction)
        for (length, gone, _, path), chance in trees(task.nodes, task.longest).items():
            left[length - gone - 1] += chance
            slots[path[gone] - 1] += chance
        for condition in task.conditions():
            prior = task.prior(condition)
            np.testing.assert_allclose(prior["query"], [float(left[i]) for i in range(task.longest)], rtol=1e-12)
            np.testing.assert_allclose(prior["evidence"], [float(slots[i]) for i in range(task.nodes - 1)], rtol=1e-12)


class AtTheRoot(TreePaths):
    """Asks for the first step only."""

    def _path(self, key):
        length, gone = super()._path(key)
        return length, jnp.zeros_like(gone)


@pytest.mark.parametrize(("kind", "right"), [(TreePaths, True), (AtTheRoot, False)])
def test_the_prior_test_catches_a_biased_sampler(kind, right):
    task = kind(nodes=6, longest=4, labels=6)
    batch, prior = drawn(task, 3000, "forward")["forward"], task.prior(task.conditions()[0])
    for slots, share in ((batch.query_slot, prior["query"]), (batch.evidence_slot, prior["evidence"])):
        counts = np.bincount(slots[:, 0], minlength=len(share))
        assert (stats.chisquare(counts, 3000 * share).pvalue > 1e-4) == right


def test_labels_are_drawn_uniformly():
    batch = drawn(TreePaths(nodes=5, longest=4, labels=7), 3500, "train")["train"]
    answers = batch.targets[np.arange(3500), batch.query[:, 0]]
    assert stats.chisquare(np.bincount(answers - 10, minlength=7)).pvalue > 1e-4


def test_moving_edges_moves_what_is_said_of_them():
    task = TreePaths(nodes=7, longest=5, labels=9)
    condition = find_condition(task, "backward", "condition")

    @jax.jit
    def moved(key):
        one, other = jax.random.split(key)
        item = task.sample(one, condition)
        return item, rearranged(item, jax.random.permutation(other, task.nodes - 1), task)

    orders = []
    for seed in range(20):
        item, changed = jax.device_get(moved(jax.random.key(seed)))
        assert changed.targets.tolist() == item.targets.tolist()
        check(task, changed, None)
        orders += changed.order.tolist()
    assert set(orders) == {-1, 0, 1}
    Permute().check(task, condition)


def test_stretched_is_a_larger_tree_of_the_same_labels():
    task = TreePaths(nodes=8, longest=4, labels=32)
    assert task.stretched(4) == TreePaths(nodes=32, longest=4, labels=32)
    with pytest.raises(spec.ConfigError, match="labels = 32 is not allowed; allowed: a whole number from 40"):
        task.stretched(5)


# ------------------------------------------------------------------------------------------------ judged


def best(cases, view):
    """The chance of the best guess for every case, given `view`: one number for all that look the same."""
    chances, answers = np.array([float(case[0]) for case in cases]), np.array([case[-1] for case in cases])
    mass = np.zeros((view.max() + 1, answers.max() + 1))
    np.add.at(mass, (view, answers), chances)
    return (mass.max(axis=1) / mass.sum(axis=1))[view]


def test_ceiling_is_the_enumerated_posterior_where_it_is_known():
    task, cases = SMALL, every_case(SMALL)
    batch = as_batch(cases)
    judge = judging_alike(task.ceiling, batch)
    inputs, rows = np.asarray(batch.inputs), np.asarray(batch.query)
    rng = np.random.default_rng(0)
    weights = rng.integers(2**62, size=inputs.shape[1] + 1)
    edges = np.isin(np.arange(inputs.shape[1]), [0, 1, 3, 4, 6, 7])
    masks = [rng.random(inputs.shape[1]) < share for share in rng.uniform(0.3, 1, 40)]
    masks += [mask & ~edges for mask in masks[:20]]
    known = 0
    for seen in [np.ones_like(edges), np.zeros_like(edges), ~edges, *masks]:
        # Two views share a number never, or nearly; a row knows its own place. Commas behind it tell no more.
        hashed = (inputs * np.where(seen, weights[:-1], 0)).sum(axis=1) + rows[:, 0] * weights[-1]
        wanted, found = best(cases, np.unique(hashed, return_inverse=True)[1]), judge(seen)[:, 0]
        sure = ~np.isnan(found)
        np.testing.assert_allclose(found[sure], wanted[sure], rtol=1e-5, err_msg=str(seen))
        assert sure.all() or (seen & edges).any()
        known += sure.mean()
    assert known > 25


@pytest.mark.parametrize("task", [SMALL, TreePaths(nodes=4, longest=2, labels=4)], ids=["whole", "short"])
def test_no_reader_of_a_bag_is_as_good_as_one_who_looks_ahead(task):
    cases = every_case(task)
    batch = as_batch(cases)
    inputs, goal = np.asarray(batch.inputs), 3 * (task.nodes - 1)
    bags = np.concatenate([np.sort(inputs[:, :goal], axis=1), inputs[:, goal:], batch.query], axis=1)
    wanted = best(cases, np.unique(bags, axis=0, return_inverse=True)[1])
    chances = np.array([float(case[0]) for case in cases])
    rules = judging_alike(task.baselines, batch)(np.ones(inputs.shape[1]))
    mean = {name: chances @ value[:, 0] for name, value in rules.items()}
    assert 1 / task.labels < mean["order_free"] < chances @ wanted < mean["look_ahead"] < 1
    assert mean["look_ahead"] <= mean["deeper"] < 1 + 1e-6


def rules(task, text, row, answer, seen):
    """Baselines of one item, of which the row sees `seen`."""
    batch = as_batch([(1, text, row, [-1] * (2 * task.longest), answer)])
    found = judging_alike(task.baselines, batch)(np.isin(np.arange(len(text)), list(seen)))
    return {name: round(float(value[0, 0]), 4) for name, value in found.items()}


def test_baselines_of_a_literal_tree():
    task = TreePaths(nodes=7, longest=4, labels=8)
    # a > b, c;  b > d;  c > e, f;  e > g; sources are 3 + the letter, targets 11 + it
    #       e >g   , a >b   , c >f   , b >d   , a >c   , c >e   | f : a
    text = [7, 17, 0, 3, 12, 0, 5, 16, 0, 4, 14, 0, 3, 13, 0, 5, 15, 1, 8, 2, 3, 0, 0, 0]
    everything = range(24)
    at_root = {"chance": 0.125, "majority": 0.125, "nearest": 0, "child": 0.5, "look_ahead": 0.5, "deeper": 1}
    assert rules(task, text, 20, 13, everything) == {**at_root, "order_free": 0}  # b, c, e go on: the goal, at 1/4
    text[21] = 13
    assert rules(task, text, 21, 16, everything) == {
        "chance": 0.125,
        "majority": 0.125,
        "nearest": 0,
        "order_free": 1,
        "child": 0.5,
        "look_ahead": 1,
        "deeper": 1,
    }
    unknown = dict.fromkeys(at_root, 0.125) | {"order_free": 0.125}
    assert rules(task, text, 21, 16, [20, 21]) == unknown
    # The goal is hidden, and c > f is cut in two: e is the only child that is seen.
    hidden = [*range(6), *range(7, 18), 20, 21]
    assert rules(task, text, 21, 16, hidden) == {
        **unknown,
        "nearest": 0,
        "order_free": 0,
        "child": 0,
        "look_ahead": 0,
        "deeper": 0,
    }


# --------------------------------------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nodes=2", "nodes = 2 is not allowed; allowed: a whole number from 3 to 256."),
        ("nodes=257", "nodes = 257 is not allowed; allowed: a whole number from 3 to 256."),
        ("longest=0", "longest = 0 is not allowed; allowed: 1 to 15 edges, which 16 nodes have."),
        ("longest=16", "longest = 16 is not allowed; allowed: 1 to 15 edges, which 16 nodes have."),
        ("labels=15", "labels = 15 is not allowed; allowed: a whole number from 16, one a node, to 65536."),
        ("labels=65537", "labels = 65537 is not allowed; allowed: a whole number from 16, one a node, to 65536."),
    ],
)
def test_bad_arguments_are_refused_in_one_sentence(text, message):
    with pytest.raises(spec.ConfigError) as error:
        spec.build("tasks", f"tree_paths({text})", "task")
    assert str(error.value) == f"task: {message}"


def test_nothing_leaks_and_the_prompt_is_as_long_as_the_paper_s():
    task = TreePaths()
    condition = task.conditions()[0]
    assert not task.leaks(condition).any()
    assert task.context_length(condition) == 47
    assert task.input.size == 35
