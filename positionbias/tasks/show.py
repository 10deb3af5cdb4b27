"""`python -m positionbias.tasks.show 'multi_hop(hops=2)'`: one sample of a task, as a person reads it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from positionbias import runtime, spec
from positionbias.config.cli import Parser, parse_command_line, run_entry
from positionbias.spec import ConfigError

COLUMNS = 96
MEASURED = 4096  # samples
AT_ONCE = 2**18  # rows sampled at once
SLOTS = 12  # of a prior, told one by one
ANSWERS = 8  # told one by one
LEGEND = """\
distance: rows from the nearest place that holds the answer, negative if that comes later;
order: rank of the order in which the evidence stands, -1 where it has none; '.': no target"""
PURPOSE = f"""\
Print one sample of a task, decoded, then a line for each row that answers, and the positional prior.

{LEGEND};
filler: a token that means nothing; a number behind a name: the slot on the task's own axis of that name."""


def main(argv: list[str]) -> int:
    """Print a sample and what it says of its answers; returns the exit code."""
    program = "python -m positionbias.tasks.show"
    made = Parser(program, PURPOSE)
    made.add_argument("task", help=f"spec of a task, as in {program} 'inverse_permutation(n=4)'")
    made.add_argument("--condition", help="one of the task's conditions; default: the one trained on")
    made.add_argument("--seed", type=int, default=0, help="another sample")
    given, _ = parse_command_line(made, argv)
    if not 0 <= given.seed <= spec.LARGEST:
        raise ConfigError(f"--seed: {given.seed} is not allowed; allowed: 0 to {spec.LARGEST}.")
    runtime.configure()
    task = spec.build("tasks", given.task, "TASK")
    print("\n".join(described(task, given.condition, given.seed)))
    return 0


def described(task: Any, condition_name: str | None = None, seed: int = 0) -> list[str]:
    """What a sample is, the sample, a line for each of the first answers, and the prior, declared and measured."""
    from positionbias.tasks.base import find_condition

    grid = task.conditions()
    condition = grid[0] if condition_name is None else find_condition(task, condition_name, "--condition")
    example = sampled(task, condition, seed)
    length, context = task.length(condition), task.context_length(condition)
    others = [other.name for other in grid if other.name != condition.name]
    also = f" (also: {', '.join(others)})" if others else ""
    lines = [
        spec.canonical(task),
        f"condition {condition.name}{also}; {length} rows, {context} of them context",
        "",
        *drawn(task, example),
        "",
        *grouped(example.tokens),
    ]
    for answer, row in enumerate(example.query[:ANSWERS]):
        needs = " ".join(str(at) for at in example.evidence[answer] if at >= 0)
        lines.append(
            f"row {row} answers from {needs}: distance {example.distance[answer]}, order {example.order[answer]},"
            f" {example.n_distractors[answer]} distractors; {task.query_axis} {example.query_slot[answer]},"
            f" {task.evidence_axis} {example.evidence_slot[answer]}"
        )
    more = len(example.query) - ANSWERS
    lines += [f"... {more} more row{'s' * (more > 1)}"] if more > 0 else []
    lines += LEGEND.splitlines()
    if task.filler is not None and task.filler in example.inputs:
        lines.append(f"{task.word(task.filler)!r}: filler, a token that means nothing")
    lines += [f'no baseline "{name}": {reason}' for name, reason in task.no_baselines.items()]
    return [*lines, "", *priors(task, condition, seed)]


def grouped(tokens: Any) -> list[str]:
    """A line for each field by which masks and others tell groups apart, a number a row; none for what is all alike."""
    told = {name: np.asarray(getattr(tokens, name)) for name in ("segment", "role", "frame", "scale")}
    lines = [f"{name} of rows: {' '.join(map(str, field))}" for name, field in told.items() if np.ptp(field)]
    return [line if len(line) <= COLUMNS else f"{line[: COLUMNS - 3].rstrip()}..." for line in lines]


def priors(task: Any, condition: Any, seed: int = 0) -> list[str]:
    """The shares of query and evidence slots that the task declares, and those in MEASURED samples."""

    def slots(example: Any) -> dict[str, Any]:
        return {"query": example.query_slot, "evidence": example.evidence_slot}

    def measured(key: Any, world: Any) -> Any:
        import jax

        most = max(AT_ONCE // task.length(condition), 1)
        keys = jax.random.split(key, MEASURED)
        return jax.lax.map(lambda one: slots(task.sample(one, condition, world)), keys, batch_size=most)

    found = _on_device(task, seed, measured)
    lines = []
    for axis, share in task.prior(condition).items():
        counts = np.bincount(found[axis].ravel(), minlength=len(share))
        lines.append(f"{getattr(task, f'{axis}_axis')}: share of slots 0 to {len(share) - 1}")
        lines.append(f"    declared {_shares(share)}")
        lines.append(f"    measured {_shares(counts / counts.sum())} in {MEASURED} samples")
    return lines


def _shares(share: np.ndarray) -> str:
    """Numbers of three digits, with the middle left out where there are many."""
    words = [f"{part:.3f}" for part in share]
    return " ".join(words if len(words) <= SLOTS else [*words[: SLOTS - 1], "...", words[-1]])


def sampled(task: Any, condition: Any, seed: int = 0) -> Any:
    """One example, numpy arrays, of the world that the seed gives."""
    return _on_device(task, seed, lambda key, world: task.sample(key, condition, world))


def _on_device(task: Any, seed: int, draw: Callable[[Any, Any], Any]) -> Any:
    """What `draw` makes of a key and the world that the seed gives, as numpy arrays."""
    import jax

    from positionbias.replicas import replica_keys, stream
    from positionbias.tasks.base import world_of

    (key,) = replica_keys(seed, 1)
    return jax.device_get(jax.jit(draw)(stream(key, "show"), world_of(task, key)))


def drawn(task: Any, example: Any) -> list[str]:
    """The rows "input" and "target" of an example, a column a position, folded; a dot is a row with no target."""
    inputs = [
        word if valid else "_"
        for word, valid in zip(task.words(example.inputs, task.input), example.tokens.valid, strict=True)
    ]
    asked = task.words(example.targets, task.output)
    targets = [word if weight > 0 else "." for word, weight in zip(asked, example.weights, strict=True)]
    lines: list[str] = []
    for start, stop in _folds(inputs, targets):
        wide = [max(len(a), len(b)) for a, b in zip(inputs[start:stop], targets[start:stop], strict=True)]
        for name, words in (("input", inputs), ("target", targets)):
            cells = (word.ljust(width) for word, width in zip(words[start:stop], wide, strict=True))
            lines.append(f"{name:<8} {' '.join(cells)}".rstrip())
    return lines


def _folds(inputs: Sequence[str], targets: Sequence[str]) -> list[tuple[int, int]]:
    """Ranges of positions that fit a line."""
    found, start, used = [], 0, 0
    for at, (one, other) in enumerate(zip(inputs, targets, strict=True)):
        width = max(len(one), len(other)) + 1
        if used + width > COLUMNS and at > start:
            found.append((start, at))
            start, used = at, 0
        used += width
    return [*found, (start, len(inputs))]


if __name__ == "__main__":
    run_entry(main)
