"""Masks that are drawn from a seed."""

from __future__ import annotations

import dataclasses

import numpy as np

from positionbias.arrays import Mapped
from positionbias.masks.base import Mask, across, looked_up
from positionbias.spec import ConfigError, member, require
from positionbias.tokens import Tokens


@member("masks", "random_permutation_window")
@dataclasses.dataclass(frozen=True)
class RandomPermutationWindow(Mask):
    """A query sees keys fewer than `width` places away after the tokens were shuffled, Stochastic Attention.

    Jin and Sui 2026 (arXiv 2604.00754). `circular` joins the ends of the shuffled sequence. Give each layer a shuffle
    of its own: `[random_permutation_window(8, seed=0), random_permutation_window(8, seed=1)]`. For self-attention only.
    `causal & random_permutation_window(w)` alone leaves pairs out at any depth in practice: nothing lies between i - 1
    and i, so that some layer must have drawn them adjacent; `causal & (random_permutation_window(w) |
    sliding_window(w))` has them all in a few layers. Six tokens, width 2, seed 0:

        1 1 0 0 1 0
        1 1 1 0 0 0
        0 1 1 1 0 0
        0 0 1 1 0 0
        1 0 0 0 1 1
        0 0 0 0 1 1
    """

    width: int
    seed: int = 0
    circular: bool = False

    def __post_init__(self) -> None:
        require(self.width >= 1, "width", self.width, "a whole number from 1")
        require(self.seed >= 0, "seed", self.seed, "a whole number from 0")

    def bind(self, q: Tokens, k: Tokens) -> Mask:
        # Indices under a trace are not known; what is built was checked with those of the task, which are.
        known = isinstance(q.index, np.ndarray) and isinstance(k.index, np.ndarray)
        if q.length != k.length or (known and (q.index != k.index).any()):
            raise ConfigError(
                f"random_permutation_window shuffles one sequence, but {q.length} queries look at {k.length} keys of"
                " another; allowed: another mask for cross attention."
            )
        # Ranks of raw words, as numpy keeps these the same in every version, and permutations not.
        rank = np.random.PCG64(self.seed).random_raw(k.length).argsort(kind="stable").astype(np.int32)
        return _Shuffled(rank, across(k.index.min(axis=-1)), self.width, self.circular)


@dataclasses.dataclass(frozen=True)
class _Shuffled(Mask):
    """A window over `rank`, [T], of tokens the first of which is stored at `first`."""

    rank: np.ndarray
    first: Mapped
    width: int
    circular: bool

    def allowed(self, q: Tokens, k: Tokens) -> Mapped:
        away = abs(looked_up(self.rank, q.index - self.first) - looked_up(self.rank, k.index - self.first))
        near = away < self.width
        return near | (len(self.rank) - away < self.width) if self.circular else near


@member("masks", "random_graph")
@dataclasses.dataclass(frozen=True)
class RandomGraph(Mask):
    """A query sees itself, and every other key with probability `p`, drawn once for each ordered pair.

    A directed random graph, as the random part of BigBird (Zaheer et al. 2020, arXiv 2007.14062) is. The draw is a hash
    of both indices and the seed: longer sequences keep the pairs of shorter ones, and all examples share one graph.
    Six tokens, p 0.3, seed 0:

        1 0 0 0 0 0
        0 1 0 0 0 1
        1 0 1 0 1 0
        0 0 1 1 0 1
        1 1 1 0 1 0
        0 1 0 0 0 1
    """

    p: float
    seed: int = 0

    def __post_init__(self) -> None:
        require(0 <= self.p <= 1, "p", self.p, "a number from 0 to 1")
        require(self.seed >= 0, "seed", self.seed, "a whole number from 0")

    def allowed(self, q: Tokens, k: Tokens) -> Mapped:
        of_query, of_key = np.random.SeedSequence(self.seed).generate_state(2)
        drawn = _mixed(_mixed(_unsigned(q.index) ^ of_query) ^ _mixed(_unsigned(k.index) ^ of_key))
        return (drawn >> np.uint32(1) < np.uint32(round(self.p * 2**31))) | (q.index == k.index)


def _unsigned(index: Mapped) -> Mapped:
    return index.astype(np.uint32)


def _mixed(word: Mapped) -> Mapped:
    """The finalizer of MurmurHash3 on 32 bits, which lets every bit shape every bit."""
    with np.errstate(over="ignore"):  # of numpy's scalars; the product is meant modulo 2^32
        word = (word ^ (word >> np.uint32(16))) * np.uint32(0x85EBCA6B)
        word = (word ^ (word >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return word ^ (word >> np.uint32(16))
