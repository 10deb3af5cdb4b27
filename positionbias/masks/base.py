"""The mask protocol: which key positions a query may see, as a boolean rule and never a float.

A rule is written with array operators only, so that one rule runs under numpy (theory), jax.numpy (the dense path)
and inside a kernel tile. What a rule must know of whole sequences, it works out once, in `bind`. Masks combine with
`&`, `|` and `~`; `valid` is ANDed last, whatever the expression.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np

from positionbias.arrays import Bool, Int, Mapped
from positionbias.spec import ConfigError
from positionbias.tokens import Tokens

EMPTY, PARTIAL, FULL = 0, 1, 2


class Mask:
    """A rule on pairs of tokens."""

    axis = "masks"
    roles: ClassVar[tuple[str, ...]] = ()  # arguments that name a role of tokens

    def allowed(self, q: Tokens, k: Tokens) -> Mapped:
        """Whether query `q` may see key `k`, elementwise over fields that broadcast; bool.

        `q` and `k` come as `tokens.rows()` and `tokens.columns()`, as scalars, or as tiles of either, of the sequences
        that the mask is bound to.
        """
        raise NotImplementedError

    def bind(self, q: Tokens, k: Tokens) -> Mask:
        """The mask of these whole sequences, [..., T] and [..., S]; itself, if pairs of tokens tell it all.

        numpy or jax arrays. Raises ConfigError for sequences that it cannot serve.
        """
        return self

    @property
    def second_share(self) -> float | None:
        """The share of training batches that a `switch` reads under its second mask; None without a switch."""
        return None

    def dense(self, q: Tokens, k: Tokens) -> Mapped:
        """The whole mask, bool [..., T, S], for tokens [..., T] and [..., S]; padding neither sees nor is seen."""
        return self.bind(q, k)._dense(q, k)

    def _dense(self, q: Tokens, k: Tokens) -> Mapped:
        rows, columns = q.rows(), k.columns()
        return self.allowed(rows, columns) & rows.valid & columns.valid

    def blocks(self, q: Tokens, k: Tokens, block: tuple[int, int]) -> Int[np.ndarray, "..."]:
        """Which tiles of `block` = (rows, columns) are EMPTY, PARTIAL or FULL: int8 [..., ceil(T/bq), ceil(S/bk)].

        Exact for every rule: where `outline` does not tell, the rule is evaluated a band of rows at a time, so that
        memory stays at bq x S. The last tile of a ragged length is judged on the tokens that exist.
        """
        step_q, step_k = block
        bound, lengths = self.bind(q, k), (q.length, k.length)
        starts_q, starts_k = (np.arange(0, length, step) for length, step in zip(lengths, block, strict=True))
        whole_q, whole_k = (
            np.logical_and.reduceat(side.valid, starts, axis=-1) for side, starts in ((q, starts_q), (k, starts_k))
        )
        told = np.asarray(bound.outline(q, k, block))
        told = np.where(whole_q[..., :, None] & whole_k[..., None, :], told, np.minimum(told, PARTIAL))
        lead = bound._dense(q.cut(0, 1), k.cut(0, 1)).shape[:-2]
        found = np.broadcast_to(told, (*lead, len(starts_q), len(starts_k))).astype(np.int8)
        unsure = (told == PARTIAL).any(axis=tuple(range(told.ndim - 2)))
        for row in np.flatnonzero(unsure.any(axis=-1)).tolist():
            rows, tiles = q.cut(row * step_q, (row + 1) * step_q), np.flatnonzero(unsure[row])
            places = (tiles[:, None] * step_k + np.arange(step_k)).reshape(-1)
            places = places[places < k.length]
            band = np.asarray(bound._dense(rows, Tokens(*(field[..., places] for field in k))))
            first = np.arange(0, len(places), step_k)
            some = np.logical_or.reduceat(band.any(axis=-2), first, axis=-1)
            every = np.logical_and.reduceat(band.all(axis=-2), first, axis=-1)
            found[..., row, tiles] = judged(every, some)
        return found

    def outline(self, q: Tokens, k: Tokens, block: tuple[int, int]) -> Int[np.ndarray, "..."]:
        """What bounds on fields tell of tiles before padding, numpy: EMPTY, FULL, or PARTIAL also where they do not.

        Of a mask bound to these whole sequences; broadcasts to [..., ceil(T/bq), ceil(S/bk)].
        """
        return np.full((1, 1), PARTIAL, np.int8)

    def __and__(self, other: Mask) -> Mask:
        return Both(self, other)

    def __or__(self, other: Mask) -> Mask:
        return Either(self, other)

    def __invert__(self) -> Mask:
        return Negation(self)


def _wrapped(mask: Mask, show: Callable[[Any], str]) -> str:
    return f"({show(mask)})" if isinstance(mask, Both | Either) else show(mask)


@dataclasses.dataclass(frozen=True)
class Both(Mask):
    """`left & right`."""

    left: Mask
    right: Mask

    def __post_init__(self) -> None:
        one_share((self.left, self.right))

    @property
    def second_share(self) -> float | None:
        return one_share((self.left, self.right))

    def allowed(self, q: Tokens, k: Tokens) -> Mapped:
        return self.left.allowed(q, k) & self.right.allowed(q, k)

    def bind(self, q: Tokens, k: Tokens) -> Mask:
        return Both(self.left.bind(q, k), self.right.bind(q, k))

    def outline(self, q: Tokens, k: Tokens, block: tuple[int, int]) -> Int[np.ndarray, "..."]:
        return np.minimum(self.left.outline(q, k, block), self.right.outline(q, k, block))

    def combined(self, show: Callable[[Any], str]) -> str:
        """The expression's text; `show` renders an operand."""
        return f"{_wrapped(self.left, show)} & {_wrapped(self.right, show)}"


@dataclasses.dataclass(frozen=True)
class Either(Mask):
    """`left | right`."""

    left: Mask
    right: Mask

    def __post_init__(self) -> None:
        one_share((self.left, self.right))

    @property
    def second_share(self) -> float | None:
        return one_share((self.left, self.right))

    def allowed(self, q: Tokens, k: Tokens) -> Mapped:
        return self.left.allowed(q, k) | self.right.allowed(q, k)

    def bind(self, q: Tokens, k: Tokens) -> Mask:
        return Either(self.left.bind(q, k), self.right.bind(q, k))

    def outline(self, q: Tokens, k: Tokens, block: tuple[int, int]) -> Int[np.ndarray, "..."]:
        return np.maximum(self.left.outline(q, k, block), self.right.outline(q, k, block))

    def combined(self, show: Callable[[Any], str]) -> str:
        """The expression's text; `show` renders an operand."""
        return f"{_wrapped(self.left, show)} | {_wrapped(self.right, show)}"


@dataclasses.dataclass(frozen=True)
class Negation(Mask):
    """`~inner`."""

    inner: Mask

    @property
    def second_share(self) -> float | None:
        return self.inner.second_share

    def allowed(self, q: Tokens, k: Tokens) -> Mapped:
        return ~self.inner.allowed(q, k)

    def bind(self, q: Tokens, k: Tokens) -> Mask:
        return Negation(self.inner.bind(q, k))

    def outline(self, q: Tokens, k: Tokens, block: tuple[int, int]) -> Int[np.ndarray, "..."]:
        return FULL - self.inner.outline(q, k, block)

    def combined(self, show: Callable[[Any], str]) -> str:
        """The expression's text; `show` renders an operand."""
        return f"~{_wrapped(self.inner, show)}"


def judged(every: Bool[Mapped, "..."], some: Bool[Mapped, "..."]) -> Int[np.ndarray, "..."]:
    """Classes of tiles, of which every pair is allowed, or some may be."""
    return np.where(every, FULL, np.where(some, PARTIAL, EMPTY)).astype(np.int8)


class Bounds(NamedTuple):
    """The least and the greatest of a field in every tile: of queries [..., P, 1], of keys [..., 1, M]."""

    least_q: np.ndarray
    most_q: np.ndarray
    least_k: np.ndarray
    most_k: np.ndarray

    @classmethod
    def of(cls, q: np.ndarray, k: np.ndarray, block: tuple[int, int]) -> Bounds:
        """Of a field of both sides."""
        found = [
            most.reduceat(field, np.arange(0, field.shape[-1], step), axis=-1)
            for field, step in ((q, block[0]), (k, block[1]))
            for most in (np.minimum, np.maximum)
        ]
        return cls(found[0][..., :, None], found[1][..., :, None], found[2][..., None, :], found[3][..., None, :])

    def equal(self) -> Int[np.ndarray, "..."]:
        """The classes where a query sees the keys whose field is its own."""
        every = (self.least_q == self.most_k) & (self.most_q == self.least_k)
        return judged(every, (self.least_q <= self.most_k) & (self.least_k <= self.most_q))


def one_share(masks: Iterable[Mask]) -> float | None:
    """The `second_share` of all masks that have one, None if none does; ConfigError if two differ."""
    shares = sorted({share for mask in masks if (share := mask.second_share) is not None})
    if len(shares) > 1:
        raise ConfigError(
            f"share = {shares[0]} of one switch and share = {shares[1]} of another are not allowed together;"
            " allowed: the same share for all, as a batch is read in one mode."
        )
    return shares[0] if shares else None


def from_first_key(rule: Mask, k: Tokens) -> Mask:
    """The `rule`, which speaks of the first tokens, on places counted from the first key that is no padding.

    That of a decoder, say, or of a prompt padded in front.
    """
    behind = k.index.max(axis=-1, keepdims=True) - k.index  # of padding, so that it comes after all others
    return _FromFirst(rule, across((k.index + behind * ~k.valid).min(axis=-1)))


@dataclasses.dataclass(frozen=True)
class _FromFirst(Mask):
    rule: Mask
    first: Mapped

    def allowed(self, q: Tokens, k: Tokens) -> Mapped:
        sides = (side._replace(index=side.index - self.first) for side in (q, k))
        return self.rule.allowed(*sides)


def across(number: Mapped) -> Mapped:
    """A number a sequence, [...], as it broadcasts against rows and columns of these sequences."""
    return number if number.ndim == 0 else number[..., None, None]


def looked_up(table: np.ndarray, *index: Mapped) -> Mapped:
    """`table[index]`, under numpy and jax alike."""
    return index[0].__array_namespace__().asarray(table)[index]


def reach(
    layers: Sequence[Bool[Mapped, "T T"]], carries: bool = True, begin: Bool[Mapped, "T J"] | None = None
) -> Bool[Mapped, "T J"]:
    """Which inputs each position can depend on after a stack of layers: the boolean product of their masks.

    `layers` holds, first layer first, who may influence whom; `carries` says whether a residual also carries each
    position on. Row i, column j is True if a path of allowed edges leads from input j to output i. `begin` says which
    inputs each position holds before the first, by default its own. numpy or jax.
    """
    total: Mapped = np.eye(layers[0].shape[-1], dtype=bool) if begin is None else begin
    for visible in layers:
        total = attended(visible, total, total, carries)
    return total


def attended(
    visible: Bool[Mapped, "T S"], queries: Bool[Mapped, "T J"], keys: Bool[Mapped, "S J"], carries: bool
) -> Bool[Mapped, "T J"]:
    """Which inputs rows depend on after one attention, from those that its `queries` and `keys` depend on.

    What a row was made from also shapes its weights, by way of its query: without a residual (`carries`) too, unless
    it sees nothing at all, and then it depends on nothing.
    """
    own = queries if carries else queries & visible.any(axis=-1, keepdims=True)
    return compose(visible, keys) | own


def compose(visible: Bool[Mapped, "T S"], inner: Bool[Mapped, "S J"]) -> Bool[Mapped, "T J"]:
    """Boolean matrix product: row i depends on input j if it sees a position that does."""
    return (visible.astype(np.float32) @ inner.astype(np.float32)) > 0
