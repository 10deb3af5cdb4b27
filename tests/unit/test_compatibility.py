"""The tables of BUILD.md: every member in a line, every pair as build has it."""

import importlib.util

import pytest

from positionbias import compatibility, spec
from positionbias.config.build import build
from positionbias.config.cli import apply_overrides
from positionbias.config.resolve import resolve


def script(root):
    module = importlib.util.spec_from_file_location("members", root / "scripts" / "members.py")
    made = importlib.util.module_from_spec(module)
    module.loader.exec_module(made)
    return made


def test_the_tables_are_fresh(root):
    """If this fails, run `python scripts/members.py` and look at what changed."""
    text = (root / "BUILD.md").read_text(encoding="utf-8")
    members = script(root)
    assert text.count(members.BEGIN) == text.count(members.END) == 1
    assert members.written(text) == text


def test_the_tables_are_written_between_their_marks(root, monkeypatch):
    members = script(root)
    monkeypatch.setattr(members, "page", lambda: "new")
    found = members.written(f"before\n{members.BEGIN}\nold\n{members.END}\nafter\n")
    assert found == f"before\n{members.BEGIN}\n\nnew\n\n{members.END}\nafter\n"


def test_every_member_stands_in_a_table(root):
    text = (root / "BUILD.md").read_text(encoding="utf-8")
    for axis in compatibility.AXES:
        for name in spec.names(axis):
            assert f"| `{name}` | " in text, f"{axis}: {name}"


@pytest.mark.parametrize(
    ("rows", "row", "columns", "column", "told"),
    [
        ("masks", "causal", "objectives", "next_token", None),
        (
            "masks",
            "bidirectional",
            "objectives",
            "next_token",
            "model.mask: ... lets row n depend on input n, which can hold the target of that row; allowed: a mask under"
            " which no path leads there, such as 'causal'.",
        ),
        ("masks", "bidirectional", "objectives", "masked_diffusion", None),
        (
            "masks",
            "causal",
            "objectives",
            "bidirectional_causal",
            "model.mask: ... has one mode, but the objective ... reads batches in two; allowed: a mask"
            " that switches, such as 'switch(causal, bidirectional & ~masked_keys)'.",
        ),
        ("objectives", "random_order", "architectures", "two_stacks", None),
        ("masks", "bidirectional", "architectures", "encoder_decoder", None),
        ("masks", "by_rank", "architectures", "two_stacks", None),
        (
            "masks",
            "masked_keys",
            "architectures",
            "encoder_decoder",
            "objective: ... trains rows of the context, for which model.architecture = ... gives no outputs; allowed:"
            " decoder_only.",
        ),
        (
            "masks",
            "by_rank",
            "objectives",
            "next_token",
            "model.mask: ... reads 'rank' of the tokens, which the objective ... does not tell; allowed: objectives"
            " that do (random_order), or another mask.",
        ),
    ],
)
def test_pairs_are_as_build_has_them(rows, row, columns, column, told):
    assert compatibility.refusal(rows, row, columns, column) == told


def test_a_matrix_without_refusals_is_one_line():
    assert compatibility.matrix_table("positions", "operators") == (
        f"Every one of the {len(spec.names('positions'))} positions is built with every one of the"
        f" {len(spec.names('operators'))} operators."
    )


@pytest.mark.parametrize("axis", compatibility.AXES)
def test_arguments_are_those_of_members(axis):
    """Every member is built from its text in the tables, so that a pair is refused for what it is."""
    for name in spec.names(axis):
        spec.build(axis, compatibility.example(axis, name), axis)


def test_a_member_is_refused_for_the_pair_and_not_for_the_base():
    assert build(resolve(apply_overrides(compatibility.BASE, {}))).task.spec_name == "reversal"
