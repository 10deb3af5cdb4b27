"""Files that were cut short, zeroed, changed in one bit or taken away: found and told, or right to the bit."""

from __future__ import annotations

import pathlib
import random
import shutil
from collections.abc import Callable, Iterable

from faults.bench import Bench, content, need, refused, status

WAYS = ("cut short", "zeroed", "zeroed from somewhere on", "a bit flipped", "gone")


def harm(path: pathlib.Path, way: str, draw: random.Random) -> None:
    """Do one of WAYS to a file."""
    whole = path.read_bytes()
    place = draw.randrange(len(whole)) if whole else 0
    if way == "gone":
        path.unlink()
    elif way == "a bit flipped" and whole:
        changed = bytearray(whole)
        changed[place] ^= 1 << draw.randrange(8)
        path.write_bytes(changed)
    else:
        zeros = {"cut short": b"", "zeroed from somewhere on": bytes(len(whole) - place), "zeroed": bytes(len(whole))}
        path.write_bytes((b"" if way == "zeroed" else whole[:place]) + zeros.get(way, b""))


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def of_a_checkpoint(bench: Bench, draw: random.Random) -> int:
    """A file of the newest checkpoint: the run goes on from it if it is right to the bit, else from the one before."""
    return _checkpoints(bench, draw, lambda steps: steps[-1:])


def of_several_checkpoints(bench: Bench, draw: random.Random) -> int:
    """A file of each of several checkpoints; where none is whole the run is refused, and nothing is touched."""
    return _checkpoints(bench, draw, lambda steps: draw.sample(steps, draw.randint(2, len(steps))))


def _checkpoints(bench: Bench, draw: random.Random, choose: Callable[[list[int]], Iterable[int]]) -> int:
    run = bench.stopped()
    chosen = list(choose(sorted(bench.whole(run))))
    for step in chosen:
        home = run / "checkpoints" / f"{step:06d}"
        harm(draw.choice(_files(home)), draw.choice(WAYS), draw)
    left = bench.whole(run)
    marked = [home for home in (run / "checkpoints").iterdir() if (home / "mark.json").exists()]
    if not left and marked:
        _refused_and_mended(bench, run, "checkpoint")
    else:
        gone = [f"checkpoints/{step}" for step in chosen if step not in left]
        bench.finish(run, left, without=gone)
    shutil.rmtree(run)
    return 1


def _refused_and_mended(bench: Bench, run: pathlib.Path, word: str) -> None:
    """The run is refused in a sentence and left as it was."""
    before = content(run)
    refused(bench.run(run), word)
    need(content(run) == before, "a run that was refused is not as it was")


def of_another_file(bench: Bench, draw: random.Random) -> int:
    """A file beside the checkpoints of a run that goes on: told in a sentence, or the run ends like one undisturbed."""
    run = bench.stopped()
    wholes = bench.whole(run)
    path = draw.choice([p for p in _files(run) if "checkpoints" not in p.parts])
    name, before, way = str(path.relative_to(run)), path.read_bytes(), draw.choice(WAYS)
    harm(path, way, draw)
    return _judged(bench, run, path, name, before, way, wholes)


def _judged(
    bench: Bench, run: pathlib.Path, path: pathlib.Path, name: str, before: bytes, way: str, wholes: set[int]
) -> int:
    harmed = content(run)
    ended = bench.run(run)
    if ended.code == 2:
        refused(ended, path.name)
        left = content(run)
        need(
            left == harmed, f"a run refused for {name} ({way}) is not as it was: {sorted(left.keys() ^ harmed.keys())}"
        )
        path.write_bytes(before)
        bench.finish(run, wholes)
    else:
        need(ended.code == 0, f"a run goes not on from {name}, {way}", ended)
        bench.went_on(ended, wholes)
        since, without = 0, []
        if name.startswith("evals/") and name != "evals/000000.npz":  # what is measured on weights that are gone
            without = [name]
            need((run / name).exists() or path.stem in ended.out, f"{name}, {way}, is left out without a word", ended)
        if name == "metrics.jsonl" and way == "gone":
            since = max(wholes)
            need("metrics" in ended.out, f"{name}, {way}, is left out without a word", ended)
        bench.same(run, without=without, since=since)
    shutil.rmtree(run)
    return 1


def of_a_finished_run(bench: Bench, draw: random.Random) -> int:
    """Any file of a finished run: the run stays finished, or a sentence says what is broken; no other file changes."""
    run = bench.finished()
    path = draw.choice(_files(run))
    name, before, way = str(path.relative_to(run)), path.read_bytes(), draw.choice(WAYS)
    harm(path, way, draw)
    harmed = content(run)
    ended = bench.run(run)
    left = content(run)
    changed = {other for other in left.keys() | harmed.keys() if left.get(other) != harmed.get(other)}
    if name == "manifest.json" and ended.code == 0:  # the run is ended again, from its last checkpoint
        bench.same(run)
    else:
        need(changed <= {"report.html"}, f"{sorted(changed)} changed when {name} was {way}", ended)
        if ended.code != 0:
            refused(ended, path.name)
        elif status(run) == "finished":
            need("holds this run, finished" in ended.out, "a finished run was not left alone", ended)
    if name.startswith("checkpoints/") or name in ("report.html", ".lock"):
        need(ended.code == 0, f"a finished run is refused for {name}, {way}", ended)
    path.write_bytes(before)
    ended = bench.run(run)
    need(ended.code == 0, f"a finished run is refused although {name} is back", ended)
    bench.same(run)
    shutil.rmtree(run)
    return 1


def of_the_compile_cache(bench: Bench, draw: random.Random) -> int:
    """Compiled programs that were cut short or zeroed, as a machine that crashes leaves them: they are made anew."""
    cache = bench.root / "cache"
    settings = {"POSITIONBIAS_CACHE": str(cache)}

    def filled() -> dict[str, bytes]:
        ended = bench.run(run := bench.fresh(), settings=settings)
        need(ended.code == 0, "a run that nothing happens to fails", ended)
        shutil.rmtree(run)
        return content(cache)

    entries = bench.once("cache", filled)
    shutil.rmtree(cache)
    for name, whole in entries.items():
        (cache / name).parent.mkdir(parents=True, exist_ok=True)
        (cache / name).write_bytes(whole)
        if draw.random() < 0.5:
            harm(cache / name, draw.choice(("cut short", "zeroed", "gone")), draw)
    run = bench.fresh()
    ended = bench.run(run, settings=settings)
    need(ended.code == 0, "a run with a damaged compile cache fails", ended)
    bench.same(run)
    shutil.rmtree(run)
    return 1
