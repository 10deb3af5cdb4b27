"""The tables of BUILD.md: every member in a line, every pair as build has it."""

import importlib.util
import runpy
import shutil
import types

import jax
import numpy as np
import pytest

from positionbias import compatibility, costs, spec
from positionbias.config.build import build
from positionbias.config.cli import apply_overrides
from positionbias.config.resolve import resolve
from positionbias.tokens import sequential

OPERATORS = spec.names("operators")


def script(root):
    module = importlib.util.spec_from_file_location("members", root / "scripts" / "members.py")
    made = importlib.util.module_from_spec(module)
    module.loader.exec_module(made)
    return made


@pytest.mark.parametrize("title", compatibility.sections())
def test_the_tables_are_fresh(title, root):
    """If this fails, run `python scripts/members.py` and look at what changed."""
    text = (root / "BUILD.md").read_text(encoding="utf-8")
    assert f"\n### {title}\n\n{compatibility.sections()[title]()}\n\n" in text


def test_the_page_is_all_tables_and_nothing_else(root, monkeypatch):
    text = (root / "BUILD.md").read_text(encoding="utf-8")
    members = script(root)
    assert text.count(members.BEGIN) == text.count(members.END) == 1
    kept = text.partition(members.BEGIN)[2].partition(members.END)[0]
    parts = dict(part.split("\n\n", 1) for part in kept.strip().removeprefix("### ").split("\n\n### "))
    monkeypatch.setattr(compatibility, "sections", lambda: {title: lambda x=x: x for title, x in parts.items()})
    assert members.written(text) == text
    monkeypatch.undo()
    assert list(parts) == list(compatibility.sections())


def test_the_tables_are_written_between_their_marks(root, monkeypatch):
    members = script(root)
    monkeypatch.setattr(members, "page", lambda: "new")
    found = members.written(f"before\n{members.BEGIN}\nold\n{members.END}\nafter\n")
    assert found == f"before\n{members.BEGIN}\n\nnew\n\n{members.END}\nafter\n"


def test_the_script_writes_build_md(root, monkeypatch, tmp_path):
    monkeypatch.setattr(compatibility, "page", lambda: "new")
    (tmp_path / "scripts").mkdir()
    shutil.copy(root / "scripts" / "members.py", tmp_path / "scripts")
    begin, end = "before\n<!-- members: begin -->\n\n", "\n\n<!-- members: end -->\nafter — all\n"
    (tmp_path / "BUILD.md").write_text(f"{begin}old{end}", encoding="utf-8")
    runpy.run_path(str(tmp_path / "scripts" / "members.py"), run_name="__main__")
    assert (tmp_path / "BUILD.md").read_text(encoding="utf-8") == f"{begin}new{end}"


@pytest.fixture
def pairs(monkeypatch):
    """`pairs(told)` has two axes, a b and x y, whose pairs build refuses as told."""

    def have(told):
        monkeypatch.setattr(spec, "names", {"rows": ["a", "b"], "columns": ["x", "y"]}.get)
        said = {pair: compatibility.Told(*found) for pair, found in told.items()}
        nothing = compatibility.Told(None)
        monkeypatch.setattr(compatibility, "told", lambda rows, row, columns, column: said.get((row, column), nothing))

    return have


def test_a_note_stands_once_and_cells_name_its_number(pairs):
    pairs({("a", "y"): ["one."], ("b", "x"): ["two."], ("b", "y"): ["one."]})
    assert compatibility.matrix_table("rows", "columns").splitlines() == [
        "| | `x` | `y` |",
        "|---|---|---|",
        "| `a` | + | 1 |",
        "| `b` | 2 | 1 |",
        "",
        "1. one.",
        "2. two.",
    ]


def test_a_pair_that_is_built_under_another_mask_names_it(pairs):
    pairs({("a", "y"): ["one."], ("b", "x"): [None, "prefix(2)"], ("b", "y"): [None, "bidirectional"]})
    assert compatibility.matrix_table("rows", "columns").splitlines() == [
        "| | `x` | `y` |",
        "|---|---|---|",
        "| `a` | + | 1 |",
        "| `b` | +a | +b |",
        "",
        "1. one.",
        "",
        "Built +a under `prefix(2)`, +b under `bidirectional`, as not under `causal`.",
    ]


@pytest.mark.parametrize(
    ("operator", "axis", "other", "refused", "mask"),
    [
        ("softmax", "positions", "rope", False, None),
        ("reversed", "positions", "rope", False, "bidirectional"),
        ("varied_window", "architectures", "looped", False, "bidirectional"),
        ("prefix_linear_attention", "positions", "learned", False, "context_bidirectional"),
        ("varied_window", "positions", "rope", False, "bidirectional"),
        ("reversed", "architectures", "encoder_decoder", False, "bidirectional"),
        ("varied_window", "architectures", "encoder_decoder", True, None),
        ("reversed", "masks", "causal", True, None),
        ("reversed", "masks", "bidirectional", False, None),
    ],
)
def test_an_operator_is_built_under_a_mask_that_it_honours(operator, axis, other, refused, mask):
    why, under = compatibility.told("operators", operator, axis, other)
    assert (why is not None, under) == (refused, mask)
    assert why is None or ("cross attention" if axis == "architectures" else "causal self attention") in why


@pytest.mark.slow
@pytest.mark.parametrize("mask", spec.names("masks"))
def test_what_is_built_under_a_mask_is_traced_under_it(mask):
    length, built = 24, spec.build("masks", compatibility.example("masks", mask), "mask")
    ramp = np.arange(length, dtype=np.int32)
    fields = dict.fromkeys(("segment", "role", "frame", "scale", "depth", "hidden", "context"), ramp // 6)
    tokens, dims = sequential(length, **fields), costs.dims_of(length)
    for name, operator in ((n, spec.build("operators", compatibility.example("operators", n), "o")) for n in OPERATORS):
        if compatibility.told("operators", name, "masks", mask).refusal is None:
            shapes = jax.eval_shape(lambda one=operator: costs.drawn(one, dims))
            asked = lambda arrays, one=operator: costs.mixed(one, tokens, arrays, built.bind(tokens, tokens))  # noqa: E731
            wanted = (1, length, dims.width) if operator.reads == "stream" else (1, length, dims.heads, dims.head_size)
            assert jax.eval_shape(asked, shapes).shape == wanted, name


def test_a_line_of_a_table_is_not_cut_by_what_it_says(monkeypatch):
    one = types.SimpleNamespace(name="a", doc="x | y.")
    monkeypatch.setattr(compatibility, "families", lambda axis: {"": [one]})
    assert compatibility.members_table("masks") == "| mask | |\n|---|---|\n| `a` | x \\| y. |"


def test_families_head_their_members(monkeypatch):
    one = types.SimpleNamespace(name="a", doc="x.")
    monkeypatch.setattr(compatibility, "families", lambda axis: {"kin": [one], "others": [one]})
    assert compatibility.members_table("masks").splitlines()[2:] == [
        "| **kin** | |",
        "| `a` | x. |",
        "| **others** | |",
        "| `a` | x. |",
    ]


def test_like_refusals_are_told_alike():
    told = "model.mask: causal lets row 3 depend on input 12, rows 4 and later; allowed: causal or 2."
    found = compatibility._in_general(told, ("causal", "decoder_only"))
    assert found == "model.mask: ... lets row n depend on input n, rows n and later; allowed: causal or 2."
    assert compatibility._in_general("model.operator: no causal one.", ("causal",)) == "model.operator: no causal one."
    assert compatibility._in_general("model.architecture: looped answers", ("causal", "looped")).endswith(
        ": ... answers"
    )


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
        ("operators", "softmax", "masks", "by_rank", None),
        (
            "operators",
            "routing",
            "masks",
            "from_file",
            "model.operator: ... does not work as noncausal self attention, which layer 0 needs under model.mask = ...,"
            " as it is its causal form, and causal=False the other; allowed: model.mask = causal, model.operator ="
            " ...(causal=False), or an operator that does, such as softmax.",
        ),
        (
            "operators",
            "delta",
            "masks",
            "shared_prompt",
            "model.operator: ... lets position n influence position n in layer 0, which model.mask = ... forbids: what"
            " it carries is cleared only where no position from there on sees one before, and position n sees position"
            " n (segment 0 is in 2 pieces); allowed: a mask that contains what it mixes, or an operator that honours"
            " every mask, such as softmax.",
        ),
        ("objectives", "bidirectional_causal", "architectures", "two_stacks", None),
        ("masks", "by_rank", "objectives", "random_order", None),
        (
            "objectives",
            "squared_error",
            "architectures",
            "encoder_decoder",
            "model.architecture: ... answers at rows n and later, but the task asks at row n; allowed: decoder_only.",
        ),
    ],
)
def test_pairs_are_as_build_has_them(rows, row, columns, column, told):
    assert compatibility.refusal(rows, row, columns, column) == told


def test_a_matrix_without_refusals_is_one_line():
    assert compatibility.matrix_table("assignments", "positions") == (
        f"Every one of the {len(spec.names('assignments'))} assignments is built with every one of the"
        f" {len(spec.names('positions'))} positions."
    )


@pytest.mark.parametrize("axis", compatibility.AXES)
def test_arguments_are_those_of_members(axis):
    """Every member is built from its text in the tables, so that a pair is refused for what it is."""
    for name in spec.names(axis):
        spec.build(axis, compatibility.example(axis, name), axis)


def test_a_member_is_refused_for_the_pair_and_not_for_the_base():
    assert build(resolve(apply_overrides(compatibility.BASE, {}))).task.spec_name == "reversal"
