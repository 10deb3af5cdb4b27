"""Singular values against those of numpy, and norms against matrices written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from positionbias.analysis.base import Subject
from positionbias.analysis.jacobi import singular_values
from positionbias.analysis.spectrum import Spectrum
from positionbias.errors import ConfigError

HEADS, WIDTH = 3, 12


@pytest.fixture(scope="module")
def drawn(drawn_run):
    """A model of one layer as it is drawn, factorised or with other switches."""

    def subject(**model):
        raw = {
            "name": "spectrum",
            "task": "associative_recall(pairs=2, keys=4, values=4, delays=2)",
            "model": {"layers": 1, "width": WIDTH, "heads": HEADS, "mlp": False} | model,
        }
        run = drawn_run(raw)
        return Subject(run, run.task.conditions()[0], 4)

    return subject


@pytest.mark.parametrize(("rows", "inner", "columns", "rank"), [(12, 5, 7, 5), (6, 8, 8, 3), (4, 1, 4, 1)])
def test_singular_values_are_those_of_the_product(rows, inner, columns, rank):
    """Of full rank, with columns that depend on each other, and of a single one."""
    rng = np.random.default_rng(0)
    left = (
        rng.normal(size=(rows, rank)) @ rng.normal(size=(rank, inner))
        if rank < inner
        else rng.normal(size=(rows, inner))
    )
    right = 100 * rng.normal(size=(inner, columns))
    found = np.asarray(jax.jit(singular_values)(jnp.asarray(left, jnp.float32), jnp.asarray(right, jnp.float32)))
    known = np.linalg.svd(left @ right, compute_uv=False)[:inner]
    known = np.pad(known, (0, inner - len(known)))
    np.testing.assert_allclose(found, known, rtol=2e-5, atol=2e-5 * known[0])


def test_nothing_has_no_singular_values():
    np.testing.assert_array_equal(singular_values(jnp.zeros((4, 3)), jnp.zeros((3, 4))), 0)


def test_norms_are_those_of_every_heads_matrices(drawn):
    subject, size = drawn(), WIDTH // HEADS
    found = {
        k: np.asarray(x) for k, x in jax.jit(lambda: Spectrum().measure(subject, [0], jax.random.key(0)))().items()
    }
    attention = subject.run.model.stack.blocks[0].attention
    names = ("query", "key", "value", "output")
    query, key, value, output = (np.asarray(getattr(attention, name).weight[...], np.float64) for name in names)
    for head in range(HEADS):
        of = slice(head * size, (head + 1) * size)
        for name, matrix in {"ov": value[:, of] @ output[of], "kq": query[:, of] @ key[:, of].T}.items():
            values = np.linalg.svd(matrix, compute_uv=False)[:size]
            np.testing.assert_allclose(found[name][0, head], values, rtol=1e-4)
            assert found[f"{name}_nuclear"][0, head] == pytest.approx(values.sum(), rel=1e-4)
            assert found[f"{name}_frobenius"][0, head] == pytest.approx(np.linalg.norm(matrix), rel=1e-4)
            bound = np.linalg.norm(matrix) * np.array([1, np.sqrt(size)])
            assert bound[0] < found[f"{name}_random"][0, head] < bound[1]


def test_merged_matrices_are_read_as_they_are(drawn):
    subject = drawn(qk="merged", ov="merged")
    found = jax.jit(lambda: Spectrum().measure(subject, [0], jax.random.key(0)))()
    attention = subject.run.model.stack.blocks[0].attention
    query = np.asarray(attention.query.weight[...]).reshape(WIDTH, HEADS, WIDTH)
    output = np.asarray(attention.output.weight[...]).reshape(HEADS, WIDTH, WIDTH)
    for head in range(HEADS):
        for name, matrix in {"ov": output[head], "kq": query[:, head]}.items():
            values = np.linalg.svd(matrix, compute_uv=False)
            np.testing.assert_allclose(found[name][0, head], values, rtol=1e-4, atol=1e-5)


def test_heads_without_a_matrix_are_refused(drawn):
    with pytest.raises(ConfigError, match=r"model.output_projection = False; allowed: ov = merged, or factorised"):
        Spectrum().check(drawn(output_projection=False))
