"""Needles in a haystack: the value that a key was given at some depth of a long context."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from positionbias.arrays import Bool, Float, Int, Key, Tree
from positionbias.spec import member, require
from positionbias.tasks.base import LONGEST, Batch, Condition, Size, Task, letters
from positionbias.tasks.sampling import distinct
from positionbias.tokens import Tokens, sequential

MOST_DEPTHS = 256  # the ceiling looks at every cell for every key
MOST_VALUES = 8  # of a key
MOST_NAMES = 65536  # key, value and noise tokens
MOST_WEIGHED = 2**22  # numbers that the ceilings of an example take
SPAN = 3  # tokens of a needle: marker, key, value
FILLER = 0  # the first of the noise tokens
HAYSTACK_ROLE, KEY_ROLE, WHICH_ROLE = range(3)


@member("tasks", "needle")
@dataclasses.dataclass(frozen=True)
class Needle(Task):
    """Find needles in a haystack, as in RULER (Hsieh et al. 2024, arXiv 2404.06654) with tokens for words.

    The haystack is `depths` cells of `cell` noise tokens. A needle is a marker, a key and a value; `keys` keys have
    `values` needles each, one a cell at most, anywhere in it. After the haystack `queries` of the keys are asked for;
    the other keys distract.

    One sample of `needle(keys=2, depths=4, cell=5, key_tokens=6, value_tokens=6, noise_tokens=3)`:

        input    ! e 2 ~1 ~2 ~1 ~2 ~1 ~0 ~2 ~1 ~0 ~0 ~1 ~2 ~2 ! a 3 ~2 a
        target   . . . .  .  .  .  .  .  .  .  .  .  .  .  .  . . . .  3

    All values of an asked key are asked for, one a row, where RULER lets a model list them in any order: #2 asks for
    the second of them as they stand in the haystack, and the rows of a key ask in random order. So every answer is
    one token that is right whatever the other rows say, and its depth and the place of its question are uniform and
    independent.

    One sample of `needle(keys=2, values=2, queries=2, depths=4, cell=4, key_tokens=6, value_tokens=6, noise_tokens=3)`:

        input    ! a 2 ~1 ! a 3 ~1 ~0 ! e 1 ~0 ! e 5 a #2 #1 e #1 #2
        target   . . . .  . . . .  .  . . . .  . . . . 3  2  . 1  5

    Conditions: "train" is as given. Beside it, where they differ, those of RULER in the same haystack: "single" (one
    key), "multi_key" (all keys, one asked for) and "multi_query" (the asked keys alone), each with one value a key, and
    "multi_value" (one key, all its values). With `keys` * `values` = `depths` the haystack is made of needles, with
    `cell=3` of nothing else, and "train" stands alone; it is stretched to more cells and keys, another haystack to
    longer cells.

    Segments are the cells. With one value a key they may change places. Vocabulary: noise, whose first token is the
    filler, the marker, keys, values, and #1 to #`values` if there are several.
    """

    keys: int = 4
    values: int = 1
    queries: int = 1
    depths: int = 10
    cell: int = 12
    key_tokens: int = 64
    value_tokens: int = 64
    noise_tokens: int = 16

    filler = FILLER
    slots_are_segments = True
    query_axis = "question"
    evidence_axis = "depth, in cells"

    def __post_init__(self) -> None:
        require(1 <= self.depths <= MOST_DEPTHS, "depths", self.depths, f"a whole number from 1 to {MOST_DEPTHS}")
        most = min(self.depths, MOST_VALUES)
        require(1 <= self.values <= most, "values", self.values, f"a whole number from 1 to {most}")
        most = self.depths // self.values
        what = f"a whole number from 1 to {most}, depths // values"
        require(1 <= self.keys <= most, "keys", self.keys, what)
        require(1 <= self.queries <= self.keys, "queries", self.queries, f"1 to {self.keys}, the keys")
        what = f"a whole number from {SPAN}, the tokens of a needle"
        require(self.cell >= SPAN, "cell", self.cell, what)
        length = self.depths * self.cell + self._asking(self.values, self.queries)
        asked = length - self.depths * self.cell
        what = f"at most {LONGEST - asked}, for {asked} more ask"
        require(length <= LONGEST, "depths * cell", self.depths * self.cell, what)
        what = f"a whole number from keys = {self.keys} to {MOST_NAMES}"
        require(self.keys <= self.key_tokens <= MOST_NAMES, "key_tokens", self.key_tokens, what)
        what = f"a whole number from 2 to {MOST_NAMES}"
        require(2 <= self.value_tokens <= MOST_NAMES, "value_tokens", self.value_tokens, what)
        what = f"a whole number from 1 to {MOST_NAMES}"
        require(1 <= self.noise_tokens <= MOST_NAMES, "noise_tokens", self.noise_tokens, what)

    # ---- static

    @property
    def movable(self) -> bool:  # type: ignore[override]
        """The first of two values is another one if they change places."""
        return self.values == 1

    @property
    def _first_key(self) -> int:
        return self.noise_tokens + 1

    @property
    def _first_value(self) -> int:
        return self._first_key + self.key_tokens

    @property
    def _first_which(self) -> int:
        return self._first_value + self.value_tokens

    @property
    def input(self) -> Size:
        return Size("tokens", self._first_which + (self.values if self.values > 1 else 0))

    @property
    def output(self) -> Size:
        return self.input

    def conditions(self) -> tuple[Condition, ...]:
        given = (self.keys, self.values, self.queries)
        grid = {given: "train"}
        if self.keys * self.values < self.depths:
            grid.setdefault((1, 1, 1), "single")
            grid.setdefault((self.keys, 1, 1), "multi_key")
            grid.setdefault((1, self.values, 1), "multi_value")
            grid.setdefault((self.queries, 1, self.queries), "multi_query")
        return tuple(
            Condition(name, tuple(zip(("keys", "values", "queries"), counts, strict=True)))
            for counts, name in grid.items()
        )

    def stretched(self, factor: int) -> Needle:
        if self.keys * self.values == self.depths:
            return dataclasses.replace(self, depths=factor * self.depths, keys=factor * self.keys)
        return dataclasses.replace(self, cell=factor * self.cell)

    def _asking(self, values: int, queries: int) -> int:
        """Rows that ask: a key each, and which of its values where the task has several."""
        return queries * (1 + values if self.values > 1 else 1)

    def length(self, condition: Condition) -> int:
        return self.context_length(condition) + self._asking(condition["values"], condition["queries"])

    def context_length(self, condition: Condition) -> int:
        return self.depths * self.cell

    def _asking_rows(self, values: int, queries: int) -> tuple[np.ndarray, np.ndarray]:
        """Where each asked key is named [queries], and where its values are asked for [queries, values]."""
        several = int(self.values > 1)
        named = self.depths * self.cell + (1 + several * values) * np.arange(queries)
        return named, named[:, None] + several * (1 + np.arange(values))

    def query_rows(self, condition: Condition) -> Int[np.ndarray, "Q"]:
        return self._asking_rows(condition["values"], condition["queries"])[1].reshape(-1)

    def tokens(self, condition: Condition) -> Tokens:
        length, context = self.length(condition), self.context_length(condition)
        role, segment = np.full(length, WHICH_ROLE, np.int32), np.zeros(length, np.int32)
        role[:context] = HAYSTACK_ROLE
        role[self._asking_rows(condition["values"], condition["queries"])[0]] = KEY_ROLE
        segment[:context] = 1 + np.arange(context) // self.cell
        return sequential(length, role=role, segment=segment)

    def prior(self, condition: Condition) -> dict[str, Float[np.ndarray, "P"]]:
        asked = condition["queries"] * condition["values"]
        return {"query": np.full(asked, 1 / asked), "evidence": np.full(self.depths, 1 / self.depths)}

    def word(self, token: int) -> str:
        if token < self.noise_tokens:
            return f"~{token}"
        if token < self._first_value:
            return "!" if token < self._first_key else letters(token - self._first_key)
        if token < self._first_which:
            return str(token - self._first_value)
        return f"#{token - self._first_which + 1}"

    # ---- sampled

    def sample(self, key: Key[jax.Array, ""], condition: Condition, world: Tree = ()) -> Batch:
        cell_key, start_key, name_key, value_key, noise_key = jax.random.split(key, 5)
        keys, values, queries = condition["keys"], condition["values"], condition["queries"]
        length, shape = self.length(condition), (keys, values)
        cells = distinct(cell_key, keys * values, self.depths).reshape(shape)
        starts = self.cell * cells + jax.random.randint(start_key, shape, 0, self.cell - SPAN + 1, jnp.int32)
        names = self._first_key + distinct(name_key, keys, self.key_tokens)
        contents = self._first_value + jax.random.randint(value_key, shape, 0, self.value_tokens, jnp.int32)
        # Needles of a key come in no order, and are asked for as they come: so in random order.
        which = jnp.sum(cells[:, None, :] < cells[:, :, None], axis=-1, dtype=jnp.int32)

        named, asking = self._asking_rows(values, queries)
        inputs = jax.random.randint(noise_key, (length,), 0, self.noise_tokens, jnp.int32)
        inputs = (
            inputs.at[starts].set(self.noise_tokens).at[starts + 1].set(names[:, None]).at[starts + 2].set(contents)
        )
        inputs = inputs.at[named].set(names[:queries])
        if self.values > 1:
            inputs = inputs.at[asking].set(self._first_which + which[:queries])

        query = jnp.asarray(asking.reshape(-1), jnp.int32)
        answer_at = (starts[:queries] + 2).reshape(-1)
        in_order = (
            jnp.zeros((queries, values), jnp.int32)
            .at[jnp.arange(queries)[:, None], which[:queries]]
            .set(starts[:queries] + 1)
        )
        # To tell a key's second value takes its first needle too.
        passed = jnp.arange(values) <= which[:queries, :, None]  # [Q, V, V]
        key_at = jnp.where(passed, in_order[:, None, :], -1).reshape(-1, values)
        nothing, zero = jnp.zeros(length, jnp.int32), jnp.zeros_like(query)
        return Batch(
            inputs=inputs,
            targets=nothing.at[query].set(contents[:queries].reshape(-1)),
            weights=nothing.astype(jnp.float32).at[query].set(1.0),
            tokens=self.tokens(condition),
            query=query,
            evidence=jnp.concatenate([key_at, answer_at[:, None]], axis=-1),
            order=zero,
            distance=query - answer_at,
            n_distractors=zero + keys * values - 1,
            source=zero - 1,
            query_slot=jnp.arange(queries * values, dtype=jnp.int32),
            evidence_slot=cells[:queries].reshape(-1),
        )

    # ---- judged

    def _needles(self, example: Batch, visible: jax.Array) -> tuple[jax.Array, ...]:
        """Of every cell: key and value of its needle i32[D], and per answer which token of it is seen bool[A, D, 3].

        The last one is in how many places of the cell a needle could lie of which nothing is seen, i32[A, D].
        """
        haystack = example.inputs[: self.depths * self.cell].reshape(self.depths, self.cell)
        marked = haystack == self.noise_tokens
        at = jnp.argmax(marked, axis=-1)[:, None] + jnp.arange(SPAN)  # a cell without needle: anywhere
        _, key, value = jnp.take_along_axis(haystack, at, axis=-1).T
        seen = visible[example.query][:, : haystack.size].reshape(-1, *haystack.shape)
        tokens_seen = jnp.take_along_axis(seen, at[None], axis=-1) & jnp.any(marked, axis=-1)[:, None]
        spots = self.cell - SPAN + 1
        hidden = ~(seen[..., :spots] | seen[..., 1 : spots + 1] | seen[..., 2:])
        places = jnp.where(jnp.any(tokens_seen, axis=-1), 0, jnp.sum(hidden, axis=-1))
        return jnp.where(jnp.any(marked, axis=-1), key, -1), value, tokens_seen, places

    def ceiling(self, example: Batch, visible: Bool[jax.Array, "T T"]) -> Float[jax.Array, "A"]:
        """Exact, for a reader who knows the layout: where cells end, and what each row asks of which asked key.

        It finds a needle by any of its tokens. Needles whose key is hidden belong to the keys that miss some, all
        choices being equally likely, and those of which nothing is seen lie in any of the places that are left: so it
        counts the ways in which each needle found is the asked one. Where the row sees no key or no number, all that
        other rows leave over are equally likely. A value that is not seen may be any. In haystacks of so many needles
        that this takes more than MOST_WEIGHED numbers, it is 1 where all of them and the question are seen, else nan.
        """
        values = example.evidence.shape[-1] - 1
        queries = example.query.shape[0] // values
        named, asking = map(jnp.asarray, self._asking_rows(values, queries))
        key, value, tokens_seen, places = self._needles(example, visible)
        count = example.n_distractors[0] + 1
        asked_keys = example.inputs[named]
        keys = jnp.unique(jnp.where(key < 0, asked_keys[0], key), size=self.keys, fill_value=-1)
        which = example.inputs[asking] - self._first_which if self.values > 1 else jnp.zeros_like(asking)

        def judged(answer: jax.Array, sees: jax.Array, tokens_seen: jax.Array, places: jax.Array) -> jax.Array:
            mine, turn = answer // values, answer % values
            other = sees[named] & (jnp.arange(queries) != mine)
            free = (keys >= 0) & ~jnp.any((keys[:, None] == asked_keys) & other, axis=-1)
            chosen = jnp.where(sees[named[mine]], keys == asked_keys[mine], free)

            one = which[mine] == jnp.arange(values)[:, None]  # [V, V]: number, turn
            rest = ~jnp.any(one & sees[asking[mine]], axis=-1)
            number = jnp.where(sees[asking[mine, turn]], one[:, turn], rest)

            def found(name: jax.Array) -> jax.Array:
                return _ranks(key == name, tokens_seen, places, count, values, self.keys * self.values)

            shares = jnp.stack(jax.lax.map(found, keys))  # [K, D, V]
            likely = jnp.einsum("k,kdv,v->d", chosen / jnp.sum(chosen), shares, number / jnp.sum(number))
            likely *= tokens_seen[:, 2]
            by_value = likely @ (value[:, None] == value)
            return jnp.max(by_value) + (1 - jnp.sum(likely)) / self.value_tokens

        answers, sees = jnp.arange(queries * values), visible[example.query]
        if self.depths * (self.keys * self.values + 1) * (values + 1) * len(answers) > MOST_WEIGHED:
            whole = jnp.all(jnp.all(tokens_seen, axis=-1) | (key < 0), axis=-1)
            told = sees[answers, named[answers // values]] & sees[answers, asking.reshape(-1)]
            return jnp.where(whole & told, 1.0, jnp.nan)
        return jax.vmap(judged)(answers, sees, tokens_seen, places)

    def baselines(self, example: Batch, visible: Bool[jax.Array, "T T"]) -> dict[str, Float[jax.Array, "A"]]:
        """chance and majority: any value; nearest: the last value seen; order_free: the value seen most often."""
        _, value, tokens_seen, _ = self._needles(example, visible)
        shown, target = tokens_seen[..., 2], example.targets[example.query]
        chance = jnp.full(target.shape, 1 / self.value_tokens)
        last = jnp.max(jnp.where(shown, jnp.arange(self.depths), -1), axis=-1)
        nearest = jnp.where(last < 0, chance, (value[last] == target).astype(jnp.float32))
        counts = jnp.where(shown, shown.astype(jnp.float32) @ (value[:, None] == value), 0)  # [A, D]
        top = jnp.max(counts, axis=-1)
        most = shown & (counts == top[:, None])
        ties = jnp.sum(most, axis=-1) / jnp.maximum(top, 1)  # values that are seen so often
        hit = jnp.any(most & (value == target[:, None]), axis=-1)
        mode = jnp.where(top > 0, hit / jnp.maximum(ties, 1), chance)
        return {"chance": chance, "majority": chance, "nearest": nearest, "order_free": mode}


def _ranks(
    named: Bool[jax.Array, "D"],
    seen: Bool[jax.Array, "D 3"],
    places: Int[jax.Array, "D"],
    count: Int[jax.Array, ""],
    values: int,
    most: int,
) -> Float[jax.Array, "D V"]:
    """How likely the needle found in a cell is the v-th of a key, f32[D, V]; 0 where none was found.

    `named` are the cells whose needle is the key's, `count` the needles in all, at most `most`. Ways are counted by the
    generating function of the cells in front of and behind each one, in h, the needles of which nothing is seen, and t,
    those of the key among the needles whose key is not seen.
    """
    found = jnp.any(seen, axis=-1)
    certain, open_ = named & seen[:, 1], found & ~seen[:, 1]
    hidden, missing = count - jnp.sum(found), values - jnp.sum(certain)
    # Scaled so that `hidden` needles are what a draw of each cell by its odds would expect: the ways asked for are then
    # not far below the most, and numbers do not run out.
    odds = jnp.log(places)

    def halve(_: int, bounds: jax.Array) -> jax.Array:
        middle = jnp.mean(bounds)
        return jnp.where(
            jnp.sum(jax.nn.sigmoid(odds + middle)) < hidden, bounds.at[0].set(middle), bounds.at[1].set(middle)
        )

    weight = jnp.exp(odds + jnp.mean(jax.lax.fori_loop(0, 30, halve, jnp.array([-30.0, 30.0]))))

    def step(ways: jax.Array, cell: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        is_open, weight = cell
        either = ways + jnp.pad(ways[:, :-1], ((0, 0), (1, 0)))  # another key's, or the key's
        after = jnp.where(is_open, either, ways) + weight * jnp.pad(either[:-1], ((1, 0), (0, 0)))
        return after / jnp.max(after), ways

    start = jnp.zeros((most + 1, values + 1)).at[0, 0].set(1.0)
    _, front = jax.lax.scan(step, start, (open_, weight))
    _, behind = jax.lax.scan(step, start, (open_, weight), reverse=True)
    other = hidden - jnp.arange(most + 1)
    matched = jnp.where((other >= 0)[:, None], behind[:, other], 0)
    ways = jnp.einsum("dht,dhu->dtu", front, matched)

    t, u = jnp.arange(values + 1)[:, None], jnp.arange(values + 1)
    before = jnp.cumsum(certain) - certain
    rank = jnp.arange(values)[:, None, None]
    left = (missing - open_)[:, None, None, None]
    is_key = jnp.einsum("dtu,dvtu->dv", ways, (before[:, None, None, None] + t == rank) & (t + u == left))
    is_other = jnp.where(open_, jnp.sum(ways * (t + u == missing), axis=(1, 2)), 0)
    total = jnp.sum(is_key, axis=-1) + is_other
    return jnp.where((certain | open_)[:, None], is_key / jnp.where(total > 0, total, 1)[:, None], 0)
