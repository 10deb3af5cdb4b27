"""`python -m positionbias.analyze`: what it prints, writes and adds to the report, and what it refuses."""

import json
import re
import shutil

import numpy as np
import pytest

from positionbias import analyze
from positionbias.errors import ConfigError
from positionbias.files import WriteError


@pytest.fixture(scope="module")
def folder(tmp_path_factory, small_run):
    raw = {
        "name": "analysed",
        "task": "associative_recall(pairs=2, keys=4, values=4, delays=2, shift=2)",
        "model": {"layers": 2, "width": 8, "heads": 2, "operator": "[short_convolution(width=2), softmax]"},
        "train": {"steps": 2, "batch_size": 4, "replicas": 2, "log_every": 2},
        "evaluation": {"items": 4, "batch_size": 4, "influence_items": 4},
    }
    return small_run(raw, tmp_path_factory.mktemp("run"))


def ask(folder, analyses, *more):
    return analyze.main(["--workdir", str(folder), "--analyses", analyses, *more])


def test_numbers_are_printed_written_and_reported_and_kept(folder, capsys):
    assert ask(folder, "sink_mass(column=1), look_back") == 0
    printed = capsys.readouterr().out
    told = r"  mass of layer 1: head 0 0\.\d{3} \(before training 0\.\d{3}\), head 1 0\.\d{3} \(0\.\d{3}\)\n"
    assert re.search(rf"sink_mass\(column=1\)\n{told}", printed)
    assert "of layer 0" not in printed, "the convolution has no pattern"
    found = json.loads((folder / "analysis" / "sink_mass_column_1.json").read_text())
    assert found["analysis"] == "sink_mass(column=1, after=1, threshold=0.3)"
    assert (found["step"], found["condition"], found["items"], found["replicas"]) == (2, "train", 4, 2)
    assert found["labels"] == {"layer": ["1"]}
    mass = found["arrays"]["mass"]
    assert (mass["axes"], mass["sizes"]) == (["layer", "head"], [1, 2])
    with np.load(folder / "analysis" / "sink_mass_column_1.npz") as kept:
        assert kept["mass"].shape == kept["at_init/mass"].shape == (2, 1, 2)
        assert [row["mean"] for row in mass["numbers"]] == pytest.approx(kept["mass"].mean(axis=0)[0].tolist())
    page = (folder / "report.html").read_text()
    assert "<h2>Analyses" in page
    assert "sink_mass(column=1): mass, of 4 items a replica, condition train, step 2." in page
    assert ask(folder, "look_back, sink_mass(column=1), gradient_influence", "--items", "4") == 0
    printed = capsys.readouterr().out
    assert printed.startswith(
        "step 2 of 2, condition train, 4 items a replica\n"
        "look_back: there already\nsink_mass(column=1): there already\ngradient_influence\n"
    )
    assert ask(folder, "look_back", "--condition", "shifted") == 0
    assert "there already" not in capsys.readouterr().out, "other items"
    paths = [folder / "analysis" / f"look_back{more}.json" for more in ("", "--shifted")]
    assert [json.loads(path.read_text())["condition"] for path in paths] == ["train", "shifted"]


def test_checkpoints_are_asked_by_one_command_and_drawn_over_training(tmp_path, small_run, capsys):
    raw = {
        "name": "steps",
        "task": "inverse_permutation(n=2, alphabet=2)",
        "model": {"layers": 1, "width": 4, "heads": 2, "position": "none"},
        "train": {"steps": 6, "batch_size": 4, "replicas": 2, "log_every": 2},
        "checkpoint": {"every": 2, "keep_every": 2},
        "evaluation": {"items": 4, "batch_size": 4, "influence_items": 4},
    }
    folder = small_run(raw, tmp_path / "run")
    assert ask(folder, "sink_mass", "--step", "all") == 0
    printed = capsys.readouterr().out
    assert re.findall(r"^step (\d) of 6", printed, re.MULTILINE) == ["2", "4", "6"]
    files = {
        name: json.loads((folder / "analysis" / f"{name}.json").read_text())
        for name in ("sink_mass--000002", "sink_mass--000004", "sink_mass")
    }
    assert [one["step"] for one in files.values()] == [2, 4, 6]
    masses = [[row["mean"] for row in one["arrays"]["mass"]["numbers"]] for one in files.values()]
    assert masses[0] != masses[1] != masses[2]
    before = [one["arrays"]["mass"]["at_init"] for one in files.values()]
    assert before[0] == before[1] == before[2], "the same items of the same models"
    page = (folder / "report.html").read_text()
    assert "sink_mass: mass over training, condition train." in page
    assert page.count("sink_mass: mass, of 4 items a replica") == 1, "a map of the newest alone"
    capsys.readouterr()
    assert ask(folder, "sink_mass", "--step", "2, 6") == 0
    assert capsys.readouterr().out.count("sink_mass: there already") == 2


def test_some_of_the_replicas_are_asked_as_among_all(folder, capsys):
    numbers, names = {}, {"all": "sink_mass", "1": "sink_mass--of_1"}
    for replicas, name in names.items():
        assert ask(folder, "sink_mass", "--replicas", replicas) == 0
        assert "there already" not in capsys.readouterr().out
        with np.load(folder / "analysis" / f"{name}.npz") as kept:
            numbers[replicas] = dict(kept)
    assert numbers["1"].keys() == numbers["all"].keys()
    for name, found in numbers["1"].items():
        np.testing.assert_allclose(found, numbers["all"][name][1:], rtol=1e-5, atol=1e-7, err_msg=name)
    for replicas in names:  # neither takes the other's place
        assert ask(folder, "sink_mass", "--replicas", replicas) == 0
        assert "there already" in capsys.readouterr().out
    assert ask(folder, "sink_mass", "--replicas", "0,1") == 0
    assert "there already" in capsys.readouterr().out, "all by their numbers"
    told = json.loads((folder / "analysis" / "sink_mass--of_1.json").read_text())
    assert (told["of_replicas"], told["replicas"]) == ([1], 1)
    report = (folder / "report.html").read_text()
    for told in ("", ", of replica 1"):
        assert f"sink_mass: mass, of 4 items a replica, condition train, step 2{told}. " in report, told


def test_a_damaged_file_is_named_and_asked_again(folder, capsys):
    ask(folder, "look_back")
    path = folder / "analysis" / "look_back.json"
    path.write_text(path.read_text().replace('"sizes"', '"size"', 1))
    with pytest.raises(ConfigError, match=r"analysis/look_back.json' is damaged at 'arrays.distance.sizes'"):
        ask(folder, "look_back")
    told = json.loads(path.read_text().replace('"size"', '"sizes"', 1))
    del told["arrays"]["even"]["at_init"]
    path.write_text(json.dumps(told))
    with pytest.raises(ConfigError, match=r"analysis/look_back.json' is damaged at 'arrays.even'"):
        ask(folder, "look_back")
    for text in ("{", "null", "[]"):
        path.write_text(text)
        capsys.readouterr()
        assert ask(folder, "look_back") == 0
        assert "there already" not in capsys.readouterr().out
    numbers = path.with_suffix(".npz")
    numbers.write_bytes(numbers.read_bytes()[:-30])
    assert ask(folder, "look_back") == 0
    assert "there already" not in capsys.readouterr().out, "numbers that cannot be read"


def test_numbers_of_other_items_are_not_told_by_the_file_before(folder, monkeypatch):
    """Where the second of both files cannot be written."""
    from positionbias.analysis import run

    def full(path, told):
        raise WriteError("no space")

    ask(folder, "look_back", "--items", "2")
    monkeypatch.setattr(run, "write_json", full)
    with pytest.raises(WriteError):
        ask(folder, "look_back", "--items", "3")
    assert not (folder / "analysis" / "look_back.json").exists()


@pytest.mark.parametrize(
    ("analyses", "more", "words"),
    [
        ("", [], "--analyses: '' names none; allowed: such as 'rollout, sink_mass(column=1)', of those that"),
        ("sink_mas", [], "--analyses: unknown analysis 'sink_mas', did you mean 'sink_mass'?"),
        ("look_back, look_back", [], "--analyses: 'look_back, look_back' has one twice; allowed: each once."),
        ("sink_mass(threshold=2)", [], "threshold = 2"),
        ("sink_mass(column=9)", [], "column + after = 10 is not allowed; allowed: 0 to "),
        ("look_back, das(dimensions=9)", [], "--analyses: das: dimensions = 9 is not allowed; allowed: a whole number"),
        ("look_back, das(rate=0)", [], "--analyses: das: rate = 0.0 is not allowed"),
        ("das(variable=answer)", [], "--analyses: das: variable: answer is not allowed without quotes, did you mean"),
        ("retrieval_heads(share=0.8)", [], "--analyses: retrieval_heads: share = 0.8 takes 2 of 2 heads, which leaves"),
        ("rollout", [], "--analyses: rollout reads layers.*.attention.pattern of every layer, not so of layer 0"),
        ("look_back", ["--condition", "shift"], "--condition: unknown condition 'shift', did you mean 'shifted'?"),
        ("patching", ["--items", "1"], "items = 1 is not allowed; allowed: 2 or more"),
        ("look_back", ["--items", "0"], "--items: 0 is not allowed; allowed: a whole number from 1 to "),
        (
            "look_back",
            ["--step", "2, 7"],
            "--step: 7 is not allowed; allowed: 'all', or of those with a checkpoint, 2.",
        ),
        ("look_back", ["--step", "1" * 5000], "--step: '1111111111111111...' is not allowed; allowed: 'all', or steps"),
        ("look_back", ["--step", "2, x"], "--step: '2, x' is not allowed; allowed: 'all', or steps such as '200,400'"),
        ("look_back", ["--step", "2, 2"], "--step: '2, 2' is not allowed; allowed: 'all', or steps"),
        ("look_back", ["--replicas", "2"], "--replicas: 2 is not allowed; allowed: 0 to 1, as the run has 2."),
        ("look_back", ["--replicas", "1" * 5000], "--replicas: '1111111111111111...' is not allowed; allowed: 'all',"),
        ("look_back", ["--replicas", "0, 0"], "--replicas: '0, 0' is not allowed; allowed: 'all', or numbers such as"),
    ],
)
def test_mistakes_are_told_in_a_sentence(folder, analyses, more, words):
    before = sorted(folder.rglob("*"))
    with pytest.raises(ConfigError) as error:
        ask(folder, analyses, *more)
    assert words in str(error.value)
    assert sorted(folder.rglob("*")) == before, "and nothing is written"


def test_what_cannot_be_written_is_told_before_anything_is_computed(tmp_path, folder, monkeypatch):
    from positionbias.analysis.run import Asker

    def never(asker):
        raise AssertionError("computed")

    monkeypatch.setattr(Asker, "asked", never)
    shutil.copytree(folder, tmp_path / "run", ignore=shutil.ignore_patterns("analysis"))
    (tmp_path / "run" / "analysis").write_text("mine")
    with pytest.raises(WriteError, match=r"^cannot write '.*run/analysis': File exists\.$"):
        ask(tmp_path / "run", "look_back")
    (tmp_path / "run" / "analysis").unlink()
    (tmp_path / "run" / "analysis").mkdir()
    monkeypatch.setattr("os.access", lambda path, mode: False)  # of a folder without rights, which tests may have
    with pytest.raises(WriteError, match=r"^cannot write '.*run/analysis': Permission denied\.$"):
        ask(tmp_path / "run", "look_back")


def test_files_of_long_specs_have_names_that_they_can_have(folder, tmp_path):
    from positionbias.analysis.run import Asker, parsed

    asker, sizes = Asker(folder, []), [round(0.001 * i, 3) for i in range(1, 100)]
    paths = [asker.path(parsed(f"circuit(sizes={told})")[0]) for told in (sizes, sizes[:-1], sizes[:3])]
    assert paths[0].name.startswith("circuit_sizes__0.001__0.002__0.003__")
    assert paths[2].name == "circuit_sizes__0.001__0.002__0.003.json"
    assert len(set(paths)) == 3
    for path in paths:
        (tmp_path / f".{path.with_suffix('.npz').name}.tmp").write_text("")  # as long as names get
