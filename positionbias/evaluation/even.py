"""What a model's masks and biases alone make of the influence of its inputs: attention that looks at no content."""

from __future__ import annotations

import numpy as np

from positionbias.arrays import Float
from positionbias.config.build import Experiment
from positionbias.models.base import visible
from positionbias.models.decoder_only import DecoderOnly
from positionbias.operators.softmax import Softmax
from positionbias.theory import rollout

MOST = 2**22  # numbers of all paths through the heads: of 2,048 tokens one path, which takes a second


def even_influence(experiment: Experiment) -> Float[np.ndarray, "T"] | None:
    """The influence of each input on the row that answers in the first condition, by `theory.rollout.influence`.

    Each layer's weights are even over what its operator sees, but for a bias that has no parameters, which softmax
    adds; rotations and products turn with content and count for nothing, and so do decays of an operator's own. Values
    and outputs are taken as drawn at random. It is what untrained models are held against, and is known where streams
    are not added (`model.residual = "none"`) by layers of a decoder alone, and where one row answers, of tokens that
    all examples share; None elsewhere, under a bias that is not softmax's, and where heads make too many paths.
    """
    config, task = experiment.config.model, experiment.task
    first = task.conditions()[0]
    rows = np.unique(task.query_rows(first))
    known = isinstance(experiment.architecture, DecoderOnly) and config.residual == "none" and len(rows) == 1
    if not known or not experiment.shared_tokens or experiment.second_share is not None:
        return None
    if task.length(first) ** 2 > MOST:
        return None
    blueprint, context = experiment.blueprint, task.context_length(first)
    tokens = experiment.assigned(task.tokens(first), context, None).told_context(context)
    layers: list[Float[np.ndarray, "N T T"]] = []
    paths = 1
    for _, operator, mask, q, k in experiment.architecture.attentions(blueprint, tokens, context):
        position = blueprint.positions[len(layers)]
        bias = None
        if operator.uses_bias:
            if position.layer_parameters(blueprint.dims):
                return None
            bias = position.bias(q.rows(), k.columns(), config.heads, {})
            if bias is not None and not isinstance(operator, Softmax):
                return None
        allowed = np.asarray(visible(operator, mask, q, k))
        heads = 1 if bias is None and allowed.ndim == 2 else config.heads
        each = np.broadcast_to(allowed, (heads, *allowed.shape[-2:]))
        biases = [None] * heads if bias is None else np.broadcast_to(bias, each.shape)
        weights = np.stack([rollout.attention(*one) for one in zip(each, biases, strict=True)])
        layers.append(rollout.distinct(weights))
        paths *= len(layers[-1])
        if paths * task.length(first) ** 2 > MOST:
            return None
    return rollout.influence(layers, config.norm != "none")[int(rows[0])]
