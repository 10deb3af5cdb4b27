"""What was compiled for a run, for those after it in this process that have the same program."""

from __future__ import annotations

import dataclasses
from typing import Any

from positionbias.config import sharing
from positionbias.evaluation.by_position import Evaluator
from positionbias.training.fitting import fitted
from positionbias.training.kept import Say
from positionbias.training.program import Compiled, Program


class Programs:
    """Keeps the programs of one run: those of the next are the same objects if its config differs in no more than they
    read as arguments (`config/sharing.py`), and else take their place.

    No more are kept, as each holds memory, and a Linux process may have no more than 65,530 pieces of it.
    """

    def __init__(self) -> None:
        self._made_for: Any = None
        self._program: Program | None = None  # as it was asked for
        self._compiled: Compiled | None = None
        self._evaluator: Evaluator | None = None

    def compiled(self, program: Program, say: Say) -> Compiled:
        """The program, compiled unless it was that of the run before; `say` tells that it is, as it may take long.

        That of what is returned may have fewer replicas at once, as `fitted` has it; MemoryError as there.
        """
        asked = sharing.split(program.experiment.config).program, program.auto
        if self._compiled is None or asked != self._made_for:
            say("compiling")
            self._compiled = self._evaluator = None  # its memory is free before there is another
            self._compiled, self._made_for = fitted(program, say), asked
        elif self._program is not program:
            chosen, own = self._compiled.program.auto, program
            if chosen != program.auto:
                say(f"{chosen.layout.at_once} replicas at once, as compiled before")
                own = dataclasses.replace(program, auto=chosen)
            self._compiled = self._compiled.of(own)
        self._program = program
        return self._compiled

    def evaluator(self, program: Program) -> Evaluator:
        """What evaluates its replicas; after `compiled`."""
        replicas = program.keys(), program.replicas()["task"]
        if self._evaluator is None:
            self._evaluator = Evaluator(program.experiment, program.auto.layout, replicas[0], own=replicas[1])
        else:
            self._evaluator = self._evaluator.of(program.experiment, *replicas)
        return self._evaluator
