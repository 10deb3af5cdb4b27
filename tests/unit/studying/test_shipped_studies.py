"""The studies that are shipped can run as they are, and what is told of them is what was measured."""

import pathlib

import pytest

from positionbias.study import check_flags, every
from positionbias.studying import definition, results, running, told

ROOT = pathlib.Path(__file__).parents[3]
NAMES = definition.names(ROOT)


def test_there_are_studies():
    assert "out_of_context" in NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_study_can_run_at_every_scale_it_has_claims_for(name, monkeypatch):
    monkeypatch.chdir(ROOT)  # configs are named from there
    study = definition.read(ROOT, name)
    check_flags(study)
    for scale in {scale for claim in study.claims.values() for scale in claim.scales}:
        running.check(study, scale)


@pytest.mark.parametrize("name", NAMES)
def test_verdicts_that_are_kept_are_those_of_the_rules_that_are_written(name):
    """If this fails, run `python -m positionbias.study --name NAME`, or put the rule back."""
    study = definition.read(ROOT, name)
    for scale, records in results.read(ROOT / "studies" / name, name).items():
        changed = {claim: results.outdated(study.claims[claim], record, scale) for claim, record in records.items()}
        assert changed == dict.fromkeys(changed), scale
        assert set(changed) <= {claim.name for claim in study.at(scale)}


@pytest.mark.parametrize("name", NAMES)
def test_a_claim_that_does_not_hold_says_why(name):
    study = definition.read(ROOT, name)
    for scale, records in results.read(ROOT / "studies" / name, name).items():
        silent = [one for one, record in records.items() if record["verdict"] != "holds" and not study.claims[one].why]
        assert not silent, scale


def test_verdicts_belong_to_studies():
    assert {path.parent.name for path in (ROOT / "studies").glob("*/claims.json")} <= set(NAMES)


def test_the_page_of_all_studies_is_fresh():
    """If this fails, run `python scripts/studies.py` and look at what changed."""
    assert (ROOT / "STUDIES.md").read_text(encoding="utf-8") == told.page(every(ROOT))
