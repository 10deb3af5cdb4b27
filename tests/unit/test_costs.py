"""Matrix products of programs, counted by hand."""

import math

import jax
import jax.numpy as jnp
import pytest

from positionbias import compatibility, costs, spec


def scanned(x):
    return jax.lax.scan(lambda total, row: (total + row @ x.T, None), jnp.zeros(5), x[:, None].repeat(2, 1)[:, 0])[0]


def unknown(x):
    return jax.lax.while_loop(lambda y: y.sum() < 9, lambda y: y @ jnp.ones((4, 4)), x)


@pytest.mark.parametrize(
    ("function", "known"),
    [
        (lambda x: x @ x.T, 2 * 5 * 4 * 5),
        (lambda x: jnp.einsum("ij,ij->i", x, x), 2 * 5 * 4),
        (jax.jit(scanned), 5 * 2 * 4 * 5),
        (lambda x: jax.lax.cond(x[0, 0] > 0, lambda: x @ x.T, lambda: jnp.ones((5, 2)) @ jnp.ones((2, 5))), 200),
        (lambda x: jax.lax.conv(x[None], jnp.ones((3, 5, 2)), (1,), "VALID"), 2 * (3 * 3) * (5 * 2)),
        (lambda x: x + x, 0),
        (unknown, math.nan),
    ],
)
def test_products_are_counted_with_loops_in_full(function, known):
    found = costs.products(jax.make_jaxpr(function)(jnp.ones((5, 4))))
    assert found == pytest.approx(known, nan_ok=True)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        # 64 x 2 numbers a token; of all pairs q . k and a v, which is 2 x 4 x (16 + 16) a pair.
        ("linear_scores", "131,072 | 524,288 | 262,144 | 1,048,576 | T^2.00"),
        # A state and its normaliser, 4 x 16 x (16 + 1).
        ("linear_attention", "1,088 | 1,088 | 12,800 | 12,800 | T^1.00"),
        # 8 queries see 8 samples: 2 x 4 x (16 + 16) x 8; and 64 x 8 for each window, of 8 tokens.
        ("varied_window", "196,608 | 786,432 | 2,176 | 2,176 | T^1.00"),
        ("short_convolution", "128 | 128 | 0 | 0 | -"),
    ],
)
def test_a_line_of_the_table(text, line):
    found = costs.table({text: spec.build("operators", text, "test")}).splitlines()
    assert found[2:] == [f"| `{text}` | {line} |"]


@pytest.mark.parametrize("text", ["based", "titans", "chunk_hybrid", "neighborhood(width=3, causal=True)"])
def test_products_of_windows_grow_as_the_length(text):
    one = spec.build("operators", text, "test")
    assert costs.table({text: one}).endswith(" | T^1.00 |")


def test_every_operator_is_in_its_causal_form():
    found = costs.operators(compatibility.ARGUMENTS)
    assert list(found) == list(spec.names("operators"))
    assert [name for name, one in found.items() if "causal_self" not in one.patterns] == ["reversed", "varied_window"]
