"""Rules on pairs of a query and a key, split so that a kernel can apply them to one tile after another.

A rule is an ordinary function of arrays that broadcast to [N, T, S], traced once for one example. What reads one side
only (a table looked up by the query's place, say) is computed outside, for all queries or keys at once, and becomes an
operand of the kernel; what pairs the two sides must be elementwise and is run again on every tile. Where a pair of both
sides needs more than that (a table looked up by both), that part is computed outside for all pairs: such an operand is
dense, with T x S entries. Whatever a rule captures is treated the same way, and gradients flow through the operands.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from positionbias.arrays import Mapped, Shaped
from positionbias.errors import ConfigError
from positionbias.kernels.differences import spread
from positionbias.kernels.traced import Constant, Flat, Ref, Step, is_traced

# Primitives whose output at a pair of tokens depends on their inputs at that pair alone.
ELEMENTWISE = frozenset(
    """abs acos acosh add and asin asinh atan atan2 atanh cbrt ceil clamp clz convert_element_type copy cos cosh div eq
    erf erf_inv erfc exp exp2 expm1 floor ge gt integer_pow is_finite le log log1p logistic lt max min mul ne neg
    nextafter not or population_count pow reduce_precision rem round rsqrt select_n shift_left shift_right_arithmetic
    shift_right_logical sign sin sinh sqrt square stop_gradient sub tan tanh xor""".split()  # noqa: SIM905
)
# Of these a tile keeps its entries; jax adds `reshard` where it runs under a mesh.
RESHAPING = frozenset({"broadcast_in_dim", "reshape", "reshard", "squeeze"})


@dataclasses.dataclass(frozen=True, eq=False)
class Rule:
    """The part of a rule that is run on every tile; `operands` are what it reads.

    Each operand broadcasts to [B, N, T, S], with a 1 on every axis that it does not read, or has a number for each
    difference (`differences`); numpy arrays where nothing traced goes into it. Called with tiles of the operands that
    broadcast against each other.
    """

    operands: tuple[Mapped, ...]
    _reads: tuple[int, ...]  # names of the operands
    _score: int | None
    _steps: tuple[Step, ...]
    _result: Ref
    dense_because: str | None = None  # why an operand has T x S entries; None if none has

    def __call__(self, tiles: Sequence[Mapped], score: Mapped | None = None) -> Mapped:
        """The rule on one tile: `tiles` of the operands, in their order, and of the score for rules that change it."""
        values: dict[int, Any] = {}
        values.update(zip(self._reads, tiles, strict=True))
        if self._score is not None:
            values[self._score] = score
        for step in self._steps:
            args = [ref.value if isinstance(ref, Constant) else values[ref] for ref in step.reads]
            if step.primitive.name in RESHAPING:
                values[step.writes[0]] = args[0]
            else:
                values[step.writes[0]] = step.run(_alike(args, step.primitive.name))[0]
        result = self._result
        return result.value if isinstance(result, Constant) else values[result]

    @classmethod
    def constant(cls, told: Mapped) -> Rule:
        """What is told already, as an operand, with nothing to run."""
        return cls((told,), (0,), None, (), 0)

    @property
    def uses(self) -> frozenset[str]:
        """Names of the primitives that run on tiles, and of the types that they convert to and that operands have."""
        steps = [step for step in self._steps if step.primitive.name not in RESHAPING]
        made = {str(np.dtype(step.params["new_dtype"])) for step in steps if "new_dtype" in step.params}
        return frozenset({step.primitive.name for step in steps} | made | {str(x.dtype) for x in self.operands})

    @property
    def length(self) -> int:
        """How many primitives run on a tile."""
        return sum(step.primitive.name not in RESHAPING for step in self._steps)

    @property
    def text(self) -> str:
        """What the rule computes from its operands: the same for rules that compute the same."""
        steps = [(s.primitive.name, sorted(map(str, s.params.items())), s.reads, s.writes) for s in self._steps]
        return repr((self._reads, steps, self._result))


def _alike(args: list[Any], primitive: str) -> list[Any]:
    """Arguments of one shape: tiles of operands are left as small as they are until they meet others."""
    shape = np.broadcast_shapes(*(np.shape(arg) for arg in args))
    scalars = primitive != "select_n"  # whose cases must be of the shape of what chooses
    return [
        arg if np.shape(arg) == shape or (scalars and not np.shape(arg)) else jnp.broadcast_to(arg, shape)
        for arg in args
    ]


@dataclasses.dataclass(frozen=True)
class Argument:
    """An input of a rule: its array, and whether it has a leading batch axis, which the rule does not see.

    With `by_difference` the array is [T + S - 1] or [N, T + S - 1], and what the rule sees is the matrix of it.
    """

    value: Any
    own: bool = False
    by_difference: bool = False

    def example(self, pairs: tuple[int, int, int]) -> Any:
        """Shape and type for one example."""
        shape = np.shape(self.value)[self.own :]
        shape = (*shape[:-1], *pairs[1:]) if self.by_difference else shape
        return jax.ShapeDtypeStruct(shape, jnp.result_type(self.value))


def split(
    function: Callable[..., Mapped],
    arguments: Sequence[Argument],
    pairs: tuple[int, int, int],
    name: str,
    score: Any = None,
) -> Rule:
    """The rule that `function` is on `pairs` = (N, T, S), called with scores [N, T, S] first if `score` is their type.

    Raises ConfigError where the function does more to the score than arithmetic on each entry, returns what does not
    broadcast to [N, T, S], or needs numbers where it is traced.
    """
    scores = [] if score is None else [jax.ShapeDtypeStruct(pairs, score)]
    try:
        closed = jax.make_jaxpr(function)(*scores, *(argument.example(pairs) for argument in arguments))
    except jax.errors.TracerArrayConversionError as error:
        raise ConfigError(
            f"{name} hands what it is given to numpy, or indexes a numpy array with it; allowed: jax arrays, such as"
            " jnp.asarray(table)[q]."
        ) from error
    except (jax.errors.TracerBoolConversionError, ValueError) as error:
        # Of arrays of several numbers jax has no class of its own for it, and numpy none at all.
        if isinstance(error, ValueError) and "truth value of an array" not in str(error).lower():
            raise
        raise ConfigError(
            f"{name} asks whether an array is true, as `and`, `or`, `not`, `if` and chained comparisons do; allowed:"
            " &, |, ~, one comparison at a time, and jnp.where."
        ) from error
    except (jax.errors.ConcretizationTypeError, jax.errors.TracerIntegerConversionError) as error:
        raise ConfigError(
            f"{name} makes a number of Python of what it is given, as `int`, `float`, `range`, `math` and indices of"
            " lists do; allowed: jax arrays, such as jnp.asarray(table)[h]."
        ) from error
    flat = Flat(closed, pairs[1:])
    if len(flat.results) != 1 or not _fits(flat.shape(flat.results[0]), pairs):
        shapes = [list(flat.shape(result)) for result in flat.results]
        raise ConfigError(f"{name} returns arrays of shape {shapes}; allowed: one that broadcasts to {list(pairs)}.")
    inputs = flat.inputs[len(scores) :]
    known = dict(zip(inputs, arguments, strict=True))
    short = {ref for ref, argument in known.items() if argument.by_difference}
    cut = _Cut(flat, pairs, None if score is None else flat.inputs[0], short, name)
    cut.demand(flat.results[0], None)
    operands = tuple(_computed(flat, known, cut.operands, pairs))
    # What a step reads of an operand: a number, or a tile by its place among the operands; one array may be several.
    numbers = [Constant(x.reshape(())[()]) if _fixed(x) else None for x in operands]
    names = {key: numbers[i] or _named(i) for i, key in enumerate(cut.operands)}

    def read(step: Step, ref: Ref) -> Ref:
        return ref if isinstance(ref, Constant) else names.get((ref, cut.seen_as(step, ref)), ref)

    steps = tuple(
        dataclasses.replace(step, reads=tuple(read(step, ref) for ref in step.reads))
        for step in flat.steps
        if step.writes[0] in cut.inner
    )
    result = flat.results[0]
    result = result if isinstance(result, Constant) else names.get((result, None), result)
    moving = [i for i, number in enumerate(numbers) if number is None]
    places = tuple(_named(i) for i in moving)
    used = tuple(operands[i] for i in moving)
    return Rule(used, places, None if score is None else flat.inputs[0], steps, result, cut.dense)


def _named(operand: int) -> int:
    """The name of an operand among those of values, which count from 0."""
    return -1 - operand


def _fixed(operand: Mapped) -> bool:
    """Whether it is one number that is known: no operand then, but a part of the rule."""
    return isinstance(operand, np.ndarray) and operand.size == 1


def _fits(shape: tuple[int, ...], pairs: tuple[int, int, int]) -> bool:
    near = zip(shape[:-4:-1], pairs[::-1], strict=False)
    return all(n in (1, most) for n, most in near) and all(n == 1 for n in shape[:-3])


class _Cut:
    """Which steps run on tiles, found backwards from the result: in these, axes are those of the result."""

    def __init__(self, flat: Flat, pairs: tuple[int, int, int], score: int | None, short: set[int], name: str) -> None:
        self.flat, self.pairs, self.score, self.short, self.name = flat, pairs, score, short, name
        self.inner: set[int] = set()
        self.operands: list[tuple[int, tuple[int, ...] | None]] = []  # reference, and its shape against the tile's
        self.dense: str | None = None
        self._scored = {score} if score is not None else set()
        for step in flat.steps:  # what the score shapes
            if self._scored & {ref for ref in step.reads if isinstance(ref, int)}:
                self._scored.update(step.writes)

    def demand(self, ref: Ref, shape: tuple[int, ...] | None) -> None:
        """Have a value at hand in every tile; `shape` if it is read as if it had another one."""
        if isinstance(ref, Constant) or ref == self.score or ref in self.inner:
            return
        step = self.flat.made_by.get(ref)
        if shape is None and step is not None and self._runs_on_tiles(step):
            self.inner.add(ref)
            for read in step.reads:
                self.demand(read, self.seen_as(step, read))
            return
        if ref in self._scored:
            scored = (step for step in self.flat.steps if step.writes[0] in self._scored)
            names = (step.primitive.name for step in scored if not self._runs_on_tiles(step))
            done = next((name for name in names if name not in RESHAPING), "a change of its shape")
            done = "a gradient of its own" if done.startswith("custom_") else done
            raise ConfigError(
                f"{self.name} does more to a score than arithmetic on each entry ({done}); allowed: functions of the"
                " score at one pair, the indices, and operands."
            )
        if shape is None and ref not in self.short and self._paired(self.flat.shape(ref)):
            made = "is given for all pairs" if step is None else f"comes of `{step.primitive.name}`, which pairs more"
            self.dense = f"a part of {self.name} {made}"
        if (ref, shape) not in self.operands:
            self.operands.append((ref, shape))

    def _paired(self, shape: tuple[int, ...]) -> bool:
        return len(shape) >= 2 and min(shape[-2:]) > 1

    def _runs_on_tiles(self, step: Step) -> bool:
        shape, name = self.flat.shape(step.writes[0]), step.primitive.name
        if not self._is_tile(shape):
            return False
        if name not in RESHAPING:
            return name in ELEMENTWISE
        inner = self.flat.shape(step.reads[0])
        if not self._is_tile(inner):
            return name == "broadcast_in_dim"
        if name != "broadcast_in_dim":  # which may take ones away, or add them, in front
            return inner[-3:-2] in ((), (1,)) or inner[-3:] == shape[-3:]
        axes = step.params["broadcast_dimensions"]
        return all(n == 1 or axes[a] - len(shape) == a - len(inner) for a, n in enumerate(inner))

    def _is_tile(self, shape: tuple[int, ...]) -> bool:
        """Whether it is that of a value for each pair, with the axes of the result."""
        heads = shape[-3:-2] in ((), (1,), self.pairs[:1])
        return len(shape) >= 2 and shape[-2:] == self.pairs[1:] and heads and all(n == 1 for n in shape[:-3])

    def seen_as(self, step: Step, read: Ref) -> tuple[int, ...] | None:
        """The shape of what `step` spreads over a tile, with a 1 on each new axis."""
        inner, shape = self.flat.shape(read), self.flat.shape(step.writes[0])
        if step.primitive.name != "broadcast_in_dim" or self._is_tile(inner):
            return None
        axes = step.params["broadcast_dimensions"]
        return tuple(inner[axes.index(axis)] if axis in axes else 1 for axis in range(len(shape)))


def _computed(
    flat: Flat, inputs: dict[int, Argument], wanted: list[tuple[int, tuple[int, ...] | None]], pairs: tuple[int, ...]
) -> list[Shaped[Mapped, "B|1 N|1 T|1 S|1"]]:
    """The operands' arrays; what every example has of its own is computed for each, and all else once."""
    own = {ref for ref, argument in inputs.items() if argument.own}
    needed = {ref for ref, _ in wanted}
    for step in reversed(flat.steps):
        if needed & set(step.writes):
            needed.update(ref for ref in step.reads if isinstance(ref, int))
    values = flat.captured | {ref: argument.value for ref, argument in inputs.items() if not argument.own}
    short = {ref: values[ref] for ref, argument in inputs.items() if argument.by_difference}
    read = {ref for step in flat.steps if needed & set(step.writes) for ref in step.reads if isinstance(ref, int)}
    read |= {ref for ref, shape in wanted if shape is not None}
    values |= {ref: _spread(short[ref], pairs) for ref in read & set(short)}
    later = []
    for step in flat.steps:
        if not needed & set(step.writes):
            continue
        if own & {ref for ref in step.reads if isinstance(ref, int)}:
            own.update(step.writes)
            later.append(step)
        else:
            values.update(zip(step.writes, _run(step, values), strict=True))
    given = {ref: argument.value for ref, argument in inputs.items() if argument.own and ref in needed}
    asked = [ref for ref, _ in wanted if ref in own]
    if asked:
        values.update(_for_each(later, values, given, asked))
    found = []
    for ref, shape in wanted:
        if ref in short and shape is None:
            value = short[ref] if is_traced(short[ref]) else np.asarray(short[ref])
            found.append(value.reshape(1, *(1,) * (2 - value.ndim), *value.shape))
            continue
        value = values[ref]
        lead = np.shape(value)[:1] if ref in own else (1,)
        whole = shape if shape is not None else np.shape(value)[1:] if ref in own else np.shape(value)
        whole = (1,) * (3 - len(whole)) + tuple(whole[-3:])
        value = value if is_traced(value) else np.asarray(value)  # before a program that is traced takes it in
        found.append(value.reshape(*lead, *whole))
    return found


def _spread(window: Any, pairs: tuple[int, ...]) -> Any:
    """A number for each difference, for all pairs; known if they are."""
    if is_traced(window):
        return spread(window, *pairs[1:])
    with jax.ensure_compile_time_eval():
        return spread(window, *pairs[1:])


def _run(step: Step, values: dict[int, Any]) -> list[Any]:
    args = [ref.value if isinstance(ref, Constant) else values[ref] for ref in step.reads]
    if is_traced(args):
        return step.run(args)
    with jax.ensure_compile_time_eval():
        return step.run([jnp.asarray(arg) for arg in args])


def _for_each(steps: list[Step], values: dict[int, Any], given: dict[int, Any], asked: list[int]) -> dict[int, Any]:
    """What `steps` make of each example's own."""

    def one(mine: dict[int, Any]) -> list[Any]:
        known = {**values, **mine}
        for step in steps:
            args = [ref.value if isinstance(ref, Constant) else known[ref] for ref in step.reads]
            known.update(zip(step.writes, step.run(args), strict=True))
        return [known[ref] for ref in asked]

    outside = [values[ref] for step in steps for ref in step.reads if isinstance(ref, int) and ref in values]
    if is_traced(given, outside):
        return dict(zip(asked, jax.vmap(one)(given), strict=True))
    with jax.ensure_compile_time_eval():
        return dict(zip(asked, jax.vmap(one)({ref: jnp.asarray(x) for ref, x in given.items()}), strict=True))
