"""Key-value pairs, then keys: the value bound to an asked key is the answer."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from positionbias.arrays import Bool, Float, Int, Key, Tree
from positionbias.spec import member, require
from positionbias.tasks.base import LONGEST, Batch, Condition, Size, Task, letters
from positionbias.tasks.sampling import by_weight, distinct, permutation, shares_by_weight
from positionbias.tokens import Tokens, sequential

MOST_NAMES = 65536  # keys, and values
MOST_DELAYS = 512  # of a gap law; its prior is computed in cubic time
FILLER = 0
PADDING_ROLE, KEY_ROLE, VALUE_ROLE, QUERY_ROLE = range(4)


@member("tasks", "associative_recall")
@dataclasses.dataclass(frozen=True)
class AssociativeRecall(Task):
    """Recall the value of an asked key; the pair asked for (slot k) and the delay g after the context are free.

        filler * padding | key value | key value | ... | `delays` rows: filler, but for the asked key(s)

    One sample of `associative_recall(pairs=4, keys=6, values=6, delays=3)`:

        input    d 4 a 0 c 5 f 1 d - -
        target   . . . . . . . . 4 . .

    Slot k and delay g of every answer are uniform and independent by construction; their distance follows. Keys of a
    sequence are distinct, values are drawn with replacement. Of the `pairs` slots, `queries` + `distractors` at random
    hold real pairs, the rest filler pairs; `distractors` None fills every slot.

    The condition "shifted" puts `shift` more filler tokens in front: absolute positions move, distances do not (0: no
    such condition). The filler in front is valid, visible content and not padding that the mask hides: hidden tokens
    would move only the numbers that a position scheme reads, while visible ones also lengthen what is attended to, as
    a longer document does.

    `gap_power` a draws the delays by the law of published MQAR instead (Arora et al. 2023, "Zoology", arXiv
    2312.04927): one after another, each in proportion to (g + 1)^(a - 1) among the rows that are left. Published is
    a = 0.01, where near rows are asked far more often. The prior of an answer's delay for `delays=8`:

        delay         0     1     2     3     4     5     6     7
        1 query    .365  .184  .123  .093  .074  .062  .053  .047
        4 queries  .227  .182  .145  .119  .100  .086  .075  .067
        uniform    .125  .125  .125  .125  .125  .125  .125  .125

    Slot and delay stay independent; the published generator hands its delays to the pairs in the order drawn, so that
    earlier pairs are asked earlier. It also asks for every pair, on every other row, draws distinct values, and by
    default fills the rows that ask nothing with random tokens.

    Vocabulary: 0 is filler, then `keys` keys, then `values` values.
    """

    pairs: int = 8
    keys: int = 64
    values: int = 64
    queries: int = 1
    delays: int = 8
    distractors: int | None = None
    padding: int = 0
    shift: int = 8
    gap_power: float | None = None

    filler = FILLER
    movable = True
    slots_are_segments = True
    query_axis = "delay after the context"
    evidence_axis = "slot of the asked pair"

    def __post_init__(self) -> None:
        require(self.pairs >= 1, "pairs", self.pairs, "a whole number from 1")
        require(self.delays >= 1, "delays", self.delays, "a whole number from 1")
        require(self.padding >= 0, "padding", self.padding, "a whole number from 0")
        require(self.shift >= 0, "shift", self.shift, "a whole number from 0")
        length = self.padding + self.shift + 2 * self.pairs + self.delays
        require(length <= LONGEST, "padding + shift + 2 * pairs + delays", length, f"at most {LONGEST} tokens in all")
        what = f"a whole number from pairs = {self.pairs} to {MOST_NAMES}"
        require(self.pairs <= self.keys <= MOST_NAMES, "keys", self.keys, what)
        require(2 <= self.values <= MOST_NAMES, "values", self.values, f"a whole number from 2 to {MOST_NAMES}")
        most = min(self.pairs, self.delays)
        require(1 <= self.queries <= most, "queries", self.queries, f"1 to {most}, the smaller of pairs and delays")
        others = self.pairs - self.queries
        require(
            self.distractors is None or 0 <= self.distractors <= others,
            "distractors",
            self.distractors,
            f"None or 0 to {others}, pairs - queries",
        )
        if self.gap_power is not None:
            require(0 <= self.gap_power <= 2, "gap_power", self.gap_power, "None or a number from 0 to 2")
            require(self.delays <= MOST_DELAYS, "delays", self.delays, f"1 to {MOST_DELAYS} with gap_power")

    @property
    def real(self) -> int:
        """Number of slots that hold a real pair."""
        return self.pairs if self.distractors is None else self.queries + self.distractors

    @property
    def _weights(self) -> tuple[float, ...]:
        """Of the delays, by the gap law."""
        assert self.gap_power is not None
        return tuple((delay + 1) ** (self.gap_power - 1) for delay in range(self.delays))

    # ---- static

    @property
    def input(self) -> Size:
        return Size("tokens", 1 + self.keys + self.values)

    @property
    def output(self) -> Size:
        return self.input

    def conditions(self) -> tuple[Condition, ...]:
        train = Condition("train", (("padding", self.padding),))
        shifted = Condition("shifted", (("padding", self.padding + self.shift),))
        return (train, shifted) if self.shift else (train,)

    def stretched(self, factor: int) -> AssociativeRecall:
        return dataclasses.replace(self, pairs=factor * self.pairs)

    def length(self, condition: Condition) -> int:
        return self.context_length(condition) + self.delays

    def context_length(self, condition: Condition) -> int:
        return condition["padding"] + 2 * self.pairs

    def query_rows(self, condition: Condition) -> Int[np.ndarray, "Q"]:
        return self.context_length(condition) + np.arange(self.delays)

    def tokens(self, condition: Condition) -> Tokens:
        role = [PADDING_ROLE] * condition["padding"] + [KEY_ROLE, VALUE_ROLE] * self.pairs + [QUERY_ROLE] * self.delays
        pair = np.repeat(np.arange(1, self.pairs + 1), 2)
        segment = np.concatenate([np.zeros(condition["padding"], int), pair, np.zeros(self.delays, int)])
        return sequential(self.length(condition), role=np.array(role, np.int32), segment=segment.astype(np.int32))

    def prior(self, condition: Condition) -> dict[str, Float[np.ndarray, "P"]]:
        delays = np.full(self.delays, 1 / self.delays)
        if self.gap_power is not None:
            delays = shares_by_weight(self.queries, self._weights)
        return {"query": delays, "evidence": np.full(self.pairs, 1 / self.pairs)}

    def word(self, token: int) -> str:
        if token == FILLER:
            return "-"
        return letters(token - 1) if token <= self.keys else str(token - 1 - self.keys)

    # ---- sampled

    def sample(self, key: Key[jax.Array, ""], condition: Condition, world: Tree = ()) -> Batch:
        key_key, value_key, slot_key, place_key = jax.random.split(key, 4)
        # One random order of the slots gives both the asked pairs (its head) and the real ones (a longer head).
        order = permutation(slot_key, self.pairs)
        asked = order[: self.queries]
        real = jnp.zeros(self.pairs, bool).at[order[: self.real]].set(True)
        names = 1 + distinct(key_key, self.pairs, self.keys)
        contents = 1 + self.keys + jax.random.randint(value_key, (self.pairs,), 0, self.values)
        pairs = jnp.where(real[:, None], jnp.stack([names, contents], axis=-1), FILLER)

        # Places are drawn in random order too, so that which pair is asked where is left to chance.
        if self.gap_power is None:
            place = distinct(place_key, self.queries, self.delays)
        else:
            draw_key, order_key = jax.random.split(place_key)
            drawn = by_weight(draw_key, self.queries, self._weights)  # likely ones first
            place = drawn[permutation(order_key, self.queries)]
        region = jnp.full(self.delays, FILLER).at[place].set(names[asked])
        inputs = jnp.concatenate([jnp.full(condition["padding"], FILLER), pairs.reshape(-1), region])

        query = self.context_length(condition) + place
        key_at = condition["padding"] + 2 * asked
        blank = jnp.zeros(self.length(condition), jnp.int32)
        answers = jnp.zeros(self.queries, jnp.int32)
        return Batch(
            inputs=inputs.astype(jnp.int32),
            targets=blank.at[query].set(contents[asked]),
            weights=blank.astype(jnp.float32).at[query].set(1.0),
            tokens=self.tokens(condition),
            query=query,
            evidence=jnp.stack([key_at, key_at + 1], axis=-1),
            order=answers,
            distance=query - key_at - 1,
            n_distractors=answers + self.real - 1,
            source=answers - 1,
            query_slot=place,
            evidence_slot=asked,
        )

    # ---- judged

    def _context(self, example: Batch, visible: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Per answer and slot: whether the key, and whether the value, is seen bool[A, P]; and the slots' tokens."""
        start = example.inputs.shape[0] - self.delays - 2 * self.pairs
        rows = visible[example.query, start : start + 2 * self.pairs].reshape(-1, self.pairs, 2)
        return rows[..., 0], rows[..., 1], example.inputs[start : start + 2 * self.pairs].reshape(-1, 2)

    def _counts(self, slots: jax.Array, tokens: jax.Array) -> jax.Array:
        """How often each value stands in the given slots: f32[A, V] from bool or weights [A, P]."""
        return slots.astype(jnp.float32) @ jax.nn.one_hot(tokens[:, 1] - 1 - self.keys, self.values)

    def ceiling(self, example: Batch, visible: Bool[jax.Array, "T T"]) -> Float[jax.Array, "A"]:
        """Exact. Where the row does not know which slot is asked, each slot it could be is weighed.

        `known` slots are seen to be real, by their key or their value. The other real pairs lie in slots of which
        nothing is seen, and hold any value. If the row's own key is seen, so is the asked slot where that slot's key
        is seen; else every real slot whose key is not seen is equally likely. If it is not seen, every real slot is
        equally likely, but for those that other visible queries ask for.
        """
        sees_key, sees_value, tokens = self._context(example, visible)
        holds = tokens[:, 0] != FILLER  # [P]
        asked = example.evidence_slot
        mine = jnp.arange(self.pairs) == asked[:, None]  # [A, P]

        known = holds & (sees_key | sees_value)
        keyless = holds & sees_value & ~sees_key  # real slots whose key is not seen but whose value is
        hidden = self.real - jnp.sum(known, axis=-1)  # real pairs of which nothing is seen
        unidentified = jnp.sum(keyless, axis=-1) + hidden
        slots_seen, spread = keyless.astype(jnp.float32), hidden.astype(jnp.float32)
        by_key = (self._counts(slots_seen, tokens) + spread[:, None] / self.values) / jnp.maximum(unidentified, 1)[
            :, None
        ]
        found = jnp.any(mine & sees_key, axis=-1)
        read = jnp.any(mine & sees_key & sees_value, axis=-1)
        informed = jnp.where(found, jnp.where(read, 1.0, 1.0 / self.values), jnp.max(by_key, axis=-1))

        # The row's own key is not seen: leave out what other queries, as far as they are seen, ask for.
        sees_query = visible[example.query[:, None], example.query[None, :]]  # [A, A]
        own = jnp.diagonal(sees_query)
        others = sees_query & ~jnp.eye(self.queries, dtype=bool)
        taken = (others.astype(jnp.float32) @ mine.astype(jnp.float32)) > 0  # [A, P]
        free = holds & sees_key & ~taken
        loose = jnp.sum(taken & ~sees_key, axis=-1)  # asked elsewhere, in a slot that is not identified
        share = 1 - loose / jnp.maximum(unidentified, 1)  # chance that an unidentified real slot is still free
        weight = jnp.where(sees_value, free, False) + share[:, None] * slots_seen
        vague = jnp.sum(free & ~sees_value, axis=-1) + share * spread
        left = self.real - jnp.sum(taken, axis=-1)
        uninformed = (self._counts(weight, tokens) + vague[:, None] / self.values) / left[:, None]
        return jnp.where(own, informed, jnp.max(uninformed, axis=-1))

    def baselines(self, example: Batch, visible: Bool[jax.Array, "T T"]) -> dict[str, Float[jax.Array, "A"]]:
        """chance and majority: any value; nearest: the last value seen; order_free: the value seen most often."""
        _, sees_value, tokens = self._context(example, visible)
        shown = sees_value & (tokens[:, 1] != FILLER)
        target = example.targets[example.query]
        chance = jnp.full(self.queries, 1.0 / self.values)
        last = jnp.max(jnp.where(shown, jnp.arange(self.pairs), -1), axis=-1)
        nearest = jnp.where(last < 0, chance, (tokens[last, 1] == target).astype(jnp.float32))
        counts = self._counts(shown, tokens)
        most = counts == jnp.max(counts, axis=-1, keepdims=True)
        hit = jnp.take_along_axis(most, (target - 1 - self.keys)[:, None], axis=-1)[:, 0]
        order_free = hit / jnp.sum(most, axis=-1)
        return {"chance": chance, "majority": chance, "nearest": nearest, "order_free": order_free}
