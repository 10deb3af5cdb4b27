"""The atlas: what the last output of untrained softmax attention depends on, for every mask of order and every scheme.

    python -m positionbias.sweep --config configs/signature/atlas.py --sweep mask,position
    python -m positionbias.sweep --config configs/signature/atlas.py --sweep mask --config.model.operator=attention_free
    python -m positionbias.study --name at_initialisation        # what its claims need of it
    python scripts/signatures.py SWEEP_FOLDER atlas              # draws docs/atlas.png and keeps its numbers

Four layers that are nothing but attention (no residual, no MLP) read 16 pairs and a key, 33 tokens in all, and are not
trained. Eleven masks are all that order alone tells, at one size each; schemes are all that are registered. Beside each
curve stands what even attention makes of the mask, and of a bias that has no parameters (`theory.rollout.influence`;
the product of Wu et al. 2025, arXiv 2502.01951, section 4, in squares): rotations and what is added to embeddings
count for nothing there, and of t5_bias, fire and learned_relative theory says nothing, as what they add is drawn.

Measured over eight replicas, without a scheme: primacy beside that of even attention, in shares, and how far the two
curves are apart, in total variation, 0 if alike and 1 if nowhere the same. Beside it the same of `attention_free`,
whose weights are even: what theory gets wrong is that scores, as they are drawn, are not.

    mask            primacy                   even attention   apart   attention_free
    bidirectional   -0.01 [-0.03, 0.01]        0.00            0.01    0.01
    context         -0.01 [-0.03, 0.01]        0.00            0.01    0.01
    prefix           4.02 [ 4.01, 4.02]        4.08            0.02    0.01
    neighborhood    -0.17 [-0.18, -0.16]      -0.12            0.05    0.01
    causal           3.94 [ 3.93, 3.95]        4.06            0.06    0.01
    sinks            0.44 [ 0.36, 0.53]        0.85            0.12    0.02
    window          -2.22 [-2.24, -2.19]      -2.72            0.13    0.01
    dilated         -0.31 [-0.40, -0.22]       0.34            0.14    0.00
    stochastic       3.09 [ 3.06, 3.12]        3.69            0.15    0.01
    power            0.02 [-0.02, 0.07]        0.42            0.18    0.01
    random           2.54 [ 2.50, 2.59]        3.57            0.22    0.01

Said before it was run was a primacy within 0.3 of theory for each of them. Five meet that, and six do not: those in
which few keys are seen, and the ends of what can be reached are reached by few paths, over which nothing averages out.

Of schemes those that rotate, and biases that are drawn (fire, learned_relative, t5_bias), change the curve of no mask
by more than 0.03 apart; `learned` does by 0.02 to 0.06 and `one_hot` by 0.03 to 0.09; sinusoids, which make neighbours
alike and scores uneven, by 0.04 to 0.52. Decay and ALiBi move the mass to the end, by 0.19 to 0.90 and 0.04 to 0.29, as
theory tells: what it says of them is 0.03 to 0.17 and 0.01 to 0.16 from what is measured.

Hardware and time: 2 CPU cores, about 25 minutes for 154 cells, nearly all of it compilation. Numbers to reach: with
`attention_free` a curve within 0.02 of theory for each mask.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from positionbias import spec

# Every mask that order alone tells; others read frames, scales, segments, roles or what an objective hides.
MASKS = {
    "bidirectional": "bidirectional",
    "causal": "causal",
    "context": "context_bidirectional",
    "prefix": "prefix(8)",
    "window": "causal & sliding_window(8)",
    "sinks": "causal & window_with_sinks(8, sinks=1)",
    "dilated": "causal & dilated_window(4, dilation=4)",
    "power": "causal & power_of_two(window=2)",
    "random": "causal & random_graph(0.25)",
    "stochastic": "causal & random_permutation_window(8)",
    "neighborhood": "neighborhood(9)",
}


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "name": "signature_atlas",
            "task": "associative_recall(pairs=16, keys=64, values=64, delays=1, shift=0)",
            "model": {
                "layers": 4,
                "width": 64,
                "heads": 4,
                "mask": "causal",
                "position": "none",
                "residual": "none",
                "mlp": False,
            },
            "train": {"steps": 0, "replicas": 8},
            "evaluation": {"items": 256, "influence_items": 256},
        }
    )


def sweep_mask(add: Callable[..., Any]) -> None:
    for name, mask in MASKS.items():
        add({"model.mask": mask}, name=name)


def sweep_position(add: Callable[..., Any]) -> None:
    for name in spec.names("positions"):
        add({"model.position": name}, name=name)
