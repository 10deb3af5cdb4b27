"""Plant faults in real runs for some minutes, and tell which were survived: python scripts/soak.py --minutes 15.

Faults are those of `tests/integration/faults`: kill -9 at any instant, damaged files, full disks, clocks that jump,
several writers, signals, processes that stand still. After each, a run must tell the truth about itself, go on by the
same command, and end with the bits of a run that nothing happened to. A seed plants one fault and draws all of it:
`--minutes 0 --seed N` repeats fault N alone, as far as the machine's own timing lets it. Exit code 1 if any was lost;
its run folder is kept.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
import traceback

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))  # the package beside it, not the one installed
sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "tests" / "integration"))

from faults.bench import Lost, Skipped
from faults.catalogue import CYCLE, FAULTS, KILLS, Benches


@dataclasses.dataclass
class Row:
    """What came of one fault."""

    tried: int = 0
    lost: int = 0
    first: int | None = None  # seed of the first that was lost
    skipped: str = ""


def table(rows: dict[str, Row]) -> str:
    """The rows in Markdown."""
    lines = ["| fault | tried | survived | lost | first seed lost |", "|---|---|---|---|---|"]
    for name, row in rows.items():
        told = [] if row.first is None else [str(row.first)]
        told += [f"skipped: {row.skipped}"] if row.skipped else []
        lines.append(f"| {name} | {row.tried} | {row.tried - row.lost} | {row.lost} | {'; '.join(told) or '-'} |")
    tried, lost = (sum(getattr(row, field) for row in rows.values()) for field in ("tried", "lost"))
    kills = sum(row.tried for name, row in rows.items() if name in KILLS)
    return "\n".join([*lines, f"| all, of which {kills} are kill -9 | {tried} | {tried - lost} | {lost} | |"])


def commit() -> str:
    """That of the checkout, and whether it was changed since."""
    told = subprocess.run(
        ["git", "-C", str(pathlib.Path(__file__).parent), "describe", "--always", "--dirty", "--exclude=*"],
        capture_output=True,
        text=True,
        check=False,
    )
    return told.stdout.strip() or "no commit"


def main(argv: list[str]) -> int:
    """Run until the minutes are over; returns the exit code."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--minutes", type=float, required=True, help="how long; a fault that was begun is ended")
    made.add_argument("--seed", type=int, default=0, help="of the first fault; the next has the next")
    made.add_argument("--workdir", type=pathlib.Path, help="folder of the runs; default: a new one")
    given = made.parse_args(argv)
    # A shell that starts this in the background has it ignore Ctrl-C, and all that is started here as well.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if given.workdir is not None and given.workdir.exists() and any(given.workdir.iterdir()):
        made.error(f"--workdir: {str(given.workdir)!r} holds something; allowed: a new folder, or an empty one.")
    folder = given.workdir or pathlib.Path(tempfile.mkdtemp(prefix="soak"))
    benches, rows = Benches(folder), {name: Row() for name in FAULTS}
    began = time.monotonic()
    ends = began + 60 * given.minutes
    for seed in itertools.count(given.seed):
        name, started = CYCLE[seed % len(CYCLE)], time.monotonic()
        row = rows[name]
        try:
            tried = benches.plant(name, seed)
            told = f"survived {tried}"
        except KeyboardInterrupt:
            break
        except Skipped as error:
            tried, told, row.skipped = 0, "skipped", str(error)
        except Exception as error:  # a run folder that is not as it should be breaks what looks at it, too
            what = error if isinstance(error, Lost) else traceback.format_exc()
            tried, told, row.lost = 1, f"LOST: {what}", row.lost + 1
            row.first = seed if row.first is None else row.first
        row.tried += tried
        print(f"seed {seed}: {name}: {told} in {time.monotonic() - started:.0f} s", flush=True)
        if time.monotonic() >= ends:
            break
    minutes = (time.monotonic() - began) / 60
    print(f"\ncommit {commit()}, seeds {given.seed} to {seed}, {minutes:.0f} minutes\n\n{table(rows)}\n")
    print(f"runs in {folder}")
    return 1 if any(row.lost for row in rows.values()) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
