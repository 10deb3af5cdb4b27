"""Two softmaxes of modalities, and learned look-ahead, against their formulas by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from toys import Reads

from positionbias import spec
from positionbias.config.build import build
from positionbias.models.sites import Sites
from positionbias.operators.lookahead import Lookahead
from positionbias.operators.multimodal_softmax import MultimodalSoftmax
from positionbias.positions.base import Dims, Placed
from positionbias.replicas import Layout
from positionbias.spec import ConfigError
from positionbias.tokens import sequential
from positionbias.training.auto import Auto
from positionbias.training.program import Program

NONE, CAUSAL, ALL = (
    spec.build(*x, "test") for x in (("positions", "none"), ("masks", "causal"), ("masks", "bidirectional"))
)
IMAGE = 1


def pattern(operator, tokens, mask, params=None, seed=0, scale=1.0, site=None):
    q, k, v = (scale * jax.random.normal(jax.random.key(seed + i), (1, tokens.length, 2, 4)) for i in range(3))
    kept = {}
    operator(q, k, v, tokens, tokens, mask, Placed(NONE), params or {}, Reads(lambda n, x: kept.setdefault(n, x)))
    scores = np.einsum("BTNH,BSNH->BNTS", q, k) / 2
    return {**{n: np.asarray(x) for n, x in kept.items()}, "by hand": scores, "q": np.asarray(q)}


def test_text_has_a_softmax_over_images_and_one_over_text():
    role = np.array([0, 1, 1, 0, 1, 0])
    tokens = sequential(6, role=role)
    found = pattern(MultimodalSoftmax(IMAGE), tokens, CAUSAL)
    for i in range(6):
        wanted = np.zeros((2, 6))
        groups = [[i]] if role[i] == IMAGE else [[j for j in range(i + 1) if role[j] == r] for r in (0, 1)]
        for group in groups:
            for head in range(2):
                shares = np.exp(found["by hand"][0, head, i, group])
                wanted[head, group] = shares / shares.sum() if group else 0
        np.testing.assert_allclose(found["pattern"][0, :, i], wanted, atol=1e-5)


@pytest.mark.parametrize("images", [1, 8, 64])
def test_text_keeps_half_of_the_weight_however_many_images_there_are(images):
    tokens = sequential(images + 3, role=np.array([IMAGE] * images + [0] * 3))
    shared = pattern(MultimodalSoftmax(IMAGE), tokens, CAUSAL, scale=0.1)["pattern"][0, :, -1]
    np.testing.assert_allclose(shared.sum(axis=-1), 2, rtol=1e-5)
    np.testing.assert_allclose(shared[:, images:].sum(axis=-1), 1, rtol=1e-5)
    alone = pattern(spec.build("operators", "softmax", "test"), tokens, CAUSAL, scale=0.1)["pattern"][0, :, -1]
    np.testing.assert_allclose(alone[:, images:].sum(axis=-1), 3 / (images + 3), rtol=0.05)


def params(operator, seed=0, offset=0.0):
    dims = Dims(width=8, heads=2, head_size=4, length=6)
    made = {n: jax.random.normal(jax.random.key(seed), m.shape) for n, m in operator.parameters(dims).items()}
    return {**made, "offset": jnp.full(1, offset)}


def test_looking_ahead_is_gated_by_how_far_each_query_asks():
    operator = Lookahead(most=3, softness=0.7)
    own = params(operator)
    found = pattern(operator, sequential(6), ALL, own)
    asked = found["q"].reshape(6, 8) @ np.asarray(own["direction"]) / np.sqrt(8)
    ahead = 3 / (1 + np.exp(-asked))
    np.testing.assert_allclose(found["lookahead"][0], ahead, rtol=1e-5)
    for i in range(6):
        weight = np.exp(found["by hand"][0, :, i])
        for j in range(i + 1, 6):
            gate = 1 / (1 + np.exp(-(ahead[i] - (j - i)) / 0.7)) if j - i <= 3 else 0.0
            weight[:, j] *= gate
        np.testing.assert_allclose(found["pattern"][0, :, i], weight / weight.sum(axis=-1, keepdims=True), atol=1e-5)


@pytest.mark.parametrize(("offset", "mask"), [(-1e4, "causal"), (1e4, "causal | sliding_window(4)")])
def test_at_its_ends_it_is_a_mask(offset, mask):
    tokens = sequential(8)
    found = pattern(Lookahead(most=3, softness=0.01), tokens, ALL, params(Lookahead(most=3), offset=offset))["pattern"]
    softmax = spec.build("operators", "softmax", "test")
    wanted = pattern(softmax, tokens, spec.build("masks", mask, "mask"))["pattern"]
    np.testing.assert_allclose(found, wanted, atol=2e-1 if offset > 0 else 1e-5)
    np.testing.assert_array_equal(found[0, 0] > 1e-9, wanted[0, 0] > 0)


def test_the_price_is_paid_in_the_loss(tiny):
    """The loss grows by price times the mean width of every layer, whole or in pieces."""
    losses = {}
    for price in (0.0, 0.25):
        for microbatch in (8, 2):
            config = tiny(
                {
                    "model.operator": f"lookahead(most=2, price={price})",
                    "model.mask": "bidirectional",
                    "model.layers": 2,
                }
            )
            program = Program(build(config), Auto(Layout("loop"), microbatch, 1))
            state = jax.tree.map(lambda x: x[0], jax.jit(jax.vmap(program.fresh))(program.replicas()))
            _, metrics = jax.jit(lambda s, p=program: p._gradient(s, jax.random.key(0), ()))(state)
            losses[price, microbatch] = float(metrics["loss"])
    experiment = build(config)
    condition = experiment.task.conditions()[0]
    batch = jax.jit(lambda key: experiment.trained(key, experiment.task.batch(key, condition, 8)))(jax.random.key(0))
    model = nnx.merge(nnx.graphdef(experiment.abstract), state["params"], state["frozen"])
    sites = Sites(record=["*.lookahead"])
    model(batch.inputs, batch.tokens, 0, sites)
    ahead = sum(float(np.mean(x)) for x in sites.recorded.values())
    assert losses[0.0, 8] == pytest.approx(losses[0.0, 2], rel=1e-5)
    assert losses[0.25, 8] == pytest.approx(losses[0.25, 2], rel=1e-5)
    assert losses[0.25, 8] - losses[0.0, 8] == pytest.approx(0.25 * ahead, rel=1e-4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("multimodal_softmax(-1)", "image = -1 is not allowed; allowed: a role, a whole number from 0."),
        ("lookahead(0)", "most = 0 is not allowed; allowed: a whole number from 1."),
        ("lookahead(2, softness=0)", "softness = 0.0 is not allowed; allowed: a number from 1e-6 to 1e6."),
        ("lookahead(2, price=-1)", "price = -1.0 is not allowed; allowed: a number from 0 to 1e6."),
    ],
)
def test_bad_arguments(text, message):
    with pytest.raises(ConfigError) as error:
        spec.build("operators", text, "operator")
    assert str(error.value) == f"operator: {message}"


def test_what_lookahead_may_see_can_leak(tiny):
    task = {"task": "reversal(pairs=4, both=2)", "model.mask": "bidirectional", "model.operator": "lookahead(most=1)"}
    with pytest.raises(ConfigError, match="lets row 1 depend on input 2"):
        build(tiny(task))
