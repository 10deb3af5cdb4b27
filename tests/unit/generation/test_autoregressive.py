"""One token after another: with keys and values kept as without, whatever the mask, the positions and the operator."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from flax import nnx

from positionbias.generation import generate as generating
from positionbias.generation.base import chooser
from positionbias.generation.generate import generate
from positionbias.spec import ConfigError
from positionbias.tasks.base import Batch
from positionbias.tokens import sequential

TASK = "reversal_in_context(pairs=3, names=6)"  # 11 rows, of which 9 are the context, and a vocabulary of 14
PROMPT = np.random.default_rng(0).integers(0, 14, (3, 10))
ENCODER = {"task": TASK, "model.architecture": "encoder_decoder"}
FRAMED = sequential(16, frame=np.repeat(np.arange(8), 2).astype(np.int32))


def same(found, atol=1e-4):
    """The two forms said the same from the same."""
    kept, whole = found
    np.testing.assert_array_equal(kept.tokens, whole.tokens)
    np.testing.assert_allclose(kept.outputs, whole.outputs, rtol=0, atol=atol)
    np.testing.assert_allclose(kept.log_probability, whole.log_probability, rtol=0, atol=atol)
    np.testing.assert_array_equal(kept.step, whole.step)
    assert len(np.unique(np.round(kept.outputs[0, :, 0], 4))) > 1, "every row says something else"


@pytest.mark.parametrize(
    "overrides",
    [
        {
            "model.position": "[rope, alibi]",
            "model.mask": "[causal & sliding_window(3), causal & window_with_sinks(3, 2)]",
        },
        {"model.position": "[t5_bias, mirrored_rope]", "model.mask": "[prefix(4), context_bidirectional]"},
        {
            "model.position": "[learned_relative(4), alibi]",
            "model.mask": "[causal & sliding_window(2), causal & dilated_window(3, 2)]",
        },
        {"model.position": "sinusoidal", "model.operator": "[linear_scores(scaled=True), softmax]"},
        {"model.position": "rope", "objective": "prefix_lm_plus_denoising", "model.mask": "context_bidirectional"},
        {
            "model.position": "mirrored_rope",
            "objective": "bidirectional_causal",
            "model.mask": "switch(causal, bidirectional & ~masked_keys)",
        },
        {"model.position": "rope", "objective": "focus_bilevel"},
        {"model.position": "rope", "objective": "answer_only", "model.residual": "concatenate"},
        {"model.position": "xpos", "model.assignment": "reversed", "model.operator": "multimodal_softmax(image=0)"},
        {
            "model.position": "none",
            "model.operator": "[short_convolution, softmax, short_convolution]",
            "model.layers": 3,
        },
        {"model.position": "none", "model.operator": "[mamba2, titans(chunk=3)]", "model.residual": "concatenate"},
        {
            "model.position": "rope",
            "model.assignment": "padded(3)",
            "model.operator": "[softmax, retention]",
            "model.qk": "merged",
            "model.ov": "merged",
            "model.heads": 1,
        },
        {"model.position": "rope", "model.operator": "chunk_hybrid(chunk=3)", "model.mask": "block_causal"},
        {
            "model.architecture": "encoder_decoder(cross_mask=aligned_cross, encoder_mask=causal, encoder_layers=1)",
            "model.position": "t5_bias",
        },
        {**ENCODER, "model.position": "[rope, alibi]", "model.mask": "[causal, causal & sliding_window(2)]"},
        {**ENCODER, "model.position": "rope", "model.operator": "[linear_attention, lightnet]"},
        {
            "model.architecture": "encoder_decoder(encoder_mask=bidirectional, cross_mask=causal)",
            "model.position": "none",
            "model.mask": "context_bidirectional",
            "model.operator": "[prefix_linear_attention, based(window=0, convolution=0)]",
        },
        {"model.position": "none", "model.operator": "[md_tpe, lightnet]"},
        {**ENCODER, "model.position": "none", "model.operator": "[orthogonal_memory(slots=3, window=0), softmax]"},
    ],
    ids=str,
)
def test_rows_read_once_come_out_as_all_at_once(both, overrides):
    found = both({"task": TASK, **overrides}, PROMPT, 6)
    assert found[0].tokens.shape == (3, 16)
    assert found[0].outputs.shape == (3, 6, 14)  # and no mask token among them
    np.testing.assert_array_equal(found[0].tokens[:, :10], PROMPT)
    np.testing.assert_array_equal(found[0].step[0], range(6))
    same(found)


def test_learned_positions_up_to_the_last_that_is_read(both, fresh):
    overrides = {"task": TASK, "model.position": "learned"}
    same(both(overrides, PROMPT[:, :6], 6))  # row 11 is said and never read
    with pytest.raises(ConfigError, match=r"^length: 7 more tokens need positions up to 11, but .*learned.* on 11; "):
        generate(*fresh(overrides), PROMPT[:, :6], 7)


def test_half_precision_comes_out_alike(both):
    kept, whole = both({"task": TASK, "model.position": "rope", "train.dtype": "bfloat16"}, PROMPT, 5)
    for found in (kept, whole):
        np.testing.assert_array_equal(found.tokens[:, 10:], np.argmax(found.outputs, axis=-1))
    np.testing.assert_allclose(kept.outputs[:, 0], whole.outputs[:, 0], rtol=0, atol=0.1)


@pytest.mark.parametrize("mask", ["block_causal", "frame_causal"])
def test_a_frame_a_step(both, mask, fresh):
    overrides = {"task": TASK, "model.mask": mask, "model.position": "rope"}
    found = both(overrides, PROMPT, 8, rows_per_step=2, tokens=FRAMED)
    assert found[0].outputs.shape == (3, 8, 14)
    np.testing.assert_array_equal(found[0].step[0], [0, 0, 1, 1, 2, 2, 3, 3])
    same(found)
    experiment, weights = fresh(overrides)
    with pytest.raises(
        ConfigError, match=r"^cached: the mask .* of layer 0 lets row 10 see row 11, which is generated"
    ):
        generate(experiment, weights, PROMPT, 6, tokens=FRAMED, cached=True)
    with pytest.raises(ConfigError, match=r"^length = 5 is not allowed; allowed: a multiple of rows_per_step = 2\.$"):
        generate(experiment, weights, PROMPT, 5, tokens=FRAMED, rows_per_step=2)


def test_drawn_tokens_are_those_of_the_key(both):
    how = {"key": jax.random.key(7), "temperature": 5.0, "top_k": 5}
    found = both({"task": TASK, "model.position": "rope"}, PROMPT, 6, **how)
    same(found)
    top = jnp.argsort(-found[0].outputs, axis=-1)[..., :5]
    assert (top == found[0].tokens[:, 10:, None]).any(axis=-1).all()
    assert (found[0].tokens[:, 10:] != top[..., 0]).any()


def test_prompts_of_several_lengths_are_padded_in_front(fresh):
    overrides = {"model.position": "sinusoidal", "model.mask": "causal & sliding_window(4)"}
    experiment, weights = fresh({"task": TASK, **overrides})
    sizes = [4, 10, 7]
    valid = np.arange(10) >= 10 - np.array(sizes)[:, None]
    kept, whole = (generate(experiment, weights, PROMPT, 4, valid=valid, cached=cached) for cached in (True, False))
    same([kept, whole])
    for row, size in enumerate(sizes):
        alone = generate(experiment, weights, PROMPT[row : row + 1, -size:], 4)
        np.testing.assert_array_equal(alone.tokens[0, -4:], kept.tokens[row, -4:])
        np.testing.assert_allclose(alone.outputs[0], kept.outputs[row], rtol=0, atol=1e-4)
    with pytest.raises(
        ConfigError, match=r"^valid: allowed are prompts of at least one token that are padded in front"
    ):
        generate(experiment, weights, PROMPT, 4, valid=valid[:, ::-1])


@pytest.mark.parametrize(
    "overrides",
    [
        {"model.assignment": "per_segment"},
        {"model.assignment": "shared"},
        {"model.mask": "causal & segments"},
        {"model.mask": "causal & segments", "model.operator": "[gated_delta, lightnet]"},
        {"model.mask": "causal & window_with_sinks(2, 1)"},
        {"model.operator": "multimodal_softmax(image=0)"},
    ],
    ids=str,
)
def test_groups_of_padded_prompts_are_those_of_what_is_no_padding(fresh, overrides):
    task = "associative_recall(pairs=3, keys=6, values=6, delays=1, shift=0)"
    experiment, weights = fresh({"task": task, "model.position": "rope", **overrides})
    prompt = np.random.default_rng(0).integers(0, 12, (2, 6))
    valid = np.array([[True] * 6, [False] * 2 + [True] * 4])
    found = generate(experiment, weights, prompt, 2, valid=valid)
    alone = generate(experiment, weights, prompt[1:, 2:], 2)
    np.testing.assert_allclose(alone.outputs[0], found.outputs[1], rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "overrides",
    [
        ENCODER,
        {"model.architecture": "token_prepending"},
        {"model.mask": "context_bidirectional"},
    ],
    ids=str,
)
def test_padding_must_not_take_rows_of_a_context_that_is_read_apart(fresh, overrides):
    experiment, weights = fresh({"task": TASK, **overrides})
    valid = np.arange(10) >= np.array([[0], [1], [2]])
    with pytest.raises(ConfigError, match=r"^valid: padding would take rows of the context, .* allowed: prompts"):
        generate(experiment, weights, PROMPT, 1, valid=valid)


def test_rows_are_counted_as_they_were_trained_whatever_the_condition(fresh):
    task = "associative_recall(pairs=2, keys=4, values=4, delays=1, shift=4)"
    overrides = {"task": task, "model.mask": "causal & neighborhood(3)", "model.position": "rope"}
    experiment, weights = fresh(overrides)
    trained, shifted = experiment.task.conditions()
    assert [experiment.task.length(condition) for condition in (trained, shifted)] == [5, 9]
    prompt = np.zeros((1, 4), int)
    assert generate(experiment, weights, prompt, 2, condition=shifted).tokens.shape == (1, 6)
    with pytest.raises(ConfigError, match=r"^model\.mask: .* among the 9 that are read it shows row 4 other keys than"):
        generate(experiment, weights, prompt, 6, condition=shifted)


@pytest.mark.parametrize(
    "overrides",
    [
        {"model.architecture": "decoder_only"},
        {"model.architecture": "encoder_decoder"},
        {"model.operator": "[based(window=4), softmax]"},
        {"model.operator": "[lawcat, retention]"},
    ],
    ids=str,
)
def test_tokens_of_every_prompt_are_taken_as_they_are(fresh, overrides):
    """Positions that were drawn, a segment each, and padding within."""
    overrides = {"task": TASK, "model.position": "rope", **overrides}
    more = {"model.assignment": "randomized(longest=40)", "model.mask": "causal & segments"}
    spread = {name: np.broadcast_to(field, (3, 15)) for name, field in sequential(15)._asdict().items()}
    drawn = np.sort(np.random.default_rng(1).permuted(np.tile(np.arange(40), (3, 1)), axis=-1)[:, :15], axis=-1)
    segment = np.array([[0] * 15, [0] * 7 + [1] * 8, [0] * 3 + [1] * 12])
    tokens = type(sequential(1))(
        **{**spread, "position": drawn, "segment": segment, "valid": spread["index"] != np.array([[0], [4], [8]])}
    )
    model = fresh({**overrides, **more})
    found = [generate(*model, PROMPT, 6, tokens=tokens, cached=cached) for cached in (True, False)]
    same(found)
    alone = generate(*model, PROMPT[[1] * 3], 6, tokens=type(tokens)(*(x[[1] * 3] for x in tokens)), cached=True)
    np.testing.assert_allclose(alone.outputs[2], found[0].outputs[1], rtol=0, atol=1e-4)
    plain = generate(*fresh(overrides), PROMPT, 6)
    assert (np.abs(plain.outputs[:, 0] - found[0].outputs[:, 0]).max(axis=-1) > 1e-2).all(), "they matter to each"


def test_positions_are_those_of_the_assignment(fresh):
    overrides = {"task": TASK, "model.position": "sinusoidal"}
    found = generate(*fresh({**overrides, "model.assignment": "reversed"}), PROMPT, 3)
    told = generate(*fresh(overrides), PROMPT, 3, tokens=sequential(12, position=np.arange(12)[::-1]))
    np.testing.assert_array_equal(found.outputs, told.outputs)


def test_a_task_that_lays_every_example_out_anew_needs_tokens(fresh, monkeypatch):
    toys.register(monkeypatch)
    experiment, weights = fresh({"task": "two_lists"})
    with pytest.raises(
        ConfigError, match=r"^tokens: the task two_lists.* lays every example out anew; allowed: tokens"
    ):
        generate(experiment, weights, PROMPT[:, :4] % 4, 1)


def test_nothing_is_compiled_again_for_another_prompt_of_the_size(fresh):
    experiment, weights = fresh({"task": TASK, "model.position": "rope"})
    generating._program.cache_clear()
    first = generate(experiment, weights, PROMPT, 3, key=jax.random.key(0), temperature=0.5)
    program = generating._program(
        experiment,
        generating.Autoregressive(cached=True),
        generating.Setting(10, 3, 9, False, 14),
        False,
    )
    again = generate(experiment, weights, PROMPT[::-1], 3, key=jax.random.key(1), temperature=2.0)
    assert generating._program.cache_info().misses == 1
    assert program._cache_size() == 1
    assert (first.tokens != again.tokens).any()


@pytest.mark.parametrize("architecture", ["looped(2)", "contextual_token", "token_prepending", "summary_token"])
def test_architectures_that_keep_nothing_are_refused_unless_uncached(fresh, architecture):
    experiment, weights = fresh({"task": TASK, "model.architecture": architecture, "model.position": "rope"})
    with pytest.raises(
        ConfigError, match=r"^cached: the architecture .* keeps nothing of earlier rows; allowed: cached="
    ):
        generate(experiment, weights, PROMPT, 2, cached=True)
    assert generate(experiment, weights, PROMPT, 2).tokens.shape == (3, 12)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            {"model.operator": "fourier"},
            "the operator fourier.* of layer 0 cannot read each row once: row t weighs row s",
        ),
        (
            {"model.operator": "[softmax, routing]"},
            "the operator routing.* of layer 1 cannot read each row once: regions",
        ),
        ({"model.operator": "combiner"}, "the operator combiner.* cannot read each row once: spans are summed up by"),
    ],
    ids=str,
)
def test_an_operator_that_cannot_read_each_row_once_says_why(fresh, overrides, said):
    experiment, weights = fresh({"task": TASK, "model.position": "none", **overrides})
    with pytest.raises(ConfigError, match=rf"^cached: {said}.*; allowed: cached=False\.$"):
        generate(experiment, weights, PROMPT, 2, cached=True)
    assert generate(experiment, weights, PROMPT, 2).tokens.shape == (3, 12)


def test_nothing_is_kept_but_a_state_of_one_size(fresh):
    """What a step hands to the next is no longer for a longer sequence."""
    experiment, weights = fresh({"task": TASK, "model.operator": "gated_linear_attention"})
    model = nnx.merge(nnx.graphdef(experiment.abstract), weights["params"], weights["frozen"])
    sizes = set()
    for length in (12, 24):
        tokens = experiment.spread(sequential(length), 1).told_context(9)
        kept = jax.eval_shape(lambda tokens=tokens: model.step(PROMPT[:1], jnp.arange(10)[None], tokens, 9, None)[1])
        sizes.add(sum(x.size for x in jax.tree.leaves(kept)))
    dims = experiment.blueprint.dims
    assert sizes == {2 * experiment.blueprint.operators[0].state_size(dims)}


def test_a_mask_that_looks_ahead_is_read_anew_every_time(fresh):
    experiment, weights = fresh({"task": TASK, "model.mask": "bidirectional", "model.position": "rope"})
    with pytest.raises(
        ConfigError, match=r"^cached: the mask bidirectional of layer 0 lets row 0 see row 10, which is"
    ):
        generate(experiment, weights, PROMPT, 3, cached=True)
    found = generate(experiment, weights, PROMPT, 3)
    for place in range(3):  # a step sees what was said so far and no more
        alone = generate(experiment, weights, np.asarray(found.tokens[:, : 10 + place]), 1)
        np.testing.assert_allclose(alone.outputs[:, 0], found.outputs[:, place], rtol=0, atol=1e-4)


@pytest.mark.parametrize("mask", ["causal & neighborhood(5)", "causal & random_permutation_window(4)"])
def test_masks_that_count_rows_are_read_at_the_length_trained_alone(both, fresh, mask):
    overrides = {"task": TASK, "model.mask": mask, "model.position": "rope"}
    same(both(overrides, PROMPT, 2))
    same(both(overrides, PROMPT[:, :6], 6))
    told = r"^model\.mask: the mask .* of layer 0 counts rows: among the {} that are read it shows row \d+ other keys"
    for length in (1, 6):
        with pytest.raises(ConfigError, match=told.format(9 + length)):
            generate(*fresh(overrides), PROMPT, length)


@pytest.mark.parametrize(
    ("overrides", "prompt", "length", "how", "said"),
    [
        ({}, PROMPT, 0, {}, r"length = 0 is not allowed; allowed: a whole number from 1 to 8192\."),
        ({}, PROMPT, -1, {}, r"length = -1 is not allowed; allowed: a whole number from 1 to 8192\."),
        ({}, PROMPT[0], 1, {}, r"prompt: int64 of shape \(10,\); allowed: whole numbers \[B, P\], .*"),
        ({}, PROMPT + 14, 1, {}, r"prompt: tokens from 14 to 27; allowed: 0 to 13\."),
        ({}, PROMPT[:, :0], 1, {}, r"prompt: int64 of shape \(3, 0\); allowed: .* of a token or more\."),
        (ENCODER, PROMPT[:, :5], 1, {}, r"prompt = 5 is not allowed; allowed: at least 10 tokens, .*"),
        (ENCODER, PROMPT[:, :9], 1, {}, r"prompt = 9 is not allowed; allowed: at least 10 tokens, .*"),
        ({}, PROMPT, 1, {"temperature": 1.0}, r"key: a token at a temperature above 0 is drawn, and needs one; .*"),
        ({}, PROMPT, 1, {"temperature": -1.0}, r"temperature = -1\.0 is not allowed; .*"),
        ({}, PROMPT, 1, {"temperature": 1e-39}, r"temperature = 1e-39 .* or a number from 1e-06 to 1e\+06\."),
        ({}, PROMPT, 1, {"temperature": np.inf}, r"temperature = inf is not allowed; .*"),
        ({}, PROMPT, 1, {"temperature": "1"}, r"temperature = '1' is not allowed; .*"),
        ({}, PROMPT, 10**12, {}, r"length = 1000000000000 is not allowed; .*"),
        ({}, PROMPT, 1, {"top_k": 15}, r"top_k = 15 is not allowed; allowed: at most 14, the vocabulary\."),
        ({}, PROMPT, 1, {"topk": 1}, r"generate: unknown argument of autoregressive 'topk', did you mean 'top_k'\?.*"),
        (
            {},
            PROMPT,
            1,
            {"method": "diffusion"},
            r"method: 'diffusion' is not what .* trains; allowed: 'autoregressive'\.",
        ),
        ({}, PROMPT, 1, {"method": "difusion"}, r"method: unknown method 'difusion', did you mean 'diffusion'\?.*"),
        ({}, [[1, 2], [1]], 1, {}, r"prompt: of unequal lengths; allowed: as long as each other\."),
        (
            {},
            Batch(*[PROMPT] * 12),
            1,
            {},
            r"prompt: a whole Batch is not allowed; allowed: its inputs.*",
        ),
        ({}, PROMPT, 1, {"key": 0}, r"key: int; allowed: one key, such as jax\.random\.key\(0\)\."),
        ({}, PROMPT, 1, {"key": jax.random.split(jax.random.key(0))}, r"key: PRNGKeyArray of shape \(2,\); .*"),
        (
            {},
            PROMPT,
            2,
            {"rows_per_step": 100},
            r"length = 2 is not allowed; .* of rows_per_step = 100\.",
        ),
        ({}, PROMPT, 1, {"method": ["a"]}, r"method: unknown method \['a'\].*"),
        (
            {},
            PROMPT,
            1,
            {"valid": np.full((3, 10), 2)},
            r"valid: int64 of shape \(3, 10\); allowed: True and .*",
        ),
        (
            {},
            PROMPT,
            1,
            {"valid": [[True], [True, False]]},
            r"valid: of unequal lengths; allowed: True and .*",
        ),
        (
            {"model.architecture": "summary_token"},
            PROMPT[:, :8],
            1,
            {},
            r"prompt: with 8 tokens, of which 8 are the context, and length = 1 no row is read behind .*",
        ),
        (
            {},
            PROMPT,
            1,
            {"tokens": sequential(12, position=np.full(12, 2**40))},
            r"tokens\.position: from 1099511627776 to 1099511627776 is not allowed; allowed: 0 to 2147483647\.",
        ),
        ({}, PROMPT, 1, {"tokens": sequential(12, role=np.zeros(12))}, r"tokens\.role: float64 of shape \(12,\); .*"),
        ({}, PROMPT, 1, {"tokens": sequential(12, role=3)}, r"tokens\.role: int64 of shape \(\); .*"),
        (
            {},
            PROMPT,
            1,
            {"tokens": sequential(12, segment=np.zeros((2, 12), int))},
            r"tokens\.segment: int64 of shape \(2, 12\); allowed: whole numbers, one a row, of all .* of the 3\.",
        ),
        ({}, PROMPT, 1, {"tokens": sequential(12, valid=np.zeros(12, bool))}, r"tokens\.valid: False throughout; .*"),
        ({}, PROMPT, 1, {"tokens": 3}, r"tokens: int is not allowed; allowed: Tokens, as of run\.sample\(size\)\."),
        (
            {},
            PROMPT,
            1,
            {"tokens": sequential(12, position=np.arange(-1, 11, dtype=np.int32))},
            r"tokens\.position: from -1 to 10 is not allowed; allowed: 0 to 2147483647\.",
        ),
        ({}, PROMPT, 9, {"tokens": sequential(17)}, r"tokens: those given are 17 .*; allowed: at least 18 rows, .*"),
        (
            {"model.assignment": "randomized(64)"},
            PROMPT,
            1,
            {},
            r"tokens: randomized.* draws the positions of every .*",
        ),
    ],
    ids=str,
)
def test_refusals(fresh, overrides, prompt, length, how, said):
    experiment, weights = fresh({"task": TASK, **overrides})
    with pytest.raises(ConfigError, match=f"^{said}$"):
        generate(experiment, weights, prompt, length, **how)


@pytest.mark.parametrize(
    ("overrides", "reads", "says"),
    [
        ({"task": "facts", "model.mask": "causal"}, "4 tokens", "64 tokens"),
        (
            {"task": "in_context_regression", "objective": "squared_error", "model.inputs": "vector"},
            r"\d+ vectors",
            "1 vectors",
        ),
    ],
)
def test_outputs_must_be_tokens_that_are_inputs(fresh, monkeypatch, overrides, reads, says):
    toys.register(monkeypatch)
    experiment, weights = fresh(overrides)
    with pytest.raises(ConfigError, match=rf"^generate: the task reads {reads} and .* says {says}; allowed: one .*\.$"):
        generate(experiment, weights, np.zeros((1, 1), int), 1)


def test_the_likeliest_tokens_alone_are_drawn():
    outputs = jnp.log(jnp.array([[[0.5, 0.3, 0.15, 0.05]]]))
    keys = jax.random.split(jax.random.key(0), 2000)
    drawn = jax.vmap(lambda key: chooser(False, jnp.float32(0.5), 2)(key, outputs))(keys)
    share = np.bincount(np.asarray(drawn).ravel(), minlength=4) / 2000
    np.testing.assert_allclose(share, [0.25 / 0.34, 0.09 / 0.34, 0, 0], atol=0.04)
    assert chooser(True, jnp.float32(0.0))(keys[0], outputs) == 0
