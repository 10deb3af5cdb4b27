"""The spec grammar and the registry."""

import dataclasses
from typing import Any, Literal

import pytest

from positionbias import aliases, errors, spec
from positionbias.masks.base import Mask
from positionbias.spec import Call, Combine, ConfigError


def refused(call, *arguments) -> str:
    with pytest.raises(ConfigError) as caught:
        call(*arguments)
    return str(caught.value)


# --------------------------------------------------------------------------------------------------------- grammar


@pytest.mark.parametrize(
    ("text", "node"),
    [
        ("causal", Call("causal")),
        (" causal() ", Call("causal")),
        ("f(3, 'x', a=-1.5, b=None)", Call("f", (3, "x"), (("a", -1.5), ("b", None)))),
        ("f(a=[1, (2, 3)])", Call("f", (), (("a", [1, (2, 3)]),))),
        ("f(g(x=1), h)", Call("f", (Call("g", (), (("x", 1),)), Call("h")))),
        ("a & b | ~c", Combine("|", Combine("&", Call("a"), Call("b")), Combine("~", Call("c")))),
    ],
)
def test_parse(text, node):
    assert spec.parse(text, "x") == node


@pytest.mark.parametrize(
    "text",
    ["a", "f(3, a='x')", "a & (b | ~c)", "~(a & b)", "f(g & h, a=[1, 2])", "(a & b) & c"],
)
def test_the_text_of_a_node_parses_to_the_node(text):
    node = spec.parse(text, "x")
    assert spec.parse(spec.str_node(node), "x") == node


OF_ARGUMENT = "allowed: a number, text, True, False, None, a list or a spec."


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "x: '' is not a spec; write name or name(argument=value, ...)."),
        (None, "x: None is not a spec; write name or name(argument=value, ...)."),
        ("f(", "x: cannot read 'f(', where '(' has no other half; write name or name(argument=value, ...)."),
        (
            "[a, f(2)",
            "x: cannot read '[a, f(2)', where '[' has no other half; write name or name(argument=value, ...).",
        ),
        ("f)", "x: cannot read 'f)', where ')' has no other half; write name or name(argument=value, ...)."),
        ("a; b", "x: cannot read 'a; b'; write name or name(argument=value, ...)."),
        ("a.b", "x: 'a.b' is not a spec; write name or name(argument=value, ...)."),
        ("a.b()", "x: 'a.b()' is not a spec; write name or name(argument=value, ...)."),
        ("3", "x: '3' is not a spec; write name or name(argument=value, ...)."),
        ("a + b", "x: 'a + b' is not a spec; write name or name(argument=value, ...)."),
        ("f(1 + 1)", f"x: '1 + 1' in 'f(1 + 1)' is not allowed; {OF_ARGUMENT}"),
        ("f(a=[b])", f"x: '[b]' in 'f(a=[b])' is not allowed; {OF_ARGUMENT}"),
        ("f(~a | 2**3)", "x: '2 ** 3' in 'f(~a | 2**3)' is not a spec; write name or name(argument=value, ...)."),
        ("f(**a)", "x: '**' is not allowed in 'f(**a)'; write each argument as name=value."),
        ("f(a=1, a=2)", "x: argument 'a' is given twice in 'f(a=1, a=2)'."),
        ("not a", "x: 'not a' is not a spec; masks combine with &, | and ~."),
        (" a and b(8) ", "x: 'a and b(8)' is not a spec; masks combine with &, | and ~."),
        ("a & (b or c)", "x: 'b or c' in 'a & (b or c)' is not a spec; masks combine with &, | and ~."),
    ],
)
def test_what_is_no_spec(text, sentence):
    assert refused(spec.parse, text, "x") == sentence


def test_nothing_is_evaluated(tmp_path):
    marker = tmp_path / "ran"
    for text in (f"open({str(marker)!r}, 'w')", f"f(open({str(marker)!r}, 'w'))"):
        with pytest.raises(ConfigError):
            spec.build("masks", text, "x")
    refused(spec.parse, f"(lambda: open({str(marker)!r}, 'w'))()", "x")
    assert not marker.exists()


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("a", "aaaa"),
        ("[a, b] * 2", "abab"),
        ("2 * [a, b]", "abab"),
        ("[a] + [b] * 2 + [c]", "abbc"),
        ("([a] + [b]) * 2", "abab"),
    ],
)
def test_layer_patterns(text, names):
    assert [node.name for node in spec.parse_layers(text, 4, "x")] == list(names)
    assert spec.is_pattern(text, "x") == (text != "a")


def test_several_specs_are_parted_by_commas():
    assert [spec.str_node(node) for node in spec.parse_several("a(1, b), c", "x")] == ["a(1, b)", "c"]
    assert [spec.str_node(node) for node in spec.parse_several(" a ", "x")] == ["a"]
    for text in ("", " ", "a,", ",", "]+[a", "[a, b]", "(a, b)"):
        assert refused(spec.parse_several, text, "x").startswith("x: ")
    assert refused(spec.parse_several, "a b", "x").startswith("x: cannot read 'a b'; "), "as it was given"


def test_an_element_of_a_pattern_may_be_an_expression():
    first, second = spec.parse_layers("[a & b, ~c]", 2, "x")
    assert (spec.str_node(first), spec.str_node(second)) == ("a & b", "~c")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[a, b]", "x: the pattern '[a, b]' has 2 entries, allowed: 4, one a layer."),
        ("[a]", "x: the pattern '[a]' has 1 entry, allowed: 4, one a layer."),
        ("[a] * 0", "x: a list in '[a] * 0' may be repeated by a whole number from 1 to 1000 only."),
        ("[a] * True", "x: a list in '[a] * True' may be repeated by a whole number from 1 to 1000 only."),
        ("[a] * 9999", "x: a list in '[a] * 9999' may be repeated by a whole number from 1 to 1000 only."),
        ("[a] * [b]", "x: a list in '[a] * [b]' may be repeated by a whole number from 1 to 1000 only."),
        ("a * 4", "x: '*' and '+' in 'a * 4' work on lists only, as in '[a, b] * 2'."),
        ("[[a]] * 4", "x: '[a]' in '[[a]] * 4' is not a spec; write name or name(argument=value, ...)."),
    ],
)
def test_wrong_layer_patterns(text, sentence):
    assert refused(spec.parse_layers, text, 4, "x") == sentence


# -------------------------------------------------------------------------------------------------------- registry


def test_every_axis_finds_its_members():
    assert {"masks", "positions", "operators", "tasks", "objectives"} <= set(spec.axes())
    assert {"causal", "bidirectional"} <= set(spec.names("masks"))
    assert spec.names("no_such_axis") == []


@pytest.mark.parametrize("axis", spec.axes())
def test_members_are_frozen_dataclasses_that_know_their_name(axis):
    for name in spec.names(axis):
        cls = spec.load_member(axis, name, "x")
        assert (cls.axis, cls.spec_name) == (axis, name)
        assert dataclasses.is_dataclass(cls)
        assert cls.__dataclass_params__.frozen
        assert f'@member("{axis}", "{name}")' in spec.source(axis, name).read_text(encoding="utf-8")


def test_a_built_mask_has_one_canonical_text():
    built = spec.build("masks", "(causal()) & ~sliding_window(4)", "x")
    assert isinstance(built, Mask)
    text = spec.canonical(built)
    assert text == "causal & ~sliding_window(width=4)"
    assert spec.build("masks", text, "x") == built


def test_canonical_text_leaves_defaults_out():
    assert spec.canonical(spec.build("positions", "rope(10000)", "x")) == "rope"
    assert spec.canonical(spec.build("positions", "sinusoidal(scale=2)", "x")) == "sinusoidal(scale=2.0)"


@pytest.mark.parametrize(
    ("axis", "text", "whole"),
    [
        ("masks", "causal()", "causal"),
        ("masks", "causal & ~(prefix(2) | segments)", "causal & ~(prefix(length=2) | segments)"),
        ("positions", "decay", "decay(gamma=0.8)"),
        ("positions", "decay(1)", "decay(gamma=1.0)"),
        ("positions", "learned", "learned(length=None)"),
        ("tasks", "inverse_permutation(alphabet=4)", "inverse_permutation(n=8, alphabet=4, scratch=False)"),
        (
            "architectures",
            "encoder_decoder(cross_mask=causal & prefix(1))",
            "encoder_decoder(encoder_mask=bidirectional, cross_mask=causal & prefix(length=1), encoder_layers=None)",
        ),
    ],
)
def test_full_text_leaves_nothing_out(axis, text, whole):
    built = spec.build(axis, text, "x")
    assert spec.full(built) == whole
    assert spec.build(axis, whole, "x") == built


@pytest.mark.parametrize("axis", spec.axes())
def test_full_text_is_the_same_whether_a_default_was_given_or_not(axis):
    for name in spec.names(axis):
        fields = spec.arguments(spec.load_member(axis, name, "x")).values()
        if any(field.default is dataclasses.MISSING for field in fields):
            continue
        whole = spec.full(spec.build(axis, name, "x"))
        assert spec.full(spec.build(axis, whole, "x")) == whole


@pytest.mark.parametrize(
    ("axis", "text", "sentence"),
    [
        ("masks", "casual", "x: unknown mask 'casual', did you mean 'causal'?"),
        ("masks", "sliding_window", "x: sliding_window needs the argument 'width'; allowed: width."),
        ("masks", "sliding_window(widht=3)", "x: unknown argument of sliding_window 'widht', did you mean 'width'?"),
        ("masks", "sliding_window(1, 2)", "x: sliding_window takes at most 1 arguments, got 2; allowed: width."),
        ("masks", "sliding_window(1, width=2)", "x: argument 'width' of sliding_window is given twice."),
        ("masks", "sliding_window('w')", "x.width: 'w' is not allowed; allowed: a whole number."),
        ("masks", "sliding_window(0)", "x: width = 0 is not allowed; allowed: a whole number from 1."),
        ("masks", "causal(1)", "x: causal takes at most 0 arguments, got 1; allowed: none."),
        ("positions", "rope & none", "x: '&' combines masks only; allowed here: one name of positions."),
        ("positions", "rope(base=1e999)", "x.base: inf is not allowed; allowed: a number."),
        ("positions", "rope(base=causal)", "x.base: causal is not allowed; allowed: a number."),
        ("positions", "learned(99999999999)", "x.length: 99999999999 is not allowed; allowed: whole numbers up to "),
        ("masks", "causal & prefix(length=casual)", "x.length: casual is not allowed; allowed: a whole number."),
    ],
)
def test_what_cannot_be_built(axis, text, sentence):
    assert refused(spec.build, axis, text, "x").startswith(sentence)


def test_text_without_quotes_is_told():
    with pytest.raises(ConfigError) as error:
        spec.build("masks", "frame_causal(group=segment)", "mask")
    assert str(error.value) == (
        "mask.group: segment is not allowed without quotes, did you mean 'segment'; allowed: 'frame' or 'segment'."
    )
    with pytest.raises(ConfigError) as error:
        spec.build("operators", "softmax(impl=cudnn)", "operator")
    assert str(error.value) == (
        "operator.impl: cudnn is not allowed without quotes, did you mean 'cudnn'; allowed: text or None."
    )


def test_a_spec_in_quotes_is_told():
    allowed = "allowed: one of the masks."
    for text, hint in (("causal", " in quotes, did you mean causal without"), ("cusal", "")):
        told = refused(spec.build, "architectures", f"encoder_decoder(encoder_mask='{text}')", "model.architecture")
        assert told == f"model.architecture.encoder_mask: '{text}' is not allowed{hint}; {allowed}"


@pytest.mark.parametrize(
    ("axis", "name", "meant"),
    [
        ("operators", "gla", "gated_linear_attention"),
        ("operators", "GLA", "gated_linear_attention"),
        ("operators", "lavo", "orthogonal_memory"),
        ("operators", "gsa", "gated_slot"),
        ("operators", "gdn", "gated_delta"),
        ("operators", "jrt-rnn", "prefix_linear_attention"),
        ("operators", "linear", "linear_attention"),
        ("masks", "swa", "sliding_window"),
        ("positions", "nope", "none"),
    ],
)
def test_a_member_is_told_by_what_else_it_is_called(axis, name, meant):
    told = f"x: unknown {spec.one_of(axis)} {name!r}, did you mean {meant!r}?"
    assert refused(spec.load_member, axis, name, "x") == told


@pytest.mark.parametrize("axis", spec.axes())
def test_no_two_members_are_called_alike(axis):
    """And what a class says is what its source is read to say."""
    told = aliases.known_as(axis, {name: spec.source(axis, name) for name in spec.names(axis)})
    classes = {name: spec.load_member(axis, name, "x") for name in spec.names(axis)}
    assert told == {other: name for name, cls in classes.items() for other in vars(cls).get("known_as", ())}


def test_a_name_that_two_members_are_called_by_is_a_mistake_of_ours(tmp_path):
    path = tmp_path / "two.py"
    one = '\n@member("things", "{}")\nclass One:\n    """One."""\n\n    known_as = ("it",)\n'
    path.write_text(one.format("a") + one.format("b"))
    with pytest.raises(RuntimeError, match="'it' is what b is known as"):
        aliases.known_as("things", {"a": path, "b": path})


def test_long_bits_are_cut_in_a_sentence():
    told = str(errors.ConfigError(f"matrix='24x24:{'ff' * 72}' is not allowed; did you mean {'a' * 40}?"))
    assert told == f"matrix='24x24:{'f' * 16}...' is not allowed; did you mean {'a' * 40}?"


def test_a_combination_is_refused_by_its_field():
    with pytest.raises(ConfigError, match=r"^model\.mask: share = 0\.1 of one switch"):
        spec.build("masks", "switch(causal, causal, 0.1) & switch(causal, causal)", "model.mask")


def test_all_names_are_told_where_they_are_few_or_none_is_near():
    few, many = [f"name{n}" for n in range(errors.FEW)], [f"name{n}" for n in range(errors.FEW + 1)]
    assert str(spec.unknown("x", "one", "nam0", few)).endswith(
        f", did you mean 'name0'? allowed: {', '.join(sorted(few))}."
    )
    assert str(spec.unknown("x", "one", "nam0", many)) == "x: unknown one 'nam0', did you mean 'name0'?"
    assert str(spec.unknown("x", "one", "qq", many)) == f"x: unknown one 'qq'; allowed: {', '.join(sorted(many))}."
    assert refused(spec.build, "tasks", "reversl", "task") == "task: unknown task 'reversl', did you mean 'reversal'?"


# ----------------------------------------------------------------------------------------------------------- types


@pytest.mark.parametrize(
    ("value", "annotation", "result"),
    [
        (3, int, 3),
        (3, float, 3.0),
        (None, int | None, None),
        ("auto", int | Literal["auto"], "auto"),
        ([1, 2], tuple[float, ...], (1.0, 2.0)),
        ([[1, 2], (3,)], tuple[tuple[int, ...], ...], ((1, 2), (3,))),
        ("text", str, "text"),
        (object, Any, object),
        (Call("causal"), Mask, spec.build("masks", "causal", "x")),
    ],
)
def test_types_taken(value, annotation, result):
    found = spec.check_type(value, annotation, "x")
    assert found == result
    assert type(found) is type(result)


@pytest.mark.parametrize(
    ("value", "annotation", "allowed"),
    [
        (True, int, "a whole number"),
        (1.0, int, "a whole number"),
        (1, bool, "True or False"),
        (True, float, "a number"),
        (float("nan"), float, "a number"),
        (float("-inf"), float | None, "a number or None"),
        (10**400, float, "a number"),
        ("3", int | None, "a whole number or None"),
        (1, Literal["a", "b"], "'a' or 'b'"),
        (True, Literal[1], "1"),
        ("ab", tuple[str, ...], "a list of text"),
        ([4, 16], tuple[tuple[int, ...], ...], "a list of lists of whole numbers"),
        ("casual", Mask, "one of the masks"),
    ],
)
def test_types_refused(value, annotation, allowed):
    message = refused(spec.check_type, value, annotation, "x")
    assert message.startswith("x: ")
    assert message.endswith(f" is not allowed; allowed: {allowed}.")


def test_values_are_shown_on_one_short_line():
    assert spec.show("a\nb") == r"'a\nb'"
    assert spec.show([1] * 1000) == f"[{'1, ' * 25}1..."
    assert spec.show(10**9000) == "a whole number too long to print"


def test_require():
    spec.require(True, "n", 3, "anything")
    assert refused(spec.require, False, "n", 3, "more") == "n = 3 is not allowed; allowed: more."


@pytest.mark.parametrize("text", ["~" * 3000 + "causal", "(" * 3000 + "causal" + ")" * 3000, "[" * 101])
def test_endless_nesting_is_refused(text):
    with pytest.raises(ConfigError, match="is nested too deeply"):
        spec.parse(text, "model.mask")


def test_a_value_that_cannot_be_printed_still_has_a_sentence():
    class Broken:
        def __repr__(self):
            raise RuntimeError

    assert spec.show(Broken()) == "a Broken"
    assert spec.show([Broken()]) == "a list"
    assert spec.show(10**10_000) == "a whole number too long to print"
    with pytest.raises(ConfigError, match=r"^seed: a Broken is not allowed; allowed: a whole number\.$"):
        spec.check_type(Broken(), int, "seed")
