"""The executor seam: where the cells of a sweep run."""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from positionbias import runtime
from positionbias.config import schema, sharing
from positionbias.config.resolve import VARIED
from positionbias.config.sweeps import Cell
from positionbias.launch import say
from positionbias.spec import ConfigError
from positionbias.sweeping.cell import HELD, run_cell
from positionbias.sweeping.joined import MOST, run_together

SIGNALLED = (130, 143)  # exit codes of SIGINT and SIGTERM


class Executor(Protocol):
    """Where cells run, each by `run_cell`, which notes it in the ledger."""

    code: int  # 128 + n once signal n has ended the sweep, 0 before

    def prepare(self, cells: list[Cell], own: list[Cell]) -> None:
        """Refuse what cannot run, before anything is written: the `own` cells, those to run here of all `cells`."""
        ...

    def how(self, config: schema.Config) -> str:
        """How cells of one program, that of a config, are run: what the plan says of them. After `prepare`."""
        ...

    def run(self, cells: list[Cell], workdir: pathlib.Path) -> Iterator[dict[str, Any]]:
        """The lines of `run_cell`, one as each cell ends, in any order; of a cell that is held, after all others."""
        ...


class LocalExecutor:
    """Cells in this process, those of one program in a row, which is compiled for the first of them.

    Where this machine trains replicas side by side, so are cells of one program; else one is trained after another.
    """

    def __init__(self) -> None:
        self.code = 0

    def prepare(self, cells: list[Cell], own: list[Cell]) -> None:
        """Set JAX up for the cell with most devices, finished or not and run here or not, so that a sweep that goes on,
        and each part of it, finds the same; then build every cell as its run will."""
        from positionbias.training import auto

        runtime.configure(max(auto.virtual_devices(c.config, runtime.most_devices()) for c in cells))
        import jax

        from positionbias.config.build import build

        def resolved(cell: Cell) -> None:
            auto.resolve(build(cell.config), jax.default_backend(), len(jax.devices()))

        refuse_bad(own, resolved)

    def how(self, config: schema.Config) -> str:
        from positionbias.training.together import side_by_side

        return f"side by side, up to {MOST} at once" if side_by_side(config) else "compiled once, one after another"

    def run(self, cells: list[Cell], workdir: pathlib.Path) -> Iterator[dict[str, Any]]:
        held: list[Cell] = []
        for lines in self._ended(cells, held, workdir):
            yield from lines
            self.code = next((line["code"] for line in lines if line["code"] in SIGNALLED), 0)
            if self.code:
                return

    def _ended(self, cells: list[Cell], held: list[Cell], workdir: pathlib.Path) -> Iterator[list[dict[str, Any]]]:
        """The lines of cells that end together; those that are held are put on a list, and tried again as the last."""
        from positionbias.training.reuse import Programs
        from positionbias.training.together import side_by_side

        number, programs = 0, Programs()
        for shared in sharing.programs(cells):
            joined: set[str] = set()
            if len(shared.cells) > 1 and side_by_side(shared.cells[0].config):
                for lines in run_together(shared.cells, workdir, sys.orig_argv, programs):
                    joined |= {line["cell"] for line in lines}
                    number += len(lines)
                    yield lines
            for cell in (cell for cell in shared.cells if cell.name not in joined):
                number += 1
                say(f"cell {number} of {len(cells)}: {cell.name}")
                line = run_cell(cell, workdir, sys.orig_argv, programs=programs)
                if line["status"] == HELD:
                    say(f"cell {cell.name} is left for last: {line['message']}")
                    held.append(cell)
                else:
                    yield [line]
        for cell in held:
            yield [run_cell(cell, workdir, sys.orig_argv, programs=programs)]


def refuse_bad(cells: list[Cell], build: Callable[[Cell], object]) -> None:
    """Build every cell; the ConfigError of one that cannot be names it.

    Of cells of one program the first is built: what they differ in was checked when their configs were resolved, but
    for the arguments of a task that replicas differ in.
    """
    different: dict[tuple[str, str], Cell] = {}
    for cell in cells:
        program, own = sharing.split(cell.config)
        different.setdefault((program, repr([own[name] for name in own if name not in VARIED])), cell)
    for cell in different.values():
        try:
            build(cell)
        except ConfigError as error:
            raise ConfigError(f"cell {cell.name}: {error}") from None
