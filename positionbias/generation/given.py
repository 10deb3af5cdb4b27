"""What a caller hands over to generate from: told in a sentence where it cannot be meant."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from positionbias.arrays import Bool, Int, Key, Mapped
from positionbias.spec import LARGEST, ConfigError
from positionbias.tasks.base import Batch
from positionbias.tokens import UNTOLD, Tokens


def whole(number: object) -> bool:
    """Whether it is a whole number, and no truth value."""
    return isinstance(number, int | np.integer) and not isinstance(number, bool)


def plain(value: Any) -> Any:
    """Python's own numbers and lists for those of numpy."""
    return value.tolist() if isinstance(value, np.generic | np.ndarray) else value


def check_key(key: Key[jax.Array, ""] | None) -> None:
    """Raise ConfigError for what is no key, of either kind that JAX has."""
    typed = isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and key.ndim == 0
    raw = isinstance(key, jax.Array) and key.dtype == jnp.uint32 and key.shape == (2,)
    if not (key is None or typed or raw):
        shape = f" of shape {key.shape}" if isinstance(key, jax.Array) else ""
        raise ConfigError(f"key: {type(key).__name__}{shape}; allowed: one key, such as jax.random.key(0).")


def sequences(prompt: Int[Mapped, "B P"], words: int, what: str = "prompt") -> Int[jax.Array, "B P"]:
    """Prompts, or answers, of tokens of a vocabulary of so many words."""
    if isinstance(prompt, Batch):
        raise ConfigError(f"{what}: a whole Batch is not allowed; allowed: its inputs, or part of them.")
    found = _array(prompt, what, "as long as each other")
    if found.ndim != 2 or not found.size or not np.issubdtype(found.dtype, np.integer):
        shape = "a sequence or more of a token or more"
        raise ConfigError(f"{what}: {found.dtype} of shape {found.shape}; allowed: whole numbers [B, P], {shape}.")
    if not 0 <= found.min() <= found.max() < words:
        raise ConfigError(f"{what}: tokens from {found.min()} to {found.max()}; allowed: 0 to {words - 1}.")
    return jnp.asarray(found, jnp.int32)


def padding(valid: Bool[Mapped, "B P"], shape: tuple[int, ...]) -> Bool[np.ndarray, "B P"]:
    """Which tokens of prompts are no padding, which stands in front alone."""
    found = _array(valid, "valid", f"True and False of shape {shape}, that of the prompt")
    if found.dtype != bool or found.shape != shape:
        raise ConfigError(
            f"valid: {found.dtype} of shape {found.shape}; allowed: True and False of shape {shape}, that of the"
            " prompt."
        )
    if not (found.any(axis=-1) & (np.sort(found, axis=-1) == found).all(axis=-1)).all():
        raise ConfigError("valid: allowed are prompts of at least one token that are padded in front alone.")
    return found


def tokens_of(tokens: Tokens, prompts: int, rows: int) -> Tokens:
    """The tokens of all `rows`, numpy, [S] or [B, S] a field."""
    if not isinstance(tokens, Tokens):
        raise ConfigError(f"tokens: {type(tokens).__name__} is not allowed; allowed: Tokens, as of run.sample(size).")
    told = Tokens(*(_array(field, f"tokens.{name}", "whole numbers") for name, field in tokens._asdict().items()))
    length = told.index.shape[-1:]
    for name, field in told._asdict().items():
        kind, least = ("b", 0) if name == "valid" else ("iu", UNTOLD[name] if name == "spare" else 0)
        shapes = (length, (prompts, *length))
        if field.dtype.kind not in kind or field.shape not in shapes or not length:
            what = "True and False" if name == "valid" else "whole numbers"
            raise ConfigError(
                f"tokens.{name}: {field.dtype} of shape {field.shape}; allowed: {what}, one a row, of all prompts or of"
                f" each of the {prompts}."
            )
        if field.size and not least <= field.min() <= field.max() <= LARGEST:
            raise ConfigError(
                f"tokens.{name}: from {field.min()} to {field.max()} is not allowed; allowed: {least} to {LARGEST}."
            )
    if told.length < rows or (told.index != np.arange(told.length)).any():
        raise ConfigError(
            f"tokens: those given are {told.length} with indices {told.index}; allowed: at least {rows} rows, prompt"
            " included, of indices 0, 1, ..."
        )
    if not told.valid.any(axis=-1).all():
        raise ConfigError("tokens.valid: False throughout; allowed: at least one token that is no padding.")
    return Tokens(*(field if name == "valid" else field.astype(np.int32) for name, field in told._asdict().items()))


def _array(value: Any, what: str, allowed: str) -> np.ndarray:
    try:
        return np.asarray(value)
    except ValueError:  # what numpy says of lists of unequal lengths
        raise ConfigError(f"{what}: of unequal lengths; allowed: {allowed}.") from None
