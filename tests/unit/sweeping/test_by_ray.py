"""Handing out cells to workers of Ray, with a stand-in for it: tests/integration/test_ray_sweep.py has the real one."""

import collections
import json
import os
import signal
import sys
import types

import pytest

from positionbias import runtime, sweep
from positionbias.config.resolve import config_hash
from positionbias.config.sweeps import Cell
from positionbias.files import WriteError
from positionbias.spec import ConfigError
from positionbias.sweeping import by_ray, cell, ledger
from positionbias.sweeping.run import run


class RayError(Exception):
    pass


class WorkerCrashedError(RayError):
    def __str__(self):
        return "The worker died.\nLook into its log."


class TaskCancelledError(RayError):
    pass


class RayTaskError(RayError):
    def __init__(self, cause):
        self.cause = cause


class Ray(types.ModuleType):
    """A Ray of one worker, which is this process. `fates` are what becomes of the tasks of a cell, one after another:
    None runs it, an exception is what Ray raises for it, and another function is run in its place."""

    def __init__(self, nodes, fates):
        super().__init__("ray")
        self.exceptions = types.SimpleNamespace(
            RayError=RayError, RayTaskError=RayTaskError, TaskCancelledError=TaskCancelledError
        )
        self._nodes, self.fates = nodes, collections.defaultdict(list, fates)
        self.started, self.options, self.tasks, self.cancelled, self.down = [], [], {}, set(), 0

    def init(self, *given, **more):
        self.started.append((given, more))

    def shutdown(self):
        self.down += 1

    def nodes(self):
        return [{"Alive": alive, "Resources": resources} for alive, resources in self._nodes]

    def cluster_resources(self):
        return sum((collections.Counter(resources) for alive, resources in self._nodes if alive), collections.Counter())

    def remote(self, **once):
        def decorated(function):
            def options(**given):
                self.options.append({**once, **given})
                return types.SimpleNamespace(remote=lambda text: self._put(function, text))

            return types.SimpleNamespace(options=options)

        return decorated

    def _put(self, function, text):
        task = len(self.tasks)
        self.tasks[task] = (function, text)
        return task

    def wait(self, tasks, timeout):
        return tasks[:1], tasks[1:]

    def cancel(self, task):
        self.cancelled.add(task)

    def get(self, task):
        function, text = self.tasks[task]
        if task in self.cancelled:
            raise TaskCancelledError
        fates = self.fates[json.loads(text)["name"]]
        fate = fates.pop(0) if fates else None
        if isinstance(fate, Exception):
            raise fate
        return (fate or function)(text)


ONE = [(True, {"CPU": 2.0, "memory": 1e9})]


@pytest.fixture
def cells(tiny):
    return [Cell(name, tiny({"train.steps": 4, "seed": seed}), {}) for seed, name in enumerate("abc")]


@pytest.fixture
def ray(monkeypatch):
    """`ray(nodes, fates)` is what `import ray` finds."""

    def use(nodes=ONE, fates=()):
        made = Ray(nodes, fates)
        monkeypatch.setitem(sys.modules, "ray", made)
        monkeypatch.setitem(sys.modules, "ray.exceptions", made.exceptions)
        monkeypatch.setattr(by_ray.importlib.util, "find_spec", lambda name: True)
        for name in ("keep_ray_here", "keep_to", "configure"):
            monkeypatch.setattr(runtime, name, lambda *given, **more: None)
        return made

    return use


@pytest.fixture
def trained(monkeypatch):
    """Stands for the training of a cell, here and in the worker; the names of those that were trained."""
    names = []

    def outcome(one, folder, command, begin, programs):
        begin()
        names.append(one.name)
        (folder / "manifest.json").write_text(json.dumps({"status": "finished", "step": 4, "hash": one.hash}))
        return "finished", 0, ""

    monkeypatch.setattr(cell, "_outcome", outcome)
    monkeypatch.setattr(by_ray, "refuse_bad", lambda cells, build: None)
    return names


def swept(cells, folder, address=None, resources=None):
    return run(cells, folder, by_ray.RayExecutor(address, resources), "study")


def ends(folder):
    return [(line["cell"], line["status"]) for line in ledger.lines(folder) if line["status"] != "running"]


def test_every_cell_is_run_in_a_worker_of_its_own_with_the_config_it_has(cells, ray, trained, tmp_path, monkeypatch):
    made, configs = ray(), []
    keep = by_ray.run_cell
    monkeypatch.setattr(by_ray, "run_cell", lambda one, *rest: configs.append(one.config) or keep(one, *rest))
    assert swept(cells, tmp_path) == 0
    assert trained == ["a", "b", "c"]
    assert [config_hash(config) for config in configs] == [config_hash(one.config) for one in cells]
    assert made.options == [{"max_calls": 1, "max_retries": 0, "resources": {}, "num_cpus": 1}]
    ((where, how),) = made.started
    assert where == ("local",)
    assert how["num_cpus"] == runtime.cores()
    assert how["include_dashboard"] is how["log_to_driver"] is False
    assert made.down == 1
    assert sorted(os.listdir(tmp_path / "logs")) == ["a.txt", "b.txt", "c.txt"]
    assert ends(tmp_path) == [("a", "finished"), ("b", "finished"), ("c", "finished")]


@pytest.mark.parametrize(
    ("nodes", "asked", "mesh", "wanted", "room"),
    [
        (ONE, None, {}, {"num_cpus": 1}, "has room for 2 cells at once, each with CPU=1"),
        (ONE, None, {"train.mesh.replica": 2}, {"num_cpus": 2}, "has room for 1 cells at once, each with CPU=2"),
        ([(True, {"CPU": 8.0, "GPU": 4.0})], None, {}, {"num_gpus": 1}, "room for 4 cells at once, each with GPU=1"),
        ([(True, {"CPU": 8.0, "TPU": 4.0})], None, {}, {"resources": {"TPU": 1}}, "each with TPU=1"),
        ([(True, {"CPU": 8.0, "GPU": 4.0})], "GPU=2,CPU=3", {}, {"num_gpus": 2, "num_cpus": 3}, "room for 2 cells"),
        (
            [(True, {"CPU": 3.0}), (True, {"CPU": 3.0}), (False, {"CPU": 9.0})],
            "CPU=2",
            {},
            {"num_cpus": 2},
            "for 2 cells",
        ),
    ],
)
def test_resources_are_those_asked_for_or_what_a_cell_has_devices_for(
    tiny, ray, trained, tmp_path, capsys, nodes, asked, mesh, wanted, room
):
    made = ray(nodes)
    swept([Cell("a", tiny(mesh), {})], tmp_path, None, by_ray.asked(asked))
    assert made.options == [{"max_calls": 1, "max_retries": 0, "resources": {}, **wanted}]
    assert room in capsys.readouterr().out


def test_workers_on_cpus_leave_accelerators_alone_and_keep_to_their_cores(cells, ray, trained, tmp_path, monkeypatch):
    ray([(True, {"CPU": 8.0, "GPU": 4.0})])
    kept, platforms = [], []
    monkeypatch.setattr(runtime, "keep_to", kept.append)
    monkeypatch.setattr(runtime, "configure", lambda *given, platform: platforms.append(platform))
    swept(cells[:1], tmp_path, None, {"CPU": 3})
    swept(cells[:2], tmp_path, None, None)
    assert kept == [3, 1]
    assert platforms == ["cpu", "cpu", "cpu", None]  # those that hand cells out have the CPU alone


def test_a_cell_whose_worker_is_lost_is_run_again_and_it_is_told(cells, ray, trained, tmp_path, capsys):
    ray(ONE, {"b": [WorkerCrashedError(), WorkerCrashedError()]})
    assert swept(cells, tmp_path) == 0
    assert sorted(trained) == ["a", "b", "c"]
    lost = [line for line in ledger.lines(tmp_path) if line["status"] == "lost"]
    assert [(line["cell"], line["message"]) for line in lost] == [
        ("b", "lost its worker and is run again, time 1 of 3: The worker died"),
        ("b", "lost its worker and is run again, time 2 of 3: The worker died"),
    ]
    assert "cell b lost its worker and is run again, time 1 of 3: The worker died\n" in capsys.readouterr().out


def test_a_cell_that_loses_every_worker_fails_and_the_others_do_not(cells, ray, trained, tmp_path, capsys):
    ray(ONE, {"a": [WorkerCrashedError()] * 9})
    assert swept(cells, tmp_path) == 1
    assert trained == ["b", "c"]
    last = ledger.Reader(tmp_path).latest()["a"]
    assert (last["status"], last["code"], last["message"]) == ("failed", 1, "lost its worker 4 times: The worker died")
    assert "1 of 3 cells failed:\n  a: lost its worker 4 times: The worker died\n" in capsys.readouterr().err


def test_a_worker_lost_after_its_cell_was_finished_costs_nothing(cells, ray, trained, tmp_path):
    made = ray()

    def dies_late(text):
        made.tasks[0][0](text)
        raise WorkerCrashedError

    made.fates["a"] = [dies_late]
    assert swept(cells[:1], tmp_path) == 0
    assert trained == ["a"]
    assert ends(tmp_path) == [("a", "finished")]


@pytest.mark.parametrize(
    ("cause", "code", "message"),
    [
        (ConfigError("--workdir: 'x' holds no sweep."), 2, "--workdir: 'x' holds no sweep."),
        (WriteError("cannot write 'x': full."), 1, "cannot write 'x': full."),
        (ImportError("no positionbias\nhere"), 1, "ImportError: no positionbias"),
    ],
)
def test_what_a_worker_cannot_do_fails_its_cell_alone(cells, ray, trained, tmp_path, cause, code, message):
    ray(ONE, {"a": [RayTaskError(cause)]})
    assert swept(cells, tmp_path) == code
    assert trained == ["b", "c"]
    last = ledger.Reader(tmp_path).latest()["a"]
    assert (last["status"], last["code"], last["message"]) == ("failed", code, message)


def test_a_machine_that_does_not_see_the_folder_says_so(cells, ray, trained, tmp_path, capsys):
    made = ray()

    def elsewhere(text):
        try:
            return made.tasks[0][0](json.dumps({**json.loads(text), "workdir": str(tmp_path / "none")}))
        except ConfigError as error:
            raise RayTaskError(error) from None

    made.fates["a"] = [elsewhere]
    assert swept(cells[:1], tmp_path) == 2
    told = capsys.readouterr().err
    assert f"  a: --workdir: '{tmp_path}/none' holds no sweep on " in told
    assert told.endswith("; allowed: a folder that every machine of the cluster sees.\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_what_runs_and_leaves_the_rest(cells, ray, trained, tmp_path, capsys, number):
    made = ray()

    def stopped(text):
        signal.raise_signal(number)
        line = {"cell": "a", "status": "stopped", "code": 130, "message": "stopped by SIGINT (Ctrl-C)", "seconds": 1.0}
        ledger.note(tmp_path, line)
        return line

    made.fates["a"] = [stopped]
    assert swept(cells, tmp_path) == 128 + number
    assert (trained, sorted(made.cancelled)) == ([], [1, 2])
    assert ends(tmp_path) == [("a", "stopped")]
    told = capsys.readouterr().out
    assert "cell a stopped after 1.0 s\n" in told
    assert told.endswith("stopped: 0 of 3 cells are finished; the same command goes on from there\n")
    assert made.down == 1
    made.fates.clear()
    assert swept(cells, tmp_path) == 0
    assert trained == ["a", "b", "c"]


def test_a_worker_that_is_lost_while_a_sweep_stops_is_not_replaced(cells, ray, trained, tmp_path):
    made = ray()

    def lost(text):
        signal.raise_signal(signal.SIGTERM)
        raise WorkerCrashedError

    made.fates["c"] = [lost]
    made.wait = lambda tasks, timeout: (tasks[-1:], tasks[:-1])
    assert swept(cells, tmp_path) == 143
    assert len(made.tasks) == 3


def test_a_cell_that_another_process_holds_is_tried_again_when_all_others_are_done(
    cells, ray, trained, tmp_path, capsys
):
    made = ray()
    held = {"cell": "a", "status": "held", "code": 4, "message": "workdir: in use.", "seconds": 0.0, "where": "there"}
    made.fates["a"] = [lambda text: held]
    assert swept(cells, tmp_path) == 0
    assert trained == ["b", "c", "a"]
    assert "cell a is left for last: workdir: in use.\n" in capsys.readouterr().out
    (tmp_path / "cells" / "a" / "manifest.json").unlink()
    made.fates["a"] = [lambda text: held] * 2
    assert swept(cells, tmp_path) == 4


@pytest.mark.parametrize(
    "given", ["", "CPU", "CPU=", "CPU=0", "CPU=-1", "CPU=1.5", "CPU=1,CPU=2", "CPU=1,", "=1", "CPU=x", "CPU 1"]
)
def test_resources_that_are_none(given):
    with pytest.raises(ConfigError) as caught:
        by_ray.asked(given)
    assert str(caught.value) == (
        f"--cell_resources: {given!r} is not allowed; allowed: NAME=NUMBER[,NAME2=NUMBER2] with Ray's names, such as"
        " CPU, GPU and TPU, each once, and whole numbers from 1."
    )


def test_resources_by_rays_names():
    assert by_ray.asked(None) is None
    assert by_ray.asked("CPU=4, accelerator_type:A100=1,memory=1000000000") == {
        "CPU": 4,
        "accelerator_type:A100": 1,
        "memory": 1_000_000_000,
    }
    with pytest.raises(ConfigError, match=r"^--cell_resources: Ray knows no 'gpu', did you mean 'GPU'\?$"):
        by_ray.asked("gpu=1")


def test_more_than_this_machine_has_is_refused_and_a_cluster_may_grow(cells, ray, trained, tmp_path, capsys):
    ray()
    with pytest.raises(ConfigError) as caught:
        swept(cells, tmp_path / "sweep", None, {"CPU": 3, "GPU": 1})
    assert (
        str(caught.value)
        == "--cell_resources: CPU=3, GPU=1 is more than this machine has; allowed: up to CPU=2, GPU=0."
    )
    assert not (tmp_path / "sweep").exists()
    assert swept(cells, tmp_path / "sweep", "there:6379", {"CPU": 3}) == 0
    assert (
        "Ray on machines of the cluster, now 1, has room for 0 cells at once, each with CPU=3"
        in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        (None, "--executor: Ray does not start here (timed out); allowed: 'local'."),
        (
            "there:6379",
            "--ray_address: no cluster answers at 'there:6379' (timed out); allowed: HOST:PORT of one that runs, with"
            " RAY_AUTH_MODE=token in the environment if it wants a token, or 'auto'.",
        ),
    ],
)
def test_a_ray_that_is_not_there_is_told_in_one_sentence(cells, ray, tmp_path, address, sentence):
    def fails(*given, **more):
        raise ConnectionError("timed out.\nSee the log.")

    ray().init = fails
    with pytest.raises(ConfigError) as caught:
        swept(cells, tmp_path / "sweep", address)
    assert str(caught.value) == sentence
    assert not (tmp_path / "sweep").exists()


def test_a_number_that_ray_does_not_take_is_told(cells, ray, tmp_path):
    def fails(**given):
        raise ValueError("TPU must be 1, 2 or 4.")

    made = ray([(True, {"TPU": 4.0})])
    made.remote = lambda **once: lambda function: types.SimpleNamespace(options=fails)
    with pytest.raises(ConfigError, match=r"^--cell_resources: TPU must be 1, 2 or 4; allowed: what Ray takes\.$"):
        swept(cells, tmp_path / "sweep", None, {"TPU": 3})


def test_without_ray_the_executor_is_refused(cells, tmp_path, monkeypatch):
    monkeypatch.setattr(by_ray.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError) as caught:
        swept(cells, tmp_path / "sweep")
    assert str(caught.value) == (
        "--executor: 'ray' needs Ray, which is not installed; allowed: pip install -e '.[ray]' in the checkout."
    )


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--ray_address", "auto"], "--ray_address: is for workers of Ray; allowed: together with --executor ray."),
        (["--cell_resources=CPU=1"], "--cell_resources: is for workers of Ray; allowed: together with --executor ray."),
        (
            ["--executor", "ray", "--ray_address="],
            "--ray_address: '' is not allowed; allowed: HOST:PORT, 'auto', or no",
        ),
    ],
)
def test_flags_that_do_not_fit(tmp_path, flags, sentence):
    (tmp_path / "c.py").write_text(
        "def get_config(): return {'name': 's', 'task': 'inverse_permutation(n=4)', 'train': {'steps': 40}}\n"
        "def sweep(add): add({})\n"
    )
    with pytest.raises(ConfigError) as caught:
        sweep.main(["--config", str(tmp_path / "c.py"), *flags])
    assert str(caught.value).startswith(sentence)
