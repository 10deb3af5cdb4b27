"""STUDIES.md, the list in the terminal, and the report of a study."""

import re

import fabricate
import pytest

from positionbias import study as entry
from positionbias.studying import report, results, told


@pytest.fixture
def records(written):
    study = written()
    record = {name: fabricate.verdict(claim) for name, claim in study.claims.items()}
    record["normed"] |= {"verdict": "fails", "at_init": None, "commit": [], "device": []}
    more = {
        "verdict": "undecided",
        "reason": "1 of 8 replicas have no number",
        "solved_by": [True, None, False, True, False],
    }
    record["moved"] |= {**more, "null_value": {"mean": 0.0, "low": -0.1, "high": 0.1}}
    return {"quick": record}


HEAD = "| claim | theirs | ours | asked | verdict | untrained | null | where |"
OURS = "0.500 [0.400, 0.600], n = 5"


def test_the_page_tells_every_claim_beside_its_source(written, records):
    page = told.page({"arms": (written(), records)})
    assert page.startswith(told.HEAD)
    assert page.removeprefix(told.HEAD).splitlines() == [
        "",
        "## `arms`: Arms",
        "",
        "Two masks & a run.",
        "",
        "- ours2026: Ours 2026, Nowhere",
        "",
        HEAD,
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        f"| **apart**: A reader of all tokens recalls more. (ours2026, figure 1) | +0.4 | {OURS} | at least 0.2 | holds"
        " | 0.500 [0.400, 0.600] | – | quick; cpu; 0123456789ab |",
        f"| **normed**: Norms are small. (ours2026, table 2) | – | {OURS} | 0 to 1 | fails"
        " | – | – | quick; device not known; no commit |",
        f"| **moved**: Positions \\| matter. (ours2026, section 3) | – | {OURS} | at most 0.5"
        " | undecided (1 of 8 replicas have no number; 2 of 5 solved it)"
        " | 0.500 [0.400, 0.600] | 0.000 [−0.100, 0.100] | quick; cpu; 0123456789ab |",
        "",
        "At the paper's own scale 1 claim waits for a GPU or TPU, quick ones among them.",
    ]


def test_a_study_that_was_not_run_says_so(written):
    lines = told.page({"arms": (written(), {})}).splitlines()
    assert "| **normed**: Norms are small. (ours2026, table 2) | – | – | 0 to 1 | not run | – | – | quick |" in lines


def test_claims_that_wait_at_the_papers_scale_are_told_once_one_was_run(written, records):
    study = written('holds = [0, 1]\nscales = ["quick"]', 'holds = [0, 1]\nscales = ["quick", "paper"]')
    rows = told.page(
        {"arms": (study, {**records, "paper": {"apart": fabricate.verdict(study.claims["apart"], "paper")}})}
    ).splitlines()
    assert "| **normed**: Norms are small. (ours2026, table 2) | – | – | 0 to 1 | not run | – | – | paper |" in rows
    assert not any("wait for a GPU" in row for row in rows)


def test_why_a_claim_is_believed_to_fail_is_told_where_it_does(written, records):
    assert "It does not." not in told.page({"arms": (written(), records)})
    records["quick"]["apart"]["verdict"] = "fails"
    assert "\n- *apart*: It does not.\n" in told.page({"arms": (written(), records)})


def test_a_note_is_told_whatever_the_verdict(written, records):
    study = written('why = "It does not."', 'why = "It does not."\nnote = "Nor does a rock."')
    assert "\n- *apart*: Nor does a rock.\n" in told.page({"arms": (study, records)})
    records["quick"]["apart"]["verdict"] = "fails"
    assert "\n- *apart*: It does not. Nor does a rock.\n" in told.page({"arms": (study, records)})


def test_a_verdict_of_another_rule_is_none(written, records):
    study = written("holds = [0.2, inf]", "holds = [0.7, inf]")
    assert told.state(study.claims["apart"], records, "quick") == "not run"
    assert "| at least 0.7 | not run since its 'holds' was changed |" in told.page({"arms": (study, records)})
    assert told.counts(study, records, "quick") == "1 fails, 1 undecided, 1 not run"


def test_the_list_tells_verdicts_and_time(written, records, capsys, tmp_path):
    study = written()
    results.keep(tmp_path / "studies" / "arms", study, "quick", records["quick"])
    assert entry.main(["--list"]) == 0
    assert capsys.readouterr().out == (
        "arms  Arms\n"
        "        quick: 1 holds, 1 fails, 1 undecided; 3.5 min on 2 CPU cores\n"
        "        paper: 1 not run; time not known\n"
    )


def test_the_report_holds_itself_and_mentions_every_claim(written, records, tmp_path):
    study = written()
    page = report.write(tmp_path, study, records).read_text(encoding="utf-8")
    assert page.startswith("<!DOCTYPE html>")
    assert page.count("<svg") == 3
    for word in ("http://", "https://", "<script", "<link", "@import", "<img"):
        assert word not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", page), word
    assert set(re.findall(r'(?:url\(|href="|src=")(.)', page)) == {"#"}  # places in the page itself
    for claim in study.claims.values():
        assert f"<td>{claim.name}</td>" in page
        assert claim.statistic.text.replace("'", "&#x27;") in page
    assert "<h2>Quick scale: 1 holds, 1 fails, 1 undecided</h2>" in page
    assert "<h2>Paper scale: 1 not run</h2>" in page
    assert "Two masks &amp; a run." in page


def test_the_report_leads_to_the_runs_that_are_there(written, records, tmp_path):
    study = written()
    assert '<a href="' not in report.write(tmp_path, study, records).read_text()
    (tmp_path / "runs" / "quick" / "masks").mkdir(parents=True)
    (tmp_path / "runs" / "quick" / "masks" / "report.html").write_text("")
    text = report.write(tmp_path, study, records).read_text()
    assert re.findall('<a href="([^"]*)"', text) == ["runs/quick/masks/report.html"]


HOSTILE = "<script>alert(1)</script>&\"'</svg>$x_{$"


def test_hostile_text_stays_text(written, records, tmp_path):
    study = written(
        'title = "Arms"',
        f"title = '''{HOSTILE}'''",
        '"Two masks & a run."',
        f"'''{HOSTILE}'''",
        '"Ours 2026, Nowhere"',
        f"'''{HOSTILE}'''",
        '"A reader of all tokens recalls more."',
        f"'''{HOSTILE}'''",
        '"figure 1"',
        f"'''{HOSTILE}'''",
        '"+0.4"',
        f"'''{HOSTILE}'''",
    )
    records["quick"]["apart"] |= {"says": study.claims["apart"].says, "reason": HOSTILE, "commit": [HOSTILE]}
    page = report.write(tmp_path, study, records).read_text(encoding="utf-8")
    assert "<script" not in page
    assert page.count("</svg>") == page.count("<svg") == 3
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 7


@pytest.mark.parametrize(
    "changes",
    [
        {"mean": None, "low": None, "high": None, "values": [None, None], "at_init": None},
        {"low": None, "high": None, "values": [0.5]},
        {"mean": 1e200, "low": -1e200, "high": 1e200, "values": [1e200, -1e200]},
        {"mean": 0.5, "low": 0.5, "high": 0.5, "values": 5 * [0.5], "at_init": None},
    ],
)
def test_numbers_at_the_edge_are_drawn(changes, written, records, tmp_path):
    records["quick"]["apart"] |= changes
    assert report.write(tmp_path, written(), records).read_text().count("<svg") == 3


def test_a_verdict_of_another_rule_is_not_drawn(written, records, tmp_path):
    study = written("holds = [0.2, inf]", "holds = [0.7, inf]")
    page = report.write(tmp_path, study, records).read_text()
    assert page.count("<svg") == 2
    assert "not run since its &#x27;holds&#x27; was changed" in page
