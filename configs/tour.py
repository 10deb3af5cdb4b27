"""From a behaviour to its cause: a small model that recalls, to try the analyses on; BUILD.md walks through it.

    python -m positionbias.train --config configs/tour.py --workdir runs/tour
    python -m positionbias.analyze --workdir runs/tour --analyses 'rollout, sink_mass, induction'
    python -m positionbias.analyze --workdir runs/tour --analyses 'retrieval_heads(share=0.33), knock_out'
    python -m positionbias.analyze --workdir runs/tour --analyses 'head_gating(updates=200, seeds=2), patching'
    python -m positionbias.analyze --workdir runs/tour --analyses 'edge_attribution, circuit' --items 64

The task of `configs/associative_recall/quick.py` (four pairs, one of whose keys comes again after zero to three
fillers), learned by three layers of attention, so that there are heads beside those that it needs.

Rules that were fixed before the run, after pilots with another seed and a run of four layers and four replicas with a
third, in which the second and the last rule failed: one replica retrieved in two layers, and EAP-IG's agreement was
0.027 [-0.038, 0.092] above EAP's.

    recall    mean accuracy at least 0.95
    heads     accuracy without the third of heads that retrieve the most: interval below 0.5; without as many others
              minus that: interval above 0.2
    gating    change of the log-probability of answers without the heads that gating calls facilitating: interval below
              -0.5 nats; without the irrelevant ones: mean above -0.2; without interfering ones: interval not below 0
    cause     share that patching restores by the stream at the evidence behind layer 0, and at the answer behind the
              last layer: means above 0.9
    edges     rank agreement of EAP-IG with exact effects of edges minus that of EAP: interval above 0

A fourth rule of gating was said later, as no trained head interferes here, before what it is about was looked at on
this run (that of `configs/context_or_prior/quick.py` suggested it, whose trained heads failed another):

    drawn     heads as they were drawn say what has nothing to do with the answer, some of it against what answers are:
              change of the log-probability of answers, before training, without the heads that gating calls
              interfering: interval above 0; without as many random heads: interval not above 0; their difference:
              interval above 0

Measured over eight replicas:

    recall    holds: 1.000 in all
    heads     holds: 0.293 [0.265, 0.321] without them, 0.501 [0.391, 0.611] more without as many others
    gating    holds: -3.130 [-3.433, -2.828] without the facilitating heads, -0.073 [-0.101, -0.045] without the
              irrelevant ones; none interferes, and so 0.000
    drawn     holds: 0.131 [0.089, 0.174] without interfering ones, above 0 in each of the eight, 0.010 [-0.035, 0.056]
              without as many random heads, 0.121 [0.081, 0.160] more. Without facilitating ones -0.085 [-0.156, -0.014]
    cause     holds: 0.959 [0.954, 0.963] and 1.000
    edges     fails: agreement of 0.914 [0.907, 0.921] with EAP-IG and of 0.906 [0.894, 0.918] with EAP, 0.008 [-0.008,
              0.023] more. Its errors are smaller, which no rule was about: summed over edges, they are 0.260 [0.216,
              0.304] of the exact effects with EAP-IG and 0.401 [0.394, 0.408] with EAP. Of twelve replicas of
              `configs/associative_recall/quick.py` its agreement is 0.061 [0.051, 0.070] above that of EAP
              (why: half of EAP's error is one factor that all edges share, which ranks do not see. Of two replicas,
              asked afterwards with 16 items, EAP's error is 0.40 and 0.41, and 0.22 and 0.19 with the best factor)

Hardware and time: 2 CPU cores, 2 minutes of training, 12 of analyses with other work on the machine.
Number to reach: a mean accuracy of 0.95.
"""

from __future__ import annotations

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "name": "tour",
            "seed": 2,
            "task": "associative_recall(pairs=4, keys=16, values=16, delays=4, shift=4)",
            "model": {
                "layers": 3,
                "width": 64,
                "heads": 4,
                "mask": "causal",
                "position": "rope",
                "init": {"embedding": "normal(std=0.5)"},
            },
            "optimizer": {"name": "adamw", "learning_rate": 2e-3, "schedule": "cosine", "warmup_steps": 100},
            "train": {"steps": 1000, "batch_size": 64, "replicas": 8, "log_every": 50},
            "evaluation": {"items": 4096, "influence_items": 256},
        }
    )
