"""The config that code reads: frozen dataclasses, one a group. `ml_collections.ConfigDict` is only how it is edited.

A field's metadata says what it holds: `one_spec` a spec of an axis, `each_layer` a spec or a layer pattern; `above`,
`least` and `most` bound a number; `doc` is one line for `--help`. Specs are kept as their full text, every argument
written out; `config/build.py` makes the members. Upper bounds are far above what anyone trains: a slip of the finger
is refused rather than left to exhaust time or memory.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

MOST_LAYERS = 1000
MOST_FEATURES = 2**16
MOST_DEVICES = 2**16
MOST_SEQUENCES = 2**20
MOST_STEPS = 10**9


def _field(default: Any, doc: str, **metadata: Any) -> Any:
    if default is dataclasses.MISSING:
        return dataclasses.field(metadata={"doc": doc, **metadata})
    if isinstance(default, type):
        return dataclasses.field(default_factory=default, metadata={"doc": doc, **metadata})
    return dataclasses.field(default=default, metadata={"doc": doc, **metadata})


def one_spec(axis: str, default: Any, doc: str) -> Any:
    """A field holding one spec of `axis`."""
    return _field(default, doc, axis=axis)


def each_layer(axis: str, default: Any, doc: str) -> Any:
    """A field holding one spec of `axis` for every layer, or a layer pattern."""
    return _field(default, doc, axis=axis, layers=True)


def above(low: float, default: Any, doc: str) -> Any:
    """A number (or None or 'auto', where the type allows them) that must be more than `low`."""
    return _field(default, doc, above=low)


def between(low: int, high: int, default: Any, doc: str) -> Any:
    """A number (or None or 'auto', where the type allows them) that must be at least `low` and at most `high`."""
    return _field(default, doc, least=low, most=high)


def plain(default: Any, doc: str) -> Any:
    """A field whose type says all that is allowed."""
    return _field(default, doc)


@dataclasses.dataclass(frozen=True)
class Init:
    """How each kind of matrix starts, one initializer spec a kind."""

    embedding: str = one_spec("initializers", "normal(std=0.02)", "token table, or the map of vector inputs")
    position: str = one_spec("initializers", "normal(std=0.02)", "parameters of position schemes")
    query: str = one_spec("initializers", "fan_in", "query matrices, or the merged query-key matrix")
    key: str = one_spec("initializers", "fan_in", "key matrices")
    value: str = one_spec("initializers", "fan_in", "value matrices, or the merged value-output matrix")
    output: str = one_spec("initializers", "fan_in", "attention output projections")
    mlp_in: str = one_spec("initializers", "fan_in", "first MLP matrices")
    mlp_out: str = one_spec("initializers", "fan_in", "second MLP matrices")
    readout: str = one_spec("initializers", "fan_in", "matrices of the readout")


@dataclasses.dataclass(frozen=True)
class Model:
    """The network."""

    architecture: str = one_spec("architectures", "decoder_only", "how layers are stacked")
    layers: int = between(1, MOST_LAYERS, 2, "number of layers (of the decoder, in an encoder-decoder)")
    width: int = between(1, MOST_FEATURES, 64, "width D of the residual stream")
    heads: int = between(1, 1024, 4, "number of attention heads N")
    head_size: int | None = between(
        1, MOST_FEATURES, None, "size H of a head; None is width / heads, which must then divide"
    )
    mask: str = each_layer("masks", "causal", "which keys a query may see")
    position: str = each_layer("positions", "learned", "how order is told to the model")
    assignment: str = one_spec("assignments", "sequential", "which position each token is told")
    operator: str = each_layer("operators", "softmax", "how values are mixed")
    inputs: Literal["learned", "one_hot", "vector", "identity"] = plain(
        "learned",
        "learned: a token table; one_hot: tokens as unit vectors, width = vocabulary; "
        "vector: a linear map of vector inputs; identity: vector inputs as they are, width = their size",
    )
    residual: Literal["add", "concatenate", "none"] = plain("add", "how a layer's output joins the stream")
    norm: Literal["layer", "rms", "none"] = plain("layer", "normalisation before every sublayer and the readout")
    mlp: bool = plain(True, "whether layers have an MLP")
    mlp_width: int | None = between(1, 16 * MOST_FEATURES, None, "hidden width of the MLP; None is 4 * width")
    activation: Literal["gelu", "relu"] = plain("gelu", "nonlinearity of MLPs")
    qk: Literal["factorised", "merged"] = plain(
        "factorised", "factorised: W_Q and W_K; merged: one matrix a head, score x A x'"
    )
    ov: Literal["factorised", "merged", "identity"] = plain(
        "factorised", "factorised: W_V and W_O; merged: one matrix a head; identity: mixes the stream itself"
    )
    output_projection: bool = plain(True, "whether factorised heads pass through W_O")
    bias: bool = plain(False, "whether linear maps have a bias vector")
    readout: Literal["linear", "tied", "mlp", "none"] = plain(
        "linear", "linear: a matrix; tied: the token table; mlp: readout_layers hidden layers; none: the stream itself"
    )
    readout_layers: int = between(1, MOST_LAYERS, 3, "hidden layers of the mlp readout, each `width` wide with ReLU")
    frozen: tuple[str, ...] = plain((), "kinds of matrix that are not trained, among the fields of model.init")
    init: Init = plain(Init, "how each kind of matrix starts")
    init_scale: float = above(0, 1.0, "factor on all that model.init starts")


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """How parameters are updated."""

    name: str = one_spec("optimizers", "adamw", "the update rule")
    learning_rate: float = above(0, 1e-3, "peak learning rate")
    schedule: str = one_spec("schedules", "cosine", "the learning rate over training, as a share of its peak")
    warmup_steps: int = between(0, MOST_STEPS, 0, "steps of linear warm-up from zero to the peak")
    clip_norm: float | None = above(0, None, "largest global norm of a gradient; None does not clip")
    clip_value: float | None = above(0, None, "largest size of a gradient's entry; None does not clip")


@dataclasses.dataclass(frozen=True)
class Mesh:
    """How many devices share what; all that there are, or as many of them as fit, where it is left to `auto`."""

    replica: int | Literal["auto"] = between(1, MOST_DEVICES, "auto", "devices that replicas are spread over")
    data: int | Literal["auto"] = between(
        1, MOST_DEVICES, "auto", "of each of these, devices that share the sequences of a batch; auto: what is left"
    )
    fsdp: int = between(
        1, MOST_DEVICES, 1, "of each of these, devices that share it further, and keep a part of the parameters each"
    )


@dataclasses.dataclass(frozen=True)
class Train:
    """The training loop."""

    steps: int = between(0, MOST_STEPS, 1000, "optimizer steps; with 0 models are measured and kept as they are drawn")
    batch_size: int = between(1, MOST_SEQUENCES, 64, "sequences a step and replica")
    replicas: int = between(1, 4096, 4, "independently seeded models trained side by side")
    vary: dict[str, Any] = plain(
        dict,
        "a grid: lists of values, of which every combination is one replica, the last list fastest; learning_rate,"
        " weight_decay, warmup_steps, init_scale, an argument that the task lets vary (p_bursty), seed",
    )
    log_every: int = between(1, MOST_STEPS, 20, "steps between lines of metrics.jsonl")
    dtype: Literal["float32", "bfloat16"] = plain("float32", "precision of activations; parameters are float32")
    microbatch: int | Literal["auto"] = between(
        1,
        MOST_SEQUENCES,
        "auto",
        "sequences a gradient is computed on at once; auto: about 256 tokens on a CPU, else the batch",
    )
    replica_layout: Literal["auto", "loop", "vmap"] = plain(
        "auto", "loop: replicas one after another; vmap: side by side; auto: loop on a CPU, else vmap"
    )
    mesh: Mesh = plain(Mesh, "the devices, which on a CPU are virtual, one a core")
    steps_per_dispatch: int | Literal["auto"] = between(
        1, MOST_STEPS, "auto", "steps in one compiled call; auto: the greatest that divides every cadence"
    )


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Measuring by position."""

    every: int | None = between(
        1, MOST_STEPS, None, "steps between evaluations; None evaluates at the start and the end only"
    )
    items: int = between(1, 100_000_000, 2048, "fresh sequences a replica and condition")
    batch_size: int = between(1, MOST_SEQUENCES, 256, "sequences evaluated at once")
    influence_items: int = between(
        1,
        MOST_SEQUENCES,
        256,
        "items, the first of those evaluated and at most these, for the influence; noisy below 256",
    )


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What is kept of a run."""

    every: int | None = between(
        1, MOST_STEPS, None, "steps between checkpoints; None saves at the end (and when stopped) only"
    )
    keep_last: int = between(1, MOST_STEPS, 2, "newest checkpoints to keep")
    keep_every: int | None = between(1, MOST_STEPS, None, "keep for good every checkpoint at a multiple of this step")


@dataclasses.dataclass(frozen=True)
class Config:
    """One run."""

    name: str = plain(dataclasses.MISSING, "name of the run; letters, digits, '_', '-' and '.'")
    task: str = one_spec("tasks", dataclasses.MISSING, "the data distribution")
    objective: str = one_spec("objectives", "next_token", "the loss")
    seed: int = between(0, 2**31 - 1, 0, "seed of everything; replica r folds r into it")
    model: Model = plain(Model, "the network")
    optimizer: Optimizer = plain(Optimizer, "how parameters are updated")
    train: Train = plain(Train, "the training loop")
    evaluation: Evaluation = plain(Evaluation, "measuring by position")
    checkpoint: Checkpoint = plain(Checkpoint, "what is kept of a run")


def to_dict(config: Any) -> dict[str, Any]:
    """Nested plain dict of a config or group, JSON-ready, in declared order."""
    return {f.name: _plain(getattr(config, f.name)) for f in dataclasses.fields(config)}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return value
