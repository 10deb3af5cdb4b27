"""What a constant added to all positions changes, scheme by scheme."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from positionbias import spec
from positionbias.models.parameters import Noise
from positionbias.operators.base import scores
from positionbias.positions.base import Dims, Placed
from positionbias.tokens import sequential

# Each registered scheme, as specs, and what changes: "embeddings", "scores" of given queries and keys, or nothing.
CHANGED = {
    "none": {"none": set()},
    "learned": {"learned": {"embeddings"}},
    "sinusoidal": {"sinusoidal": {"embeddings"}},
    "one_hot": {"one_hot": {"embeddings"}},
    "alibi": {"alibi": set()},
    "decay": {"decay": set()},
    "t5_bias": {"t5_bias": set(), "t5_bias(buckets=8, farthest=5, both_sides=True)": set()},
    "fire": {"fire(threshold=3)": {"scores"}, "fire": set()},  # within the threshold only distances count
    "learned_relative": {"learned_relative(farthest=3)": set()},
    "rope": {
        "rope": set(),
        "rope(fraction=0.5)": set(),
        "rope(pairs='halves')": set(),
        "rope(scaling='linear', factor=4)": set(),
        "rope(scaling='ntk', factor=4)": set(),
    },
    "xpos": {"xpos(scale_base=64)": set()},
    "dual_rope": {"dual_rope": set()},  # at the same frames
    "mirrored_rope": {"mirrored_rope": set()},
    "periodic": {"periodic(period=4)": {"embeddings"}, "periodic(period=1)": set()},
}
SPECS = [(text, changed) for specs in CHANGED.values() for text, changed in specs.items()]

T, BY = 9, 6
DIMS = Dims(width=24, heads=2, head_size=8, length=T + BY)


def test_every_registered_scheme_is_told():
    assert sorted(CHANGED) == spec.names("positions")
    for name, specs in CHANGED.items():
        assert {spec.build("positions", text, name).spec_name for text in specs} == {name}


def started(declared):
    """Parameters as a model starts them, but large enough to be seen."""
    noise = Noise(jax.random.normal(jax.random.key(3), (10_000,)))
    made = {}
    for name, matrix in declared.items():
        initializer = spec.build("initializers", matrix.initializer or "normal(std=1.0)", name)
        made[name] = initializer(noise, matrix)
    return made


def told(scheme, **fields):
    """The embeddings and scores of the same inputs, queries and keys, for tokens with these fields."""
    tokens = sequential(T, **fields).told_context(0)
    x = jax.random.normal(jax.random.key(0), (1, T, DIMS.width))
    q, k = (jax.random.normal(jax.random.key(i), (1, T, DIMS.heads, DIMS.head_size)) for i in (1, 2))
    placed = Placed(scheme, started(scheme.layer_parameters(DIMS)))
    return {
        "embeddings": scheme.embed(x, tokens, started(scheme.embedding_parameters(DIMS))),
        "scores": scores(q, k, tokens, tokens, placed, scaled=True),
    }


def changes(scheme, first, second):
    before, after = told(scheme, **first), told(scheme, **second)
    return {name for name in before if not np.allclose(before[name], after[name], rtol=1e-4, atol=1e-4)}


@pytest.mark.parametrize(("text", "changed"), SPECS)
def test_a_shift_of_all_positions_changes_what_the_table_says(text, changed):
    scheme = spec.build("positions", text, "position")
    scheme.check(DIMS)
    position, frame = np.arange(T, dtype=np.int32), np.arange(T, dtype=np.int32) // 3
    first, second = ({"position": position + by, "frame": frame} for by in (0, BY))
    assert changes(scheme, first, second) == changed


@pytest.mark.parametrize("text", [text for text, _ in SPECS if text not in ("none", "periodic(period=1)")])
def test_the_order_of_positions_changes_something(text):
    """No scheme stands still for want of anything that moves."""
    scheme = spec.build("positions", text, "position")
    position = np.arange(T, dtype=np.int32)
    assert changes(scheme, {"position": position}, {"position": np.roll(position, 3)})


def test_a_shift_by_a_period_changes_nothing():
    position = np.arange(T, dtype=np.int32)
    for text, by, changed in (("periodic(period=6)", 6, set()), ("periodic(period=6)", 5, {"embeddings"})):
        scheme = spec.build("positions", text, "position")
        assert changes(scheme, {"position": position}, {"position": position + by}) == changed


def test_a_shift_of_all_frames_changes_nothing_but_one_of_some_does():
    scheme, frame = spec.build("positions", "dual_rope(gamma=2)", "position"), np.arange(T, dtype=np.int32) // 3
    assert changes(scheme, {"frame": frame}, {"frame": frame + 4}) == set()
    assert changes(scheme, {"frame": frame}, {"frame": 2 * frame}) == {"scores"}


def test_scores_of_given_queries_do_not_hang_on_the_embeddings():
    """What `scores` sees is the same for every scheme, so that only the scheme can change it."""
    found = told(spec.build("positions", "learned", "position"))["scores"]
    np.testing.assert_array_equal(found, told(spec.build("positions", "none", "position"))["scores"])
    assert jnp.ptp(found) > 0
