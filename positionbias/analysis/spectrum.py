"""Spectrum: the singular values of what every head does to a token, and of how it compares two."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from positionbias.analysis.base import Analysis, Axes, Subject
from positionbias.analysis.heads import HEADS
from positionbias.analysis.jacobi import singular_values
from positionbias.arrays import Float, Key
from positionbias.models.attention import Attention
from positionbias.spec import ConfigError, member, require

KINDS = ("ov", "kq")
Factors = tuple[Float[jax.Array, "N D R"], Float[jax.Array, "N R E"] | None]  # None for a matrix of one piece


@member("analyses", "spectrum")
@dataclasses.dataclass(frozen=True)
class Spectrum(Analysis):
    """Singular values, nuclear and Frobenius norms of OV and KQ of every head (Huang et al. 2025, arXiv 2506.10887).

    OV = W_V W_O turns what a head attends to into what it adds, KQ = W_Q W_K' compares two rows, before positions and
    scale; norms in front of them and biases are left out. Out-of-context reasoning: factors trained from small weights
    find an OV of little nuclear norm (the sum of the singular values), which carries over to pairs never shown, and one
    merged matrix an OV of little Frobenius norm (the root of the sum of their squares), which does not.

    "ov" and "kq" hold singular values, the largest first; "ov_nuclear", "ov_frobenius" and the same of KQ the norms;
    "ov_random" and "kq_random", the control, the nuclear norm of a random matrix of the same Frobenius norm, a product
    of Gaussian factors of the same shapes. The nuclear norm lies between the Frobenius norm, of rank 1, and sqrt(R)
    times it, of R equal values.
    """

    axes: ClassVar[Axes] = {
        **dict.fromkeys(KINDS, ("layer", "head", "value")),
        **{f"{name}_{kind}": ("layer", "head") for name in KINDS for kind in ("nuclear", "frobenius", "random")},
    }
    shown = "ov_nuclear"
    any_rows = True

    def reads(self) -> tuple[str, ...]:
        return (HEADS,)

    def check(self, subject: Subject) -> None:
        model = subject.run.config.model
        projects = model.ov == "merged" or (model.ov == "factorised" and model.output_projection)
        if not projects:
            raise ConfigError(
                "--analyses: spectrum reads the matrix that every head's mix is multiplied by, of which there is none"
                f" with model.ov = {model.ov}, model.output_projection = {model.output_projection}; allowed: ov ="
                " merged, or factorised with an output projection."
            )
        one_width = model.residual != "concatenate" or (model.ov, model.qk) == ("factorised", "factorised")
        allowed = "'add' or 'none' with merged matrices, which are else of another size in every layer"
        require(one_width, "model.residual", model.residual, allowed)

    def measure(self, subject: Subject, layers: list[int], key: Key[jax.Array, ""]) -> dict[str, jax.Array]:
        heads, found = subject.run.config.model.heads, dict[str, list[jax.Array]]()
        for layer in layers:
            for i, (name, factors) in enumerate(zip(KINDS, _factors(_attention(subject, layer), heads), strict=True)):
                drawn = jax.random.fold_in(jax.random.fold_in(key, layer), i)
                values, random = _values(factors), _values(_random(drawn, factors))
                nuclear, size = jnp.sum(values, axis=-1), jnp.linalg.norm(values, axis=-1)
                scaled = jnp.sum(random, axis=-1) * size / jnp.linalg.norm(random, axis=-1)
                told = {"": values, "_nuclear": nuclear, "_frobenius": size, "_random": scaled}
                for kind, value in told.items():
                    found.setdefault(name + kind, []).append(value)
        return {name: jnp.stack(values) for name, values in found.items()}


def _attention(subject: Subject, layer: int) -> Attention:
    """The attention whose sites are those of this layer."""
    model: Any = subject.run.model
    block = (model.decoder if hasattr(model, "decoder") else model.stack).blocks[layer]
    return block.attention


def _factors(attention: Attention, heads: int) -> tuple[Factors, Factors]:
    """OV and KQ of every head."""
    assert attention.output is not None
    query = _columns(attention.query.weight[...], heads)
    output = attention.output.weight[...].reshape(heads, -1, attention.width_out)
    ov: Factors = (output, None)
    if attention.value is not None:
        ov = (_columns(attention.value.weight[...], heads), output)
    if attention.key is None:
        return ov, (query, None)
    return ov, (query, jnp.swapaxes(_columns(attention.key.weight[...], heads), 1, 2))


def _columns(weight: Float[jax.Array, "D N*R"], heads: int) -> Float[jax.Array, "N D R"]:
    """The columns of each head."""
    return jnp.moveaxis(weight.reshape(len(weight), heads, -1), 1, 0)


def _values(factors: Factors) -> Float[jax.Array, "N R"]:
    """Singular values of every head's matrix."""
    left, right = factors
    if right is None:
        right = jnp.broadcast_to(jnp.eye(left.shape[-1]), (len(left), left.shape[-1], left.shape[-1]))
    return jax.vmap(singular_values)(left, right)


def _random(key: Key[jax.Array, ""], factors: Factors) -> Factors:
    """Gaussian factors of the same shapes."""
    first, second = jax.random.split(key)
    left, right = factors
    drawn = jax.random.normal(first, left.shape)
    return drawn, None if right is None else jax.random.normal(second, right.shape)
