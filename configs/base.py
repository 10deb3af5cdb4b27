"""Every field of a config at its default, to copy from; a config of your own names only what differs.

    python -m positionbias.train --config configs/base.py

Hardware and time: 2 CPU cores, about a minute. No number to reach: this is a list, not an experiment.
"""

from __future__ import annotations

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "name": "base",  # name of the run; letters, digits, '_', '-' and '.'
            "task": "inverse_permutation",  # the data distribution
            "objective": "next_token",  # the loss
            "seed": 0,  # seed of everything; replica r folds r into it
            # the network
            "model": {
                "architecture": "decoder_only",  # how layers are stacked
                "layers": 2,  # number of layers (of the decoder, in an encoder-decoder)
                "width": 64,  # width D of the residual stream
                "heads": 4,  # number of attention heads N
                "head_size": None,  # size H of a head; None is width / heads, which must then divide
                "mask": "causal",  # which keys a query may see
                "position": "learned",  # how order is told to the model
                "assignment": "sequential",  # which position each token is told
                "operator": "softmax",  # how values are mixed
                # learned: a token table; one_hot: tokens as unit vectors, width = vocabulary;
                # vector: a linear map of vector inputs; identity: vector inputs as they are, width
                # = their size
                "inputs": "learned",
                "residual": "add",  # how a layer's output joins the stream
                "norm": "layer",  # normalisation before every sublayer and the readout
                "mlp": True,  # whether layers have an MLP
                "mlp_width": None,  # hidden width of the MLP; None is 4 * width
                "activation": "gelu",  # nonlinearity of MLPs
                "qk": "factorised",  # factorised: W_Q and W_K; merged: one matrix a head, score x A x'
                # factorised: W_V and W_O; merged: one matrix a head; identity: mixes the stream
                # itself
                "ov": "factorised",
                "output_projection": True,  # whether factorised heads pass through W_O
                "bias": False,  # whether linear maps have a bias vector
                # linear: a matrix; tied: the token table; mlp: readout_layers hidden layers; none:
                # the stream itself
                "readout": "linear",
                "readout_layers": 3,  # hidden layers of the mlp readout, each `width` wide with ReLU
                "frozen": [],  # kinds of matrix that are not trained, among the fields of model.init
                # how each kind of matrix starts
                "init": {
                    "embedding": "normal(std=0.02)",  # token table, or the map of vector inputs
                    "position": "normal(std=0.02)",  # parameters of position schemes
                    "query": "fan_in",  # query matrices, or the merged query-key matrix
                    "key": "fan_in",  # key matrices
                    "value": "fan_in",  # value matrices, or the merged value-output matrix
                    "output": "fan_in",  # attention output projections
                    "mlp_in": "fan_in",  # first MLP matrices
                    "mlp_out": "fan_in",  # second MLP matrices
                    "readout": "fan_in",  # matrices of the readout
                },
                "init_scale": 1.0,  # factor on all that model.init starts
            },
            # how parameters are updated
            "optimizer": {
                "name": "adamw",  # the update rule
                "learning_rate": 0.001,  # peak learning rate
                "schedule": "cosine",  # the learning rate over training, as a share of its peak
                "warmup_steps": 0,  # steps of linear warm-up from zero to the peak
                "clip_norm": None,  # largest global norm of a gradient; None does not clip
                "clip_value": None,  # largest size of a gradient's entry; None does not clip
            },
            # the training loop
            "train": {
                "steps": 1000,  # optimizer steps; with 0 models are measured and kept as they are drawn
                "batch_size": 64,  # sequences a step and replica
                "replicas": 4,  # independently seeded models trained side by side
                # a grid: lists of values, of which every combination is one replica, the last list
                # fastest; learning_rate, weight_decay, warmup_steps, init_scale, an argument that the
                # task lets vary (p_bursty), seed
                "vary": {},
                "log_every": 20,  # steps between lines of metrics.jsonl
                "dtype": "float32",  # precision of activations; parameters are float32
                # sequences a gradient is computed on at once; auto: about 256 tokens on a CPU, else
                # the batch
                "microbatch": "auto",
                # loop: replicas one after another; vmap: side by side; auto: loop on a CPU, else
                # vmap
                "replica_layout": "auto",
                # the devices, which on a CPU are virtual, one a core
                "mesh": {
                    "replica": "auto",  # devices that replicas are spread over
                    # of each of these, devices that share the sequences of a batch; auto: what is left
                    "data": "auto",
                    # of each of these, devices that share it further, and keep a part of the parameters each
                    "fsdp": 1,
                },
                # steps in one compiled call; auto: the greatest that divides every cadence
                "steps_per_dispatch": "auto",
            },
            # measuring by position
            "evaluation": {
                "every": None,  # steps between evaluations; None evaluates at the start and the end only
                "items": 2048,  # fresh sequences a replica and condition
                "batch_size": 256,  # sequences evaluated at once
                # items, the first of those evaluated and at most these, for the influence; noisy below 256
                "influence_items": 256,
            },
            # what is kept of a run
            "checkpoint": {
                "every": None,  # steps between checkpoints; None saves at the end (and when stopped) only
                "keep_last": 2,  # newest checkpoints to keep
                "keep_every": None,  # keep for good every checkpoint at a multiple of this step
            },
        }
    )
