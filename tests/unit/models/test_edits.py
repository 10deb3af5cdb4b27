"""Edits of sites: what is changed, and of which heads and rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from positionbias.errors import ConfigError
from positionbias.models import edits
from positionbias.models.sites import Sites

B, T, N, K = 3, 4, 2, 5
DRAW = np.random.default_rng(0)
HEADS = DRAW.normal(size=(B, T, N, K)).astype(np.float32)
STREAM = DRAW.normal(size=(B, T, K)).astype(np.float32)
PATTERN = np.exp(DRAW.normal(size=(B, N, T, T))).astype(np.float32) * np.tri(T, dtype=np.float32)
PATTERN /= PATTERN.sum(axis=-1, keepdims=True)


def made(edit, value, name="layers.0.stream"):
    return np.asarray(Sites(edit={name: edit})(name, jnp.asarray(value)))


def test_whole_sites():
    np.testing.assert_array_equal(made(edits.zero(), STREAM), np.zeros_like(STREAM))
    np.testing.assert_array_equal(made(edits.add(1.0), STREAM), STREAM + 1)
    np.testing.assert_array_equal(made(edits.scale(2.0), STREAM), STREAM * 2)
    np.testing.assert_array_equal(made(edits.replace(STREAM[:1]), STREAM), np.repeat(STREAM[:1], B, axis=0))
    expected = np.repeat(STREAM.mean(axis=0, keepdims=True), B, axis=0)
    np.testing.assert_allclose(made(edits.mean(), STREAM), expected, atol=1e-6)
    np.testing.assert_array_equal(made(edits.resample(), STREAM), STREAM[[1, 2, 0]])
    np.testing.assert_array_equal(made(edits.resample(2), STREAM), STREAM[[2, 0, 1]])


@pytest.mark.parametrize("heads", [1, [1], np.array([False, True]), jnp.array([1])])
def test_heads_are_numbers_or_booleans(heads):
    expected = HEADS.copy()
    expected[:, :, 1] = 0
    np.testing.assert_array_equal(made(edits.zero(heads=heads), HEADS, "layers.0.attention.heads"), expected)
    expected = PATTERN.copy()
    expected[:, 1] = 0
    np.testing.assert_array_equal(made(edits.zero(heads=heads), PATTERN, "layers.0.attention.pattern"), expected)


@pytest.mark.parametrize("rows", [2, [2], np.arange(T) == 2, [[2], [2], [2]], [[2, -1], [-1, 2], [2, 2]]])
def test_rows_of_all_examples_or_of_each(rows):
    expected = STREAM.copy()
    expected[:, 2] = 0
    np.testing.assert_array_equal(made(edits.zero(rows=rows), STREAM), expected)
    expected = PATTERN.copy()
    expected[:, :, 2] = 0
    np.testing.assert_array_equal(made(edits.zero(rows=rows), PATTERN, "pattern"), expected)


def test_rows_of_each_example():
    expected = HEADS.copy()
    expected[0, 1, 0] = expected[2, [0, 3], 0] = 7
    rows = [[1, -1], [-1, -1], [0, 3]]
    np.testing.assert_array_equal(made(edits.replace(7.0, rows=rows, heads=0), HEADS, "heads"), expected)
    told = np.zeros((B, T), bool)
    told[0, 1] = told[2, [0, 3]] = True
    np.testing.assert_array_equal(made(edits.replace(7.0, rows=told, heads=0), HEADS, "heads"), expected)


def test_heads_and_rows_may_be_traced():
    found = jax.jit(lambda head, row: Sites(edit={"heads": edits.zero(heads=head, rows=row)})("heads", HEADS))(1, 3)
    expected = HEADS.copy()
    expected[:, 3, 1] = 0
    np.testing.assert_array_equal(found, expected)


def test_projecting_out_leaves_what_is_orthogonal():
    one, other = DRAW.normal(size=(2, K)).astype(np.float32)
    found = made(edits.project_out(np.stack([one, other, one + other])), STREAM)
    np.testing.assert_allclose(found @ one, 0, atol=1e-5)
    np.testing.assert_allclose(found @ other, 0, atol=1e-5)
    basis = np.linalg.qr(np.stack([one, other]).T)[0]
    np.testing.assert_allclose(found, STREAM - STREAM @ basis @ basis.T, atol=1e-5)
    np.testing.assert_allclose(made(edits.project_out(one), STREAM) @ one, 0, atol=1e-5)


def test_an_interchange_is_along_the_basis_alone():
    """Of the weights' share, in the rows that are told."""
    value = DRAW.normal(size=STREAM.shape).astype(np.float32)
    basis = np.asarray(edits.orthonormal(DRAW.normal(size=(2, K)).astype(np.float32)))
    np.testing.assert_allclose(basis @ basis.T, np.eye(2), atol=1e-6)
    found = made(edits.interchange(value, basis, rows=1), STREAM)
    np.testing.assert_allclose(found[:, 1] @ basis.T, value[:, 1] @ basis.T, atol=1e-5)
    off = np.eye(K) - basis.T @ basis
    np.testing.assert_allclose(found[:, 1] @ off, STREAM[:, 1] @ off, atol=1e-5)
    np.testing.assert_array_equal(np.delete(found, 1, axis=1), np.delete(STREAM, 1, axis=1))
    half = made(edits.interchange(value, basis, np.array([0.5, 0.0], np.float32)), STREAM)
    np.testing.assert_allclose(half @ basis[0], (STREAM + value) @ basis[0] / 2, atol=1e-5)
    np.testing.assert_allclose(half @ basis[1], STREAM @ basis[1], atol=1e-5)
    np.testing.assert_allclose(made(edits.interchange(value, np.eye(K, dtype=np.float32)), STREAM), value, atol=1e-5)


def test_restricted_attention_is_softmax_under_a_narrower_mask():
    scores = DRAW.normal(size=(B, N, T, T)).astype(np.float32)
    seen, fewer = np.tri(T, dtype=bool), np.tri(T, dtype=bool) & (np.arange(T) != 1)
    pattern = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf))
    expected = jax.nn.softmax(jnp.where(fewer, scores, -jnp.inf))
    np.testing.assert_allclose(made(edits.restrict(fewer), pattern, "pattern"), expected, atol=1e-6)
    np.testing.assert_allclose(
        made(edits.restrict(fewer, renormalise=False), pattern, "pattern"), np.where(fewer, pattern, 0), atol=1e-6
    )
    each = np.stack([seen, fewer, seen])
    found = made(edits.restrict(each), pattern, "pattern")
    np.testing.assert_allclose(found[1], expected[1], atol=1e-6)
    np.testing.assert_allclose(found[[0, 2]], np.asarray(pattern)[[0, 2]], atol=1e-6)
    assert (made(edits.restrict(np.zeros((T, T), bool)), pattern, "pattern") == 0).all()


def test_patterns_of_names_and_several_edits_of_a_site_in_order():
    sites = Sites(record=["*"], edit={"layers.*.stream": edits.add(1.0), "layers.1.stream": edits.scale(3.0)})
    first, second = sites("layers.0.stream", STREAM), sites("layers.1.stream", STREAM)
    np.testing.assert_array_equal(first, STREAM + 1)
    np.testing.assert_array_equal(second, (STREAM + 1) * 3)
    np.testing.assert_array_equal(sites.recorded["layers.1.stream"], second)
    assert sites.wanted("layers.7.stream")
    sites.check()
    sites = Sites(edit={"layers.*.streem": edits.zero()})
    sites("layers.0.stream", STREAM)
    with pytest.raises(ConfigError, match=r"edit: unknown site 'layers.\*.streem', did you mean 'layers.\*.stream'"):
        sites.check()


@pytest.mark.parametrize(
    ("name", "value", "edit", "words"),
    [
        ("heads", HEADS, edits.zero(heads=2), "heads: 2 is not allowed; allowed: 0 to 1."),
        ("heads", HEADS, edits.zero(heads=0.5), "heads: float64 of shape () is not allowed; allowed: whole numbers."),
        ("heads", HEADS, edits.zero(heads=[[0]]), "heads: int64 of shape (1, 1) is not allowed"),
        ("heads", HEADS, edits.zero(heads=[True]), "heads: booleans of shape (1,); allowed: 2 of them."),
        ("heads", HEADS, edits.zero(rows=T), "rows: 4 is not allowed; allowed: 0 to 3."),
        (
            "stream",
            STREAM,
            edits.zero(heads=0),
            "heads are told; allowed: of query, key, value, heads, scores, pattern",
        ),
        ("penalty", STREAM[:, 0, 0], edits.zero(rows=0), "rows are told; allowed: of sites that have rows."),
        ("stream", STREAM, edits.replace(np.zeros((2, 9))), "of another shape; allowed: what broadcasts against the"),
        ("stream", STREAM, edits.add(np.zeros((2, 9))), f"the site, {STREAM.shape}."),
        ("heads", HEADS, edits.restrict(np.tri(T)), "the site has nothing of the kind; allowed: pattern."),
    ],
)
def test_what_a_site_has_not_is_refused(name, value, edit, words):
    with pytest.raises(ConfigError) as error:
        made(edit, value, name)
    assert words in str(error.value)
    assert str(error.value).startswith(f"edit[{name!r}]")
