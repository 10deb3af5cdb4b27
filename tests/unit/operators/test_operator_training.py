"""Every operator in a model, alone and before a layer of softmax: what it makes of a loss and of its parameters."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from positionbias import compatibility, spec
from positionbias.config.build import build
from positionbias.models.sites import Sites

# Those whose defaults are too large for the model here, or that have none.
TOLD = {
    "multimodal_softmax": "multimodal_softmax(image=1)",
    "lookahead": "lookahead(most=2)",
    "orthogonal_memory": "orthogonal_memory(slots=3, window=2)",
    "associative_memory": "associative_memory(slots=5)",
    "chunk_hybrid": "chunk_hybrid(chunk=3)",
    "gated_linear_attention": "gated_linear_attention(slowness=2.0)",
    "softmax_plus_one": "softmax_plus_one(learned=True)",
    "power": "power(window=2)",
    "neighborhood": "neighborhood(width=3, causal=True)",
    "stochastic": "stochastic(width=3)",
    "gated_stochastic": "gated_stochastic(width=3)",
    "routing": "routing(region=2, top=2)",
    "superlinear": "superlinear(inside=1)",
    "combiner": "combiner(form='axial', span=3)",
    "hyper_attention": "hyper_attention(block=2, samples=2, exact=2)",
    "reversed": "reversed(selector=True, gate=True)",
    "varied_window": "varied_window(width=3)",
    "titans": "titans(chunk=3, window=2)",
}
MASKS = {
    "prefix_linear_attention": "context_bidirectional",
    "lookahead": "bidirectional",
    "reversed": "bidirectional",
    "varied_window": "bidirectional",
}
UNREAD = {"attention_free": ("query", "key")}


@functools.lru_cache(maxsize=2)
def drawn(task):
    """A batch."""
    return jax.device_get(jax.jit(lambda key: task.batch(key, task.conditions()[0], 4))(jax.random.key(1)))


def gradients(config):
    """The loss of a batch of a new model, and its gradients by name."""
    experiment = build(config)
    experiment.drivers(4, "cpu")  # which a run tells before it trains
    batch = drawn(experiment.task)
    context = experiment.task.context_length(experiment.task.conditions()[0])

    def sloped(key):
        graph, params, rest = nnx.split(experiment.initialise(key), nnx.Param, ...)

        def loss(params):
            outputs = nnx.merge(graph, params, rest)(batch.inputs, batch.tokens, context, Sites())
            chosen = jnp.take_along_axis(jax.nn.log_softmax(outputs), batch.targets[..., None], axis=-1)
            return -jnp.mean(chosen * batch.weights[..., None])

        return jax.value_and_grad(loss)(params)

    found, slopes = jax.jit(sloped)(jax.random.key(0))
    return found, {"/".join(map(str, path)): np.asarray(x.get_value()) for path, x in nnx.to_flat_state(slopes)}


def check_crossing(config):
    """Every parameter of cross attention matters to the loss."""
    found, slopes = gradients(config)
    assert np.isfinite(found)
    crossing = {path: slope for path, slope in slopes.items() if "/cross/" in path}
    assert len(crossing) >= 4
    for path, slope in crossing.items():
        assert np.isfinite(slope).all(), path
        assert np.abs(slope).max() > 0, path


NAMES = spec.names("operators")
# What learns before a layer of softmax has all that learns alone has, but that it is the last.
ALONE = [
    pytest.param(name, "alone", marks=[] if i % 4 == 0 or name in UNREAD else pytest.mark.slow)
    for i, name in enumerate(NAMES)
]


@pytest.mark.parametrize(("name", "layers"), [*((name, "hybrid") for name in NAMES), *ALONE])
def test_it_learns_in_a_model(name, layers, tiny):
    text = TOLD.get(name, name)
    operator = text if layers == "alone" else f"[{text}, softmax]"
    overrides = {"model.operator": operator, "model.layers": 1 if layers == "alone" else 2, "model.mlp": False}
    overrides["task"] = "inverse_permutation(n=6, alphabet=4)"
    overrides["model.mask"] = mask = MASKS.get(name, "causal")
    if mask == "bidirectional":
        overrides["objective"] = "masked_denoising"
    found, slopes = gradients(tiny(overrides))
    assert np.isfinite(found)
    for path, slope in slopes.items():
        assert np.isfinite(slope).all(), path
        unread = "blocks/0" in path and any(f"/{one}/" in path for one in UNREAD.get(name, ()))
        assert (np.abs(slope).max() > 0) != unread, f"{path} matters to the loss otherwise than it should"


ARCHITECTURES = [name for name in spec.names("architectures") if name != "decoder_only"]
# One architecture an operator, by turns, is asked by default.
PAIRS = [
    pytest.param(name, other, marks=[] if i % len(ARCHITECTURES) == j else pytest.mark.slow)
    for i, name in enumerate(NAMES)
    for j, other in enumerate(ARCHITECTURES)
]


@pytest.mark.parametrize(("name", "architecture"), PAIRS)
def test_it_learns_in_each_architecture_that_takes_it(name, architecture):
    """Or is refused with a reason: what the table of both says of the pair."""
    told = compatibility.told("operators", name, "architectures", architecture)
    if told.refusal is not None:
        assert "; allowed: " in told.refusal
        return
    found, slopes = gradients(compatibility.pair("operators", name, "architectures", architecture, told.mask)[0])
    assert np.isfinite(found)
    for path, slope in slopes.items():
        assert np.isfinite(slope).all(), path
    layers = {found[0] for path in slopes if (found := re.match(r".*?/(attention|cross)/", path))}
    assert layers or name == "fourier"  # which has no parameters
    for layer in layers:
        own = [np.abs(slope).max() for path, slope in slopes.items() if path.startswith(layer)]
        # An image asks there, which sees itself alone.
        alone = (name, architecture) == ("multimodal_softmax", "encoder_decoder")
        unseen = alone and (layer.startswith("encoder/") or "/cross/" in layer)
        assert (max(own) > 0) != unseen, f"the attention of {layer} matters to the loss otherwise than it should"
    assert any(np.abs(slope).max() > 0 for slope in slopes.values())
