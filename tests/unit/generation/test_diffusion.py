"""All tokens hidden at first, and committed step by step; the likelihood of what might have been."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from positionbias.generation.diffusion import decode, log_likelihood, schedule
from positionbias.generation.generate import generate, likelihood
from positionbias.spec import ConfigError

MASK = 4  # of a toy of four tokens
MODEL = {
    "task": "reversal_in_context(pairs=3, names=6)",  # a vocabulary of 14, so that the mask token is 14
    "objective": "masked_diffusion",
    "model.mask": "bidirectional",
    "model.position": "rope",
}
PROMPT = np.random.default_rng(0).integers(0, 14, (2, 9))


def preferences(seed):
    """Outputs that are drawn once for each place, and grow a little with how many tokens are known."""
    table = np.random.default_rng(seed).normal(size=(2, 8, 4))

    def predict(inputs, hidden):
        return jnp.asarray(table) * (2 - jnp.mean(hidden, axis=-1)[:, None, None])

    return predict, table


@pytest.mark.parametrize("steps", [6, 4, 1])
def test_the_surest_are_committed_first_and_kept(steps):
    predict, table = preferences(0)
    inputs = jnp.arange(16).reshape(2, 8) % 4
    block = np.array([-1, -1, 0, 0, 0, 0, 0, 0])
    counts, of_step, _ = schedule(6, steps, 1)
    tokens, outputs, step = jax.jit(
        lambda inputs: decode(predict, inputs, block, counts, of_step, jax.random.key(0), None)
    )(inputs)
    np.testing.assert_array_equal(tokens[:, :2], inputs[:, :2])
    np.testing.assert_array_equal(tokens[:, 2:], table.argmax(axis=-1)[:, 2:])
    np.testing.assert_array_equal(step[:, :2], -1)
    for row in range(2):
        np.testing.assert_array_equal(np.bincount(step[row, 2:], minlength=steps), counts)
    if steps == 6:  # one a step: at each, the surest of those left at that step
        for row, now in itertools.product(range(2), range(6)):
            left = [place for place in range(2, 8) if step[row, place] >= now]
            known = 2 - len(left) / 8
            sure = [jax.nn.log_softmax(jnp.asarray(table[row, place]) * known).max() for place in left]
            assert step[row, left[int(np.argmax(sure))]] == now
    np.testing.assert_array_equal(outputs[:, 2:].argmax(axis=-1), tokens[:, 2:])


def test_steps_end_exactly_and_blocks_run_from_left_to_right():
    assert [list(part) for part in schedule(5, 3, 1)] == [[2, 2, 1], [0, 0, 0], [0] * 5]
    assert [list(part) for part in schedule(6, 4, 2)] == [[2, 1, 2, 1], [0, 0, 1, 1], [0, 0, 0, 1, 1, 1]]
    for length, steps in itertools.product(range(1, 9), range(1, 9)):
        if steps <= length:
            counts = schedule(length, steps, 1)[0]
            assert counts.sum() == length
            assert counts.min() >= 1
            assert counts.max() - counts.min() <= 1


@pytest.mark.parametrize("by", ["confidence", "random"])
def test_a_model_decodes_blocks_in_their_order(fresh, by):
    experiment, weights = fresh(MODEL)
    found = generate(experiment, weights, PROMPT, 6, blocks=3, by=by, key=jax.random.key(3))
    np.testing.assert_array_equal(found.tokens[:, :9], PROMPT)
    assert found.outputs.shape == (2, 6, 14)  # the mask token is none of the outputs
    np.testing.assert_array_equal(np.sort(found.step, axis=-1), [range(6)] * 2)
    np.testing.assert_array_equal(np.asarray(found.step) // 2, [[0, 0, 1, 1, 2, 2]] * 2)
    chosen = np.take_along_axis(np.asarray(jax.nn.log_softmax(found.outputs)), found.tokens[:, 9:, None], -1)
    np.testing.assert_allclose(found.log_probability, chosen[..., 0], atol=1e-5)


def test_a_token_is_committed_by_what_the_model_says_then(fresh):
    """What a step commits is what the model would commit in one step, were the tokens before it a prompt."""
    experiment, weights = fresh(MODEL)
    found = generate(experiment, weights, PROMPT, 4, blocks=4)
    for place in range(4):
        before = np.asarray(found.tokens[:, : 9 + place])
        again = generate(experiment, weights, before, 4 - place, steps=1)
        np.testing.assert_array_equal(again.tokens[:, 9 + place], found.tokens[:, 9 + place])
        np.testing.assert_allclose(again.outputs[:, 0], found.outputs[:, place], rtol=0, atol=1e-4)


def test_masks_are_told_what_is_hidden(fresh):
    seen, unseen = (
        generate(*fresh({**MODEL, "model.mask": mask}), PROMPT, 4, steps=1).outputs
        for mask in ("bidirectional", "bidirectional & (~masked_keys | sliding_window(1))")
    )
    assert (np.abs(seen - unseen).max(axis=-1) > 1e-3).all()


def test_draws_follow_the_temperature():
    logits = jnp.log(jnp.array([0.5, 0.3, 0.15, 0.05]))
    counts, of_step, _ = schedule(8, 2, 1)

    @jax.jit
    def drawn(key):
        def predict(inputs, hidden):
            return jnp.broadcast_to(logits, (500, 8, 4))

        return decode(predict, jnp.zeros((500, 8), jnp.int32), np.zeros(8), counts, of_step, key, 1.0, "random")[0]

    share = np.bincount(np.asarray(drawn(jax.random.key(0))).ravel(), minlength=4) / 4000
    np.testing.assert_allclose(share, [0.5, 0.3, 0.15, 0.05], atol=0.03)


# ---- likelihood


def conditionals(seed):
    """The joint distribution of three places of four tokens, [4, 4, 4], and what it says of each given the others."""
    joint = np.random.default_rng(seed).dirichlet(np.full(64, 0.5)).reshape(4, 4, 4)

    def predict(inputs, hidden):
        def one(inputs, hidden):
            weight = jnp.asarray(joint)
            for place in range(3):
                shape = [1] * 3
                shape[place] = 4
                seen = jax.nn.one_hot(inputs[place], 4).reshape(shape)
                weight = weight * jnp.where(hidden[place], 1.0, seen)
            marginals = [weight.sum(axis=tuple(a for a in range(3) if a != place)) for place in range(3)]
            return jnp.log(jnp.stack(marginals) + 1e-30)

        return jax.vmap(one)(inputs, hidden)

    return predict, joint


def test_the_likelihood_is_exact_in_the_mean_where_the_model_knows_all_conditionals():
    predict, joint = conditionals(1)
    inputs, unknown = jnp.array([[0, 3, 1], [2, 2, 0]]), jnp.ones((2, 3), bool)
    estimate = jax.jit(lambda key: log_likelihood(predict, inputs, unknown, key))
    found = np.array([estimate(key) for key in jax.random.split(jax.random.key(0), 40)])  # 40 times 128 draws
    exact = [math.log(joint[0, 3, 1]), math.log(joint[2, 2, 0])]
    error = found.std(axis=0) / math.sqrt(40)
    assert (error > 1e-3).all(), "an estimate, not the exact value"
    assert (np.abs(found.mean(axis=0) - exact) < 4 * error).all()


def test_the_likelihood_of_one_token_is_exact_by_one_draw():
    predict, joint = conditionals(2)
    inputs, unknown = jnp.array([[0, 3, 1]]), jnp.array([[False, True, False]])
    found = log_likelihood(predict, inputs, unknown, jax.random.key(0), draws=1)
    assert found[0] == pytest.approx(math.log(joint[0, 3, 1] / joint[0, :, 1].sum()), abs=1e-5)


def test_the_likelihood_of_a_models_answer_is_what_it_says_at_the_mask(fresh):
    experiment, weights = fresh({**MODEL, "objective": "masked_denoising"})
    said = generate(experiment, weights, PROMPT, 1)
    found = likelihood(experiment, weights, PROMPT, said.tokens[:, 9:], jax.random.key(0))
    np.testing.assert_allclose(found, said.log_probability[:, 0], atol=1e-5)
    longer = likelihood(experiment, weights, PROMPT, PROMPT[:, :3], jax.random.key(0), draws=8)
    assert longer.shape == (2,)
    assert (np.asarray(longer) < 0).all()


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"steps": 7}, r"steps = 7 is not allowed; allowed: None or a multiple of blocks = 1 up to length = 6\."),
        ({"steps": 0}, r"steps = 0 is not allowed; .*"),
        ({"blocks": 4}, r"blocks = 4 is not allowed; allowed: a whole number that divides length = 6\."),
        ({"blocks": 3, "steps": 4}, r"steps = 4 is not allowed; .* multiple of blocks = 3 up to length = 6\."),
        ({"by": "confident"}, r"generate\.by: 'confident' is not allowed, did you mean 'confidence'; .*"),
        ({"by": "random"}, r"key: which token is committed is drawn, and needs one; .*"),
        ({"cached": True}, r"generate: unknown argument of diffusion 'cached'; .*"),
        ({"method": "autoregressive"}, r"method: 'autoregressive' is not what .* trains; allowed: 'diffusion'\."),
    ],
)
def test_refusals(fresh, how, said):
    experiment, weights = fresh(MODEL)
    with pytest.raises(ConfigError, match=f"^{said}$"):
        generate(experiment, weights, PROMPT, 6, **how)


@pytest.mark.parametrize(
    ("key", "draws", "said"),
    [
        (None, 4, "key: what is hidden is drawn, and needs one; .*"),
        ("0", 4, "key: str; .*"),
        (jax.random.key(0), 0, "draws = 0 is not allowed; .*"),
        (jax.random.key(0), 1.5, r"draws = 1\.5 is not allowed; .*"),
        (jax.random.key(0), True, "draws = True is not allowed; .*"),
    ],
    ids=str,
)
def test_what_a_likelihood_is_not_drawn_by(fresh, key, draws, said):
    with pytest.raises(ConfigError, match=f"^{said}$"):
        likelihood(*fresh(MODEL), PROMPT, PROMPT, key, draws)


def test_the_likelihood_is_of_objectives_that_hide(fresh):
    experiment, weights = fresh({"task": MODEL["task"]})
    with pytest.raises(
        ConfigError, match=r"^log_likelihood: the objective next_token.* hides no answers; allowed: masked"
    ):
        likelihood(experiment, weights, PROMPT, PROMPT, jax.random.key(0))
