"""The parts of a model as a graph, and runs in which some edges carry what they carry in another run.

The stream is a sum: of the embedding, with its positions, and of what every head and MLP before adds to it. These are
senders. Readers are the queries, the keys and the values of every head, each by itself, every MLP, and the output, the
last norm with the readout; an edge is a sender and a reader behind it. An operator that makes something of the stream
beside queries, keys and values (gates) is one reader more in its layer, "gate"; one on the stream itself, without
heads, is one sender and one reader. As every reader takes the sum into a norm of its own, an edge changes exactly one
term of what it reads, in all rows; biases of outputs are the same in all runs, and no edge.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from positionbias.analysis.base import STREAM, Analysis, Labels, Subject, last_outputs, right_answer
from positionbias.analysis.pairs import check_pairs
from positionbias.arrays import Bool, Float, Int
from positionbias.models.edits import Edit
from positionbias.operators.base import Operator
from positionbias.spec import ConfigError
from positionbias.tasks.base import Batch

Values = list[jax.Array]  # of every sender, block by block: [n, B, T, D]


@dataclasses.dataclass(frozen=True)
class Block:
    """Senders or readers that share a site: the heads of a layer, or one that stands alone."""

    site: str
    names: tuple[str, ...]
    heads: bool  # whether the site has heads
    before: int = 0  # senders that it reads, which are the first so many
    feeds: range = range(0)  # of readers, the senders made of them: one each of those with heads, else all of all


@dataclasses.dataclass(frozen=True)
class Graph:
    """Senders and readers in the order of the forward pass."""

    senders: tuple[Block, ...]
    readers: tuple[Block, ...]

    @functools.cached_property
    def labels(self) -> Labels:
        """Names: "input", "a1.0" for head 0 of layer 1, "m1" for its MLP; readers "a1.0.q" and so on, "output"."""
        named = {"sender": self.senders, "reader": self.readers}
        return {axis: tuple(name for block in blocks for name in block.names) for axis, blocks in named.items()}

    @functools.cached_property
    def real(self) -> Bool[np.ndarray, "S R"]:
        """Where there is an edge."""
        before = np.repeat([block.before for block in self.readers], [len(block.names) for block in self.readers])
        return np.arange(len(self.labels["sender"]))[:, None] < before

    @functools.cached_property
    def feeds(self) -> Bool[np.ndarray, "R S"]:
        """Which senders are made of what a reader reads: none of the output."""
        found = np.zeros(self.real.shape[::-1], bool)
        for number, block in enumerate(self.readers):
            own = self.columns(number)
            found[own, block.feeds.start : block.feeds.stop] = np.eye(len(block.feeds)) if block.heads else True
        return found

    def columns(self, number: int) -> slice:
        """Where the readers of a block stand."""
        start = sum(len(block.names) for block in self.readers[:number])
        return slice(start, start + len(self.readers[number].names))

    def edits(
        self, send: Callable[[int, jax.Array], jax.Array], read: Callable[[int, jax.Array], jax.Array]
    ) -> dict[str, Edit]:
        """Edits of one run: what each block of senders sends, and what each block of readers reads instead.

        Both are called in the order of the forward pass, with the number of the block and the value, which has heads
        [B, T, N, D] or not [B, T, D]. What is read comes as the run's own stream, whatever other readers are told.
        """
        whole: dict[str, jax.Array] = {}  # what a layer's attention reads, before a reader of it is told another

        def told(number: int, block: Block, value: jax.Array) -> jax.Array:
            layer, _, kind = block.site.rpartition(".")
            if kind == "input":
                whole[layer] = value
            elif layer in whole:
                value = jnp.broadcast_to(whole[layer][:, :, None], value.shape)
            return read(number, value)

        made = {block.site: Edit(functools.partial(send, i)) for i, block in enumerate(self.senders)}
        return made | {block.site: Edit(functools.partial(told, i, block)) for i, block in enumerate(self.readers)}


def graph(subject: Subject) -> Graph:
    """The graph of a run's model. Raises ConfigError where the stream is no sum."""
    config, operators = subject.run.config.model, subject.run.experiment.blueprint.operators
    if config.residual != "add":
        raise ConfigError(
            f"--analyses: model.residual = {config.residual!r} has no stream that is a sum, of which edges are terms;"
            " allowed: 'add'."
        )
    senders, readers, count = [Block("embedding", ("input",), False)], list[Block](), 1

    def add(part: str, site: str, names: Sequence[str], read: Sequence[tuple[str, Sequence[str]]]) -> None:
        """A sender, or one a head, with its readers, as pairs of a site and the endings of their names."""
        nonlocal count
        heads, made = site.endswith("head_outputs"), range(count, count + len(names))
        for at, ending in read:
            one = not at.endswith("_input")
            own = (f"{part}.gate",) if one and heads else tuple(f"{name}{ending}" for name in names)
            readers.append(Block(at, own, not one, count, made))
        senders.append(Block(site, tuple(names), heads))
        count += len(names)

    for layer, operator in enumerate(operators):
        under, part = f"layers.{layer}.attention", f"a{layer}"
        if operator.reads == "stream":
            add(part, f"{under}.output", [part], [(f"{under}.input", "")])
        else:
            gates = type(operator).projected is not Operator.projected
            inputs = [(f"{under}.input", "")] if gates else []
            inputs += [(f"{under}.{name}_input", f".{name[0]}") for name in ("query", "key", "value")]
            add(part, f"{under}.head_outputs", [f"{part}.{head}" for head in range(config.heads)], inputs)
        if config.mlp:
            add(f"m{layer}", f"layers.{layer}.mlp.output", [f"m{layer}"], [(f"layers.{layer}.mlp.input", "")])
    readers.append(Block(f"layers.{config.layers - 1}.stream", ("output",), False, count))
    return Graph(tuple(senders), tuple(readers))


class OfEdges(Analysis):
    """What analyses of the edges of a whole model share: two prompts, and a model that is a graph."""

    whole = True

    def reads(self) -> tuple[str, ...]:
        return (STREAM,)

    def check(self, subject: Subject) -> None:
        check_pairs(subject)
        graph(subject)


@dataclasses.dataclass(frozen=True)
class Pair:
    """Items and the same corrupted, whose margin m is asked of all runs.

    m is the logit of what is right at the last answer minus that of what the model says there of the corrupted prompt,
    the mean over items, 0 where both are the same (as in `patching`).
    """

    subject: Subject
    graph: Graph
    clean: Batch
    corrupted: Batch
    right: Int[jax.Array, "B"]
    wrong: Int[jax.Array, "B"]

    @classmethod
    def of(cls, subject: Subject, graph: Graph, batch: Batch, inputs: Int[jax.Array, "B T"]) -> Pair:
        """Of items, and their corrupted inputs."""
        other = batch._replace(inputs=inputs)
        said = last_outputs(subject, subject.apply(other)[0], other)
        return cls(subject, graph, batch, other, right_answer(batch), jnp.argmax(said, axis=-1))

    def margin(self, outputs: Float[jax.Array, "B T V"]) -> Float[jax.Array, ""]:
        """m of these outputs."""
        logits, each = last_outputs(self.subject, outputs, self.clean), jnp.arange(len(outputs))
        margins = logits[each, self.right] - logits[each, self.wrong]
        return jnp.mean(jnp.where(self.right != self.wrong, margins, 0.0))

    def sent(self, batch: Batch) -> tuple[Float[jax.Array, ""], Values]:
        """m of a run, and what its senders send."""
        outputs, found = self.subject.apply(batch, [block.site for block in self.graph.senders])
        return self.margin(outputs), [_laid(block, found[block.site]) for block in self.graph.senders]

    def patched(self, batch: Batch, other: Values, share: Float[jax.Array, "S R"]) -> Float[jax.Array, ""]:
        """m of a run on a batch, where edges carry a `share`, 0 to 1, of what they carry in the `other` run.

        The rest is of this run, as the readers before leave it. With a share of 0 everywhere it is the run as it is,
        and with 1 the other one.
        """
        starts = np.cumsum([0, *(len(block.names) for block in self.graph.senders)])
        changes: Values = []

        def send(number: int, value: jax.Array) -> jax.Array:
            changes.append(other[number] - _laid(self.graph.senders[number], value))
            return value

        def read(number: int, value: jax.Array) -> jax.Array:
            columns, heads = share[:, self.graph.columns(number)], self.graph.readers[number].heads
            for i, change in enumerate(changes):
                part = jnp.einsum("sn,sbtd->btnd", columns[starts[i] : starts[i + 1]], change)
                value = value + (part if heads else part[:, :, 0])
            return value

        return self.margin(self.subject.apply(batch, (), self.graph.edits(send, read))[0])


def _laid(block: Block, value: jax.Array) -> Float[jax.Array, "n B T D"]:
    """What a block of senders sends, one after another."""
    return jnp.moveaxis(value, 2, 0) if block.heads else value[None]
