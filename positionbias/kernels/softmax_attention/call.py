"""The call that users and operators make: its rules traced, and the choice of a driver."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from positionbias.arrays import Float, Mapped
from positionbias.errors import ConfigError, nearest
from positionbias.kernels.aux import AUX_KINDS, Aux
from positionbias.kernels.rules import Argument, Rule, split
from positionbias.kernels.softmax_attention.given import (
    are_arrays,
    check_arrays,
    check_dropout,
    check_scale,
    check_stats,
    check_tokens,
    is_whole,
    kind_of,
)
from positionbias.kernels.softmax_attention.ladder import Choice, choose
from positionbias.kernels.softmax_attention.problem import Dropout, Problem, Stat
from positionbias.masks.base import Mask
from positionbias.masks.order import Bidirectional, Causal
from positionbias.tokens import Tokens, sequential

MaskFunction = Callable[..., Mapped]
ScoreFunction = Callable[..., Mapped]
INDICES = ("s", "b", "h", "q", "k")  # of the arguments that a rule is called with
BLOCK = 128  # queries and keys of a tile, unless told


def attention(
    q: Float[jax.Array, "B T N H"],
    k: Float[jax.Array, "B S G H"],
    v: Float[jax.Array, "B S G K"],
    *,
    mask: Mask | MaskFunction | None = None,
    tokens: tuple[Tokens, Tokens] | None = None,
    score: ScoreFunction | None = None,
    aux: Mapping[str, Aux] | None = None,
    key_bias: Float[jax.Array, "B G S"] | None = None,
    scale: float | None = None,
    stats: Sequence[Stat] | None = None,
    normalise: bool = True,
    dropout: tuple[float, Any] | None = None,
    impl: str | None = None,
    block_sizes: tuple[int, int] | None = None,
) -> Any:
    """Softmax attention under any mask and any rule on scores: outputs [B, T, N, K], or (outputs, `Stats`).

    The weights of query i are softmax over its visible keys j of score(scale q_i . k_j + key_bias_j); query head n
    reads key head n // (N / G). A query that sees no key has output 0, and so have its gradients. Keys and values have
    to be finite even where nobody sees them: their weight is 0, and 0 times NaN is NaN.

    mask: which keys a query sees. A `Mask` reads `tokens`, of the queries and of the keys (`sequential` by default). A
        function is called as mask(b, h, q, k, **aux) with the indices of example, head, query and key, int32 arrays
        that broadcast to [N, T, S], and returns booleans that do. It may capture arrays, traced ones too.
    score: called as score(s, b, h, q, k, **aux) with the scores [N, T, S], it returns what takes their place:
        arithmetic on each entry. Gradients reach whatever it reads or captures. It is run at masked pairs too, and
        there has to be finite for gradients to be.
    aux: named arrays handed to both functions, as far as these have a parameter of that name or `**`: `PerQuery`
        [T] or [B, T], `PerKey` [S] or [B, S], `PerHead` [N], `Scalar` [], `Relative` [T + S - 1] or [N, T + S - 1].
    scale: 1 / sqrt(H) unless told.
    stats: names of `Stats`: 'lse', 'received', 'entropy', 'mean_position', 'block_mass'; told any, even none at all
        (`()`), the call returns them too.
    normalise: without it the weights are exp(score), summed and not divided; the scores must stay small.
    dropout: (rate, seed), the seed an integer of 32 bits, `jax.random.bits(key)` say; weights are dropped by a hash of
        the seed and their place in these arrays, so that parts of a batch on several devices want seeds of their own.
    impl: a driver by name; None for the one that is chosen for the platform, which `choice` tells. All but 'xla_dense'
        have gradients backwards only: for `jax.jvp` name that one, and for second derivatives it or 'xla_chunked'.
    block_sizes: queries and keys of a tile; also of the tiles of `block_mass`.

    Raises ConfigError for what does not fit together, and with the reason where the driver named cannot do it.
    """
    problem = posed(q, k, v, mask, tokens, score, aux, key_bias, scale, stats or (), normalise, dropout, block_sizes)
    outputs, found = choose(problem, impl).driver.run(problem)
    return outputs if stats is None else (outputs, found)


def choice(*args: Any, impl: str | None = None, platform: str | None = None, **kwargs: Any) -> Choice:
    """What `attention` would choose for the same arguments, here or on a `platform` ('cpu', 'gpu', 'tpu').

    The choice has the `driver`, with its name, and those `passed_over`, each with the reason.
    """
    bound = inspect.signature(attention).bind(*args, **kwargs)
    bound.apply_defaults()
    told = {name: value for name, value in bound.arguments.items() if name != "impl"}
    return choose(posed(**told | {"stats": told["stats"] or ()}), impl, platform)


def merge(
    first: tuple[Float[jax.Array, "B T N K"], Float[jax.Array, "B N T"]],
    second: tuple[Float[jax.Array, "B T N K"], Float[jax.Array, "B N T"]],
) -> tuple[Float[jax.Array, "B T N K"], Float[jax.Array, "B N T"]]:
    """Outputs and log-sum-exp of an attention over two sets of keys that share none: merge((o1, lse1), (o2, lse2)).

    Each pair is what `attention` gives for one set with `stats=["lse"]`: the outputs, and `stats.lse`. Raises
    ConfigError for pairs of other shapes.
    """
    for given in (first, second):
        shapes = [np.shape(x) for x in given] if are_arrays(given) else []
        if len(shapes) != 2 or len(shapes[0]) != 4 or shapes[1] != (shapes[0][0], shapes[0][2], shapes[0][1]):
            told = ", ".join(str(list(shape)) for shape in shapes) or "what are no two arrays"
            raise ConfigError(f"merge is given {told}; allowed: outputs [B, T, N, K] and stats.lse [B, N, T], twice.")
    if np.shape(first[0]) != np.shape(second[0]):
        told = f"{list(np.shape(first[0]))} and {list(np.shape(second[0]))}"
        raise ConfigError(f"merge is given outputs of shapes {told}; allowed: one shape for both.")
    (o1, l1), (o2, l2) = first, second
    total = jnp.logaddexp(l1, l2)
    shares = [jnp.moveaxis(jnp.exp(part - total), 1, 2)[..., None] for part in (l1, l2)]
    return (o1 * shares[0] + o2 * shares[1]).astype(o1.dtype), total


def posed(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: Mask | MaskFunction | None = None,
    tokens: tuple[Tokens, Tokens] | None = None,
    score: ScoreFunction | None = None,
    aux: Mapping[str, Aux] | None = None,
    key_bias: jax.Array | None = None,
    scale: float | None = None,
    stats: Sequence[Stat] = (),
    normalise: bool = True,
    dropout: tuple[float, Any] | None = None,
    block_sizes: tuple[int, int] | None = None,
) -> Problem:
    """The problem that a call poses, checked."""
    check_arrays(q, k, v, key_bias)
    # Of numpy as jax has it: without 64 bits, float64 would be told to drivers that never see it.
    q, k, v = (jnp.asarray(x) if isinstance(x, np.ndarray) else x for x in (q, k, v))
    sizes = (q.shape[0], q.shape[2], q.shape[1], k.shape[1])
    blocks = (BLOCK, BLOCK) if block_sizes is None else block_sizes
    good = isinstance(blocks, tuple | list) and len(blocks) == 2 and all(is_whole(n) and n >= 1 for n in blocks)
    if not good:
        raise ConfigError(f"block_sizes = {block_sizes} is not allowed; allowed: two whole numbers from 1.")
    if not isinstance(normalise, bool | np.bool_):
        raise ConfigError(f"normalise = {normalise!r} is not allowed; allowed: True, False.")
    check_stats(stats, normalise)
    check_dropout(dropout)
    check_scale(scale)
    for name, function in (("mask", mask), ("score", score)):
        if not isinstance(function, Mask) and function is not None and not _is_rule(function):
            kinds = "None, a Mask or a function" if name == "mask" else "None or a function"
            raise ConfigError(f"{name} is {kind_of(function)}; allowed: {kinds}.")
    if tokens is not None:
        check_tokens(tokens, mask)
    if aux is not None and not isinstance(aux, Mapping):
        raise ConfigError(f"aux is {kind_of(aux)}; allowed: a mapping of names to {', '.join(_aux_kinds())}.")
    arguments = _Arguments(sizes, {} if aux is None else aux, (mask, score))
    allowed, tiles, pairs, plain = None, None, None, "none" if mask is None else None
    if isinstance(mask, Mask):
        told = tokens or (sequential(sizes[2]), sequential(sizes[3]))
        allowed, tiles, pairs, plain = _of_mask(mask, told, sizes)
    elif mask is not None:
        allowed = arguments.rule(mask, "mask")
    return Problem(
        q=q,
        k=k,
        v=v,
        scale=float(q.shape[-1] ** -0.5 if scale is None else scale),
        allowed=allowed,
        score=arguments.scores(score, key_bias, jnp.promote_types(q.dtype, jnp.float32)),
        tiles=tiles,
        pairs=pairs,
        stats=tuple(stats),
        normalise=normalise,
        dropout=None if dropout is None or dropout[0] == 0 else Dropout(float(dropout[0]), jnp.asarray(dropout[1])),
        block_sizes=(int(blocks[0]), int(blocks[1])),
        plain=plain,  # type: ignore[arg-type]
    )


def _of_mask(
    mask: Mask, tokens: tuple[Tokens, Tokens], sizes: tuple[int, int, int, int]
) -> tuple[Rule | None, Any, Any, str | None]:
    """The rule of a Mask, what tells the classes of its tiles, what tells all pairs, and its name in a library."""
    batch, _, rows, columns = sizes
    for side, length, name in ((tokens[0], rows, "queries"), (tokens[1], columns, "keys")):
        lead = {np.shape(field)[:-1] for field in side}
        if side.length != length or not lead <= {(), (batch,)}:
            shapes = sorted({str(list(np.shape(field))) for field in side})
            raise ConfigError(
                f"tokens of the {name} have fields of shape {', '.join(shapes)}; allowed: [{length}] or [{batch},"
                f" {length}]."
            )
    known = all(isinstance(field, np.ndarray) for side in tokens for field in side)
    if known and all(field.ndim == 1 for side in tokens for field in side) and all(side.valid.all() for side in tokens):
        in_order = all((side.index == np.arange(side.length)).all() for side in tokens)
        if isinstance(mask, Bidirectional):
            return None, None, None, "none"
        plain = "causal" if isinstance(mask, Causal) and in_order and rows == columns else None
    else:
        plain = None
    fields = [Argument(field) for side in tokens for field in side]

    def pairs(*given: jax.Array) -> Mapped:
        q, k = Tokens(*given[: len(Tokens._fields)]), Tokens(*given[len(Tokens._fields) :])
        return mask.dense(q, k)

    # A mask, and what it was bound to, may have an axis of examples and has none of heads: it is split as if they were.
    rule = split(pairs, fields, (batch, rows, columns), "mask")
    rule = dataclasses.replace(rule, operands=tuple(operand.swapaxes(0, 1) for operand in rule.operands))
    if not known:
        return rule, None, None, plain
    return rule, functools.partial(mask.blocks, *tokens), functools.partial(mask.dense, *tokens), plain


class _Arguments:
    """Indices and aux, as the functions of a call get them."""

    def __init__(self, sizes: tuple[int, int, int, int], aux: Mapping[str, Aux], functions: tuple[Any, ...]) -> None:
        batch, heads, rows, columns = sizes
        self.pairs = heads, rows, columns
        places = (np.arange(n, dtype=np.int32) for n in (batch, heads, rows, columns))
        b, h, q, k = places
        self.indices = [Argument(b, True), Argument(h[:, None, None]), Argument(q[:, None]), Argument(k[None])]
        self.aux = {}
        for name, value in aux.items():
            if not isinstance(name, str):
                raise ConfigError(f"aux has the name {name!r}; allowed: text, as parameters are named.")
            if name in INDICES:
                raise ConfigError(
                    f"aux[{name!r}] has the name of an index; allowed: names other than {', '.join(INDICES)}."
                )
            if not isinstance(value, AUX_KINDS):
                raise ConfigError(f"aux[{name!r}] is a {type(value).__name__}; allowed: {', '.join(_aux_kinds())}.")
            self.aux[name] = value.argument(name, sizes)
        for name, function in zip(("mask", "score"), functions, strict=True):
            if function is not None and not isinstance(function, Mask):
                _check_called(name, function, INDICES[name == "mask" :], aux)
        for name in aux:
            if not any(_takes(function, name) for function in functions if not isinstance(function, Mask)):
                raise ConfigError(
                    f"aux[{name!r}] is read by neither mask nor score; allowed: names of their parameters."
                )

    def rule(self, function: Callable[..., Mapped], name: str) -> Rule:
        """The rule of a mask."""
        told = {key: value for key, value in self.aux.items() if _takes(function, key)}

        def called(*given: jax.Array) -> Mapped:
            found = function(*given[:4], **dict(zip(told, given[4:], strict=True)))
            return _returned(name, found, bool, "booleans")

        return split(called, [*self.indices, *told.values()], self.pairs, name)

    def scores(self, function: ScoreFunction | None, key_bias: jax.Array | None, dtype: Any) -> Rule | None:
        """The rule on scores: the bias of keys, and then the function."""
        if function is None and key_bias is None:
            return None
        told = {key: value for key, value in self.aux.items() if function is not None and _takes(function, key)}
        more = []
        if key_bias is not None:
            more = [Argument(jnp.repeat(key_bias, self.pairs[0] // key_bias.shape[1], axis=1)[:, :, None], True)]

        def called(s: jax.Array, *given: jax.Array) -> Mapped:
            if key_bias is not None:
                s = s + given[-1]
            if function is None:
                return s
            found = function(s, *given[:4], **dict(zip(told, given[4:], strict=False)))
            return _returned("score", found, (jnp.integer, jnp.floating), "real numbers").astype(s.dtype)

        return split(called, [*self.indices, *told.values(), *more], self.pairs, "score", dtype)


def _returned(name: str, found: Any, kinds: Any, allowed: str) -> jax.Array:
    """What a rule returns, as an array of one of these kinds."""
    if not isinstance(found, jax.Array | np.ndarray | np.generic | bool | int | float | complex):
        raise ConfigError(f"{name} returns {kind_of(found)}; allowed: one array of {allowed}.")
    array = jnp.asarray(found)
    if not any(jnp.issubdtype(array.dtype, kind) for kind in (kinds if isinstance(kinds, tuple) else (kinds,))):
        raise ConfigError(f"{name} returns {array.dtype}; allowed: {allowed}.")
    return array


def _check_called(name: str, function: Any, indices: Sequence[str], aux: Mapping[str, Aux]) -> None:
    """Raise ConfigError unless a rule can be called with its indices and what it takes of `aux`."""
    told = [key for key in aux if _takes(function, key)]
    try:
        inspect.signature(function).bind(*indices, **dict.fromkeys(told))
    except TypeError as error:
        wanted = str(error).rpartition("argument: ")[2].strip("'") if "missing" in str(error) else None
        hint = "" if wanted is None else nearest(wanted, [key for key in aux if key not in told])
        raise ConfigError(
            f"{name} cannot be called as {name}({', '.join([*indices, *told])}): {error}{hint}; allowed: a function of"
            f" {', '.join(indices)}, and of names of aux."
        ) from error


def _takes(function: Any, name: str) -> bool:
    """Whether a function has a parameter of that name for `aux`."""
    if function is None:
        return False
    found = inspect.signature(function).parameters
    named = name in found and found[name].kind in (
        inspect.Parameter.KEYWORD_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
    )
    return named or any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in found.values())


def _is_rule(function: Any) -> bool:
    """Whether it is a function that tells its parameters, as some of Python's own do not."""
    if not callable(function) or isinstance(function, type):
        return False
    try:
        inspect.signature(function)
    except ValueError:
        return False
    return True


def _aux_kinds() -> list[str]:
    return [kind.__name__ for kind in AUX_KINDS]
