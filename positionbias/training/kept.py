"""What a run keeps in its folder: checkpoints, metrics, evaluations, their summary, and the manifest.

Of several processes the first does all that is done here to files, and the others learn from it what they go on from.
"""

from __future__ import annotations

import concurrent.futures
import pathlib
from collections.abc import Callable
from typing import Any

from positionbias import hosts
from positionbias.arrays import Tree
from positionbias.config.build import Experiment
from positionbias.evaluation.by_position import theory_of
from positionbias.evaluation.rows import read_rows, write_rows
from positionbias.evaluation.summary import summarise
from positionbias.files import write_json
from positionbias.spec import ConfigError
from positionbias.training import checkpoint
from positionbias.training.interval import Interval
from positionbias.training.run_folder import RunFolder
from positionbias.training.writers import MetricsWriter

Say = Callable[[str], None]
Found = tuple[int, Tree, dict[str, Any]]  # step, state and meta of a checkpoint


class Kept:
    """The files of one run; `folder` is None in a process that writes nothing.

    Checkpoints are written `aside`, by a thread of its own or one of several runs: Orbax cannot do it in two at once.
    """

    def __init__(
        self,
        folder: RunFolder | None,
        experiment: Experiment,
        say: Say,
        aside: concurrent.futures.ThreadPoolExecutor | None = None,
    ) -> None:
        self.experiment, self.folder, self.say = experiment, folder, say
        self.whole: set[int] = set()  # steps whose checkpoint was read or written here
        self.evaluated: set[int] = set()  # steps whose rows are there
        self.bits_guaranteed = True
        self._metrics = None if folder is None else MetricsWriter(folder.path / "metrics.jsonl")
        self._aside = aside or concurrent.futures.ThreadPoolExecutor(1, "save")
        self._saving: concurrent.futures.Future[None] | None = None
        self._told: dict[str, Any] = {"theory": theory_of(experiment), "state_size": experiment.state_size}

    def update(self, **fields: Any) -> None:
        """Change fields of the manifest."""
        if self.folder is not None:
            self.folder.update(**fields)

    def close(self) -> None:
        """Close what is open, once a checkpoint that is being written is there; its errors are told by `settle`."""
        self._aside.shutdown()
        if self._metrics is not None:
            self._metrics.close()

    def interval(self, saved: Any = None) -> Interval:
        """The interval between two lines of metrics, as a checkpoint saved it."""
        return Interval(saved)

    # -------------------------------------------------------------------------------------------------------- starting

    def restored(self, like: Tree) -> Found | None:
        """The newest whole checkpoint, None before the first; ConfigError rather than losing what others hold."""
        found: list[Found] = []

        def restore() -> dict[str, Any] | None:
            try:
                newest = checkpoint.restore_latest(self._checkpoints, self.say, like)
            except checkpoint.CheckpointError as error:
                told, where = str(error).rstrip("."), str(self._checkpoints)
                raise ConfigError(f"workdir: {told}; allowed in {where!r}: what was saved, or nothing.") from None
            if newest is None:
                return None
            found.append(newest)
            return {"step": newest[0], "meta": newest[2]}

        told = hosts.by_first(restore)
        if told is None:
            return None
        return told["step"], hosts.told_arrays(found[0][1] if found else None, like), told["meta"]

    def begin(self, found: Found | None) -> None:
        """Go on from what was restored: later metrics and evaluations are cut."""
        if found is not None:
            self.whole.add(found[0])
        self.evaluated = set(hosts.by_first(lambda: self._cut(found)))

    def _cut(self, found: Found | None) -> list[int]:
        assert self.folder is not None
        assert self._metrics is not None
        step = 0 if found is None else found[0]
        meta: dict[str, Any] = {"seconds": 0.0} if found is None else found[2]
        if found is not None:
            self._compare(step, meta)
        self._metrics.cut_back(step, meta.get("metrics"))  # which checkpoints of earlier versions lack
        if meta.get("metrics") not in (None, self._metrics.digest):
            self.say(f"the metrics up to step {step} are gone")
        self._cut_evaluations(-1 if found is None else step)
        self.folder.update(step=step, seconds=meta["seconds"], bits_guaranteed=self.bits_guaranteed)
        return sorted(self.evaluated)

    def _compare(self, step: int, meta: dict[str, Any]) -> None:
        """Say what is no longer as it was when the restored checkpoint was made."""
        assert self.folder is not None
        before, now = meta["circumstances"], self.folder.circumstances()
        changed = []
        if before["commit"] != now["commit"]:
            changed.append(f"commit changed from {before['commit']} to {now['commit']}")
        if before["dirty"] or now["dirty"]:
            changed.append("the code has changes that are not committed")
        changed += [f"{x} changed" for x in now if x not in ("commit", "dirty") and before.get(x, {}) != now[x]]
        if changed:
            self.say(f"bits are not guaranteed after step {step}: {', '.join(changed)}")
        self.bits_guaranteed = meta["bits_guaranteed"] and not changed

    def _cut_evaluations(self, step: int) -> None:
        """Delete the evaluations after `step`; the summary becomes that of the newest one left, if any."""
        assert self.folder is not None
        for path in (self.folder.path / "evals").glob("*.npz"):
            if not path.stem.isdecimal():
                continue
            try:
                if int(path.stem) <= step:
                    read_rows(path)
                    self.evaluated.add(int(path.stem))
                    continue
            except ConfigError as error:
                self.say(f"skipped {error}")  # made again if it is that of step 0 or of the step resumed at
            path.unlink()
        every = self.experiment.config.evaluation.every
        gone = set(range(every, step, every)) - self.evaluated if every else set()
        if gone:
            self.say(f"the evaluations of steps {', '.join(map(str, sorted(gone)))} are gone")
        if 0 in self.evaluated:
            self._summarise()
        else:
            (self.folder.path / "summary.json").unlink(missing_ok=True)

    # --------------------------------------------------------------------------------------------------------- writing

    def log(self, line: dict[str, Any]) -> None:
        """Append a line of metrics."""
        if self._metrics is not None:
            self._metrics.write(line)

    def save(self, step: int, state: Tree, meta: dict[str, Any]) -> None:
        """Keep the state of a step, in numpy arrays, and delete what the config does not keep; both on the side.

        Waits for the save before, and raises what that raised: see `settle`.
        """

        digest = None if self._metrics is None else self._metrics.digest  # before lines of later steps are written

        def write() -> None:
            assert self.folder is not None
            assert self._metrics is not None
            self._metrics.sync()  # a run resumed from this checkpoint does not write them again
            more = {
                "circumstances": self.folder.circumstances(),
                "bits_guaranteed": self.bits_guaranteed,
                "metrics": digest,  # a line that has changed since would be taken for what was measured
            }
            checkpoint.save(self._checkpoints, step, checkpoint.to_plain(state), {**meta, **more})
            policy = self.experiment.config.checkpoint
            checkpoint.prune(self._checkpoints, policy.keep_last, policy.keep_every, {*self.whole, step})
            self.folder.update(step=step, seconds=meta["seconds"])

        self.settle()
        self._saving = self._aside.submit(write if hosts.first() else lambda: None)
        self.whole.add(step)

    def settle(self) -> None:
        """Wait until what was saved is on the disk; raises WriteError, in every process, where it cannot be written."""
        if self._saving is not None:
            saving, self._saving = self._saving, None
            hosts.by_first(saving.result)

    def rows(self, step: int, rows: dict[str, Any]) -> None:
        """Keep the rows of an evaluation, and make their summary."""

        def write() -> None:
            write_rows(self._rows_path(step), rows)
            self.evaluated.add(step)
            self._summarise()

        hosts.by_first(write)
        self.evaluated.add(step)

    def _summarise(self) -> None:
        """Write the summary of the newest evaluation, which that at initialisation made again is not."""
        assert self.folder is not None
        step, train = max(self.evaluated), self.experiment.config.train
        rows, initial = read_rows(self._rows_path(step)), read_rows(self._rows_path(0))
        summary = summarise(rows, initial, steps=step, of=train.steps, varied=train.vary, **self._told)
        write_json(self.folder.path / "summary.json", summary)

    @property
    def _checkpoints(self) -> pathlib.Path:
        assert self.folder is not None
        return self.folder.path / "checkpoints"

    def _rows_path(self, step: int) -> pathlib.Path:
        assert self.folder is not None
        return self.folder.path / "evals" / f"{step:06d}.npz"
