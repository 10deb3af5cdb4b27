"""`python -m positionbias.list`: what it prints agrees with the registry and fits a terminal."""

import inspect

import pytest

from positionbias import facts, spec
from positionbias import list as listing
from positionbias.spec import ConfigError


@pytest.mark.parametrize("axis", spec.axes())
def test_what_is_read_from_the_source_is_what_is_registered(axis):
    assert [entry.name for entry in listing.entries(axis)] == spec.names(axis)
    for entry in listing.entries(axis):
        cls = spec.load_member(axis, entry.name, "x")
        assert [argument.partition(":")[0] for argument in entry.arguments] == list(spec.arguments(cls))
        assert entry.doc
        assert entry.doc == inspect.getdoc(cls).partition("\n")[0]
        assert entry.family == getattr(cls, "family", "")


@pytest.mark.parametrize("axis", spec.axes())
def test_a_table_fits_100_columns_and_names_everything(axis):
    lines = listing.table(axis).splitlines()
    headings = [line for line in lines if line[:1].strip()]
    assert lines[0] == headings[0]
    assert all(line == axis or line.startswith(f"{axis}: ") for line in headings)
    assert max(map(len, lines)) <= 100
    starts = [line.strip().partition("(")[0].split()[0] for line in lines if line[:1] == " " and line[:3].strip()]
    assert sorted(starts) == spec.names(axis)


def test_operators_stand_under_their_families():
    found = {family: [entry.name for entry in some] for family, some in listing.families("operators").items()}
    assert list(found) == [
        "linear attention and recurrences",
        "softmax attention and variants",
        "sparse attention",
        "others",
    ]
    for family, some in zip(
        found,
        (
            ("based", "chunk_hybrid", "delta", "gated_delta", "hla2", "linear_attention", "mamba2", "titans"),
            ("even_softmax", "linear_scores", "relu_attention", "sigmoid_attention", "softmax"),
            ("combiner", "gated_stochastic", "hyper_attention", "neighborhood", "routing", "varied_window"),
            ("associative_memory", "attention_free", "fourier", "short_convolution"),
        ),
        strict=True,
    ):
        assert set(some) <= set(found[family])
        assert found[family] == sorted(found[family])
    blocks = listing.table("operators").split("\n\n")
    assert [block.partition("\n")[0] for block in blocks] == [f"operators: {family}" for family in found]
    assert "\n  softmax(" in blocks[1]


def test_an_axis_without_families_is_one_block():
    assert list(listing.families("tasks")) == [""]
    assert "\n\n" not in listing.table("tasks")


def test_signatures_and_docs_are_aligned(capsys):
    assert listing.main(["positions"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert "  learned_relative(farthest: int = 16)  A trained vector a relative position and head, added to keys" in out
    assert "  learned(length: int | None = None)    A trained table of one vector a position, added to the" in out


def test_long_signatures_are_cut_between_arguments():
    lines = listing.table("tasks").splitlines()
    cut = [line for line in lines[1:] if line[2] != " " and line.count("(") > line.count(")")]
    assert any(line.startswith("  associative_recall(pairs: int = 8, ") for line in cut)
    beside = [line for line in cut if "  " in line.strip()]  # the signature is whole, and its description cut
    assert all(line.endswith(",") for line in cut if line not in beside)


def test_of_one_member_all_is_printed(capsys):
    assert listing.main(["masks", "causal_cross"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("causal_cross(group: Literal['frame', 'segment'] = 'frame')\n\nQuery n of Q sees the frames")
    assert out.endswith("    1 1 1 1\n    1 1 1 1\n")
    with pytest.raises(ConfigError, match=r"^NAME: unknown mask 'causl', did you mean 'causal'\?$"):
        listing.main(["masks", "causl"])


def test_of_one_operator_what_it_declares_and_costs_is_printed(capsys):
    assert listing.main(["operators", "gated_linear_attention"]) == 0
    out = capsys.readouterr().out
    declared = out[out.index("\nin papers") + 1 :].splitlines()
    assert max(map(len, declared)) <= 100
    told = " ".join(" ".join(declared).split())
    assert "arXiv 2312.06635" in out
    assert told.startswith("in papers gla told of gated_linear_attention; other arguments may change what follows")
    assert " attention causal self; not noncausal self, as what it carries goes from each" in told
    assert "; not noncausal cross and causal cross, as what it carries goes from token to token of one" in told
    assert " masks aligned_cross, block_causal, causal, concentric, depth_causal, of tokens without frames" in told
    assert " positions dual_rope, learned, none, one_hot, rope, sinusoidal, xpos models decoder_only, looped" in told
    assert " generated with a state keeps" in told
    assert " keeps 1,024 numbers after 1024 tokens, 1,024 after 4096; of gated_linear_attention, 4 heads of 16" in told
    assert told.endswith(" products 20,352 a token of 1024, 20,352 of 4096, in all as T^1.00")


def test_of_an_operator_that_takes_everything_no_names_are_listed():
    told = facts.operator("softmax").splitlines()
    assert told[0] == "in papers  attention, sdpa"
    assert told[1:7] == [
        "told of    softmax; other arguments may change what follows",
        "attention  noncausal self, causal self, noncausal cross, causal cross",
        "masks      every one",
        "positions  every scheme",
        "models     every one",
        "generated  with keys and values kept",
    ]


def test_an_operator_is_told_by_what_else_it_is_called(capsys):
    assert listing.main(["operators", "gla"]) == 0
    assert capsys.readouterr().out.startswith("gated_linear_attention(")


def test_without_an_axis_all_are_printed(capsys):
    assert listing.main([]) == 0
    headings = [line for line in capsys.readouterr().out.splitlines() if line and line[0] != " "]
    assert list(dict.fromkeys(line.partition(":")[0] for line in headings)) == spec.axes()


def test_inherited_fields_come_first_and_a_family_is_inherited(tmp_path, monkeypatch):
    (tmp_path / "fake").mkdir()
    (tmp_path / "fake" / "base.py").write_text(
        "class Kind:\n    c: int = 0\n    family = 'kin'\n\n\n"
        "@dataclasses.dataclass(frozen=True)\nclass Base(Kind):\n    a: int\n    kind: ClassVar[str] = 'k'\n"
    )
    (tmp_path / "fake" / "one.py").write_text(
        "from fake.base import Base as Parent\n\n\n"
        '@member("things", "one")\n@dataclasses.dataclass(frozen=True)\nclass One(Parent):\n    """First."""\n\n'
        "    b: float = 2.0\n    a: int = 1\n"
    )
    monkeypatch.setattr(spec, "PACKAGE", tmp_path / "fake")
    spec._index.cache_clear()
    try:
        assert listing.entries("things") == [listing.Entry("one", ("a: int = 1", "b: float = 2.0"), "First.", "kin")]
    finally:
        spec._index.cache_clear()


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["mask"], "AXIS: unknown axis 'mask', did you mean 'masks'?"),
        (["masks", "causal", "tasks"], "command line: unexpected 'tasks'; allowed: -h, --help."),
        (["--axis=masks"], "command line: unknown flag '--axis'; allowed: -h, --help."),
    ],
)
def test_refusals(argv, sentence):
    with pytest.raises(ConfigError) as caught:
        listing.main(argv)
    assert str(caught.value).startswith(sentence)


def test_a_reader_that_has_seen_enough_is_no_error(root):
    import subprocess
    import sys

    command = f"{sys.executable} -m positionbias.list | head -1"
    done = subprocess.run(["bash", "-c", command], cwd=root, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("analyses\n", "")
