"""The assignment protocol, over every registered assignment."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from positionbias import spec
from positionbias.assignments.base import Assignment
from positionbias.tokens import Tokens, sequential

AXIS = "assignments"
EXAMPLES = {
    "padded": ["padded(by=0)", "padded(by=3)"],
    "randomized": ["randomized(longest=12)", "randomized(longest=40)"],
    "offset": ["offset(most=0)", "offset(most=9)"],
}
T = 12
LAYOUTS = {
    "plain": {},
    "groups": {
        "segment": np.array([0, 0, 1, 1, 1, 2, 2, 3, 0, 0, 4, 4]),
        "frame": np.array([0, 0, 1, 1, 1, 1, 0, 0, 2, 2, 2, 0]),
        "scale": np.array([0, 0, 0, 1, 1, 0, 0, 0, 0, 1, 0, 0]),
    },
    "padding": {"position": np.maximum(np.arange(T) - 4, 0), "valid": np.arange(T) >= 4},
}


def laid(name):
    fields = {field: np.asarray(x, bool if field == "valid" else np.int32) for field, x in LAYOUTS[name].items()}
    return sequential(T, **fields)


def check_positions(assignment):
    """Whole numbers from 0 below `reach`: numpy for numpy, the same traced, and a batch is like its rows."""
    every = [laid(name) for name in LAYOUTS]
    stacked = Tokens(*(np.stack(fields) for fields in zip(*every, strict=True)))
    both = assignment.positions(stacked)
    np.testing.assert_array_equal(jax.jit(lambda t: assignment.positions(t))(jax.tree.map(jnp.asarray, stacked)), both)
    for row, tokens in enumerate(every):
        found = assignment.positions(tokens)
        assert isinstance(found, np.ndarray), "what all examples share is worked out once"
        assert found.shape == (T,)
        assert found.dtype == np.int32
        assert found.min() >= 0
        assert found.max() < assignment.reach(tokens)
        assert isinstance(assignment.reach(tokens), int)
        np.testing.assert_array_equal(both[row], found)
        traced = jax.jit(lambda t: assignment.positions(t))(jax.tree.map(jnp.asarray, tokens))
        np.testing.assert_array_equal(traced, found)
        assert traced.dtype == jnp.int32


def check_draw(assignment):
    """An assignment that is drawn stays below `reach`, is the same for the same key, and no other ever draws."""
    tokens = laid("groups")
    if not assignment.drawn:
        assert type(assignment).draw is Assignment.draw
        return
    draw = jax.jit(jax.vmap(lambda key: assignment.draw(key, tokens)))
    keys = jax.random.split(jax.random.key(0), 200)
    found = np.asarray(draw(keys))
    assert found.shape == (200, T)
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, draw(keys))
    reach = assignment.reach(tokens)
    assert found.min() >= 0
    assert found.max() == reach - 1, "the largest position that may be told is told"
    assert all(len(set(row)) == T for row in found), "tokens of one sequence are told apart"
    assert reach == T or len(np.unique(found, axis=0)) > 1


CHECKS = [check_positions, check_draw]


@pytest.mark.parametrize("check", CHECKS)
def test_protocol(built, check):
    check(built)


def test_text_round_trips(built):
    assert spec.build("assignments", spec.canonical(built), "assignment") == built
    assert hash(built) is not None


def test_is_documented(built):
    assert type(built).__doc__.strip().splitlines()[0].endswith(".")


@dataclasses.dataclass(frozen=True)
class GoesToTheDevice(Assignment):
    """Not worked out once."""

    def positions(self, tokens):
        return jnp.asarray(tokens.position) + 1


class NeedsNumpy(Assignment):
    """Cannot be traced."""

    def positions(self, tokens):
        return np.maximum.accumulate(tokens.position)


class ForgetsToDraw(Assignment):
    """Says nothing of what it draws."""

    def positions(self, tokens):
        return tokens.position

    def draw(self, key, tokens):
        return tokens.position


class DrawsTooFar(Assignment):
    """Its reach is that of what it draws from."""

    drawn = True

    def positions(self, tokens):
        return tokens.position

    def draw(self, key, tokens):
        return jnp.asarray(tokens.position) + jax.random.randint(key, (), 0, 5)


@pytest.mark.parametrize(
    ("broken", "check"),
    [
        (GoesToTheDevice, check_positions),
        (NeedsNumpy, check_positions),
        (ForgetsToDraw, check_draw),
        (DrawsTooFar, check_draw),
    ],
)
def test_a_broken_assignment_is_caught(broken, check):
    with pytest.raises((AssertionError, jax.errors.TracerArrayConversionError)):
        check(broken())
