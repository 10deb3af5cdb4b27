"""The rule of verdicts, case by case, and what a record keeps of one."""

import json

import numpy as np
import pytest

from positionbias.evaluation.statistics import interval
from positionbias.spec import ConfigError
from positionbias.studying import judging
from positionbias.studying.judging import decide

HALF = 2.776445105 * 0.01581138830 / 5**0.5  # of the interval of SPREAD: t(0.975, 4) x sd / sqrt(5)
SPREAD = [-0.02, -0.01, 0.0, 0.01, 0.02]


def around(centre):
    return [centre + one for one in SPREAD]


def decided(claim, replicas, flags=()):
    return decide(claim, replicas, interval(replicas), list(flags))


@pytest.mark.parametrize(
    ("centre", "verdict"),
    [
        (0.5, "holds"),
        (0.2 + HALF + 1e-6, "holds"),
        (0.2 + HALF - 1e-6, "undecided"),
        (0.2, "undecided"),
        (0.2 - HALF + 1e-6, "undecided"),
        (0.2 - HALF - 1e-6, "fails"),
        (0.8 - HALF - 1e-6, "holds"),
        (0.8 - HALF + 1e-6, "undecided"),
        (0.8 + HALF - 1e-6, "undecided"),
        (0.8 + HALF + 1e-6, "fails"),
    ],
)
def test_a_verdict_is_where_the_whole_interval_lies(centre, verdict, written):
    claim = written("holds = [0.2, inf]", "holds = [0.2, 0.8]").claims["apart"]
    reason = "the interval lies across an end of the range" if verdict == "undecided" else ""
    assert decided(claim, around(centre)) == (verdict, reason)


def test_an_end_of_the_range_belongs_to_it(written):
    claim = written("holds = [0.2, inf]", "holds = [0.25, 0.5]").claims["apart"]
    assert decided(claim, 5 * [0.25]) == decided(claim, 5 * [0.5]) == ("holds", "")
    assert decided(claim, 5 * [0.249]) == decided(claim, 5 * [0.501]) == ("fails", "")


def test_an_open_range_has_one_end(written):
    study = written()
    assert decided(study.claims["apart"], around(1e6))[0] == "holds"
    assert decided(study.claims["apart"], around(-1e6))[0] == "fails"
    assert decided(study.claims["moved"], around(-1e6))[0] == "holds"
    assert decided(study.claims["moved"], around(1e6))[0] == "fails"


def test_fewer_replicas_than_are_asked_for_decide_nothing(written):
    study = written("holds = [0, 1]", "holds = [0, 1]\nreplicas = 6")
    assert decided(study.claims["apart"], 4 * [9.0]) == ("undecided", "4 replicas, and 5 are asked for")
    assert decided(study.claims["normed"], 5 * [0.5]) == ("undecided", "5 replicas, and 6 are asked for")
    assert decided(study.claims["normed"], 6 * [0.5]) == ("holds", "")


def test_a_replica_without_a_number_leaves_it_undecided(written):
    claim = written().claims["apart"]
    assert decided(claim, [*7 * [0.5], None]) == ("undecided", "1 of 8 replicas have no number")
    assert decided(claim, 5 * [None]) == ("undecided", "5 of 5 replicas have no number")


@pytest.mark.parametrize("verdict", ["holds", "fails"])
def test_some_but_not_all_of_few_replicas_that_solved_it_leave_it_undecided(verdict, written):
    claim, value = written().claims["apart"], {"holds": 0.5, "fails": 0.1}[verdict]
    told = "2 of 5 replicas solved the task, and 8 would be needed"
    assert decided(claim, 5 * [value], [True, True, False, False, False]) == ("undecided", told)
    assert decided(claim, 5 * [value], 5 * [True]) == (verdict, "")
    assert decided(claim, 5 * [value], 5 * [False]) == (verdict, "")
    assert decided(claim, 8 * [value], [True, *7 * [False]]) == (verdict, "")


@pytest.fixture
def folders(tmp_path, trained):
    """Runs of the study's sweep: one reader of all, one causal; with an analysis of the latter."""
    trained(tmp_path / "masks" / "causal")
    trained(tmp_path / "masks" / "bidirectional", seen="all")
    (tmp_path / "masks" / "causal" / "analysis").mkdir()
    norms = np.linspace(0.4, 0.6, 5)
    np.savez(tmp_path / "masks" / "causal" / "analysis" / "token_norms.npz", embedding=norms, late=norms)
    return lambda run: tmp_path / run


def test_a_claim_is_judged_with_its_controls(written, folders):
    judged = judging.judge(written().claims["apart"], folders)
    assert (judged.verdict, judged.reason, judged.solved) == ("holds", "", [True] * 5)
    assert len(judged.replicas) == judged.value.n == 5
    assert judged.value.mean == pytest.approx(1 - 0.589, abs=0.02)  # the ceiling of who sees what came before
    assert judged.at_init.mean == pytest.approx(0, abs=0.02)
    assert (judged.null.mean, judged.null.n) == (1 / 16, 5)


def test_what_is_of_trained_models_alone_has_no_number_at_initialisation(written, folders):
    judged = judging.judge(written().claims["normed"], folders)
    assert (judged.verdict, judged.at_init, judged.null, judged.solved) == ("holds", None, None, [])
    assert judged.replicas == pytest.approx([0.4, 0.45, 0.5, 0.55, 0.6])


def test_a_comparison_with_nothing_solves_nothing(written, folders):
    study = written("accuracy('masks/bidirectional') > 0.9", "log(accuracy('masks/causal') - 9) > 0")
    assert judging.judge(study.claims["apart"], folders).solved == [None] * 5


def test_a_record_keeps_the_rule_the_values_and_what_they_were_measured_with(written, folders):
    claim = written().claims["apart"]
    judged = judging.judge(claim, folders)
    record = judging.record(claim, judged, folders, "quick")
    assert {key: record[key] for key in claim.rule("quick")} == claim.rule("quick")
    assert record["values"] == judged.replicas
    assert [record[key] for key in ("mean", "low", "high")] == [judged.value.mean, judged.value.low, judged.value.high]
    assert (record["verdict"], record["reason"], record["solved_by"]) == ("holds", "", [True] * 5)
    assert record["null_value"] == {"mean": 1 / 16, "low": 1 / 16, "high": 1 / 16}
    assert (record["commit"], record["device"], record["jax"]) == (["0123456789ab"], ["cpu"], ["0.10.2"])
    assert (record["python"], record["hours"]) == ([], 0)
    json.dumps(record, allow_nan=False)


def test_all_that_runs_differ_in_is_kept(written, folders):
    told = json.loads((folders("masks/causal") / "manifest.json").read_text())
    told |= {"dirty": True, "seconds": 1800.0, "devices": ["gpu: H", "gpu: H"]}
    (folders("masks/causal") / "manifest.json").write_text(json.dumps(told))
    claim = written().claims["apart"]
    record = judging.record(claim, judging.judge(claim, folders), folders, "quick")
    assert record["commit"] == ["0123456789ab", "0123456789ab+"]
    assert (record["device"], record["hours"]) == (["cpu", "gpu: H"], 0.5)


@pytest.mark.parametrize(
    "broken", ['{"devices": null}', '{"step": 600, "commit": 3}', "[]", '{"step": 600, "versions": 1}']
)
def test_a_damaged_manifest_is_refused(broken, written, folders):
    (folders("masks/causal") / "manifest.json").write_text(broken)
    with pytest.raises(ConfigError, match=r"^workdir: '.*manifest\.json' (is damaged at|cannot be read)"):
        judging.judge(written().claims["apart"], folders)
