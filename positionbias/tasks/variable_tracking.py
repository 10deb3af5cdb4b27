"""Chains of assignments: the names that hold a value, or the value that a name holds some assignments later."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from positionbias.arrays import Bool, Float, Int, Key, Tree
from positionbias.spec import member, require
from positionbias.tasks.base import LONGEST, Batch, Condition, Size, Task, letters, one_of
from positionbias.tasks.chains import arranged, kept_or_reversed, last_slot
from positionbias.tasks.sampling import distinct, permutation, scattered
from positionbias.tokens import Tokens, sequential

MOST_STATEMENTS = 256  # all pairs of them are compared
MOST_WORDS = 65536  # names, and values
MOST_LAYOUTS = 1024  # that the ceiling goes through one by one
FILLER, EQUALS = 0, 1
FIRST_NAME = 2
NAME_ROLE, EQUALS_ROLE, CONTENT_ROLE, FILLER_ROLE, QUESTION_ROLE = range(5)


@member("tasks", "variable_tracking")
@dataclasses.dataclass(frozen=True)
class VariableTracking(Task):
    """Variable tracking (Hsieh et al. 2024, "RULER", arXiv 2404.06654), in symbols.

    A chain is X0 = v, X1 = X0, X2 = X1, ... with `hops` copies; names and values all differ. `fillers` tokens that say
    nothing are scattered between the statements. The paper's task has one chain of 4 hops.

    With `ask` 'names' the question is the paper's: which variables hold v? All of them, in the order of the chain. The
    paper counts names found in any order; here each row has one right answer, and reads the answers before its own
    as inputs (teacher forcing), so that a row is one look-up away from its answer.

    One sample of `variable_tracking(hops=2, chains=2, names=8, values=5)`:

        input    c = 0 g = 1 d = g a = c f = a h = d 0 c a
        target   . . . . . . . . . . . . . . . . . . c a f

    With 'value' it is turned round, so that hops count: a name h of 0 to `hops` assignments after the value is asked
    for its value, each h equally often. Nothing is written down on the way: the chain must be followed within the row.

    One sample of `variable_tracking(hops=1, chains=2, names=6, values=5, fillers=6, ask='value')`:

        input    d = 0 - c = 1 f = c - - - a = d - - a
        target   . . . . . . . . . . . . . . . . . . 0

    Conditions: every chain's statements stand in the order of the chain ("kept", the paper's), in its reverse
    ("reversed") or in any ("shuffled"); chains interleave at random in all three, whose items are paired.

    Segments are the statements, numbered from 1 as they stand. `order` is 0 where the statements from the value to the
    answer, or to the name asked for, stand in the order of the chain, 1 in its reverse; -1 otherwise, and where there
    is only one. Vocabulary: filler, "=", names, values.
    """

    hops: int = 4
    chains: int = 2
    names: int = 64
    values: int = 64
    fillers: int = 0
    ask: Literal["names", "value"] = "names"

    filler = FILLER
    movable = True
    slots_are_segments = True
    query_axis = "hops from the value"
    evidence_axis = "slot of the statement with the answer"

    def __post_init__(self) -> None:
        most = MOST_STATEMENTS // 2 - 1
        require(1 <= self.hops <= most, "hops", self.hops, f"a whole number from 1 to {most}")
        fewest, most = 2 if self.ask == "value" else 1, MOST_STATEMENTS // self.steps
        what = f"a whole number from {fewest} to {most}, {MOST_STATEMENTS} statements in all"
        if self.ask == "value":
            what += "; a value is asked for among two or more"
        require(fewest <= self.chains <= most, "chains", self.chains, what)
        each = "one for each of the chains * (hops + 1) statements"
        what = f"a whole number from {self.statements}, {each}, to {MOST_WORDS}"
        require(self.statements <= self.names <= MOST_WORDS, "names", self.names, what)
        what = f"a whole number from {max(self.chains, 2)} to {MOST_WORDS}, one a chain"
        require(max(self.chains, 2) <= self.values <= MOST_WORDS, "values", self.values, what)
        most = LONGEST - 3 * self.statements - self._asked
        require(0 <= self.fillers <= most, "fillers", self.fillers, f"0 to {most}, {LONGEST} tokens in all")

    @property
    def steps(self) -> int:
        """Statements of a chain."""
        return self.hops + 1

    @property
    def statements(self) -> int:
        """Statements in all."""
        return self.chains * self.steps

    @property
    def _asked(self) -> int:
        """Rows of the question: a name, or the value and all names but the last."""
        return 1 if self.ask == "value" else self.steps

    # ---- static

    @property
    def shared_tokens(self) -> bool:  # type: ignore[override]
        """Fillers put the statements of each example elsewhere."""
        return self.fillers == 0

    @property
    def _first_value(self) -> int:
        return FIRST_NAME + self.names

    @property
    def input(self) -> Size:
        return Size("tokens", self._first_value + self.values)

    @property
    def output(self) -> Size:
        return self.input

    def conditions(self) -> tuple[Condition, ...]:
        orders = ("kept", "reversed", "shuffled")
        return tuple(Condition(order, (("order", order),), items="ordered") for order in orders)

    def stretched(self, factor: int) -> VariableTracking:
        if self.fillers:  # the same statements, farther apart
            context = 3 * self.statements + self.fillers
            return dataclasses.replace(self, fillers=self.fillers + (factor - 1) * context)
        return dataclasses.replace(self, chains=factor * self.chains)

    def segments(self, condition: Condition) -> int:
        return self.statements

    def length(self, condition: Condition) -> int:
        return self.context_length(condition) + self._asked

    def context_length(self, condition: Condition) -> int:
        return 3 * self.statements + self.fillers

    def query_rows(self, condition: Condition) -> Int[np.ndarray, "Q"]:
        return self.context_length(condition) + np.arange(self._asked)

    def tokens(self, condition: Condition) -> Tokens:
        role = np.full(self.length(condition), QUESTION_ROLE, np.int32)
        segment = np.zeros_like(role)
        if self.fillers:
            return sequential(len(role), role=role)
        role[: -self._asked] = [NAME_ROLE, EQUALS_ROLE, CONTENT_ROLE] * self.statements
        segment[: -self._asked] = np.repeat(np.arange(1, self.statements + 1), 3)
        return sequential(len(role), role=role, segment=segment)

    def leaks(self, condition: Condition) -> Bool[np.ndarray, "T T"]:
        found = super().leaks(condition)
        rows = self.query_rows(condition)
        found[rows[:-1], rows[1:]] = True
        return found

    def prior(self, condition: Condition) -> dict[str, Float[np.ndarray, "P"]]:
        count = self.statements
        share = np.full(count, 1 / count)
        if self.ask == "value" and condition["order"] != "shuffled":  # the first slot of the chain, or the last
            share = last_slot(count, self.steps)[:: -1 if condition["order"] == "kept" else 1]
        return {"query": np.full(self.steps, 1 / self.steps), "evidence": share}

    def word(self, token: int) -> str:
        if token < FIRST_NAME:
            return "-="[token]
        return letters(token - FIRST_NAME) if token < self._first_value else str(token - self._first_value)

    # ---- sampled

    def _slots(self, key: Key[jax.Array, ""], condition: Condition) -> Int[jax.Array, "C K"]:
        """The slot of every statement, chain by chain."""
        slots = permutation(key, self.statements).reshape(self.chains, self.steps)
        if condition["order"] == "shuffled":
            return slots
        turn = jnp.arange(self.steps)
        return arranged(slots, turn if condition["order"] == "kept" else turn[::-1])

    def sample(self, key: Key[jax.Array, ""], condition: Condition, world: Tree = ()) -> Batch:
        name_key, value_key, slot_key, start_key, hop_key = jax.random.split(key, 5)
        length, context = self.length(condition), self.context_length(condition)
        names = FIRST_NAME + distinct(name_key, self.statements, self.names).reshape(self.chains, self.steps)
        values = self._first_value + distinct(value_key, self.chains, self.values)
        contents = jnp.concatenate([values[:, None], names[:, :-1]], axis=1)
        statement = jnp.stack([names, jnp.full_like(names, EQUALS), contents], axis=-1)
        slots = self._slots(slot_key, condition)
        at = scattered(start_key, self.statements, 3, self.fillers)[slots][..., None] + jnp.arange(3)  # rows [C, K, 3]
        step = jnp.arange(self.steps, dtype=jnp.int32)
        if self.ask == "value":
            hop = jax.random.randint(hop_key, (1,), 0, self.steps, jnp.int32)
            back = hop - step  # from the name that is asked for to the one with the value
            question, answer = names[0][hop], values[:1]
            evidence = jnp.where(back[:, None] >= 0, at[0][back][:, ::2], -1).reshape(1, -1)
            holds, slot, source = at[0, :1, 2], slots[0, :1], jnp.full(1, -1, jnp.int32)
            others = self.chains - 1
        else:
            hop, question, answer = step, contents[0], names[0]
            evidence = at[0, :, ::-2]
            holds, slot, source = at[0, :, 0], slots[0], jnp.where(step < self.hops, context + step + 1, -1)
            others = self.statements - 1

        nothing = jnp.zeros(length, jnp.int32)
        query = jnp.arange(context, length, dtype=jnp.int32)
        tokens = self.tokens(condition)
        if self.fillers:
            role = jnp.where(nothing.at[-self._asked :].set(1) > 0, QUESTION_ROLE, FILLER_ROLE)
            role = role.at[at].set(jnp.array([NAME_ROLE, EQUALS_ROLE, CONTENT_ROLE]))
            tokens = tokens._replace(role=role, segment=nothing.at[at].set(slots[..., None] + 1))
        return Batch(
            inputs=nothing.at[at].set(statement).at[query].set(question),
            targets=nothing.at[query].set(answer),
            weights=nothing.astype(jnp.float32).at[query].set(1.0),
            tokens=tokens,
            query=query,
            evidence=evidence,
            order=self._order(evidence),
            distance=query - holds,
            n_distractors=jnp.full_like(query, others),
            source=source,
            query_slot=hop,
            evidence_slot=slot,
        )

    def _order(self, evidence: Int[jax.Array, "A E"]) -> Int[jax.Array, "A"]:
        if self.ask == "value":
            names = evidence[:, ::2]
            counted, rises = names[:, 1:] >= 0, names[:, :-1] > names[:, 1:]
        else:
            names = evidence[:, 1]
            counted = jnp.tri(self.steps, self.hops, -1, bool)
            rises = jnp.broadcast_to(names[1:] > names[:-1], counted.shape)
        return kept_or_reversed(rises, counted)

    def after_move(self, example: Batch) -> Batch:
        return example._replace(order=self._order(example.evidence))

    def _read(self, example: Batch) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Rows of the statements [N, 3] by their place, names [N] and contents [N]."""
        (start,) = jnp.nonzero(jnp.asarray(example.tokens.role) == NAME_ROLE, size=self.statements)
        at = start[:, None] + jnp.arange(3)
        return at, example.inputs[at[:, 0]], example.inputs[at[:, 2]]

    def ceiling(self, example: Batch, visible: Bool[jax.Array, "T T"]) -> Float[jax.Array, "A"]:
        """Exact, for a reader who knows which rows are statements, and whether all chains are kept or all reversed.

        If so, and slots fall to chains in at most MOST_LAYOUTS ways (280 for 3 chains of 2 hops), all that agree with
        what it sees are weighed. Otherwise only two cases are known: it sees every link from what it is told to the
        answer, or nothing that could be the answer. The rest is nan.
        """
        at, names, contents = self._read(example)
        seen, asked = visible[example.query], example.inputs[-self._asked :]
        told = seen[:, -self._asked :]
        if self.ask == "value":
            sure = told[:, 0] & jnp.all((example.evidence < 0) | seen[:, example.evidence[0]], axis=-1)
            shown = jnp.sum(seen[:, at[:, 2]] & (contents >= self._first_value), axis=-1)
            blind, left = shown == 0, jnp.full(1, self.values)
        else:
            # The name before is told, or found; or the answer stands in a row that is seen.
            whole = jnp.all(seen[:, example.evidence], axis=-1)  # [A, K]
            known = [told[:, 0] & whole[:, 0]]
            for step in range(1, self.steps):
                known.append((told[:, step] | known[-1]) & whole[:, step])
            sure = jnp.diagonal(jnp.stack(known)) | jnp.append(jnp.diagonal(told, 1), False)
            labelled = (seen[:, at[:, 2]] & (contents < self._first_value)) | seen[:, at[:, 0]]
            blind, left = ~jnp.any(labelled, axis=-1), self.names - jnp.sum(told[:, 1:], axis=-1)
        partly = jnp.where(blind, 1 / left, jnp.nan)
        if _count(self.chains, self.steps) <= MOST_LAYOUTS:
            before = jnp.argmax(contents[:, None] == names, axis=-1) - jnp.arange(self.statements)
            value = contents >= self._first_value
            kept, reverse = jnp.all(value | (before < 0)), jnp.all(value | (before > 0))
            turned = jnp.where(kept, jnp.arange(self.statements), jnp.arange(self.statements)[::-1])
            weighed = jax.vmap(self._weighed, in_axes=(None, None, 0, 0, 0))
            found = weighed(example.inputs[at[turned]], asked, seen[:, at[turned]], told, jnp.arange(len(seen)))
            partly = jnp.where(kept | reverse, found, partly)
        return jnp.where(sure, 1.0, partly)

    def _weighed(
        self,
        statements: Int[jax.Array, "N 3"],
        asked: Int[jax.Array, "Q"],
        seen: Bool[jax.Array, "N 3"],
        told: Bool[jax.Array, "Q"],
        step: Int[jax.Array, ""],
    ) -> Float[jax.Array, ""]:
        """The best guess of row `step` over all layouts in the order of the chains, given what it sees of them."""
        (names, _, contents), (name_seen, _, content_seen) = statements.T, seen.T
        layouts, none = jnp.asarray(_layouts(self.chains, self.steps)), jnp.zeros(self.statements)  # [W, C, K]
        same = jnp.eye(self.statements, dtype=bool)
        world, head = jnp.arange(len(layouts))[:, None, None], layouts[..., 0]
        follows = jnp.zeros((len(layouts), *same.shape), bool)  # whether statement j copies i
        follows = follows.at[world, layouts[..., :-1], layouts[..., 1:]].set(True)

        def agrees(known: jax.Array, claimed: jax.Array, fact: jax.Array, axes: tuple[int, ...]) -> jax.Array:
            return jnp.all(~known | (claimed == fact), axis=axes)

        pair = name_seen[:, None] & content_seen
        agree = agrees(pair, follows, names[:, None] == contents, (1, 2))
        agree &= agrees(content_seen, ~jnp.any(follows, axis=1), contents >= self._first_value, (1,))

        def named(name: jax.Array) -> jax.Array:
            """Whether each statement [W, N] can be the one that sets `name`."""
            sets = agrees(name_seen, same, names == name, (1,))
            return sets & agrees(content_seen, follows, contents == name, (2,))

        if self.ask == "value":
            weight = agree[:, None] & (named(asked[0]) | ~told[0])  # [W, N], by the statement of the asked name
            own = jnp.zeros(weight.shape, int).at[world, layouts].set(head[..., None])
            mass = none.at[own].add(weight)  # by the statement with the value
            known, left = content_seen, self.values - jnp.sum(content_seen & (contents >= self._first_value))
        else:
            first = agrees(content_seen, same, contents == asked[0], (1,))
            weight = agree[:, None] & (first[head] | ~told[0])  # [W, C], by the asked chain
            for place in range(self.hops):
                fits = jnp.take_along_axis(named(asked[place + 1]), layouts[..., place], axis=1)
                weight &= fits | ~told[place + 1]
            # A name is known where it is set, or from the statement that copies it.
            here, copied = layouts[..., step], layouts[..., jnp.minimum(step + 1, self.hops)]
            by_copy = weight & ~name_seen[here] & content_seen[copied] & (step < self.hops)
            nowhere = weight & ~name_seen[here] & ~by_copy
            set_at, copied_at = none.at[here].add(weight & name_seen[here]), none.at[copied].add(by_copy)
            mass = jnp.concatenate([set_at, copied_at, jnp.sum(nowhere)[None]])
            known = jnp.arange(len(mass)) < len(mass) - 1
            labels = jnp.zeros(self.input.size, bool).at[names].max(name_seen).at[contents].max(content_seen)
            left = self.names - jnp.sum(labels.at[asked].max(told)[FIRST_NAME : self._first_value])
        unseen = jnp.sum(jnp.where(known, 0, mass)) / jnp.maximum(left, 1)
        return jnp.maximum(jnp.max(jnp.where(known, mass, 0)), unseen) / jnp.maximum(jnp.sum(mass), 1)

    def baselines(self, example: Batch, visible: Bool[jax.Array, "T T"]) -> dict[str, Float[jax.Array, "A"]]:
        """Rules that follow no chain, beside chance and majority: any value, or any name.

        nearest: the last value, or the last name set, that is seen. order_free: any value seen; or any name not told
        yet that occurs twice among the statements seen, once for the last of the chain. as_written, for names: the one
        set next in the text, which is right throughout for one chain in its order.
        """
        at, names, contents = self._read(example)
        seen, target = visible[example.query], example.targets[example.query]
        value = self.ask == "value"
        words, held = (contents, at[:, 2]) if value else (names, at[:, 0])
        shown = seen[:, held] & ((contents >= self._first_value) if value else True)
        chance = jnp.full(target.shape, 1 / (self.values if value else self.names))

        def said(candidates: jax.Array) -> jax.Array:
            return one_of(candidates, words == target[:, None], chance)

        last = shown & (held == jnp.max(jnp.where(shown, held, -1), axis=-1, keepdims=True))
        found = {"chance": chance, "majority": chance, "nearest": said(last)}
        if value:
            return {**found, "order_free": said(shown)}
        told = seen[:, -self._asked :]
        asked = example.inputs[-self._asked :]
        given = jnp.any(told[:, :, None] & (asked[:, None] == names), axis=1)  # [A, N]
        copied = jnp.any(seen[:, at[:, 2], None] & (contents[:, None] == names), axis=1)
        free = shown & ~given
        wanted = free & (copied == (jnp.arange(len(target)) < self.hops)[:, None])
        free = jnp.where(jnp.any(wanted, axis=-1, keepdims=True), wanted, free)
        slot = jnp.arange(self.statements)
        before = jnp.max(jnp.where(told[:, :, None] & (asked[:, None] == names), slot, -1), axis=-1)  # [A, Q]
        following = shown & (slot == 1 + jnp.diagonal(before)[:, None])
        return {**found, "order_free": said(free), "as_written": said(following)}


def _count(chains: int, steps: int) -> int:
    """In how many ways statements fall into chains, each in its order."""
    return math.factorial(chains * steps) // (math.factorial(steps) ** chains * math.factorial(chains))


@functools.cache
def _layouts(chains: int, steps: int) -> Int[np.ndarray, "W C K"]:
    """All of these ways: the slots of every chain, in its order."""

    def split(slots: tuple[int, ...]) -> list[list[tuple[int, ...]]]:
        if not slots:
            return [[]]
        chosen = [(slots[0], *rest) for rest in itertools.combinations(slots[1:], steps - 1)]
        return [[one, *others] for one in chosen for others in split(tuple(s for s in slots if s not in one))]

    return np.array(split(tuple(range(chains * steps))))
