"""The benchmarks in their smallest form: JSON that can be read, and reasons for what is not timed."""

import importlib
import importlib.util
import json
import re
import subprocess
import sys
import types

import numpy as np
import pytest

from positionbias.errors import ConfigError

SIZES = ["--lengths", "130", "--other-lengths", "64", "--masks", "random_blocks", "documents", "--rounds", "1"]


def run(root, folder, *more):
    return started(root, folder, "attention.py", "attention_cpu.json", *SIZES, *more)


def started(root, folder, script, written, *more):
    command = [sys.executable, f"benchmarks/{script}", "--folder", str(folder), *more]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads((folder / written).read_text())


def test_attention_is_timed_with_ratios_and_reasons(root, tmp_path):
    names = ["xla_dense", "xla_chunked", "mosaic_tpu", "jax_nn_cudnn"]
    printed, found = run(root, tmp_path, "--impl", *names, "--modes", "train", "penalty")
    assert {"device", "commit", "date", "versions", "given", "libraries"} <= set(found)
    rows = found["attentions"]
    timed = [row for row in rows if row["impl"].startswith("xla")]
    assert len(timed) == 8
    assert all(row["milliseconds"] <= row["median"] and row["memory"] > 0 for row in timed)
    assert all(row["ratio"] == 1 for row in timed if row["impl"] == "xla_dense")
    assert sum("extra" in row for row in timed) == 4
    assert {row.get("skipped") for row in rows} == {
        None,
        "impl = 'mosaic_tpu' cannot do this: the platform is cpu, and these kernels are for tpu; allowed: another "
        "driver, or None to choose one.",
        "the kernel is for gpu",
        "the library does not tell the attention received",
    }
    assert "jax_nn_cudnn: the kernel is for gpu (random_blocks 130 train, " in printed


def test_attention_stops_when_the_minutes_are_over(root, tmp_path):
    printed, found = run(root, tmp_path, "--minutes", "0")
    assert found["attentions"] == []
    assert found["left_out"][0] == {"mask": "random_blocks", "length": 130}
    assert "documents 64 (the minutes are over)" in printed


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--lengths", "0"], "--lengths: 0 is not allowed; allowed: 1 to 1048576."),
        (["--other-lengths", "64", "-3"], "--other-lengths: -3 is not allowed; allowed: 1 to 1048576."),
        (["--lengths", "many"], "--lengths: 'many' is not allowed; allowed: a whole number."),
        (["--lengths"], "--lengths: needs a value; write --lengths VALUE."),
        (["--minutes", "soon"], "--minutes: 'soon' is not allowed; allowed: a number."),
        (["--minutes", "nan"], "--minutes: nan is not allowed; allowed: a number from 0."),
        (["--rounds", "0"], "--rounds: 0 is not allowed; allowed: 1 to 1000."),
        (["--masks", "casual"], "--masks: unknown mask 'casual', did you mean 'causal'?"),
        (["--impl", "xla_dense", "flex"], "--impl: unknown impl 'flex'"),
        (["--dtype", "float64"], "--dtype: unknown dtype 'float64', did you mean 'float16'?"),
        (["--folder", "README.md"], "--folder: README.md is no folder; allowed: a folder, or a new name in one."),
        (["--tiles", "128"], "command line: unknown flag '--tiles'"),
    ],
)
def test_mistakes_of_the_benchmark_of_attention_are_told_in_a_sentence(flags, words, root, monkeypatch):
    monkeypatch.syspath_prepend(root / "benchmarks")
    monkeypatch.chdir(root)
    import attention

    with pytest.raises(ConfigError) as error:
        attention.main(flags)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--operators", "sofmax"], "--operators: unknown operator 'sofmax', did you mean 'softmax'?"),
        (["--lengths", "64", "-1"], "--lengths: -1 is not allowed; allowed: 1 to 1048576."),
        (["--seconds", "inf"], "--seconds: inf is not allowed; allowed: a number from 0."),
        (["--modes", "backward"], "--modes: unknown mode 'backward'"),
    ],
)
def test_mistakes_of_the_benchmark_of_operators_are_told_in_a_sentence(flags, words, root, monkeypatch):
    monkeypatch.syspath_prepend(root / "benchmarks")
    import operators

    with pytest.raises(ConfigError) as error:
        operators.main(flags)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--kinds", "gated"], "--kinds: unknown kind 'gated'"),
        (["--head-size", "0"], "--head-size: 0 is not allowed; allowed: 1 to 1024."),
        (["--impl", "fla", "mosaic"], "--impl: unknown impl 'mosaic'"),
        (["--minutes", "-1"], "--minutes: -1.0 is not allowed; allowed: a number from 0."),
    ],
)
def test_mistakes_of_the_benchmark_of_recurrences_are_told_in_a_sentence(flags, words, root, monkeypatch):
    monkeypatch.syspath_prepend(root / "benchmarks")
    import recurrences

    with pytest.raises(ConfigError) as error:
        recurrences.main(flags)
    assert words in str(error.value)


def test_recurrences_are_timed_with_ratios_and_reasons(root, tmp_path):
    sizes = ["--lengths", "70", "--tokens", "140", "--heads", "2", "--head-size", "8", "--rounds", "1"]
    more = ["--kinds", "scalar", "memory", "--impl", "xla_quadratic", "xla_chunked", "mosaic_gpu", "fla"]
    printed, found = started(root, tmp_path, "recurrences.py", "recurrences_cpu.json", *sizes, *more)
    rows = {(row["kind"], row["impl"], row["mode"]): row for row in found["recurrences"]}
    assert len(rows) == 16
    assert {key for key, row in rows.items() if "milliseconds" in row} == {
        (kind, impl, mode)
        for kind, impl in (("scalar", "xla_quadratic"), ("scalar", "xla_chunked"), ("memory", "xla_chunked"))
        for mode in ("forward", "train")
    }
    assert all("error" not in row for row in rows.values())
    assert rows["scalar", "xla_quadratic", "forward"]["difference"] < 1e-5
    assert rows["memory", "fla", "train"]["skipped"] == "the library has no such recurrence"
    assert "no driver of this recurrence (memory 70 forward, memory 70 train)" in printed


@pytest.mark.parametrize("script", ["attention.py", "operators.py", "recurrences.py"])
def test_a_mistake_ends_with_the_code_of_one(root, script):
    command = [sys.executable, f"benchmarks/{script}", "--lengths", "0"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: --lengths: 0 is not allowed; allowed: 1 to 1048576.\n"


def test_the_cost_of_operators_is_told_with_slopes_and_reasons(root, tmp_path):
    more = ["--operators", "softmax", "retention", "reversed", "--lengths", "64", "128", "--rounds", "1"]
    printed, found = started(root, tmp_path, "operators.py", "operators.json", *more)
    assert {"device", "commit", "date", "versions", "given", "goal"} <= set(found)
    by_name = {(one["operator"], one["mode"]): one for one in found["operators"]}
    names = "softmax", "retention", "reversed"
    assert list(by_name) == [(name, mode) for name in names for mode in ("forward", "train")]
    softmax, retention = by_name["softmax", "forward"], by_name["retention", "forward"]
    assert [row["products"] for row in softmax["lengths"]] == [4 * n * n * 64 for n in (64, 128)], "q k' and a v"
    assert abs(softmax["slope_of_products"] - 2) < 1e-9
    assert (softmax["recurrent"], retention["recurrent"]) == (False, True)
    assert [row["state"] for row in softmax["lengths"]] == [2 * n * 64 for n in (64, 128)]
    assert [row["state"] for row in retention["lengths"]] == [4 * 16 * 16] * 2
    assert all(row["milliseconds"] > 0 and row["memory"] >= 0 for row in softmax["lengths"])
    assert found["states"] == {
        "softmax": {"tokens": 12, "declared": 96, "rank": 96},
        "retention": {"tokens": 12, "declared": 16, "rank": 16},
    }
    assert "softmax 96 96, retention 16 16" in printed


def test_what_operators_would_take_too_long_for_is_left_out(root, tmp_path):
    more = ["--operators", "softmax", "--lengths", "64", "128", "--rounds", "1", "--modes", "forward"]
    _, found = started(root, tmp_path, "operators.py", "operators.json", *more, "--seconds", "0")
    (one,) = found["operators"]
    assert [row["length"] for row in one["lengths"]] == [64]
    assert one["left_out"] == {"128": "128 tokens would take about 0 s a run"}
    assert one["slope_of_milliseconds"] is None
    printed, found = started(root, tmp_path, "operators.py", "operators.json", *more, "--minutes", "0")
    assert found["operators"][0]["left_out"] == dict.fromkeys(("64", "128"), "the minutes are over")
    assert "softmax                                forward  the minutes are over" in printed


def test_the_cost_of_a_sweep_is_told_by_stages(root, tmp_path):
    printed, found = started(root, tmp_path, "sweep_scale.py", "sweep_scale.json", "--cells", "3")
    stages = {row["stage"]: row for row in found["stages"]}
    assert found["cells"] == 3
    assert {"resolve all cells", "the same command again", "report.html"} <= set(stages)
    assert all(row["seconds"] > 0 and row["megabytes"] > 50 for row in stages.values() if "bytes" not in row)
    assert stages["plan.json"]["bytes"] > 300
    assert "resolve all cells" in printed


def test_a_sweep_of_no_cells_is_refused(root, monkeypatch):
    monkeypatch.syspath_prepend(root / "benchmarks")
    import sweep_scale

    with pytest.raises(ConfigError, match="--cells: 0 is not allowed; allowed: 1 to 100000"):
        sweep_scale.main(["--cells", "0"])


def test_a_sweep_of_one_cell_has_no_others_to_time(root, monkeypatch, capsys):
    monkeypatch.syspath_prepend(root / "benchmarks")
    import startup

    monkeypatch.setattr("sys.argv", ["startup.py", "--cells", "1"])
    monkeypatch.setattr(startup, "first_loss", None)  # were it not refused, a run would start
    with pytest.raises(SystemExit):
        startup.main()
    assert "--cells: 1 is not allowed; allowed: from 2, the first and others." in capsys.readouterr().err


def test_train_steps_are_timed_beside_loops_that_compute_the_same(root, tmp_path):
    more = ["--shapes", "4x16x8", "--tasks", "associative_recall", "--impl", "flax", "torch", "--rounds", "2"]
    printed, found = started(root, tmp_path, "train_throughput.py", "train_throughput_cpu.json", *more)
    (row,) = found["shapes"]
    ours, flax, torch = row["loops"]
    assert (row["batch"], row["length"], row["width"], row["steps_a_turn"]) == (4, 16, 8, 64)
    assert (ours["impl"], ours["ratio"], ours["spread"]["most"]) == ("positionbias", 1, 1)
    assert flax["milliseconds"] > 0
    assert flax["spread"]["least"] <= flax["spread"]["median"] <= flax["spread"]["most"]
    assert 0 < flax["differences"]["gradient"] < 1e-4
    if importlib.util.find_spec("torch") is None:
        assert torch["skipped"] == "torch is not installed"
        assert "torch is not installed" in printed
        assert row["ratio_to_best"] == {"rival": "flax", "ratio": flax["ratio"]}
    else:
        assert 0 < torch["differences"]["losses"] < 1e-4


@pytest.mark.parametrize(
    ("gradient", "losses", "words"),
    [
        (1.0, 2.0, None),
        (1.001, 2.0, "gradient differ from ours by 0.001, more than 1e-04"),
        (1.0, 2.002, "losses differ from ours by 0.001, more than 1e-04"),
        (np.nan, 2.0, "gradient differ from ours by nan"),
    ],
)
def test_a_rival_that_computes_something_else_is_not_timed(gradient, losses, words, root, monkeypatch):
    monkeypatch.syspath_prepend(root / "benchmarks")
    import rival_flax
    import train_throughput

    class Other:
        def __init__(self, *given):
            pass

        def gradient(self):
            return {"table": np.full(3, gradient)}

        def call(self):
            return np.full(9, losses)

        def wait(self, made):
            return made

    monkeypatch.setattr(rival_flax, "Flax", Other)
    program = types.SimpleNamespace(experiment=types.SimpleNamespace(config=None))
    first = train_throughput.First({}, {"table": np.ones(3)}, np.full(train_throughput.CHECKED, 2.0))
    if words is None:
        made = train_throughput.rival("flax", program, first, None)
        assert made.differences == {"gradient": 0, "losses": 0}
    else:
        with pytest.raises(ValueError, match=re.escape(words)):
            train_throughput.rival("flax", program, first, None)


@pytest.mark.parametrize(
    ("script", "flags", "words"),
    [
        ("train_throughput", ["--shapes", "64x128"], "--shapes: '64x128' is not allowed; allowed: batch x length x"),
        ("train_throughput", ["--shapes", "1x17x8"], "--shapes: a length of 17 is not allowed; allowed: an even"),
        ("train_throughput", ["--shapes", "1x16x6"], "--shapes: a width of 6 is not allowed; allowed: a multiple of 4"),
        ("train_throughput", ["--impl", "tensorflow"], "--impl: unknown impl 'tensorflow'"),
        ("replicas", ["--replicas", "0"], "--replicas: 0 is not allowed; allowed: 1 to 4096."),
        ("replicas", ["--forms", "pmap"], "--forms: unknown form 'pmap', did you mean 'vmap'?"),
        ("analysis", ["--lengths", "2"], "--lengths: 2 is not allowed; allowed: 8 to 512."),
    ],
)
def test_mistakes_of_the_other_benchmarks_are_told_in_a_sentence(script, flags, words, root, monkeypatch):
    monkeypatch.syspath_prepend(root / "benchmarks")
    with pytest.raises(ConfigError) as error:
        importlib.import_module(script).main(flags)
    assert words in str(error.value)


@pytest.mark.slow
def test_replicas_are_timed_beside_runs_that_compute_the_same(root, tmp_path):
    more = ["--replicas", "2", "--rounds", "1", "--steps", "1"]
    printed, found = started(root, tmp_path, "replicas.py", "replicas_cpu.json", *more)
    (row,) = found["programs"]
    assert [one["impl"] for one in row["rows"]] == ["runs", "loop", "vmap"]
    assert (row["auto"], row["goal"]) == ("loop", 1)
    assert all(one["ratio"] > 0 and one["memory"] > 0 for one in row["rows"])
    assert "loop (auto)" in printed


@pytest.mark.slow
def test_recording_and_patching_are_timed_beside_what_they_are_made_of(root, tmp_path):
    more = ["--lengths", "8", "--items", "2", "--rounds", "1", "--config", "configs/quickstart.py"]
    _, found = started(root, tmp_path, "analysis.py", "analysis_cpu.json", *more)
    assert [row["impl"] for row in found["record"]] == ["forward", "all sites", "streams"]
    assert [row["impl"] for row in found["patching"]] == ["map", "vmap", "calls", "eager"]
    assert {row["patches"] for row in found["patching"]} == {2 * 3 * 8}
    assert all(row["milliseconds"] > 0 and row["ratio"] > 0 for row in (*found["record"], *found["patching"]))


def test_the_table_of_ratios_is_that_of_the_records(root, monkeypatch):
    monkeypatch.syspath_prepend(root / "scripts")
    import performance

    text = (root / "BUILD.md").read_text(encoding="utf-8")
    assert performance.written(text) == text, "write it anew with python scripts/performance.py"
