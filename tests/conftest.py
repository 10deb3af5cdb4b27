"""Shared by all tests: two virtual devices, programs compiled in haste, a compile cache, and small runs."""

from __future__ import annotations

import functools
import gc
import itertools
import os
import pathlib
import signal
import zlib

import jax
import pytest

from positionbias import runtime

runtime.configure(cpu_devices=2)

# What tracing makes stays, and looking through it for garbage as often as Python does is a fifteenth of the time.
gc.set_threshold(50_000, 10, 10)

# Slower code from the same program, in half the time: tests run most of theirs once or twice. LLVM gets it whole, as
# it takes longer in 32 parts where workers have the cores already. jax 0.10 also has simpler kernels, which later ones
# have not.
HASTE = {  # here, and as users have it
    "xla_backend_optimization_level": (0, 3),
    "xla_cpu_parallel_codegen_split_count": (1, 32),
}
if jax.__version_info__ < (0, 11):
    HASTE["xla_cpu_use_fusion_emitters"] = (False, True)


LONG = {line for line in pathlib.Path(__file__).with_name("long.txt").read_text().splitlines() if line[0] != "#"}


def pytest_addoption(parser):
    parser.addoption("--share", metavar="I/N", help="of the tests, told by their names, the I-th of N shares alone")


@pytest.hookimpl(tryfirst=True)  # markers are looked at by pytest's own
def pytest_collection_modifyitems(config, items):
    """Mark long tests as slow, and leave out tests of other shares, the same on every machine."""
    for item in items:
        if item.nodeid in LONG or item.nodeid.partition("[")[0] in LONG:
            item.add_marker(pytest.mark.slow)
    if config.option.share is None:
        return
    one, _, count = config.option.share.partition("/")
    if not (one.isdecimal() and count.isdecimal() and 1 <= int(one) <= int(count)):
        raise pytest.UsageError(f"--share: {config.option.share!r} is not allowed; allowed: I/N, I from 1 to N")
    own, others = list[pytest.Item](), list[pytest.Item]()
    for item in items:
        (own if zlib.crc32(item.nodeid.encode()) % int(count) == int(one) - 1 else others).append(item)
    config.hook.pytest_deselected(items=others)
    items[:] = own


def pytest_configure(config):
    """Before XLA starts, which reads its flags once; commands that tests start compile in haste too."""
    given = os.environ.get("XLA_FLAGS", "")
    flags = " ".join(f"--{name}={str(here).lower()}" for name, (here, _) in HASTE.items())
    if config.option.markexpr != "accelerator" and flags not in given:  # workers have those of who started them
        os.environ["XLA_FLAGS"] = f"{given} {flags}"


# Every compiled program holds pieces of memory of its own, of which Linux gives a process 65,530: one more is a crash.
MOST_PIECES, EVERY = 30_000, 25  # kept, and tests after which they are counted: one makes a few hundred at most
PIECES = pathlib.Path("/proc/self/maps")
ended = itertools.count(1)


def pytest_runtest_teardown():
    """Forget all programs before there are too many of them, and that an entry has ended, which takes Ctrl-C."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if next(ended) % EVERY == 0 and PIECES.exists() and PIECES.read_bytes().count(b"\n") > MOST_PIECES:
        jax.clear_caches()


ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="session")
def root() -> pathlib.Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="module")
def as_users():
    """The package's own programs are compiled as users have them: for modules that compare bits, or train for long."""
    from positionbias import replicas

    options = {name: theirs for name, (_, theirs) in HASTE.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "jit", functools.partial(jax.jit, compiler_options=options))
        yield
    replicas._keys.cache_clear()  # others call it inside of a program, where options are refused


def _trained(raw, folder):
    """Train a config as it is told, in a folder that is returned: for fixtures that live longer than `tiny`."""
    from positionbias.config.cli import apply_overrides
    from positionbias.config.resolve import resolve
    from positionbias.training.loop import train

    train(resolve(apply_overrides(raw, {})), folder, [], str)
    return folder


@pytest.fixture(scope="session")
def small_run():
    """`small_run(raw, folder)` trains a config and returns the folder."""
    return _trained


@pytest.fixture(scope="session")
def unmeasured_run():
    """`unmeasured_run(raw, folder)` does too, but makes no evaluation: for what reads trained weights alone."""
    from positionbias.training.loop import Run

    def run(raw, folder):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Run, "_evaluate", lambda *_: None)
            return _trained(raw, folder)

    return run


@pytest.fixture(scope="session")
def drawn_run():
    """`drawn_run(raw)` is a loaded run of one replica as it is drawn, in no folder: for what needs no training.

    It draws items and asks the model in a program each, which are kept: else every operation is compiled by itself.
    """
    import dataclasses

    from positionbias.config.build import build
    from positionbias.config.cli import apply_overrides
    from positionbias.config.resolve import resolve
    from positionbias.evaluation.loading import LoadedRun

    class Whole(LoadedRun):
        @functools.cached_property
        def programs(self):
            return {}

        def drawn(self, *arguments):
            if "drawn" not in self.programs:
                self.programs["drawn"] = jax.jit(super().drawn, static_argnums=(1, 2))
            return self.programs["drawn"](*arguments)

        def apply(self, batch, record=(), edit=None, condition=None):
            if edit or isinstance(record, str):
                return super().apply(batch, record, edit, condition)
            asked, apply = (tuple(record), condition), super().apply
            if asked not in self.programs:
                self.programs[asked] = jax.jit(lambda batch: apply(batch, *asked[:1], None, condition))
            return self.programs[asked](batch)

    def run(raw):
        experiment = build(resolve(apply_overrides(raw, {})))
        made = Whole(pathlib.Path("nowhere"), 0, 0, experiment, {}, jax.random.key(0))
        return dataclasses.replace(made, weights=made.untrained())

    return run


@pytest.fixture
def tiny():
    """A config that trains in about a second; dotted overrides change it: `tiny(**{"train.steps": 20})`."""
    from positionbias.config.cli import apply_overrides
    from positionbias.config.resolve import resolve

    def make(overrides=None, **more):
        raw = {
            "name": "tiny",
            "task": "inverse_permutation(n=4, alphabet=4)",
            "model": {"layers": 1, "width": 16, "heads": 2},
            "optimizer": {"learning_rate": 1e-2},
            "train": {"steps": 12, "batch_size": 8, "replicas": 2, "log_every": 4},
            "evaluation": {"items": 32, "batch_size": 16, "influence_items": 8},
        }
        return resolve(apply_overrides(raw, {**(overrides or {}), **more}))

    return make


@pytest.fixture
def no_influence(monkeypatch):
    """Leaves out half of the programs of an evaluation, where only rows are read."""
    import jax.numpy as jnp

    from positionbias.evaluation.by_position import Evaluator

    def nothing(evaluator, condition, *_):
        return jnp.zeros(evaluator.experiment.task.length(condition))

    monkeypatch.setattr(Evaluator, "_influence", nothing)
