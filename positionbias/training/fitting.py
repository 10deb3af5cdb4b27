"""How many replicas are side by side where a device cannot hold a step of all of them."""

from __future__ import annotations

import dataclasses

import jax

from positionbias import hosts
from positionbias.training import auto
from positionbias.training.kept import Say
from positionbias.training.program import Compiled, Program

GIB = 2**30


def fitted(program: Program, say: Say) -> Compiled:
    """The program compiled, with no more replicas at once than fit, if its layout has them side by side.

    Raises MemoryError where fewer are no way out: of a CPU, whose system would kill the process for what it does not
    have, and of replicas of several runs, which are not parted, as one alone would have other bits. Runs of several
    processes are compiled as they are asked for. What XLA tells is a bound from above.
    """
    compiled, has = program.compile(), None if hosts.several() else auto.room(program.auto.layout)
    while has is not None and compiled.bytes > has:
        told = f"a step of {_at_once(program)} takes {compiled.bytes / GIB:.3g} GiB of {has / GIB:.3g}"
        fewer = _fewer(compiled, has)
        if fewer is None:
            if jax.default_backend() == "cpu" or program.auto.together:
                raise MemoryError(f"{told}, a smaller model or train.microbatch needs less.")
            break  # it may run, and says so itself if it does not
        say(f"{told}; compiling for {fewer} at once")
        layout = dataclasses.replace(program.auto.layout, at_once=fewer)
        program = dataclasses.replace(program, auto=dataclasses.replace(program.auto, layout=layout))
        del compiled  # its memory is free before there is another
        compiled = program.compile()
    return compiled


def _fewer(compiled: Compiled, has: int) -> int | None:
    """The most replicas at once that may fit and are shared out evenly; None where there are no fewer than now."""
    program = compiled.program
    if program.auto.layout.form == "loop" or program.auto.together:
        return None
    most = program.count // program.auto.layout.replica
    now = program.auto.layout.at_once or most
    fewer = [n for n in range(1, now) if most % n == 0]
    fits = [n for n in fewer if compiled.bytes_kept + compiled.bytes_made * n / now <= has]
    return max(fits, default=min(fewer, default=None))


def _at_once(program: Program) -> str:
    layout = program.auto.layout
    count = 1 if layout.form == "loop" else layout.at_once or program.count // layout.replica
    return "one replica" if count == 1 else f"{count} replicas side by side"
