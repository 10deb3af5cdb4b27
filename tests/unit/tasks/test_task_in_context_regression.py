"""In-context regression: samples against the definition, ceilings and floors against conditioning in kernel form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from positionbias import spec
from positionbias.evaluation.interventions import Permute
from positionbias.tasks.base import Batch
from positionbias.tasks.in_context_regression import InContextRegression

TASK = InContextRegression(dimension=3, examples=6, noise=0.2)
(CONDITION,) = TASK.conditions()


def sampled(task, items):
    """A batch without the tokens all items share."""
    return jax.jit(lambda key: task.batch(key, task.conditions()[0], items)._replace(tokens=None))(jax.random.key(0))


@pytest.fixture(scope="module")
def batch():
    return sampled(TASK, 4000)


@pytest.fixture(scope="module")
def judged():
    """Ceilings, baselines and losses of a batch, as numpy."""
    one = lambda item, seen: (TASK.ceiling(item, seen), TASK.baselines(item, seen), TASK.losses(item, seen))  # noqa: E731
    judge = jax.jit(jax.vmap(one, in_axes=(0, None)))
    return lambda items, seen: jax.tree.map(np.asarray, judge(items, jnp.asarray(seen)))


def seeing(*examples, asked=True, size=7):
    """The last row sees these examples, and perhaps itself."""
    visible = np.zeros((size, size), bool)
    visible[-1, list(examples)] = True
    visible[-1, -1] = asked
    return visible


def conditioned(x, y, asked, s):
    """Mean and variance of y_q by conditioning jointly Gaussian numbers, with covariance x . x' / d + s."""
    kernel = x @ x.T / len(asked) + s * np.eye(len(x))
    across = x @ asked / len(asked)
    weights = np.linalg.solve(kernel, across)
    return weights @ y, asked @ asked / len(asked) + s - weights @ across


def test_samples_follow_the_definition(batch):
    inputs, targets = np.asarray(batch.inputs, np.float64), np.asarray(batch.targets)
    assert inputs.shape == (4000, 7, 4)
    x, y, answer = inputs[:, :, :3], inputs[:, :6, 3], targets[:, 6, 0]
    assert (inputs[:, 6, 3] == 0).all(), "the question holds no answer"
    assert not targets[:, :6].any()
    assert (np.asarray(batch.weights) == [0, 0, 0, 0, 0, 0, 1]).all()
    assert stats.kstest(x.ravel(), "norm").pvalue > 1e-3
    # Given x, E y_i y_j is x_i . x_j / 3, and 0.2 more where i = j; 4,000 sequences, five standard errors.
    every = np.concatenate([y, answer[:, None]], axis=1)
    for i, j in [(0, 0), (6, 6), (0, 5), (2, 6)]:
        off = every[:, i] * every[:, j] - (x[:, i] * x[:, j]).sum(axis=-1) / 3 - 0.2 * (i == j)
        assert abs(off.mean()) < 5 * off.std() / 4000**0.5
    like = every[:, 2] * every[:, 6] * (x[:, 2] * x[:, 6]).sum(axis=-1)
    assert like.mean() == pytest.approx(1, abs=5 * like.std() / 4000**0.5)
    assert stats.kurtosis(every[:, 0]) > 0.3, "a map of its own for each sequence: y is no Gaussian"


def test_the_evidence_ends_at_the_example_that_tells_most_by_itself(batch):
    for b in range(200):
        x = np.asarray(batch.inputs[b, :, :3], np.float64)
        left = [conditioned(x[i : i + 1], np.zeros(1), x[-1], 0.2)[1] for i in range(6)]
        slot = int(np.argmin(left))
        assert batch.evidence_slot[b].tolist() == [slot]
        assert batch.distance[b].tolist() == [6 - slot]
        assert batch.evidence[b, 0].tolist() == [(slot + 1 + k) % 6 for k in range(6)]


def test_tokens_make_every_example_a_segment():
    tokens = TASK.tokens(CONDITION)
    assert tokens.segment.tolist() == [1, 2, 3, 4, 5, 6, 0]
    assert tokens.role.tolist() == [0, 0, 0, 0, 0, 0, 1]
    assert TASK.segments(CONDITION) == 6


@pytest.mark.parametrize("examples", [(0, 1, 2, 3, 4, 5), (1, 4), (3,), ()], ids=str)
def test_ceiling_and_floor_are_those_of_the_gaussian_posterior(batch, judged, examples):
    few = jax.tree.map(lambda leaf: leaf[:40], batch)
    ceiling, _, losses = judged(few, seeing(*examples))
    hidden, _, unasked = judged(few, seeing(*examples, asked=False))
    for b in range(40):
        inputs = np.asarray(few.inputs[b], np.float64)
        x, y, asked = inputs[list(examples), :3], inputs[list(examples), 3], inputs[-1, :3]
        _, variance = conditioned(x, y, asked, 0.2)
        np.testing.assert_allclose(losses["floor"][b], variance, rtol=1e-4)
        np.testing.assert_allclose(ceiling[b], 2 * stats.norm.cdf(0.5 / variance**0.5) - 1, rtol=1e-4)
        # Without x_q the best guess is 0, and y_q^2 is the sum of what each feature adds.
        each = [conditioned(x, y, unit * 3**0.5, 0.2) for unit in np.eye(3)]
        wanted = 0.2 + sum(mean**2 + variance - 0.2 for mean, variance in each) / 3
        np.testing.assert_allclose(unasked["floor"][b], wanted, rtol=1e-4)
    assert np.isnan(hidden).all() == bool(examples)


def test_with_nothing_seen_the_ceiling_is_how_often_zero_is_right(batch, judged):
    ceiling, baselines, losses = judged(batch, seeing(asked=False))
    assert len(np.unique(ceiling)) == 1
    right = (abs(np.asarray(batch.targets)[:, 6]) < 0.5).mean()
    assert ceiling[0, 0] == pytest.approx(right, abs=4 * 0.5 / 4000**0.5)
    for name, hits in baselines.items():
        assert hits.mean() == pytest.approx(right, abs=1e-6), name
    np.testing.assert_allclose(losses["floor"], 1.2, rtol=1e-6)


def test_rules_do_as_well_as_they_should(batch, judged):
    ceiling, baselines, losses = judged(batch, seeing(*range(6)))
    # Of 4,000 items: four standard errors of a share and of squared errors.
    assert baselines["order_free"].mean() == pytest.approx(ceiling.mean(), abs=4 * 0.5 / 4000**0.5)
    for name, wanted in [("chance", 1.2), ("gradient_step", 1.2 - 5 / (5 + 4 + 0.6))]:
        assert losses[name].mean() == pytest.approx(wanted, abs=4 * float(losses[name].std()) / 4000**0.5)
        assert baselines[name].mean() < ceiling.mean() - 0.03
    assert losses["floor"].mean() < losses["gradient_step"].mean() - 0.1


def test_rules_on_a_literal_item():
    task = InContextRegression(dimension=1, examples=2, noise=0.5)
    fields = dict.fromkeys(Batch._fields)
    inputs = jnp.array([[[1.0, 2.0], [-3.0, -1.0], [2.0, 0.0]]])
    fields |= {"inputs": inputs, "targets": jnp.array([[[0.0], [0.0], [1.0]]]), "query": jnp.array([[2]])}
    item = jax.tree.map(lambda leaf: leaf[0], Batch(**fields))
    seen = jnp.asarray(seeing(0, 1, size=3))
    found = jax.jit(task.losses)(item, seen)
    # The mean of x is -1: (2 * 2 + -1 * -2) * 2 = 12, times 1 / (2 + 1.5) is 24/7.
    np.testing.assert_allclose(found["gradient_step"], [(24 / 7 - 1) ** 2], rtol=1e-5)
    np.testing.assert_allclose(found["chance"], [1.0])
    np.testing.assert_allclose(found["nearest"], [4.0], err_msg="-1 is y of the last example, 1 the answer")
    # Ridge: (2 + 3) / (10 + 0.5) * 2 = 20/21, whose variance is 0.5 + 4 * 0.5 / 10.5.
    np.testing.assert_allclose(found["floor"], [0.5 + 2 / 10.5], rtol=1e-5)
    hits = {name: hit.tolist() for name, hit in jax.jit(task.baselines)(item, seen).items()}
    assert hits == {"chance": [0.0], "majority": [0.0], "nearest": [0.0], "gradient_step": [0.0], "order_free": [1.0]}
    for examples, near in [((0,), 0), ((1,), 1), ((0, 1), 1), ((), 0)]:
        close = item._replace(inputs=inputs[0].at[1, 1].set(1.2))
        hits = jax.jit(task.baselines)(close, jnp.asarray(seeing(*examples, size=3)))
        assert hits["nearest"].tolist() == [near], examples


def test_permuted_examples_take_the_evidence_along():
    item = jax.jit(lambda key: TASK.sample(key, CONDITION))(jax.random.key(5))
    moved = jax.jit(lambda key: Permute().change(key, item, TASK, CONDITION))(jax.random.key(6))
    before, after = np.asarray(item.inputs), np.asarray(moved.inputs)
    assert sorted(map(tuple, before[:6])) == sorted(map(tuple, after[:6]))
    assert not np.array_equal(before[:6], after[:6])
    np.testing.assert_array_equal(before[item.evidence_slot], after[moved.evidence_slot])
    np.testing.assert_array_equal(moved.query - moved.distance, moved.evidence_slot)
    assert moved.targets[6] == item.targets[6]


def test_a_longer_context_has_more_examples_of_the_same_map():
    assert TASK.stretched(4) == InContextRegression(dimension=3, examples=24, noise=0.2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dimension=0", "dimension = 0 is not allowed; allowed: a whole number from 1 to 64."),
        ("dimension=65", "dimension = 65 is not allowed; allowed: a whole number from 1 to 64."),
        ("examples=1", "examples = 1 is not allowed; allowed: a whole number from 2 to 8191."),
        ("examples=8192", "examples = 8192 is not allowed; allowed: a whole number from 2 to 8191."),
        ("noise=0.0", "noise = 0.0 is not allowed; allowed: a variance from 0.001 to 1000."),
        ("noise=1001.0", "noise = 1001.0 is not allowed; allowed: a variance from 0.001 to 1000."),
    ],
)
def test_bad_sizes_are_refused(text, message):
    with pytest.raises(spec.ConfigError) as error:
        spec.build("tasks", f"in_context_regression({text})", "task")
    assert str(error.value) == f"task: {message}"
