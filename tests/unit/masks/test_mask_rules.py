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
    "dilated_window(width=2, dilation=2)": (6, ["101000", "010100", "101010", "010101", "001010", "000101"]),
    "dilated_window(width=2, dilation=1)": (4, ["1100", "1110", "0111", "0011"]),
    "causal & dilated_window(width=3, dilation=2)": (6, ["100000", "010000", "101000", "010100", "101010", "010101"]),
    "window_with_sinks(width=2, sinks=1)": (5, ["11000", "11100", "11110", "10111", "10011"]),
    "window_with_sinks(width=1, sinks=0)": (3, ["100", "010", "001"]),
    "causal & window_with_sinks(width=2, sinks=2)": (6, ["100000", "110000", "111000", "111100", "110110", "110011"]),
    "power_of_two": (6, ["111010", "111101", "111110", "011111", "101111", "010111"]),
    "causal & power_of_two(window=4)": (6, ["100000", "110000", "111000", "111100", "111110", "011111"]),
    "power_of_two(block=2)": (8, ["11111100"] * 2 + ["11111111"] * 4 + ["00111111"] * 2),
    "causal & power_of_two(block=2, sinks=1)": (
        8,
        ["10000000", "11000000", "11100000", "11110000", "11111000", "11111100", "11111110", "11111111"],
    ),
    "causal & sliding_window(width=2)": (4, ["1000", "1100", "0110", "0011"]),
    "causal | sliding_window(width=2)": (4, ["1100", "1110", "1111", "1111"]),
    "~causal": (3, ["011", "001", "000"]),
    "~causal | sliding_window(width=1)": (3, ["111", "011", "001"]),
    "~(causal & sliding_window(width=2))": (3, ["011", "001", "100"]),
    "neighborhood(width=3)": (5, ["11100", "11100", "01110", "00111", "00111"]),
    "neighborhood(width=2)": (4, ["1100", "1100", "0110", "0011"]),
    "neighborhood(width=1)": (3, ["100", "010", "001"]),
    "neighborhood(width=4)": (3, ["111", "111", "111"]),
    "neighborhood(width=3, dilation=2)": (
        12,
        ["101010000000", "010101000000"] * 2  # even and odd places, the window shifted at the start
        + ["001010100000", "000101010000", "000010101000", "000001010100"]
        + ["000000101010", "000000010101"] * 2,  # and at the end
    ),
    "neighborhood(width=2, dilation=3)": (5, ["10010", "01001", "00100", "10010", "01001"]),
    "random_permutation_window(width=2)": (6, ["110010", "111000", "011100", "001100", "100011", "000011"]),
    "random_permutation_window(width=2, circular=True)": (
        6,
        ["110010", "111000", "011100", "001101", "100011", "000111"],
    ),
    "random_graph(p=0.3)": (6, ["100000", "010001", "101010", "001101", "111010", "010001"]),
    "random_graph(p=0.0)": (3, ["100", "010", "001"]),
    "random_graph(p=1.0)": (3, ["111", "111", "111"]),
    "from_file(path=None, matrix='4x4:9c6b')": (4, ["1001", "1100", "0110", "1011"]),
    "aligned_cross(ratio=2)": (4, ["1100", "0011", "0000", "0000"]),
    "aligned_cross": (3, ["100", "010", "001"]),
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


# Of masks that read groups: the mask, the field it reads and what it holds, and the matrix.
GROUPED = [
    ("segments", {"segment": [0, 0, 1, 1]}, ["1100", "1100", "0011", "0011"]),
    ("causal & segments", {"segment": [0, 0, 1, 1]}, ["1000", "1100", "0010", "0011"]),
    ("block_causal", {"frame": [0, 1, 1, 2, 2]}, ["10000", "11100", "11100", "11111", "11111"]),
    ("block_causal", {"frame": [0, 0, 0]}, ["100", "110", "111"]),
    ("block_causal", {"frame": [1, 0, 1]}, ["101", "110", "111"]),
    ("scale_causal", {"scale": [0, 1, 1, 2, 2]}, ["10000", "11100", "11100", "11111", "11111"]),
    ("scale_causal", {"scale": [2, 0, 1]}, ["111", "010", "011"]),
    ("modality_mutual(1, 2)", {"role": [1, 1, 2, 2, 0]}, ["10110", "11110", "11100", "11110", "11111"]),
    ("modality_mutual(1, 2)", {"role": [2, 2, 1, 1, 0]}, ["10000", "11000", "11100", "11110", "11111"]),
    ("condition_causal(1)", {"role": [0, 1, 1, 0, 0]}, ["11111", "01100", "01100", "11111", "11111"]),
    ("condition_causal(1) & causal", {"role": [1, 0, 1, 0]}, ["1000", "1100", "1010", "1111"]),
    ("block_causal('segment')", {"segment": [0, 1, 1, 2]}, ["1000", "1110", "1110", "1111"]),
    (
        "block_causal_with_summary(1)",
        {"frame": [1, 1, 2, 2, 0], "role": [0, 0, 0, 0, 1]},
        ["11000", "11000", "11110", "11110", "11111"],
    ),
    ("block_causal_with_summary(1)", {"frame": [1, 1, 1], "role": [0, 1, 0]}, ["101", "111", "101"]),
    (
        "block_causal_with_summary(2, group='segment')",
        {"segment": [1, 1, 0], "role": [0, 0, 2]},
        ["110", "110", "111"],
    ),
    ("frame_causal", {"frame": [0, 0, 1, 2, 1]}, ["11000", "11000", "11101", "11111", "11101"]),
    ("frame_causal('segment')", {"segment": [1, 0, 1]}, ["111", "010", "111"]),
    ("scale_causal('segment')", {"segment": [1, 0, 2]}, ["110", "010", "111"]),
    ("scale_causal('frame')", {"frame": [1, 0, 2]}, ["110", "010", "111"]),
    (
        "concentric",
        {"frame": [0, 1, 1, 1, 1, 0], "scale": [0, 0, 1, 1, 0, 0]},
        ["100000", "110010", "111110", "111110", "110010", "111111"],
    ),
    ("concentric", {"frame": [1, 1, 2, 2], "scale": [1, 0, 1, 0]}, ["1100", "0100", "1111", "1101"]),
    ("concentric('segment')", {"segment": [1, 1, 0], "scale": [1, 0, 0]}, ["110", "010", "111"]),
    ("shared_prompt", {"segment": [0, 0, 1, 2, 2]}, ["10000", "11000", "11100", "11010", "11011"]),
    ("causal_cross", {"frame": [1, 1, 2, 2]}, ["1100", "1100", "1111", "1111"]),
    ("causal_cross('segment')", {"segment": [1, 3, 0, 2]}, ["1010", "1011", "1111", "1111"]),
    ("context_bidirectional", {"context": [1, 1, 0, 0]}, ["1100", "1100", "1110", "1111"]),
    ("context_bidirectional", {"context": [0, 0, 0]}, ["100", "110", "111"]),
    (
        "depth_causal",
        {"index": [0, 1, 0, 1], "depth": [0, 0, 1, 1]},
        ["1000", "1100", "1010", "1111"],
    ),
    ("depth_causal", {"index": [0, 0, 1], "depth": [1, 0, 0]}, ["110", "010", "011"]),
    ("masked_keys", {"hidden": [0, 1, 0, 1]}, ["0101"] * 4),
    ("bidirectional & ~masked_keys", {"hidden": [0, 1, 0]}, ["101"] * 3),
    ("by_rank", {"rank": [2, 0, 3, 1]}, ["1101", "0100", "1111", "0101"]),
    ("by_rank(strict=True)", {"rank": [2, 0, 3, 1]}, ["0101", "0000", "1101", "0100"]),
    ("by_rank", {}, ["11", "11"]),
    ("switch(causal, bidirectional)", {"mode": [0, 0, 1, 1]}, ["1000", "1100", "1111", "1111"]),
    ("switch(~causal, neighborhood(1)) | segments", {"mode": [0, 1], "segment": [0, 1]}, ["11", "01"]),
]


@pytest.mark.parametrize(("text", "fields", "rows"), GROUPED)
def test_literal_matrix_of_groups(text, fields, rows):
    np.testing.assert_array_equal(dense(text, len(rows), **{k: np.array(v) for k, v in fields.items()}), matrix(rows))


SHOWN = [(text, {}) for text in LITERAL] + [(text, fields) for text, fields, _ in GROUPED]


@pytest.mark.parametrize("name", spec.names("masks"))
def test_the_docstring_shows_the_matrix(name):
    text, fields = next((text, fields) for text, fields in SHOWN if text.partition("(")[0] == name)
    lines = [line.strip() for line in inspect.getdoc(type(mask(text))).splitlines()]
    shown = [line.replace(" ", "") for line in lines if line and set(line) <= set("01 ")]
    found = dense(text, len(shown), **{field: np.array(values) for field, values in fields.items()})
    np.testing.assert_array_equal(found, matrix(shown))


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


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("prefix(2)", ["1100", "1100", "1110", "1111"]),
        ("window_with_sinks(1, 1)", ["1000", "1100", "1010", "1001"]),
        ("causal & power_of_two(sinks=1)", ["1000", "1100", "1110", "1111"]),
        ("power_of_two(block=2, sinks=1)", ["1111", "1111", "1111", "1111"]),
    ],
)
@pytest.mark.parametrize("stored", [0, 6, 7])
def test_the_first_tokens_are_the_first_keys_wherever_they_are_stored(text, rows, stored):
    """A decoder's tokens are stored behind its encoder's."""
    np.testing.assert_array_equal(dense(text, 4, index=np.arange(4) + stored), matrix(rows))
    both = dense(text, 4, index=np.stack([np.arange(4), np.arange(4) + stored]))
    np.testing.assert_array_equal(both, np.stack([matrix(rows)] * 2))


def test_padding_in_front_is_no_sink():
    valid = np.array([[False, False, True, True, True], [True] * 5])
    found = dense("causal & window_with_sinks(1, 1)", 5, valid=valid)
    np.testing.assert_array_equal(found[0], matrix(["00000", "00000", "00100", "00110", "00101"]))
    np.testing.assert_array_equal(found[1], dense("causal & window_with_sinks(1, 1)", 5))
    assert not dense("prefix(2)", 5, valid=np.zeros(5, bool)).any()


def test_text_keeps_the_expression():
    for text in ("causal & sliding_window(width=2)", "~(causal | segments)", "(causal | segments) & ~causal"):
        assert spec.canonical(mask(text)) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sliding_window(0)", "mask: width = 0 is not allowed; allowed: a whole number from 1."),
        ("prefix(-1)", "mask: length = -1 is not allowed; allowed: a whole number from 0."),
        ("dilated_window(0, 1)", "mask: width = 0 is not allowed; allowed: a whole number from 1."),
        ("dilated_window(1, 0)", "mask: dilation = 0 is not allowed; allowed: a whole number from 1."),
        (
            "dilated_window(65536, 65536)",
            "mask: dilation = 65536 is not allowed; allowed: at most 32767 with width = 65536.",
        ),
        ("window_with_sinks(0)", "mask: width = 0 is not allowed; allowed: a whole number from 1."),
        ("window_with_sinks(1, -1)", "mask: sinks = -1 is not allowed; allowed: a whole number from 0."),
        ("power_of_two(window=0)", "mask: window = 0 is not allowed; allowed: a whole number from 1."),
        ("power_of_two(sinks=-1)", "mask: sinks = -1 is not allowed; allowed: a whole number from 0."),
        ("power_of_two(block=0)", "mask: block = 0 is not allowed; allowed: a whole number from 1."),
        ("modality_mutual(-1, 2)", "mask: modality = -1 is not allowed; allowed: a role, a whole number from 0."),
        ("modality_mutual(1, 1)", "mask: question = 1 is not allowed; allowed: another role than modality."),
        ("condition_causal(-1)", "mask: condition = -1 is not allowed; allowed: a role, a whole number from 0."),
        ("neighborhood(0)", "mask: width = 0 is not allowed; allowed: a whole number from 1."),
        ("neighborhood(1, 0)", "mask: dilation = 0 is not allowed; allowed: a whole number from 1."),
        ("random_permutation_window(0)", "mask: width = 0 is not allowed; allowed: a whole number from 1."),
        ("random_permutation_window(1, -1)", "mask: seed = -1 is not allowed; allowed: a whole number from 0."),
        ("random_graph(1.5)", "mask: p = 1.5 is not allowed; allowed: a number from 0 to 1."),
        ("random_graph(-0.1)", "mask: p = -0.1 is not allowed; allowed: a number from 0 to 1."),
        ("random_graph(1, -1)", "mask: seed = -1 is not allowed; allowed: a whole number from 0."),
        ("aligned_cross(0)", "mask: ratio = 0 is not allowed; allowed: a whole number from 1."),
        (
            "block_causal_with_summary(-1)",
            "mask: summary = -1 is not allowed; allowed: a role, a whole number from 0.",
        ),
        (
            "block_causal('frames')",
            "mask.group: 'frames' is not allowed, did you mean 'frame'; allowed: 'frame' or 'segment'.",
        ),
        ("switch(causal, causal, 2)", "mask: share = 2.0 is not allowed; allowed: a number from 0 to 1."),
        (
            "switch(causal, 3)",
            "mask.second: 3 is not allowed; allowed: one of the masks.",
        ),
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
    first = next((j for j in range(k.length) if k.valid[j]), 0)  # of the keys, padding left out

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
            "prefix": j <= i or j - first < argument,
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


def test_powers_of_two_reach_distances_by_their_ones():
    """d causal layers: every distance with at most d ones in binary, all of 256 tokens after 8."""
    one = dense("causal & power_of_two", 256)
    away = np.subtract.outer(np.arange(256), np.arange(256))
    ones = np.vectorize(lambda number: bin(abs(number)).count("1"))(away)
    shares = []
    for layers in range(1, 9):
        found = reach([one] * layers)
        np.testing.assert_array_equal(found, (away >= 0) & (ones <= layers))
        shares.append(round(100 * found.sum() / (away >= 0).sum()))
    assert shares == [6, 23, 50, 77, 94, 99, 100, 100]


def test_dilated_windows_never_leave_their_residue():
    found = reach([dense("causal & dilated_window(3, 4)", 32)] * 8)
    away = np.subtract.outer(np.arange(32), np.arange(32))
    np.testing.assert_array_equal(found, (away >= 0) & (away % 4 == 0))


@pytest.mark.parametrize("other", ["modality_mutual(1, 2)", "modality_mutual(1, 2) | modality_mutual(1, 0)"])
def test_what_one_layer_hides_two_may_show(other):
    """A question sees the rest of itself by way of the modality; an answer that the modality sees is seen by all."""
    role = np.array([1, 1, 2, 2, 2, 0, 0])  # modality, question, answer
    mutual = dense(other, 7, role=role)
    question, answer = np.ix_(role == 2, role == 2), np.ix_(role == 0, role == 0)
    later = np.triu(np.ones((7, 7), bool), 1)
    assert not (mutual & later)[question].any()
    assert (reach([mutual] * 2) & later)[question].any(), "two layers"
    leaks = (reach([mutual] * 4) & later)[answer].any()
    assert leaks == ("(1, 0)" in other), "a loss on answers is safe unless answers count as what the modality sees"


def test_compose_is_rectangular():
    visible = matrix(["10", "01", "11"])
    inner = matrix(["1000", "0010"])
    np.testing.assert_array_equal(compose(visible, inner), matrix(["1000", "0010", "1010"]))
