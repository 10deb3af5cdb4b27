"""Recall against the numbers that are kept: twelve operators, and a window, at four sizes of state each.

    python -m positionbias.sweep --config configs/recall/operators.py
    python -m positionbias.sweep --config configs/recall/operators.py --sweep every
    python -m positionbias.sweep --config configs/recall/operators.py --sweep recipes

Eight pairs of 32 keys and 32 values, then every key again, at slots and delays (0 to 47) that are independent and even.
Layer 0 is a gated convolution of 3 tokens, layer 1 the operator; no MLPs, no positions: what is kept of the pairs is
what the operator keeps. Sizes are of heads, 4 to 32 (two of them), but for "window" (8 to 48 tokens), "gated_slot" (4
to 32 slots) and "based" (4 to 16 features), whose heads have 16. A stopped sweep goes on from its last finished cell
when the command is given again, and its report has the figure, accuracy over the numbers kept, of what is there.

Rules that were fixed before the run, after a pilot with another seed:

    bought    accuracy at the largest size minus that at the smallest: interval above 0, for all but softmax
    enough    mean at the largest size at least 0.95, for all but window
    scarce    mean at the smallest size below 0.5, for all but softmax and window
    window    mean within 0.02 of the ceiling, at every size
    rule      delta minus linear_attention at heads of 8: interval above 0 (the delta rule makes more of a state)
    place     tilt by slot (first quarter minus last) at heads of 8: of retention, whose state decays, interval below 0

Measured, mean of four replicas at the four sizes, with the numbers that all layers keep (commit 2103e60; by slot and by
delay too, and with intervals, in docs/recall.json and docs/recall.png, which `python scripts/recall.py FOLDER` makes):

    softmax                 0.990 1.000 1.000 1.000   1,136 to 8,192
    linear_attention        0.478 0.875 0.993 1.000     168 to 2,240
    retention               0.393 0.849 0.987 0.995     160 to 2,176
    gated_linear_attention  0.288 0.754 0.982 0.996     160 to 2,176
    mamba2                  0.119 0.445 0.979 1.000     232 to 2,752
    lightnet                0.504 0.967 1.000 1.000     168 to 2,240
    hla2                    0.301 0.696 0.947 0.991     192 to 4,224
    delta                   0.194 0.917 0.998 1.000     232 to 2,752
    gated_delta             0.061 0.254 0.969 0.999     232 to 2,752; 0.254 is [-0.160, 0.668], two replicas learn some
    titans                  0.186 0.882 0.994 1.000     296 to 6,848
    window                  0.049 0.186 0.515 0.838     576 to 3,136; ceilings 0.094 0.229 0.553 0.878
    gated_slot              0.549 0.741 0.844 0.994     384 to 2,176
    based                   0.992 1.000 1.000 1.000   1,285 to 5,977

    bought    holds: 0.008 [0.001, 0.016] based, 0.444 [0.293, 0.596] gated_slot, up to 0.937 [0.880, 0.994] gated_delta
    enough    holds: 0.991 [0.989, 0.993] hla2 at least
    scarce    fails for gated_slot, whose four slots hold 0.549, for based, whose four features make 21 numbers a value
              channel, and by a hair for lightnet, 0.504
    window    fails: 0.04 below, as what layer 0 carries to two tokens behind a value is not used; at 8 tokens, where
              few answers are within reach, 0.3 to 0.5 of those were learned in 1,000 steps
    rule      fails: 0.041 [-0.063, 0.145]; at heads of 4 the delta rule, 0.194, is below linear_attention, 0.478
    place     holds: -0.140 [-0.200, -0.080] retention; hla2 -0.391 [-0.492, -0.289], gated_slot -0.102 [-0.140,
              -0.064], delta -0.077 [-0.151, -0.003] and gated_linear_attention -0.022 [-0.031, -0.012]

A run before had all of these but lightnet, which was added under the same rules, and the same verdicts.

"every" asks every registered operator, with heads of 32, so that states are large enough, for what it declares to see.
Windows and blocks are shorter than the 64 tokens, so that some values lie within reach and some beyond: the ceiling is
what an ideal observer of what both layers see would score, 1 for values within reach and a guess for the others. It is
made of what operators declare, not of what they were found to do. Rules that were fixed before its run, one recipe for
all:

    reach     mean within 0.05 of the ceiling, and so at least 0.95 for what sees all, for all but the blind
    near      at distances whose ceiling is above 0.95, mean at least 0.95, for all but the blind: short_convolution and
              associative_memory see 5 tokens in all, so that the rule above says nothing of them
    blind     attention_free, fourier and md_tpe, whose weights read no content: mean at most the order-free baseline +
              0.05

Measured, mean of four replicas:

    reach     holds for 28 of 39, with 0.97 and more where all is seen. Still learning after 1,000 steps: superlinear
              0.924, combiner 0.582, and routing 0.596 and ahla 0.574, of which one replica each has 0.98. At the
              order-free baseline, a value of the sequence but not the key's: hla3 0.206 and lawcat 0.205. Below their
              ceilings in brackets: stochastic 0.474 (0.694), gated_stochastic 0.472 (0.743) and power 0.120 (0.218),
              of which power has 0.96 and more at the distances of its own mask, and nothing where only what layer 0
              carried on is in it. At chance: orthogonal_memory 0.037, whose memory of what lies behind its window is a
              mean, and varied_window 0.032, whose windows begin apart and cannot tell where they are
    near      fails for the same, gated_stochastic with 0.929, and for short_convolution 0.119, associative_memory 0.109
              and shared_prompt 0.827; holds for all others, neighborhood with 0.962
    blind     holds: 0.205, 0.039 and 0.183, against 0.206

"recipes" asks those again that were short of a rule there, of what suits what they declare: each under the first recipe
that pilots with another seed found, but for varied_window and lawcat, which were given eight heads after a first run
with two, at 0.824 [0.265, 1.383], one replica of four at 0.30, and at 0.932 [0.848, 1.017]. Rules that were fixed
before its run: reach and near as above, and

    beyond    at the other distances together, mean within 0.05 of the ceiling: what is not seen is guessed, not found

Measured, mean of four replicas and interval, the ceiling, and the mean of near:

    ahla                0.999 [0.998, 1.000] of 1.000, near 0.999
    associative_memory  0.816 [0.798, 0.834] of 0.817, near 1.000
    combiner            1.000 [1.000, 1.000] of 1.000, near 1.000
    gated_stochastic    0.469 [0.463, 0.476] of 0.469, near 1.000
    hla3                0.990 [0.963, 1.016] of 1.000, near 0.988
    lawcat              1.000 [0.999, 1.000] of 1.000, near 1.000
    orthogonal_memory   0.990 [0.961, 1.019] of 1.000, near 0.990
    power               0.252 [0.241, 0.264] of 0.252, near 0.997
    routing             0.982 [0.958, 1.007] of 1.000, near 0.982
    shared_prompt       0.563 [0.557, 0.570] of 0.562, near 1.000
    short_convolution   0.780 [0.757, 0.803] of 0.787, near 1.000
    stochastic          0.375 [0.368, 0.381] of 0.373, near 1.000
    superlinear         0.993 [0.990, 0.996] of 1.000, near 0.989
    varied_window       1.000 [0.999, 1.000] of 1.000, near 1.000

    reach     holds for all fourteen, the widest gap 0.018, of routing
    near      holds for all, 0.982 of routing at least
    beyond    holds, within 0.013, for the six that do not see all

What had been in the way:

    ahla, hla3    products of three and four queries and keys that begin at random. They begin as the same features,
                  with "identity": hla3 without stays at 0.209 in a pilot of 1,000 steps, and has 0.644 with
    combiner      a summary is the same for all that read it, so that a head cannot choose among the pairs of a span:
                  spans are of one pair
    lawcat        a softmax of small features is even, and so is what is recalled: queries and keys begin four times as
                  large, with twice the features, and decays are sixteen times as slow. Heads matter most: with two, of
                  eight pairs, pilots reached 0.551 and less
    orthogonal_memory
                  one number a direction is left behind its window: 4 keys with 4 values, in 128 directions
    routing       its causal form chooses what a region sees by the queries before it, without gradient: of regions of
                  16, three of four seen, the last never chose the one with the pairs in pilots. Regions are of two
                  tokens and choose 6 of 12 by their own queries, and no row asks nothing
    short_convolution, associative_memory
                  one answer in a hundred was in reach. Of two pairs and four rows half do; a second convolution that is
                  not gated has no products of what the first made, so that it is
    shared_prompt what asks is in segment 0, its prompt, and pairs are not: what is seen of them the convolution
                  carries, here of 5 tokens, two of four pairs. MLPs choose, as attention has one row to read
    stochastic, gated_stochastic, power
                  an ideal observer knows positions, and so whose a value is that the convolution carried on without its
                  key. With "segments" in layer 0 every row holds its own pair alone. Blocks of 4 are for more in reach
    superlinear   rows from 53 on, where it was short after 1,000 steps: there are 48
    varied_window where a window is to lie its contents do not tell: positions are learned, and 32 tokens are in windows
                  of 8, one of which holds all pairs. Of 64 tokens in windows of 16 a pilot stayed at chance

Hardware and time: 2 CPU cores, 52 cells in 160 minutes on one of them with other work, 45 s to 2 minutes each without;
"every" 42 cells in 95 minutes on one of them, with other work on the other; "recipes" 14 cells in 45 minutes on half
of one.
Numbers to reach: 0.95 at the largest size of all but window, and the other rules above that held.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from positionbias import spec

HEAD_SIZES = (4, 8, 16, 32)
BY_HEAD_SIZE = (
    "softmax",
    "linear_attention",
    "retention",
    "gated_linear_attention",
    "mamba2",
    "lightnet",
    "hla2",
    "delta",
    "gated_delta",
    "titans(window=1)",
)

# Arguments of operators that cannot do without, or whose defaults would reach all 64 tokens.
ARGUMENTS = {
    "based": "window=8",
    "chunk_hybrid": "chunk=8",
    "gated_slot": "slots=32",
    "gated_stochastic": "width=16, window=16",
    "hyper_attention": "block=8, samples=8, exact=16",
    "lookahead": "most=2",
    "multimodal_softmax": "image=1",  # role 1 are the keys
    "neighborhood": "width=32, causal=True",
    "orthogonal_memory": "window=8",
    "power": "window=8",
    "stochastic": "width=16",
    "titans": "window=8",
}
MASKS = {
    "prefix_linear_attention": "context_bidirectional",  # it reads the whole context whatever it is asked
    "reversed": "bidirectional",  # none of causal attention, nor is the next; answers are not among the inputs
    "varied_window": "bidirectional",
}


def layers(operator: str) -> str:
    """The convolution that every model has, and the operator behind it."""
    return f"[short_convolution(width=3, gated=True), {operator}]"


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "name": "recall_operators",
            "task": "associative_recall(pairs=8, keys=32, values=32, queries=8, delays=48, shift=0)",
            "model": {
                "layers": 2,
                "width": 64,
                "heads": 2,
                "head_size": 16,
                "mask": "causal",
                "position": "none",
                "operator": layers("softmax"),
                "mlp": False,
                "init": {"embedding": "normal(std=0.5)"},
            },
            "optimizer": {"name": "adamw", "learning_rate": 5e-3, "schedule": "cosine", "warmup_steps": 100},
            "train": {"steps": 1000, "batch_size": 64, "replicas": 4, "log_every": 100},
            "evaluation": {"items": 1024},
        }
    )


def sweep(add: Callable[..., Any]) -> None:
    for operator in BY_HEAD_SIZE:
        curve = operator.partition("(")[0]
        for size in HEAD_SIZES:
            settings = {"model.operator": layers(operator), "model.head_size": size}
            add(settings, name=f"{curve}-{size}", curve=curve)
    for width in (8, 16, 32, 48):
        add({"model.mask": f"[causal, causal & sliding_window({width})]"}, name=f"window-{width}", curve="window")
    for slots in (4, 8, 16, 32):
        operator = layers(f"gated_slot(slots={slots})")
        add({"model.operator": operator}, name=f"gated_slot-{slots}", curve="gated_slot")
    for features in (4, 8, 12, 16):
        operator = layers(f"based(features={features}, window=8)")
        add({"model.operator": operator}, name=f"based-{features}", curve="based")


def sweep_every(add: Callable[..., Any]) -> None:
    for name in spec.names("operators"):
        operator = layers(f"{name}({ARGUMENTS.get(name, '')})")
        settings = {"model.operator": operator, "model.mask": MASKS.get(name, "causal"), "model.head_size": 32}
        add(settings, name=name)


BY_PAIR = {"model.mask": "[causal & segments, causal]"}  # a row of the convolution reads of its own pair alone
LIKENED = {"model.init.query": "identity", "model.init.key": "identity"}  # a score is of equal features from the start
SHORTER = "associative_recall(pairs=8, keys=32, values=32, queries=8, delays=16, shift=0)"
TWO_PAIRS = "associative_recall(pairs=2, keys={0}, values={0}, queries={1}, delays={2}, shift=0)"
WIDE = {"model.width": 128, "train.steps": 2000, "optimizer.learning_rate": 1e-2}

# Settings by operator, beside those of the config.
RECIPES: dict[str, dict[str, Any]] = {
    "ahla": {"task": SHORTER, "train.steps": 2500, **LIKENED},
    "associative_memory": {"task": TWO_PAIRS.format(4, 1, 4), **WIDE},
    "combiner": {"model.operator": layers("combiner(span=2)")},
    "gated_stochastic": {"model.operator": layers("gated_stochastic(width=16, window=16)"), **BY_PAIR},
    "hla3": {"task": SHORTER, "train.steps": 3000, **LIKENED},
    "lawcat": {
        "model.operator": layers("lawcat(features=64, slowness=256.0)"),
        "model.init.query": "fan_in(scale=4.0)",
        "model.init.key": "fan_in(scale=4.0)",
        "task": "associative_recall(pairs=4, keys=16, values=16, queries=4, delays=8, shift=0)",
        "model.heads": 8,
        "train.steps": 400,
    },
    "orthogonal_memory": {
        "model.operator": layers("orthogonal_memory(slots=32, window=2)"),
        "model.heads": 4,
        "task": TWO_PAIRS.format(4, 2, 8),
    },
    "power": {"model.operator": layers("power(block=4)"), **BY_PAIR},
    "routing": {
        "model.operator": layers("routing(region=2, top=6, causal=False)"),
        "model.mask": "bidirectional",
        "task": "associative_recall(pairs=8, keys=32, values=32, queries=8, delays=8, shift=0)",
        "train.steps": 2000,
        **LIKENED,
    },
    "shared_prompt": {
        "model.operator": "[short_convolution(width=5, gated=True), shared_prompt]",
        "model.mlp": True,
        "task": "associative_recall(pairs=4, keys=8, values=8, queries=4, delays=4, shift=0)",
    },
    "short_convolution": {
        "model.operator": layers("short_convolution(width=3, gated=True)"),
        "task": TWO_PAIRS.format(8, 1, 4),
        **WIDE,
    },
    "stochastic": {"model.operator": layers("stochastic(width=16)"), **BY_PAIR},
    "superlinear": {"task": "associative_recall(pairs=8, keys=32, values=32, queries=8, delays=32, shift=0)"},
    "varied_window": {
        "model.operator": layers("varied_window(width=8)"),
        "model.mask": "bidirectional",
        "model.position": "learned",
        "model.heads": 8,
        "task": "associative_recall(pairs=4, keys=16, values=16, queries=4, delays=24, shift=0)",
    },
}


def sweep_recipes(add: Callable[..., Any]) -> None:
    for name, settings in RECIPES.items():
        add({"model.operator": layers(name), "model.head_size": 32, **settings}, name=name)
