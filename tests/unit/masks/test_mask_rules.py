"""Masks: the literal matrices of their docstrings, combinators, tiles and reach."""

import inspect
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from positionbias import spec
from positionbias.masks.base import EMPTY, FULL, PARTIAL, Mask, compose, reach
from positionbias.tokens import sequential

LITERAL = {
    "bidirectional": (4, ["1111", "1111", "1111", "1111"]),
    "causal": (4, ["1000", "1100", "1110", "1111"]),
    "sliding_window(width=2)": (5, ["11000", "11100", "01110", "00111", "00011"]),
    "sliding_window(width=1)": (3, ["100", "010", "001"]),
    "prefix(length=2)": (4, ["1100", "1100", "1110", "1111"]),
    "prefix(length=0)": (3, ["100", "110", "111"]),
    "causal & sliding_window(width=2)": (4, ["1000", "1100", "0110", "0011"]),
    "causal | sliding_window(width=2)": (4, ["1100", "1110", "1111", "1111"]),
    "~causal": (3, ["011", "001", "000"]),
    "~causal | sliding_window(width=1)": (3, ["111", "011", "001"]),
    "~(causal & sliding_window(width=2))": (3, ["011", "001", "100"]),
}


def matrix(rows):
    return np.array([[c == "1" for c in row] for row in rows])


def mask(text) -> Mask:
    return spec.build("masks", text, "mask")


def dense(text, length=8, **fields):
    tokens = sequential(length, **fields)
    return mask(text).dense(tokens, tokens)


@pytest.mark.parametrize("text", LITERAL)
def test_literal_matrix(text):
    length, rows = LITERAL[text]
    np.testing.assert_array_equal(dense(text, length), matrix(rows))


def test_segments_literal():
    segment = np.array([0, 0, 1, 1])
    np.testing.assert_array_equal(dense("segments", 4, segment=segment), matrix(["1100", "1100", "0011", "0011"]))
    np.testing.assert_array_equal(
        dense("causal & segments", 4, segment=segment), matrix(["1000", "1100", "0010", "0011"])
    )


@pytest.mark.parametrize("text", ["bidirectional", "causal", "sliding_window(2)", "prefix(2)"])
def test_the_docstring_shows_the_matrix(text):
    lines = [line.strip() for line in inspect.getdoc(type(mask(text))).splitlines()]
    shown = [line.replace(" ", "") for line in lines if line and set(line) <= set("01 ")]
    np.testing.assert_array_equal(dense(text, len(shown)), matrix(shown))


@pytest.mark.parametrize("text", ["bidirectional", "~causal", "causal | ~causal", "~(causal & segments)"])
def test_valid_comes_last_whatever_the_expression(text):
    valid = np.array([True, False, True, True])
    found = dense(text, 4, valid=valid)
    everything = dense(text, 4)
    assert everything[1].any() or everything[:, 1].any()
    assert not found[1].any()
    assert not found[:, 1].any()
    np.testing.assert_array_equal(found[valid][:, valid], everything[valid][:, valid])


def test_rules_read_index_and_not_position():
    order = np.array([3, 1, 0, 2])
    np.testing.assert_array_equal(dense("causal", 4, position=order), dense("causal", 4))
    wanted = order[None, :] <= order[:, None]
    np.testing.assert_array_equal(dense("causal", 4, index=order), wanted)


def test_text_keeps_the_expression():
    for text in ("causal & sliding_window(width=2)", "~(causal | segments)", "(causal | segments) & ~causal"):
        assert spec.canonical(mask(text)) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sliding_window(0)", "mask: width = 0 is not allowed; allowed: a whole number from 1."),
        ("prefix(-1)", "mask: length = -1 is not allowed; allowed: a whole number from 0."),
    ],
)
def test_bad_arguments(text, message):
    with pytest.raises(spec.ConfigError) as error:
        mask(text)
    assert str(error.value) == message


# --------------------------------------------------------------------------------------------------- expressions

LEAVES = st.sampled_from(
    ["bidirectional", "causal", "sliding_window(1)", "sliding_window(3)", "prefix(0)", "prefix(3)", "segments"]
)
EXPRESSIONS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        inner.map(lambda a: f"~({a})"),
        st.tuples(inner, st.sampled_from("&|"), inner).map(lambda t: "({} {} {})".format(*t)),
    ),
    max_leaves=4,
)


def tile_classes(full, block):
    """Classes of tiles read off the whole matrix."""
    rows, columns = block
    classes = []
    for i in range(0, full.shape[0], rows):
        tiles = [full[i : i + rows, j : j + columns] for j in range(0, full.shape[1], columns)]
        classes.append([FULL if t.all() else PARTIAL if t.any() else EMPTY for t in tiles])
    return np.array(classes)


@settings(max_examples=60, deadline=None)
@given(
    EXPRESSIONS,
    st.integers(1, 13),
    st.integers(1, 13),
    st.tuples(st.integers(1, 6), st.integers(1, 6)),
    st.randoms(use_true_random=False),
)
def test_every_expression_agrees_with_its_meaning_and_its_tiles(text, rows, columns, block, random):
    def tokens(length):
        return sequential(
            length,
            segment=np.array([random.randrange(2) for _ in range(length)]),
            valid=np.array([random.random() < 0.9 for _ in range(length)]),
        )

    q, k = tokens(rows), tokens(columns)
    full = mask(text).dense(q, k)
    np.testing.assert_array_equal(full, python_dense(text, q, k))
    np.testing.assert_array_equal(mask(text).blocks(q, k, block), tile_classes(full, block))


def python_dense(text, q, k):
    """The expression's meaning, an entry at a time, with python's own logic."""

    def holds(node, i, j):
        if isinstance(node, spec.Combine):
            left = holds(node.left, i, j)
            if node.operator == "~":
                return not left
            right = holds(node.right, i, j)
            return (left and right) if node.operator == "&" else (left or right)
        argument = node.positional[0] if node.positional else 0
        return {
            "bidirectional": True,
            "causal": j <= i,
            "sliding_window": abs(i - j) < argument,
            "prefix": j <= i or j < argument,
            "segments": q.segment[i] == k.segment[j],
        }[node.name]

    node = spec.parse(text, "mask")
    pairs = itertools.product(range(q.length), range(k.length))
    flat = [bool(holds(node, i, j) and q.valid[i] and k.valid[j]) for i, j in pairs]
    return np.array(flat).reshape(q.length, k.length)


def test_blocks_keep_leading_axes():
    tokens = sequential(5, valid=np.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]], bool))
    found = mask("causal").blocks(tokens, tokens, (2, 2))
    np.testing.assert_array_equal(found[0], [[1, 0, 0], [2, 1, 0], [2, 2, 2]])
    np.testing.assert_array_equal(found[1], [[1, 0, 0], [0, 0, 0], [0, 0, 0]])
    assert found.dtype == np.int8


@pytest.mark.parametrize("text", ["causal & ~sliding_window(2)", "prefix(3) | segments"])
def test_traced_tokens_give_the_same_matrix(text):
    tokens = sequential(9, segment=np.arange(9) // 4)
    traced = jax.jit(lambda t: mask(text).dense(t, t))(jax.tree.map(jnp.asarray, tokens))
    np.testing.assert_array_equal(traced, mask(text).dense(tokens, tokens))


# --------------------------------------------------------------------------------------------------------- reach


def searched(layers, carries):
    """Reach by walking every path from an input to an output; a row that sees anything also stands on its own past."""
    size = layers[0].shape[0]
    found = np.zeros((size, size), bool)
    for source in range(size):
        here = {source}
        for visible in layers:
            moved = {i for i in range(size) for j in here if visible[i, j]}
            here = moved | {i for i in here if carries or visible[i].any()}
        found[list(here), source] = True
    return found


@pytest.mark.parametrize("carries", [True, False])
@pytest.mark.parametrize("depth", [1, 2, 4])
def test_reach_is_what_a_path_search_finds(carries, depth):
    random = np.random.default_rng(depth)
    for _ in range(10):
        layers = [random.random((6, 6)) < 0.25 for _ in range(depth)]
        np.testing.assert_array_equal(reach(layers, carries), searched(layers, carries))


def test_windows_reach_further_with_depth():
    window = dense("causal & sliding_window(2)", 5)
    np.testing.assert_array_equal(reach([window] * 3), dense("causal & sliding_window(4)", 5))


def test_compose_is_rectangular():
    visible = matrix(["10", "01", "11"])
    inner = matrix(["1000", "0010"])
    np.testing.assert_array_equal(compose(visible, inner), matrix(["1000", "0010", "1010"]))
