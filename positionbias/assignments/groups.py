"""Assignments that start anew with groups of tokens."""

from __future__ import annotations

import dataclasses

import numpy as np

from positionbias.arrays import Mapped
from positionbias.assignments.base import Assignment, library
from positionbias.spec import member
from positionbias.tokens import Tokens, running_most


def _before(tokens: Tokens, counted: Mapped) -> Mapped:
    """How many of the tokens that are `counted`, bool [..., T], are stored before each; padding is none of them."""
    counted = counted & tokens.valid
    return library(counted).cumsum(counted, axis=-1, dtype=np.int32) - counted


def _earlier(tokens: Tokens) -> Mapped:
    """bool [..., T, T]: whether a token is stored before another, and is no padding."""
    place = np.arange(tokens.length, dtype=np.int32)
    return (place[None, :] < place[:, None]) & tokens.columns().valid


@member("assignments", "per_segment")
@dataclasses.dataclass(frozen=True)
class PerSegment(Assignment):
    """From 0 anew wherever another segment begins (packed documents).

    Segments 0 1 1 2 2 2 0 are told 0 0 1 0 1 2 0.
    """

    def positions(self, tokens: Tokens) -> Mapped:
        segment, place = tokens.segment, _before(tokens, tokens.segment >= 0)
        xp = library(segment)
        before = xp.concatenate([segment[..., :1], segment[..., :-1]], axis=-1)
        return place - running_most(xp.where(segment != before, place, 0))


@member("assignments", "shared")
@dataclasses.dataclass(frozen=True)
class Shared(Assignment):
    """All segments alike: each is told what it would be if it came first, and what follows comes after the longest.

    Parallel context windows (Ratner et al. 2022, arXiv 2212.10947). What belongs to no segment (0) counts in order;
    behind a segment, after the longest stored so far. Segments 0 1 1 2 2 2 0 are told 0 1 2 1 2 3 4.
    """

    def positions(self, tokens: Tokens) -> Mapped:
        segment, xp = tokens.segment, library(tokens.segment)
        inside = segment > 0
        same = segment[..., :, None] == segment[..., None, :]
        own = xp.sum(same & _earlier(tokens), axis=-1, dtype=np.int32)  # how far into its segment
        outside = _before(tokens, ~inside)
        first = xp.argmax(inside, axis=-1)[..., None]
        start = xp.take_along_axis(outside, first, axis=-1)
        longest = running_most(xp.where(inside, own + 1, 0))
        return xp.where(inside, start + own, outside + longest).astype(np.int32)


@member("assignments", "concentric")
@dataclasses.dataclass(frozen=True)
class Concentric(Assignment):
    """The tokens of a frame are told the ring they stand on (`scale`, 0 outermost), counted on from what comes before.

    Concentric causal attention (Xing et al. 2024, arXiv 2410.15926): an image of 24 x 24 tokens takes 12 positions, its
    centre next to the text behind it. Frames 0 1 1 1 0 with scales 0 0 1 0 0 are told 0 1 2 1 3.
    """

    def positions(self, tokens: Tokens) -> Mapped:
        frame, scale, xp = tokens.frame, tokens.scale, library(tokens.frame)
        inside = frame > 0
        before = (frame[..., :, None] == frame[..., None, :]) & inside[..., :, None] & _earlier(tokens)
        known = before & (scale[..., :, None] == scale[..., None, :])
        count = _before(tokens, ~known.any(axis=-1))  # text, and the first token of each ring: positions taken before
        start = xp.where(before.any(axis=-1), xp.argmax(before, axis=-1), np.arange(tokens.length))
        return xp.where(inside, xp.take_along_axis(count, start, axis=-1) + scale, count).astype(np.int32)
