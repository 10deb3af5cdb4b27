"""Definitions of studies: what is read, and that every mistake in one is told in a sentence before anything runs."""

import math

import pytest

from positionbias import study as entry
from positionbias.spec import ConfigError
from positionbias.studying import definition, running


def test_a_definition_is_read_as_it_is_written(written):
    study = written()
    assert (study.name, study.title, study.about) == ("arms", "Arms", "Two masks & a run.")
    assert list(study.parts) == ["masks", "alone"]
    assert study.parts["masks"].scales["quick"] == definition.AtScale(2, None, {"train.steps": 600})
    assert study.parts["alone"].evaluate == {"again": "--items 8 --interventions shift"}
    assert study.claims["apart"].holds == (0.2, math.inf)
    assert study.claims["apart"].runs == ["masks/bidirectional", "masks/causal"]
    assert study.claims["apart"].rule("quick") == {
        "says": "A reader of all tokens recalls more.",
        "statistic": "accuracy('masks/bidirectional') - accuracy('masks/causal')",
        "holds": [0.2, None],
        "null": "baseline('masks/causal', 'chance')",
        "solved": "accuracy('masks/bidirectional') > 0.9",
        "replicas": 5,
        "parts": {"masks": {"config": "configs/arms.py", "sweep": "default", "settings": {"train.steps": "600"}}},
        "flags": {},
    }
    assert study.claims["apart"].rule("paper")["parts"]["masks"]["settings"] == {"train.steps": "900"}
    assert study.claims["normed"].rule("quick")["flags"] == {"masks.norms": "--analyses token_norms"}
    assert study.claims["moved"].rule("quick")["flags"] == {"alone.again": "--items 8 --interventions shift"}
    assert [claim.name for claim in study.at("paper")] == ["apart"]
    assert [part.name for part in study.parts_at("paper")] == ["masks"]
    assert [part.name for part in study.parts_at("quick")] == ["masks", "alone"]


def test_a_text_over_several_lines_is_one_line(written):
    study = written('says = "Norms are small."', 'says = """\nNorms\n  are small.\n"""')
    assert study.claims["normed"].says == "Norms are small."


TABLE, TEXT = "a table.", "a text."
SCALES = "a list of quick and paper."
PARTS = "analyze, config, evaluate, paper, quick, sweep."
CLAIM = "holds, note, null, paper, replicas, says, scales, solved, source, statistic, theirs, why."
HOLDS = "[low, high], the lower first; one may be inf."
NAME = "1 to 100 letters, digits, '_', '-' and '.', a letter or digit first."
FIRST = 'scales = ["quick", "paper"]'


@pytest.mark.parametrize(
    ("old", "new", "told", "allowed"),
    [
        ('title = "Arms"', "", "study: 'title' is missing;", "about, claims, papers, parts, title."),
        ('title = "Arms"', "title = 3", "title: 3 is not allowed;", TEXT),
        ('title = "Arms"', 'title = " "', "title: ' ' is not allowed;", TEXT),
        (
            'title = "Arms"',
            'titel = "A"',
            "study: unknown key 'titel', did you mean 'title'?",
            "about, claims, papers, parts, title.",
        ),
        ('ours2026 = "Ours 2026, Nowhere"', "ours2026 = 1", "papers.ours2026: 1 is not allowed;", TEXT),
        ('config = "configs/arms.py"', "config = []", "parts.masks.config: [] is not allowed;", TEXT),
        ('config = "configs/arms.py"', "", "parts.masks: 'config' is missing;", PARTS),
        (
            "[parts.masks]",
            "[parts.masks]\nanalyse = {}",
            "parts.masks: unknown key 'analyse', did you mean 'analyze'?",
            PARTS,
        ),
        ('sweep = "default"', "sweep = 1", "parts.masks.sweep: 1 is not allowed;", TEXT),
        ("[parts.masks]", '[parts."a/b"]', "parts.a/b: 'a/b' is not allowed, did you mean 'a_b'?", NAME),
        (
            "[parts.alone]",
            '[parts.Masks]\nconfig = "x"\n[parts.alone]',
            "parts: 'masks' is there twice but for case;",
            "names that differ in more.",
        ),
        ("minutes = 2", "minutes = inf", "parts.masks.quick.minutes: inf is not allowed;", "a number above 0."),
        ("minutes = 2", "minutes = true", "parts.masks.quick.minutes: True is not allowed;", "a number above 0."),
        ("minutes = 2", "minutes = 0", "parts.masks.quick.minutes: 0 is not allowed;", "a number above 0."),
        (
            "minutes = 2",
            "cells = 3",
            "parts.masks.quick.cells: 3 is not allowed;",
            "names of cells, of a part with a sweep.",
        ),
        (
            "minutes = 1.5",
            'cells = "a"',
            "parts.alone.quick.cells: 'a' is not allowed;",
            "names of cells, of a part with a sweep.",
        ),
        (
            'settings = { "train.steps" = 600 }',
            "settings = []",
            "parts.masks.quick.settings: [] is not allowed;",
            TABLE,
        ),
        ('"--analyses token_norms"', "3", "parts.masks.analyze.norms: 3 is not allowed;", "flags, as in a shell."),
        (
            '"--analyses token_norms"',
            '"\'"',
            'parts.masks.analyze.norms: "\'" is not allowed;',
            "flags, as in a shell.",
        ),
        ('analyze.norms = "--analyses token_norms"', "analyze = 1", "parts.masks.analyze: 1 is not allowed;", TABLE),
        (
            'analyze.norms = "--analyses token_norms"',
            "",
            "claims.normed: no analysis is made of the part 'masks';",
            "parts with analyze.NAME.",
        ),
        (
            "evals='again_shift_by_8'",
            "evals='agan'",
            "claims.moved: unknown evaluation of alone 'agan', did you mean 'again'?",
            "again.",
        ),
        (
            "evals='again_shift_by_8'",
            "evals='again_/../../x'",
            "claims.moved: 'again_/../../x' is not allowed;",
            "the name of a file in the run's folder.",
        ),
        (
            "'token_norms', 'embedding'",
            "'token_norms--/../../x', 'embedding'",
            "claims.normed: 'token_norms--/../../x' is not allowed;",
            "the name of a file in the run's folder.",
        ),
        (
            "evals='again_shift_by_8'",
            "evals='again2'",
            "claims.moved: unknown evaluation of alone 'again2', did you mean 'again'?",
            "again.",
        ),
        (
            "evaluate.again",
            'evaluate.more = "--items 9"\nevaluate.again',
            "parts.alone.evaluate: no claim reads the evaluation 'more';",
            "those with evals='more...'.",
        ),
        (
            "analysis('masks/causal', 'token_norms', 'embedding')",
            "accuracy('masks/causal')",
            "parts.masks.analyze: no claim reads an analysis;",
            "parts of which one does.",
        ),
        (
            "changed('alone', evals='again_shift_by_8')",
            "accuracy('masks/causal')",
            "parts.alone: no claim reads it;",
            "parts that claims read.",
        ),
        ("[claims.apart]", '[claims."<b>"]', "claims.<b>: '<b>' is not allowed, did you mean 'b_'?", NAME),
        (
            "[claims.apart]",
            "[claims.Normed]",
            "claims: 'Normed' is there twice but for case;",
            "names that differ in more.",
        ),
        ("holds = [0, 1]", "", "claims.normed: 'holds' is missing;", CLAIM),
        ("holds = [0, 1]", "holds = 3", "claims.normed.holds: 3 is not allowed;", HOLDS),
        ("holds = [0, 1]", "holds = [1, 0]", "claims.normed.holds: [1, 0] is not allowed;", HOLDS),
        ("holds = [0, 1]", "holds = [nan, 1]", "claims.normed.holds: [nan, 1] is not allowed;", HOLDS),
        ("holds = [0, 1]", "holds = [-inf, inf]", "claims.normed.holds: [-inf, inf] is not allowed;", HOLDS),
        ("holds = [0, 1]", "holds = [true, 2]", "claims.normed.holds: [True, 2] is not allowed;", HOLDS),
        (
            "holds = [0, 1]",
            "holds = [0, 1]\nreplicas = 4",
            "claims.normed.replicas: 4 is not allowed;",
            "a whole number from 5.",
        ),
        (
            "holds = [0, 1]",
            "holds = [0, 1]\nreplicas = true",
            "claims.normed.replicas: True is not allowed;",
            "a whole number from 5.",
        ),
        (
            'paper = "ours2026"',
            'paper = "ours2025"',
            "claims.apart.paper: unknown paper 'ours2025', did you mean 'ours2026'?",
            "ours2026.",
        ),
        ('paper = "ours2026"', "paper = [1]", "claims.apart.paper: [1] is not allowed;", TEXT),
        (FIRST, "scales = []", "claims.apart.scales: [] is not allowed;", SCALES),
        (FIRST, 'scales = "quick"', "claims.apart.scales: 'quick' is not allowed;", SCALES),
        (FIRST, 'scales = ["quick", "quick"]', "claims.apart.scales: ['quick', 'quick'] is not allowed;", SCALES),
        (FIRST, 'scales = [["quick"]]', "claims.apart.scales: [['quick']] is not allowed;", SCALES),
        (FIRST, 'scales = ["large"]', "claims.apart.scales: ['large'] is not allowed;", SCALES),
        (
            'paper = { settings = { "train.steps" = 900 } }',
            "",
            "claims.apart.scales: the part 'masks' does not run at 'paper';",
            "where it does.",
        ),
        ('says = "Norms', 'sais = "Norms', "claims.normed: unknown key 'sais', did you mean 'says'?", CLAIM),
        (
            "'masks/causal')\"",
            "'mask/causal')\"",
            "claims.apart: unknown part 'mask', did you mean 'masks'?",
            "alone, masks.",
        ),
        ("'masks/causal')\"", "'masks')\"", "claims.apart: 'masks' is not allowed;", "masks/CELL, of a sweep."),
        ("changed('alone'", "changed('alone/a'", "claims.moved: 'alone/a' is not allowed;", "alone, which is one run."),
        (
            "accuracy('masks/bidirectional') >",
            "acuracy('masks/bidirectional') >",
            "claims.apart.solved: acuracy: unknown measure 'acuracy', did you mean 'accuracy'?",
            "",
        ),
    ],
)
def test_a_mistake_is_told_with_its_place(old, new, told, allowed, written):
    with pytest.raises(ConfigError) as error:
        written(old, new)
    path = "configs/arms/study.toml"
    assert str(error.value).partition(path)[2] == f": {told}" + (allowed and f" allowed: {allowed}")


@pytest.mark.parametrize("table", ["parts", "claims"])
def test_a_study_of_nothing_is_refused(table, written, tmp_path):
    written()
    path = tmp_path / "configs" / "arms" / "study.toml"
    text = 'title = "a"\nabout = "b"\n[papers]\nc = "d"\n[parts]\n[claims]\n'
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"parts: {} is not allowed; allowed: one or more\.$"):
        definition.read(tmp_path, "arms")
    path.write_text(text.replace("[parts]", '[parts.e]\nconfig = "f"'))
    with pytest.raises(ConfigError, match=r"claims: {} is not allowed; allowed: one or more\.$"):
        definition.read(tmp_path, "arms")


def test_more_quick_claims_of_a_paper_than_a_reader_remembers_are_refused(written):
    one = "[claims.normed]"
    more = '[claims.more]\nsays = "a"\npaper = "ours2026"\nsource = "b"\nstatistic = "accuracy(\'alone\')"\n'
    more += "holds = [0, 1]\n"
    assert len(written(one, f'{more}scales = ["quick"]\n{one}', FIRST, 'scales = ["paper"]').at("quick")) == 3
    with pytest.raises(ConfigError, match=r"claims: 4 of 'ours2026' are quick; allowed: 3 a paper\.$"):
        written(one, f'{more}scales = ["quick"]\n{one}')


@pytest.mark.parametrize("text", [b"= =", b"\xff", b"\0", b"a = " + 10_000 * b"["])
def test_what_is_no_toml_is_refused_in_one_sentence(text, written, tmp_path):
    written()
    (tmp_path / "configs" / "arms" / "study.toml").write_bytes(text)
    with pytest.raises(
        ConfigError, match=r"^--name: '.*study\.toml' cannot be read \(.*\); allowed: a definition in TOML"
    ):
        definition.read(tmp_path, "arms")


def test_names_that_are_not_there_are_refused(written, tmp_path):
    with pytest.raises(ConfigError, match=r"^--name: 'arms' is not here; allowed: in a folder that has configs/NAME"):
        definition.read(tmp_path, "arms")
    written()
    for name, hint in (("arm", r", did you mean 'arms'\?"), ("../arms", r", did you mean 'arms'\?"), ("", ";")):
        with pytest.raises(ConfigError, match=f"^--name: unknown study '{name}'{hint} allowed: arms\\.$"):
            definition.read(tmp_path, name)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (
            "configs/arms.py",
            "configs/arm.py",
            "parts.masks: --config: unknown file 'configs/arm.py', did you mean 'configs/arms.py'?",
        ),
        (
            'sweep = "default"',
            'sweep = "dfault"',
            "parts.masks: --sweep: unknown sweep 'dfault', did you mean 'default'? allowed: default.",
        ),
        (
            '"train.steps" = 600',
            '"train.step" = 600',
            "parts.masks: train.step: unknown field 'step', did you mean 'steps'?",
        ),
        (
            '"train.steps" = 600',
            "train.steps = 600",
            "parts.masks: train: is a group of fields and cannot be set whole;",
        ),
        (
            "minutes = 2",
            'cells = "causl"',
            "parts.masks: --cells: unknown cell 'causl', did you mean 'causal'? allowed: bidirectional, causal.",
        ),
        (
            "minutes = 2",
            'cells = "causal"',
            "claims.apart: unknown run 'masks/bidirectional', did you mean 'masks/causal'? allowed: masks/causal.",
        ),
        (
            "'masks/causal')\"",
            "'masks/casual')\"",
            "claims.apart: unknown run 'masks/casual', did you mean 'masks/causal'? allowed: masks/bid",
        ),
        (
            "--analyses token_norms",
            "--analyses token_nrms",
            "parts.masks.analyze.norms: --analyses: unknown analysis 'token_nrms', did you mean 'token_norms'?",
        ),
        (
            "'token_norms', 'embedding'",
            "'token_nrms', 'embedding'",
            "claims.normed: unknown result of an analysis 'token_nrms', did you mean 'token_norms'?",
        ),
        ("'embedding'", "'embeding'", "claims.normed: unknown array 'embeding', did you mean 'embedding'?"),
        (
            "'embedding'",
            "'stream', 0, 0, 0",
            "claims.normed: 3 places of 'stream' are not allowed; allowed: one for each of",
        ),
    ],
)
def test_what_a_part_will_not_leave_is_refused_before_it_runs(old, new, told, written):
    study = written(old, new)
    with pytest.raises(ConfigError) as error:
        running.check(study, "quick")
    assert str(error.value).startswith(told)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (
            "--items 8",
            "--itmes 8",
            "parts.alone.evaluate.again: command line: unknown flag '--itmes', did you mean '--items'?",
        ),
        (
            "--items 8",
            "--workdir x",
            "parts.alone.evaluate.again: command line: --workdir is given twice; allowed: once.",
        ),
        ("--items 8", "--label x", "parts.alone.evaluate.again: command line: --label is given twice; allowed: once."),
        ("--items 8", "--items x", "parts.alone.evaluate.again: --items: 'x' is not allowed; allowed: a whole number."),
        (
            "--analyses token_norms",
            "--analyze token_norms",
            "parts.masks.analyze.norms: command line: unknown flag '--analyze', did you mean '--analyses'?",
        ),
        (
            "evaluate.again",
            "evaluate.8",
            "parts.alone.evaluate.8: --label: '8' is not allowed, numbers are training steps",
        ),
    ],
)
def test_flags_that_would_be_refused_after_training_are_refused_before(old, new, told, written):
    written(old, new, *(("evals='again_shift_by_8'", "evals='8_shift'") if old == "evaluate.again" else ()))
    with pytest.raises(ConfigError) as error:
        entry.main(["--name", "arms"])
    assert str(error.value).startswith(told)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ([], "--name is missing; allowed: arms, or --list."),
        (["--name", "arms", "--workdir", ""], "--workdir: '' is not allowed; allowed: the path of a folder."),
        (
            ["--name", "arms", "--workdir", "file"],
            "--workdir: 'file' is a file; allowed: a new folder or that of the study.",
        ),
        (["--list", "--name", "arms"], "--name: cannot be given with --list, which shows every study."),
        (["--list", "--workdir", "x"], "--workdir: cannot be given with --list, which shows every study."),
        (["--list", "--claims", "apart"], "--claims: cannot be given with --list, which shows every study."),
        (
            ["--name", "arms", "--claims", "aparts"],
            "--claims: unknown claim 'aparts', did you mean 'apart'? allowed: apart, moved, normed.",
        ),
        (["--name", "arms", "--claims", ""], "--claims: unknown claim ''; allowed: apart, moved, normed."),
        (
            ["--name", "arms", "--claims", "apart,apart"],
            "--claims: 'apart' is given twice; allowed: each claim once.",
        ),
        (
            ["--name", "arms", "--scale", "paper", "--claims", "normed"],
            "--claims: 'normed' is not asked at 'paper'; allowed: apart.",
        ),
        (
            ["arms"],
            "command line: unexpected 'arms'; allowed: -h, --help, --name, --scale, --claims, --workdir, --list.",
        ),
    ],
)
def test_command_lines_that_run_nothing(given, told, written, tmp_path):
    written()
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError) as error:
        entry.main(given)
    assert str(error.value) == told
    assert sorted(path.name for path in tmp_path.iterdir()) == ["configs", "file"]


def test_a_scale_without_claims_is_refused(written):
    written(FIRST, 'scales = ["quick"]')
    with pytest.raises(
        ConfigError, match=r"^--scale: the study 'arms' has no claim at 'paper'; allowed: another scale\.$"
    ):
        entry.main(["--name", "arms", "--scale", "paper"])


def test_a_list_where_no_study_is_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"^--list: no study is here; allowed: in a folder that has configs/NAME"):
        entry.main(["--list"])
    with pytest.raises(ConfigError, match=r"^--name is missing; allowed: none here, or --list\.$"):
        entry.main([])
