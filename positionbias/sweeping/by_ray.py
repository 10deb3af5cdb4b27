"""Cells of a sweep in worker processes of Ray, on this machine or on a cluster (the extra `ray`).

Each cell has a process of its own, in which JAX starts anew. All of them see the sweep folder, and what is in it
decides: a cell that is finished is not run again, whoever ran it, one whose lock is held is not run twice, and one
whose worker was lost goes on from its checkpoint. So the process that hands cells out may die and be started again.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import math
import pathlib
import re
import socket
import sys
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from positionbias import runtime
from positionbias.config import resolve, schema
from positionbias.config.sweeps import Cell
from positionbias.files import FileError, as_list, writing
from positionbias.launch import say
from positionbias.spec import ConfigError
from positionbias.sweeping import ledger, plan
from positionbias.sweeping.cell import HELD, run_cell
from positionbias.sweeping.executors import refuse_bad

if TYPE_CHECKING:
    from positionbias.training.signals import StopSignal

RETRIES = 3  # how often a cell is run again whose worker was lost
CANCELLED = "cancelled"  # the status of a cell that had not begun when the sweep was stopped
POLL_SECONDS = 0.5  # between two looks for a signal
STORE_BYTES = 80 * 2**20  # of Ray's memory for objects, here a few lines of text; near the least it takes
START_MS = 30_000  # in which Ray's processes must have started on a busy machine, as long as Ray itself waits
OWN = {"CPU": "num_cpus", "GPU": "num_gpus", "memory": "memory"}  # resources that have a name of their own in Ray


def asked(given: str | None) -> dict[str, int] | None:
    """What `--cell_resources` says, `CPU=4,GPU=1`, by Ray's names; None where it is not given."""
    if given is None:
        return None
    found: dict[str, int] = {}
    for part in given.split(","):
        pair = re.fullmatch(r"\s*([A-Za-z][\w.:-]*)=([0-9]{1,15})\s*", part)
        if pair is None or int(pair[2]) < 1 or pair[1] in found:
            raise ConfigError(
                f"--cell_resources: {given!r} is not allowed; allowed: NAME=NUMBER[,NAME2=NUMBER2] with Ray's names,"
                " such as CPU, GPU and TPU, each once, and whole numbers from 1."
            )
        if pair[1] not in OWN and pair[1].upper() in ("CPU", "GPU", "TPU") and pair[1] != pair[1].upper():
            raise ConfigError(f"--cell_resources: Ray knows no {pair[1]!r}, did you mean {pair[1].upper()!r}?")
        found[pair[1]] = int(pair[2])
    return found


class RayExecutor:
    """Cells in workers of Ray: of the cluster at `address`, of the one that Ray finds for "auto", or started here.

    Each has `resources` by Ray's names; None is as many GPUs, TPU chips or else cores as a cell's mesh asks for.
    """

    def __init__(self, address: str | None, resources: dict[str, int] | None) -> None:
        self.code = 0
        self._address, self._resources = address, resources
        self._lost: Counter[str] = Counter()

    def prepare(self, cells: list[Cell], own: list[Cell]) -> None:
        """Find Ray, and the resources of a cell in it; build every cell on this machine's CPU, without its devices."""
        _connect(self._address)
        import ray

        there = ray.cluster_resources()
        kind = next((kind for kind in ("GPU", "TPU") if there.get(kind)), "CPU")
        wanted = self._resources or {kind: max(_devices(cell.config) for cell in cells)}
        told = ", ".join(f"{name}={number}" for name, number in wanted.items())
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        room = sum(min(int(node.get(name, 0) // number) for name, number in wanted.items()) for node in nodes)
        if not room and self._address is None:
            has = ", ".join(f"{name}={there.get(name, 0):.0f}" for name in wanted)
            raise ConfigError(f"--cell_resources: {told} is more than this machine has; allowed: up to {has}.")
        where = "on this machine" if self._address is None else f"on machines of the cluster, now {len(nodes)},"
        say(f"Ray {where} has room for {room} cells at once, each with {told}")
        self._resources = wanted
        named = {name: number for name, number in wanted.items() if name not in OWN}
        options = {OWN[name]: number for name, number in wanted.items() if name in OWN}
        try:
            # A worker runs one cell, so that no two of them share a JAX. Ray itself runs none again: it would not say.
            self._remote = ray.remote(max_calls=1, max_retries=0)(_cell).options(resources=named, **options)
        except ValueError as error:
            raise ConfigError(f"--cell_resources: {_first_line(error)}; allowed: what Ray takes.") from None
        runtime.configure(platform="cpu")
        from positionbias.config.build import build

        refuse_bad(own, lambda cell: build(cell.config))

    def how(self, config: schema.Config) -> str:
        return "each in a process of its own"

    def run(self, cells: list[Cell], workdir: pathlib.Path) -> Iterator[dict[str, Any]]:
        import ray

        from positionbias.training.signals import StopSignal

        held: list[Cell] = []
        with StopSignal() as stop:
            try:
                yield from self._hand_out(cells, workdir, stop, held)
                if held and not self.code:
                    yield from self._hand_out(held, workdir, stop, None)
            finally:
                ray.shutdown()

    def _hand_out(
        self, cells: list[Cell], workdir: pathlib.Path, stop: StopSignal, held: list[Cell] | None
    ) -> Iterator[dict[str, Any]]:
        """The line of each cell but of those put on the list `held`, if there is one."""
        import ray

        tasks = {self._task(cell, workdir): cell for cell in cells}
        while tasks:
            done, _ = ray.wait(list(tasks), timeout=POLL_SECONDS)
            if stop.number is not None and not self.code:
                self.code = 128 + stop.number
                for task in tasks:
                    ray.cancel(task)  # is SIGINT to a worker, which then saves a checkpoint
            for task in done:
                cell = tasks.pop(task)
                line = self._line(task, cell, workdir)
                if line["status"] == "lost" and stop.number is None:
                    say(f"cell {cell.name} {line['message']}")
                    tasks[self._task(cell, workdir)] = cell
                elif line["status"] == HELD and held is not None:
                    say(f"cell {cell.name} is left for last: {line['message']}")
                    held.append(cell)
                elif line["status"] not in ("lost", CANCELLED):
                    yield line

    def _task(self, cell: Cell, workdir: pathlib.Path) -> Any:
        assert self._resources is not None
        accelerated = any(name in self._resources for name in ("GPU", "TPU"))
        given = {
            "name": cell.name,
            "config": schema.to_dict(cell.config),
            "workdir": str(workdir.absolute()),
            "command": sys.orig_argv,
            "cores": self._resources.get("CPU", 1),  # as Ray counts it
            "platform": None if accelerated else "cpu",
        }
        return self._remote.remote(json.dumps(given, default=as_list))

    def _line(self, task: Any, cell: Cell, workdir: pathlib.Path) -> dict[str, Any]:
        """How a task ended, noted in the ledger where its worker could not."""
        import ray
        from ray import exceptions

        try:
            return ray.get(task)
        except exceptions.TaskCancelledError:
            return {"cell": cell.name, "status": CANCELLED}
        except exceptions.RayTaskError as error:  # of the worker before or after the cell, which tells its own
            cause = error.cause
            refused = isinstance(cause, ConfigError)
            message = str(cause) if refused or isinstance(cause, FileError) else f"{type(cause).__name__}: {cause}"
            line = {"status": "failed", "code": 2 if refused else 1, "message": message.partition("\n")[0]}
        except exceptions.RayError as error:
            self._lost[cell.name] += 1
            number, why = self._lost[cell.name], _first_line(error)
            if number <= RETRIES:
                message = f"lost its worker and is run again, time {number} of {RETRIES}: {why}"
                line = {"status": "lost", "code": 1, "message": message}
            else:
                line = {"status": "failed", "code": 1, "message": f"lost its worker {number} times: {why}"}
        line = {"cell": cell.name, **line}
        ledger.note(workdir, line)
        return line


def _connect(address: str | None) -> None:
    if importlib.util.find_spec("ray") is None:
        raise ConfigError(
            "--executor: 'ray' needs Ray, which is not installed; allowed: pip install -e '.[ray]' in the checkout."
        )
    if address is None:
        runtime.keep_ray_here()
    import ray

    quiet = {"log_to_driver": False, "configure_logging": False, "logging_level": logging.ERROR}
    try:
        if address is not None:
            ray.init(address, **quiet)
            return
        ray.init(
            "local",
            num_cpus=runtime.cores(),
            include_dashboard=False,
            object_store_memory=STORE_BYTES,
            _system_config={"agent_register_timeout_ms": START_MS},
            **quiet,
        )
    except Exception as error:  # of many kinds, whatever is amiss
        if address is None:
            raise ConfigError(
                f"--executor: Ray does not start here ({_first_line(error)}); allowed: 'local'."
            ) from None
        raise ConfigError(
            f"--ray_address: no cluster answers at {address!r} ({_first_line(error)}); allowed: HOST:PORT of one that"
            " runs, with RAY_AUTH_MODE=token in the environment if it wants a token, or 'auto'."
        ) from None


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__


def _devices(config: schema.Config) -> int:
    """How many devices a config's mesh asks for, at least."""
    mesh = config.train.mesh
    return mesh.fsdp * math.prod(size for size in (mesh.replica, mesh.data) if size != "auto")


# ------------------------------------------------------------------------------------------------------- in a worker


def _cell(given: str) -> dict[str, Any]:
    """Run one cell in this process, a worker's, which prints to `logs/NAME.txt`; the line of `run_cell`."""
    told = json.loads(given)
    workdir, cell = pathlib.Path(told["workdir"]), Cell(told["name"], resolve.resolve(told["config"]), {})
    if not (workdir / plan.NAME).is_file():
        raise ConfigError(
            f"--workdir: {told['workdir']!r} holds no sweep on {socket.gethostname()}; allowed: a folder that every"
            " machine of the cluster sees."
        )

    def set_up() -> None:
        from positionbias.training import auto

        runtime.configure(auto.virtual_devices(cell.config, runtime.most_devices()), platform=told["platform"])

    runtime.keep_to(told["cores"])
    log = workdir / "logs" / f"{cell.name}.txt"
    with writing(log):
        log.parent.mkdir(exist_ok=True)
        stream = open(log, "a", buffering=1, encoding="utf-8")  # noqa: SIM115  (only opening it is a matter of `log`)
    with stream, contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream):
        return run_cell(cell, workdir, told["command"], set_up)
