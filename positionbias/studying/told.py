"""Studies in text: the list that the terminal shows, and STUDIES.md, the table of every claim beside its paper's."""

from __future__ import annotations

import math
import re
import typing
from collections.abc import Mapping
from typing import Any

from positionbias.reporting.html import between
from positionbias.studying.definition import SCALES, Claim, Study
from positionbias.studying.judging import Verdict
from positionbias.studying.results import Records, current, outdated

NOT_RUN = "not run"
VERDICTS = (*typing.get_args(Verdict), NOT_RUN)
COLUMNS = ("claim", "theirs", "ours", "asked", "verdict", "untrained", "null", "where")
HEAD = """# Studies

Every claim of the literature that this project re-makes, ours beside the paper's. Definitions, with the rule of every
verdict, are `configs/NAME/study.toml`; values are `studies/NAME/claims.json`; this page is made of the two by
`python scripts/studies.py`, and one study is run again by `python -m positionbias.study --name NAME`.

*Ours* is the mean over replicas (independently seeded models) and Student's 95 % interval. A claim *holds* where the
whole interval lies in the range asked for, *fails* where none of it does, and is *undecided* else; undecided also with
too few replicas, and where some but not all of fewer than 8 solved the task. *Untrained* is the same number of the same
models before training; *null* is the control that the study names: chance, the other arm, or the same formula where
nothing should show. No replica is left out. *Where* has scale, device and the commit that trained the models.

Rules are fixed before a run. Where one was changed after it, or an undecided claim was asked anew of other replicas,
the text of the study or a note below its table says so; a claim that was looked at more than once has more than one
chance to hold or to fail, which an interval of 95 % does not count in. What a number does not say is told in notes too.
"""


def state(claim: Claim, records: Records, scale: str) -> str:
    """A claim's verdict at a scale, or that it was not run since its rule was written as it is."""
    record = current(claim, records, scale)
    return NOT_RUN if record is None else str(record["verdict"])


def counts(study: Study, records: Records, scale: str) -> str:
    """How many claims hold, fail and so on at a scale."""
    states = [state(claim, records, scale) for claim in study.at(scale)]
    return ", ".join(f"{states.count(one)} {one}" for one in VERDICTS if one in states)


def minutes(study: Study, scale: str) -> float | None:
    """What all parts of a scale are expected to take, None if that of one is not known."""
    known = [part.scales[scale].minutes for part in study.parts_at(scale)]
    return None if None in known else math.fsum(one for one in known if one is not None)


def listed(study: Study, records: Records, width: int) -> str:
    """A study and, a line a scale, its claims' verdicts and what it is expected to take; its name so wide."""
    lines = [f"{study.name:<{width}}  {study.title}"]
    for scale in SCALES:
        if study.at(scale):
            expected = minutes(study, scale)
            time = "time not known" if expected is None else f"{expected:g} min on 2 CPU cores"
            lines.append(f"{'':<{width}}    {scale}: {counts(study, records, scale)}; {time}")
    return "\n".join(lines)


def asked(claim: Claim) -> str:
    """The range that a claim asks for, in words."""
    low, high = (f"{end:g}".replace("-", "−") for end in claim.holds)
    if math.isinf(claim.holds[1]):
        return f"at least {low}"
    return f"at most {high}" if math.isinf(claim.holds[0]) else f"{low} to {high}"


def theirs(claim: Claim) -> str:
    """What the paper has, with the sign of minus that ours has."""
    return re.sub(r"-(?=\d)", "−", claim.theirs) or "–"


def measured(record: Mapping[str, Any] | None) -> str:
    """`mean [low, high]` and of how many replicas."""
    return "–" if record is None else f"{between(record)}, n = {len(record['values'])}"


def verdict(claim: Claim, records: Records, scale: str) -> str:
    """The verdict, with its reason and how many replicas learned the task where these say more."""
    record = records.get(scale, {}).get(claim.name)
    if record is None:
        return NOT_RUN
    if changed := outdated(claim, record, scale):
        return f"{NOT_RUN} since its {changed!r} was changed"
    flags = record["solved_by"]
    solved = "" if all(flags) else f"{sum(map(bool, flags))} of {len(flags)} solved it"
    more = "; ".join(part for part in (record["reason"], solved) if part)
    return f"{record['verdict']} ({more})" if more else str(record["verdict"])


def remarks(claim: Claim, records: Records, scale: str) -> str:
    """What is believed of a claim that does not hold, and the note that any claim may have; '' for nothing."""
    why = claim.why if state(claim, records, scale) in ("fails", "undecided") else ""
    return " ".join(text for text in (why, claim.note) if text)


def controls(record: Mapping[str, Any] | None) -> list[str]:
    """The number at initialisation and the null, `–` where there is none."""
    return ["–" if record is None or record[key] is None else between(record[key]) for key in ("at_init", "null_value")]


def where(record: Mapping[str, Any] | None, scale: str) -> str:
    """Scale, device and commit of a record."""
    if record is None:
        return scale
    kinds = sorted({device.split(",")[0].split(": ")[-1] for device in record["device"]})
    return f"{scale}; {' and '.join(kinds) or 'device not known'}; {', '.join(record['commit']) or 'no commit'}"


def page(studies: Mapping[str, tuple[Study, Records]]) -> str:
    """STUDIES.md."""
    lines = [HEAD]
    for name, (study, records) in studies.items():
        lines += [f"## `{name}`: {study.title}", "", study.about, ""]
        lines += [f"- {key}: {paper}" for key, paper in study.papers.items()]
        lines += ["", _row(*COLUMNS), _row(*["---"] * len(COLUMNS))]
        remarked = []
        for claim in study.claims.values():
            for scale in claim.scales:
                record = current(claim, records, scale)
                if scale == "paper" and "quick" in claim.scales and not records.get("paper"):
                    continue  # told below, once for all
                lines.append(
                    _row(
                        f"**{claim.name}**: {claim.says} ({claim.paper}, {claim.source})",
                        theirs(claim),
                        measured(record),
                        asked(claim),
                        verdict(claim, records, scale),
                        *controls(record),
                        where(record, scale),
                    )
                )
                if said := remarks(claim, records, scale):
                    remarked.append(f"- *{claim.name}*: {said}")
        lines += ["", *dict.fromkeys(remarked), *([""] if remarked else [])]
        if study.at("paper") and not records.get("paper"):
            count = len(study.at("paper"))
            waits = "claims wait" if count > 1 else "claim waits"
            lines += [f"At the paper's own scale {count} {waits} for a GPU or TPU, quick ones among them.", ""]
    return "\n".join(lines).rstrip() + "\n"


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
