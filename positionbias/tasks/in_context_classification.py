"""In-context classification: labelled items of a few classes, then one more item, whose label is asked."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from positionbias.arrays import Bool, Float, Int, Key, Shaped, Tree
from positionbias.spec import member, require
from positionbias.tasks.base import Batch, Condition, Size, Task, letters
from positionbias.tasks.class_draws import ClassDraws, whole
from positionbias.tasks.label_observers import Sight, best_guess, rules
from positionbias.tasks.sampling import permutation
from positionbias.tokens import Tokens, sequential

MOST_ITEMS = 4095  # two rows each; which input can reach which row is checked in quadratic time
MOST_NAMES = 65536  # classes, and labels
MOST_FEATURES = 4096
MOST_NUMBERS = 2**24  # of a world's table of vectors
Chance = float | np.float32 | Float[jax.Array, ""]  # an array where replicas of one program differ in it
WORLD_ITEM, NOVEL_ITEM, LABEL, SHIFTED_LABEL, QUERY, TRAINED_LABEL = range(6)  # roles


@member("tasks", "in_context_classification")
@dataclasses.dataclass(frozen=True)
class InContextClassification(Task):
    """Say the label of the last item (Reddy 2024, arXiv 2312.03002; Wu et al. 2025, arXiv 2502.01951).

        item label | item label | ... | item

    One sample of `in_context_classification(items=6, burstiness=2)`:

        input    a A b B c C b B c C a A c
        target   . . . . . . . . . . . . C

    One sample of `in_context_classification(items=6, burstiness=2)`, condition conflict:

        input    a A b B c C b B c C b A b
        target   . . . . . . . . . . . . B

    One sample of `in_context_classification(items=4, burstiness=1, assignment='balanced', p_bursty=0.5, zipf=1)`:

        input    a A b B c C d D e
        target   . . . . . . . . 18

    Inputs are vectors, drawn here as a letter a class and a capital a label. The target is one of `labels` tokens:
    drawn as a capital too or, where no item has that label, as a number. A world holds the mean of each of `classes`
    classes, a vector a label, and the label of each class: `balanced` (k mod `labels`, and the classes of a sequence
    have different labels) or `uniform` (any, and two may share one). An item is (mean + noise * eta) / sqrt(1 +
    noise^2), eta fresh for each, or with `fixed_vocabulary` one vector of the world for all. All vectors are Gaussian,
    of standard deviation 1/sqrt(d) as Reddy draws them or 1/d as Wu et al. do.

    A bursty sequence has items / burstiness classes, `burstiness` items of each in random order; one item is drawn from
    `answer_positions` (none: all), and the query is of its class. With chance `p_novel` these are classes of this
    sequence alone, fresh means with random labels (Reddy shares 128 in a batch). Else, with chance 1 - `p_bursty`, all
    classes are independent instead. Class k has a frequency of (k + 1)^-zipf; a bursty sequence draws its classes one
    after another and leaves out those (balanced: those labels) that it has. `position_slots` (Reddy: 65) adds a one-hot
    position, at an offset that is random for each sequence. The defaults are those of Wu et al. but for `scale`; Reddy
    has dimension 63, 1024 classes, noise 0.1 and balanced labels.

    Conditions, all but the first with the item drawn from all, and the last two only if training has classes of the
    world:
    - `conflict` (3 items or more): novel classes, and the item at b is overwritten with that at a, its label is not;
      the label at a is right. The query axis numbers the pairs (a, b): 0 first-middle, 1 middle-first, 2 first-last, 3
      last-first, 4 middle-last, 5 last-middle, so that the paper's gap[first, middle] is the accuracy at 0 less that
      at 1, and so on. `order` is 0 if a stands before b: the order gap is the mean of the three. The two items are of
      one class, and no conflict, in a share of (burstiness - 1) / (items - 1).
    - `in_context`: novel classes, bursty.
    - `in_weights`: independent classes of the world, the query's not in the context.
    - `swapped`: classes of the world, bursty, each label one up; the label of the context is right.

    The evidence axis counts items; slot `items` is for a query whose class is not drawn from the context. Evidence is
    item and label of every copy of the query's class. Targets of item rows are their labels, and weigh nothing.

    The ceiling of novel classes is the posterior of an observer who knows the condition, the noise and the scale. It is
    told which items share a class, and which two are in conflict, in no order: where a row sees all labels and items
    it sees that itself, and the ceiling is exact, but for sequences in which two of more than two classes share a
    label; else it is an upper bound. With classes of the world it is exact without noise, where an item gives its label
    away; noise can only take that away, so with noise it is an upper bound, as it is where only some are. A row that
    does not see the query takes all labels that it is not told to be equally common; with zipf, where those of the
    world are not, its ceiling is nan.
    """

    items: int = 8
    dimension: int = 64
    classes: int = 2048
    labels: int = 32
    burstiness: int = 4
    noise: float = 0.75
    scale: Literal["1/sqrt(d)", "1/d"] = "1/sqrt(d)"
    assignment: Literal["uniform", "balanced"] = "uniform"
    answer_positions: tuple[int, ...] = ()
    p_bursty: float = 1.0
    p_novel: float = 0.0
    zipf: float = 0.0
    fixed_vocabulary: bool = False
    position_slots: int = 0

    movable = True
    traced = ("p_bursty", "p_novel")
    query_axis = "pair in conflict"
    evidence_axis = "item that holds the answer"

    def __post_init__(self) -> None:
        n, kinds = self.items, self.items // max(self.burstiness, 1)
        require(2 <= n <= MOST_ITEMS, "items", n, f"a whole number from 2 to {MOST_ITEMS}")
        good = 1 <= self.burstiness < n and n % self.burstiness == 0
        require(good, "burstiness", self.burstiness, f"a divisor of items = {n} below it")
        what = f"a whole number from 2 to {MOST_FEATURES}"
        require(2 <= self.dimension <= MOST_FEATURES, "dimension", self.dimension, what)
        balanced, most = self.assignment == "balanced", min(MOST_NAMES, MOST_NUMBERS // self.dimension)
        fewest = max(kinds, 2) if balanced else 2
        what = f"a whole number from {fewest} to {most}"
        if balanced:
            what += "; the items / burstiness classes of a sequence have different labels"
        require(fewest <= self.labels <= most, "labels", self.labels, what)
        if balanced:
            what = f"a multiple of labels = {self.labels} up to {most}"
            good = self.labels <= self.classes <= most and self.classes % self.labels == 0
        else:
            what = f"a whole number from {kinds}, items / burstiness, to {most}"
            good = kinds <= self.classes <= most
        require(good, "classes", self.classes, what)
        require(0 <= self.noise <= 1000, "noise", self.noise, "a number from 0 to 1000")
        positions = list(self.answer_positions)
        good = all(0 <= at < n for at in positions) and len(positions) == len(set(positions))
        require(good, "answer_positions", positions, f"different whole numbers from 0 to {n - 1}, or none for all")
        for name, chance in (("p_bursty", self.p_bursty), ("p_novel", self.p_novel)):
            require(0 <= chance <= 1, name, chance, "a number from 0 to 1")
        require(0 <= self.zipf <= 5, "zipf", self.zipf, "a number from 0 to 5")
        slots = self.position_slots
        what = f"0 for none, or a whole number from {2 * n + 1}, the rows of a sequence, to {MOST_FEATURES}"
        require(slots == 0 or 2 * n + 1 <= slots <= MOST_FEATURES, "position_slots", slots, what)

    @property
    def kinds(self) -> int:
        """Number of classes in a bursty sequence."""
        return self.items // self.burstiness

    @property
    def _draws(self) -> ClassDraws:
        return ClassDraws(self.classes, self.labels, self.assignment == "balanced", self.zipf)

    @property
    def deviation(self) -> float:
        """Standard deviation of a feature."""
        return 1 / (math.sqrt(self.dimension) if self.scale == "1/sqrt(d)" else self.dimension)

    @property
    def pairs(self) -> Int[np.ndarray, "6 2"]:
        """The ordered pairs (a, b) in conflict, as the query axis numbers them."""
        first, middle, last = 0, self.items // 2, self.items - 1
        each = [(first, middle), (first, last), (middle, last)]
        return np.array([order for a, b in each for order in ((a, b), (b, a))], np.int32)

    # ---- static

    @property
    def input(self) -> Size:
        return Size("vectors", self.dimension + self.position_slots)

    @property
    def output(self) -> Size:
        return Size("tokens", self.labels)

    def conditions(self) -> tuple[Condition, ...]:
        of_the_world = ("in_weights", "swapped") if self.p_novel < 1 else ()
        names = ("train", *(("conflict",) if self.items > 2 else ()), "in_context", *of_the_world)
        return tuple(Condition(name) for name in names)

    def stretched(self, factor: int) -> InContextClassification:
        items = factor * self.items
        stretch = (items - 1) / (self.items - 1)  # the first item stays the first, the last the last
        positions = tuple(round(stretch * at) for at in self.answer_positions)
        return dataclasses.replace(self, items=items, answer_positions=positions)

    def length(self, condition: Condition) -> int:
        return 2 * self.items + 1

    def context_length(self, condition: Condition) -> int:
        return 2 * self.items

    def query_rows(self, condition: Condition) -> Int[np.ndarray, "Q"]:
        return np.array([2 * self.items])

    def tokens(self, condition: Condition) -> Tokens:
        item = NOVEL_ITEM if _certain(self._novel(condition.name)) == 1 else WORLD_ITEM
        label = {"train": TRAINED_LABEL, "swapped": SHIFTED_LABEL}.get(condition.name, LABEL)
        role = np.array([item, label] * self.items + [QUERY], np.int32)
        segment = np.append(np.repeat(np.arange(1, self.items + 1), 2), 0).astype(np.int32)
        return sequential(self.length(condition), role=role, segment=segment)

    def prior(self, condition: Condition) -> dict[str, Float[np.ndarray, "P"]]:
        if condition.name == "conflict":
            share = np.bincount(self.pairs[:, 0], minlength=self.items) / len(self.pairs)
            return {"query": np.full(len(self.pairs), 1 / len(self.pairs)), "evidence": share}
        share, apart = np.full(self.items, 1 / self.items), float(condition.name == "in_weights")
        if condition.name == "train":
            share, apart = self._answers(), (1 - self.p_novel) * (1 - self.p_bursty)
        return {"query": np.ones(1), "evidence": np.append((1 - apart) * share, apart) if apart else share}

    def _answers(self) -> Float[np.ndarray, "n"]:
        """How likely each item is to be the one whose class is asked, in a bursty training sequence."""
        chosen = np.zeros(self.items)
        chosen[list(self.answer_positions) or slice(None)] = 1.0
        return chosen / chosen.sum()

    def words(self, values: Shaped[np.ndarray, "T *D"], size: Size) -> list[str]:
        if size.kind == "tokens":  # as the inputs call the labels that they show, which item rows have as targets
            shown = list(dict.fromkeys(values[:-1:2].tolist()))
            return [letters(shown.index(token)).upper() if token in shown else str(token) for token in values.tolist()]
        # Items share a letter up to the harmonic mean of squared distances within a class and between two.
        noise = 0.0 if self.fixed_vocabulary else self.noise**2
        vectors = np.asarray(values)[:, : self.dimension] / (self.deviation * math.sqrt(self.dimension))
        said = [""] * len(vectors)
        for first, near in enumerate((4 * noise / (1 + 2 * noise), 0.0)):
            seen: list[np.ndarray] = []
            for at in range(first, len(said), 2):
                apart = [float(np.square(vectors[at] - other).sum()) for other in seen]
                name = int(np.argmin([*apart, max(near, 1e-6)]))
                seen += [vectors[at]] if name == len(seen) else []
                said[at] = letters(name).upper() if first else letters(name)
        return said

    # ---- sampled

    def world(self, key: Key[jax.Array, ""]) -> Tree:
        means, labels, label, shared = jax.random.split(key, 4)
        return {
            "means": self.deviation * jax.random.normal(means, (self.classes, self.dimension)),
            "labels": self.deviation * jax.random.normal(labels, (self.labels, self.dimension)),
            "label": self._draws.world_labels(label),
            "shared": self.deviation * jax.random.normal(shared, (self.dimension,)),
        }

    def sample(self, key: Key[jax.Array, ""], condition: Condition, world: Tree = ()) -> Batch:
        n, rows, name = self.items, 2 * self.items + 1, condition.name
        order_key, draw_key, class_key, vector_key = jax.random.split(key, 4)
        draw = jax.random.uniform(draw_key, (4,))
        group = permutation(order_key, n) // self.burstiness  # which of the sequence's classes each item is of
        if name == "conflict":
            pair = whole(draw[0], len(self.pairs))
            slot, other = jnp.asarray(self.pairs)[pair]
        else:
            positions = jnp.asarray((name == "train" and self.answer_positions) or np.arange(n), jnp.int32)
            slot = other = positions[whole(draw[0], len(positions))]
            pair = jnp.zeros_like(slot)

        # A spare row where no class is fresh: where all are used, XLA makes one factor of several, and bits differ.
        noisy, fresh = 0 if self.fixed_vocabulary else n + 1, 1 if _certain(self._novel(name)) == 0 else self.kinds
        vectors = self.deviation * jax.random.normal(vector_key, (noisy + fresh, self.dimension))
        eta = vectors[:noisy] if noisy else world["shared"]
        members = jnp.append(group, group[slot])
        means, label, apart = self._classes(class_key, draw[1:3], name, members, vectors[noisy:], world)
        item = (means + self.noise * eta) / math.sqrt(1 + self.noise**2)
        if name == "conflict":
            item = item.at[other].set(item[slot])
        context = jnp.stack([item[:n], world["labels"][label[:n]]], axis=1).reshape(2 * n, -1)
        inputs = jnp.concatenate([context, item[n:]])
        if self.position_slots:
            place = whole(draw[3], self.position_slots - rows + 1) + jnp.arange(rows)
            inputs = jnp.concatenate([inputs, jax.nn.one_hot(place, self.position_slots)], axis=-1)

        # Item and label of each copy of the query's class, that at `slot` last; the query itself if it is apart.
        (others,) = jnp.nonzero((group == group[slot]) & (jnp.arange(n) != slot), size=self.burstiness - 1)
        copies = jnp.append(others, slot).astype(jnp.int32)
        evidence = jnp.stack([2 * copies, 2 * copies + 1], axis=-1).reshape(-1)
        alone = jnp.full_like(evidence, -1).at[0].set(rows - 1)
        zero = jnp.zeros(1, jnp.int32)
        return Batch(
            inputs=inputs,
            targets=jnp.stack([label, jnp.zeros_like(label)], axis=1).reshape(-1)[:rows],
            weights=jnp.zeros(rows).at[-1].set(1.0),
            tokens=self.tokens(condition),
            query=zero + rows - 1,
            evidence=jnp.where(apart, alone, evidence)[None],
            order=zero + (slot > other) if name == "conflict" else zero - 1,
            distance=jnp.where(apart, 0, rows - 2 - 2 * jnp.max(copies))[None],
            n_distractors=jnp.sum(label[:n] != label[n], dtype=jnp.int32)[None],
            source=zero - 1,
            query_slot=pair[None],
            evidence_slot=jnp.where(apart, n, slot)[None],
        )

    def _novel(self, name: str) -> Chance:
        """Share of a condition's sequences whose classes are of no world."""
        return self.p_novel if name == "train" else float(name in ("conflict", "in_context"))

    def _classes(
        self,
        key: Key[jax.Array, ""],
        draw: Float[jax.Array, "2"],
        name: str,
        members: Int[jax.Array, "n+1"],
        fresh: Float[jax.Array, "M d"],
        world: Tree,
    ) -> tuple[Float[jax.Array, "n+1 d"], Int[jax.Array, "n+1"], Bool[jax.Array, ""]]:
        """Mean and label of each item and the query, and whether their classes are independent and not `members`'.

        `draw` decides what kind of sequence it is. The kinds share a key: of a sequence, only one is kept.
        """
        bursty = np.float32(self.p_bursty) if isinstance(self.p_bursty, float) else self.p_bursty
        novel, apart = self._novel(name), 1 - bursty if name == "train" else float(name == "in_weights")
        draws, yes, no = self._draws, jnp.array(True), jnp.array(False)

        def of_the_world() -> tuple[jax.Array, jax.Array, jax.Array]:
            chosen, is_apart = _either(
                draw[0] < apart,
                apart,
                lambda: (draws.independent(key, self.items + 1, absent=name == "in_weights"), yes),
                lambda: (draws.different(key, self.kinds)[members], no),
            )
            label = world["label"][chosen]
            return world["means"][chosen], (label + 1) % self.labels if name == "swapped" else label, is_apart

        def of_the_sequence() -> tuple[jax.Array, jax.Array, jax.Array]:
            return fresh[members], draws.novel_labels(key, self.kinds)[members], no

        return _either(draw[1] < novel, novel, of_the_sequence, of_the_world)

    def after_move(self, example: Batch) -> Batch:
        """Slot, order and distance as items stand now, positions in order; `query_slot` names the pair as drawn."""
        apart = example.distance == 0
        slot = jnp.where(apart, self.items, example.evidence[:, -1] // 2)
        rival = self._rivals(example, slot[0])
        before = jnp.where(jnp.any(rival), slot > jnp.argmax(rival), example.order)
        content, code = example.inputs[:, : self.dimension], example.inputs[:, self.dimension :]
        if self.position_slots:
            place = jnp.min(jnp.argmax(code, axis=-1)) + jnp.arange(len(code))
            code = jax.nn.one_hot(place, self.position_slots)
        return example._replace(
            inputs=jnp.concatenate([content, code], axis=-1),
            order=jnp.where(example.order < 0, example.order, before.astype(jnp.int32)),
            distance=jnp.where(apart, 0, example.query - jnp.max(example.evidence, axis=-1)),
            evidence_slot=slot,
        )

    # ---- judged

    def _rivals(self, example: Batch, slot: Int[jax.Array, ""]) -> Bool[jax.Array, "n"]:
        """Whether an item is the same as that at `slot` and has another label."""
        item, label = example.inputs[:-1:2, : self.dimension], example.targets[:-1:2]
        return jnp.all(item == item[slot], axis=-1) & (label != label[slot])

    def _sight(self, example: Batch, visible: Bool[jax.Array, "T T"]) -> Sight:
        row = visible[example.query[0]]
        return Sight(
            item=math.sqrt(1 + self.noise**2) / self.deviation * example.inputs[::2, : self.dimension],
            label=example.targets[:-1:2],
            right=example.targets[-1],
            sees_item=row[:-1:2],
            sees_label=row[1::2],
            sees_query=row[-1],
        )

    def ceiling(self, example: Batch, visible: Bool[jax.Array, "T T"]) -> Float[jax.Array, "A"]:
        n, role, slot = self.items, jnp.asarray(example.tokens.role), example.evidence_slot[0]
        novel, trained = role[0] == NOVEL_ITEM, role[1] == TRAINED_LABEL
        conflict, apart = example.order[0] >= 0, example.distance[0] == 0
        rivals = conflict & (self._rivals(example, slot) | (jnp.arange(n) == slot))
        asked = jnp.where(trained, jnp.asarray(self._answers(), jnp.float32), 1 / n)
        before = jnp.where(conflict, rivals / jnp.maximum(jnp.sum(rivals), 1), asked)
        sight, variance = self._sight(example, visible), 0.0 if self.fixed_vocabulary else self.noise**2
        best = best_guess(sight, before, rivals, slot, novel, self.labels, self.burstiness, variance)
        best = jnp.where(apart & ~sight.sees_query, 1 / self.labels, best)
        if self.zipf:  # labels of the world are not equally common
            best = jnp.where(novel | sight.sees_query, best, jnp.nan)
        return best[None]

    def baselines(self, example: Batch, visible: Bool[jax.Array, "T T"]) -> dict[str, Float[jax.Array, "A"]]:
        """chance: any label; context_label: that of any item, where training rests first; majority: the context's
        commonest; nearest: its last; nearest_vector: that of the item most like the query; order_free: as majority if
        the class is novel, and right otherwise, for it remembers the world (with noise that is an upper bound).

        The others know no class of the world. Each goes by what the row sees, and is chance where that is not enough.
        """
        found, role = rules(self._sight(example, visible), self.labels), jnp.asarray(example.tokens.role)
        trained = jnp.where(role[1] == TRAINED_LABEL, self.p_novel, 0.0)
        novel = jnp.where((role[0] == NOVEL_ITEM) | ~visible[example.query[0], -1], 1.0, trained)
        found["order_free"] = novel * found["majority"] + 1 - novel
        return {name: value[None] for name, value in found.items()}


def _certain(chance: Chance) -> float | None:
    """0 or 1 if the chance is known to be that, else None."""
    return None if isinstance(chance, jax.Array) or chance not in (0, 1) else float(chance)


def _either(draw: jax.Array, chance: Chance, one: Callable[[], Tree], other: Callable[[], Tree]) -> Tree:
    """`one()` where `draw`, which has that chance, else `other()`; what is known not to happen is not computed."""
    if _certain(chance) is not None:
        return one() if chance else other()
    return jax.tree.map(lambda a, b: jnp.where(draw, a, b), one(), other())
