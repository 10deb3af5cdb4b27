"""What a mask and a stack of it look like, and what the command refuses."""

import pytest

from positionbias.masks import show
from positionbias.spec import ConfigError


def shown(capsys, *arguments):
    assert show.main(list(arguments)) == 0
    return capsys.readouterr().out.splitlines()


def test_a_mask_and_what_two_layers_of_it_reach(capsys):
    assert shown(capsys, "causal & sliding_window(2)", "--length", "4", "--layers", "2") == [
        "causal & sliding_window(width=2)",
        "  0 1 . . .",
        "  1 1 1 . .",
        "  2 . 1 1 .",
        "  3 . . 1 1",
        "sees 7 of 16 pairs, up to 1 back and 0 ahead",
        "",
        "after 2 layers with a residual",
        "  0 1 . . .",
        "  1 1 1 . .",
        "  2 1 1 1 .",
        "  3 . 1 1 1",
        "reaches 9 of 16 pairs, up to 2 back and 0 ahead",
    ]


def test_a_list_has_a_layer_each_and_tells_each_mask_once(capsys):
    lines = shown(capsys, "[~causal, causal] + [~causal]", "--length", "2")
    assert lines[:3] == ["layers 1, 3: ~causal", "  0 . 1", "  1 . ."]
    assert lines[5] == "layer 2: causal"
    assert lines[-4:] == [
        "after 3 layers with a residual",
        "  0 1 1",
        "  1 1 1",
        "reaches 4 of 4 pairs, up to 1 back and 1 ahead",
    ]


def test_groups_are_given_token_by_token_and_settle_the_length(capsys):
    lines = shown(capsys, "modality_mutual(1, 2)", "--role", "1, 2,0")
    assert lines[1:4] == ["  0 1 1 .", "  1 1 1 .", "  2 1 1 1"]
    assert shown(capsys, "segments", "--segment", "0,1", "--length", "2")[1:3] == ["  0 1 .", "  1 . 1"]
    assert shown(capsys, "block_causal", "--frame", "1,1")[1:3] == ["  0 1 1", "  1 1 1"]
    assert shown(capsys, "scale_causal", "--scale", "1,0")[1:3] == ["  0 1 1", "  1 . 1"]
    assert shown(capsys, "depth_causal", "--depth", "1,0")[1:3] == ["  0 1 .", "  1 . 1"]
    assert shown(capsys, "switch(causal, ~causal)", "--mode", "1,0")[1:3] == ["  0 . 1", "  1 1 1"]
    assert shown(capsys, "masked_keys", "--hidden", "1,0")[1:3] == ["  0 1 .", "  1 1 ."]
    assert shown(capsys, "by_rank", "--rank", "1,0")[1:3] == ["  0 1 1", "  1 . 1"]
    assert len(shown(capsys, "causal")) == 2 * 18 + 1, "16 tokens unless told"


def test_a_group_that_is_the_same_for_all_is_said(capsys):
    assert shown(capsys, "causal & concentric")[-2:] == [
        "frame is 0 for all tokens; --frame tells others",
        "scale is 0 for all tokens; --scale tells others",
    ]
    assert shown(capsys, "[by_rank, ~masked_keys]", "--rank", "1,0")[-1] == (
        "hidden is 0 for all tokens; --hidden tells others"
    )
    assert shown(capsys, "causal & segments", "--segment", "0,1")[-1].startswith("reaches ")


def test_a_context_is_given_by_its_length(capsys):
    lines = shown(capsys, "context_bidirectional", "--length", "3", "--context", "2")
    assert lines[1:4] == ["  0 1 1 .", "  1 1 1 .", "  2 1 1 1"]
    assert shown(capsys, "context_bidirectional", "--length", "2", "--context", "0")[1:3] == ["  0 1 .", "  1 1 1"]


def test_a_long_text_is_cut_and_still_told_apart(capsys, tmp_path):
    for name, filled in (("a", "1" * 40), ("b", "0" * 40)):
        (tmp_path / f"{name}.txt").write_text("\n".join(["1" * 40] * 39 + [filled]))
    files = [f"from_file({str(tmp_path / name)!r})" for name in ("a.txt", "b.txt")]
    lines = shown(capsys, f"[{', '.join(files)}]", "--length", "40")
    assert max(map(len, lines)) == 120
    assert lines[0].startswith("layer 1: from_file(path='a.txt', matrix='40x40:ffff")
    assert lines[0].endswith("f...")
    assert lines[43].startswith("layer 2: from_file(path='b.txt', ")


def test_a_wide_matrix_stays_on_the_line(capsys):
    assert max(map(len, shown(capsys, "causal", "--length", "64"))) == 4 + 64


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["cusal"], "MASK: unknown mask 'cusal', did you mean 'causal'?"),
        (["causal", "--length", "0"], "--length: 0 is not allowed; allowed: a whole number from 1 to 64."),
        (["causal", "--length", "65"], "--length: 65 is not allowed; allowed: a whole number from 1 to 64."),
        (["causal", "--layers", "0"], "--layers: 0 is not allowed; allowed: a whole number from 1 to 1000."),
        (["[causal]", "--layers", "2"], "MASK: the pattern '[causal]' has 1 entry, allowed: 2, one a layer."),
        (["segments", "--segment", "0,-1"], "--segment: '0,-1' is not allowed; allowed: whole numbers from 0 with"),
        (["segments", "--segment", ""], "--segment: '' is not allowed"),
        (["segments", "--segment", "2147483648"], "--segment: '2147483648' is not allowed"),
        (["segments", "--segment", "0,1", "--length", "3"], "--segment: has 2 numbers; allowed: 3, one a token."),
        (["segments", "--role", "0", "--segment", "0,1"], "--role: has 1 numbers; allowed: 2, one a token."),
        (["causal", "--context", "17"], "--context: 17 is not allowed; allowed: a whole number from 0 to 16."),
        (["causal", "--context", "-1"], "--context: -1 is not allowed; allowed: a whole number from 0 to 16."),
        ([], "command line: mask is missing; write the spec of a mask, or a list with one a layer, as in python -m"),
    ],
)
def test_what_cannot_be_shown_is_refused(arguments, told):
    with pytest.raises(ConfigError) as caught:
        show.main(arguments)
    assert str(caught.value).startswith(told)
