"""`claims.json`: what is kept of earlier verdicts, what goes, and what is refused."""

import json

import fabricate
import pytest

from positionbias import study as entry
from positionbias.spec import ConfigError
from positionbias.studying import results


def test_records_of_other_claims_and_scales_stay(written, tmp_path):
    study = written()
    record = {name: fabricate.verdict(claim) for name, claim in study.claims.items()}
    results.keep(tmp_path, study, "quick", {"normed": record["normed"]})
    results.keep(tmp_path, study, "paper", {"apart": fabricate.verdict(study.claims["apart"], "paper")})
    results.keep(tmp_path, study, "quick", {"apart": {**record["apart"], "verdict": "fails"}})
    found = results.read(tmp_path, "arms")
    assert {scale: list(claims) for scale, claims in found.items()} == {
        "quick": ["apart", "normed"],
        "paper": ["apart"],
    }
    assert found["quick"]["normed"] == record["normed"]
    assert (found["quick"]["apart"]["verdict"], found["paper"]["apart"]["verdict"]) == ("fails", "holds")
    results.keep(tmp_path, study, "quick", {"apart": record["apart"]})
    assert results.read(tmp_path, "arms")["quick"]["apart"]["verdict"] == "holds"


def test_records_of_claims_that_are_gone_go(written, tmp_path):
    study = written()
    results.keep(tmp_path, study, "quick", {name: fabricate.verdict(claim) for name, claim in study.claims.items()})
    results.keep(tmp_path, study, "paper", {"apart": fabricate.verdict(study.claims["apart"], "paper")})
    later = written("[claims.normed]", "[claims.norms]", 'scales = ["quick", "paper"]', 'scales = ["quick"]')
    results.keep(tmp_path, later, "quick", {"moved": fabricate.verdict(later.claims["moved"])})
    assert {scale: list(one) for scale, one in results.read(tmp_path, "arms").items()} == {"quick": ["apart", "moved"]}


def test_a_folder_without_verdicts_has_none(tmp_path):
    assert results.read(tmp_path / "new", "arms") == {}


def damaged(text, cut=None, **changes):
    told = json.loads(text)
    told["scales"]["quick"]["apart"].update(changes)
    return json.dumps(told) if cut is None else text[:cut]


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda text: text[:-20], "cannot be read as a JSON object"),
        (lambda text: "", "cannot be read as a JSON object"),
        (lambda text: "[" * 100_000, "cannot be read as a JSON object"),
        (lambda text: damaged(text, values=[]), "is damaged at 'scales.quick.apart.values'"),
        (lambda text: damaged(text, values=["0.5"]), "is damaged at 'scales.quick.apart.values[0]'"),
        (lambda text: damaged(text, verdict=None), "is damaged at 'scales.quick.apart.verdict'"),
        (lambda text: damaged(text, mean=float("nan")), "is damaged at 'scales.quick.apart.mean'"),
        (lambda text: damaged(text, at_init={"mean": 1}), "is damaged at 'scales.quick.apart.at_init'"),
        (lambda text: text.replace('"low"', '"lo"', 1), "is damaged at 'scales.quick.apart.low'"),
    ],
)
def test_a_damaged_file_is_refused_and_left_as_it_is(damage, told, written, tmp_path):
    study = written()
    results.keep(tmp_path, study, "quick", {"apart": fabricate.verdict(study.claims["apart"])})
    path = tmp_path / "claims.json"
    text = damage(path.read_text())
    path.write_text(text)
    expected = f"workdir: {str(path)!r} {told}; allowed: the file as it was written, or none."
    kept = {"apart": fabricate.verdict(study.claims["apart"])}
    for refused in (lambda: results.read(tmp_path, "arms"), lambda: results.keep(tmp_path, study, "quick", kept)):
        with pytest.raises(ConfigError) as error:
            refused()
        assert str(error.value) == expected
    with pytest.raises(ConfigError, match=r"claims\.json"):
        entry.main(["--name", "arms", "--workdir", str(tmp_path)])
    assert path.read_text() == text


def test_the_folder_of_another_study_is_refused_and_keeps_its_verdicts(written, tmp_path):
    study = written()
    results.keep(tmp_path, study, "quick", {"apart": fabricate.verdict(study.claims["apart"])})
    path = tmp_path / "claims.json"
    path.write_text(text := path.read_text().replace('"arms"', '"legs"'))
    told = f"--workdir: '{tmp_path}' is of the study 'legs', this one is 'arms'"
    with pytest.raises(ConfigError) as error:
        entry.main(["--name", "arms", "--workdir", str(tmp_path)])
    assert str(error.value) == f"{told}; allowed: a new folder or that of the study."
    with pytest.raises(ConfigError, match=r"is of the study 'legs', this one is 'arms'"):
        results.keep(tmp_path, study, "quick", {})
    assert path.read_text() == text


@pytest.mark.parametrize(
    ("old", "new", "changed"),
    [
        ("recalls more.", "recalls less.", "says"),
        ("- accuracy('masks/causal')", "- 2 * accuracy('masks/causal')", "statistic"),
        ("holds = [0.2, inf]", "holds = [0.1, inf]", "holds"),
        ("holds = [0.2, inf]", "holds = [0.2, 9]", "holds"),
        ("'chance')", "'order_free')", "null"),
        ("> 0.9", "> 0.8", "solved"),
        ("holds = [0.2, inf]", "holds = [0.2, inf]\nreplicas = 6", "replicas"),
        ('why = "It does not."', "", None),
        ('why = "It does not."', 'note = "Nor does a rock."', None),
        ('theirs = "+0.4"', 'theirs = "+0.5"', None),
        ("configs/arms.py", "configs/legs.py", "parts"),
        ('"train.steps" = 600', '"train.steps" = 700', "parts"),
        ('"train.steps" = 900', '"train.steps" = 901', None),  # of the other scale
        ('"seed" = 7', '"seed" = 8', None),  # of a part that it does not read
        ("--analyses token_norms", "--analyses 'token_norms, rollout'", None),  # it reads no analysis
        ("minutes = 2", "minutes = 3", None),
    ],
)
def test_a_verdict_is_outdated_once_its_rule_was_changed(old, new, changed, written, tmp_path):
    study = written()
    results.keep(tmp_path, study, "quick", {"apart": fabricate.verdict(study.claims["apart"])})
    record = results.read(tmp_path, "arms")["quick"]["apart"]
    assert results.outdated(study.claims["apart"], record, "quick") is None
    assert results.outdated(written(old, new).claims["apart"], record, "quick") == changed


@pytest.mark.parametrize(
    ("claim", "old", "new"),
    [
        ("normed", "--analyses token_norms", "--analyses token_norms --items 64"),
        ("moved", "--items 8 --interventions shift", "--items 9 --interventions shift"),
    ],
)
def test_a_verdict_is_outdated_once_it_would_be_measured_otherwise(claim, old, new, written):
    study = written()
    record = fabricate.verdict(study.claims[claim])
    assert results.outdated(study.claims[claim], record, "quick") is None
    assert results.outdated(written(old, new).claims[claim], record, "quick") == "flags"
    assert results.current(written(old, new).claims[claim], {"quick": {claim: record}}, "quick") is None
    assert results.current(study.claims[claim], {"quick": {claim: record}}, "quick") == record
