"""Every operator in a model, alone and before a layer of softmax: what it makes of a loss and of its parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from positionbias import spec
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


def gradients(config):
    """The loss of a batch, and its gradients by name."""
    experiment = build(config)
    model = jax.jit(experiment.initialise)(jax.random.key(0))
    condition = experiment.task.conditions()[0]
    batch = experiment.task.batch(jax.random.key(1), condition, 4)
    context = experiment.task.context_length(condition)
    graph, params, rest = nnx.split(model, nnx.Param, ...)

    def loss(params):
        outputs = nnx.merge(graph, params, rest)(batch.inputs, batch.tokens, context, Sites())
        chosen = jnp.take_along_axis(jax.nn.log_softmax(outputs), batch.targets[..., None], axis=-1)
        return -jnp.mean(chosen * batch.weights[..., None])

    found, slopes = jax.jit(jax.value_and_grad(loss))(params)
    return found, {"/".join(map(str, path)): x.get_value() for path, x in nnx.to_flat_state(slopes)}


@pytest.mark.parametrize("layers", ["alone", "hybrid"])
@pytest.mark.parametrize("name", spec.names("operators"))
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
