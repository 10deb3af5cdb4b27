"""Configs of equal size, by trained parameters and by FLOPs."""

import pytest

from positionbias import match
from positionbias.config.build import build
from positionbias.config.cli import apply_overrides
from positionbias.config.matching import QUANTITIES, Match, compute, matched, parameters
from positionbias.config.resolve import resolve
from positionbias.spec import ConfigError

RAW = {"name": "small", "task": "inverse_permutation(n=3, alphabet=5)", "model": {"layers": 1, "width": 16, "heads": 2}}
BARE = {"model.norm": "none", "model.mlp": False, "model.position": "none"}


def counted(width, **changes):
    """Trained parameters of RAW at this width, by hand: two tables, four matrices, an MLP, norms, the readout."""
    block = 4 * width**2 + 2 * width * 4 * width + 2 * 2 * width
    return 8 * width + 6 * width + block + 2 * width + 8 * width


def test_parameters_are_those_that_are_trained():
    assert parameters(build(resolve(RAW))) == counted(16) == 3520
    frozen = apply_overrides(RAW, {"model.frozen": ["embedding"]})
    assert parameters(build(resolve(frozen))) == counted(16) - 8 * 16


def test_flops_are_twice_the_products_and_what_stands_around_them():
    # One layer without norm and MLP: four products with D x D, scores and mix of 6 x 6, the readout to 8.
    products = 2 * (4 * 6 * 16 * 16 + 2 * 6 * 6 * 16 + 6 * 16 * 8)
    found = compute(build(resolve(apply_overrides(RAW, BARE))))
    assert products <= found <= 1.1 * products
    twice = compute(build(resolve(apply_overrides(RAW, {**BARE, "model.architecture": "looped(2)"}))))
    assert 1.7 < twice / found < 2


def test_the_width_that_comes_nearest_is_found():
    reference = apply_overrides(RAW, {"model.width": 40})
    found = matched(RAW, reference, "parameters", "model.width")
    assert (found.value, found.found["parameters"]) == (40, counted(40))
    assert found.found == found.wanted
    deep = apply_overrides(RAW, {"model.layers": 3})
    found = matched(RAW, deep, "parameters", "model.width")
    assert found.wanted["parameters"] == counted(16) + 2 * (counted(16) - 24 * 16)
    sizes = {width: abs(counted(width) - found.wanted["parameters"]) for width in range(2, 64, 2)}
    assert found.value == min(sizes, key=sizes.__getitem__) == 28
    # As near from above.
    back = matched(apply_overrides(RAW, {"model.width": 60}), deep, "parameters", "model.width")
    assert back == found


def test_widths_that_the_config_refuses_are_passed_over():
    # rope needs an even head size: of the widths of two heads every second one.
    rope = apply_overrides(RAW, {"model.position": "rope"})
    found = matched(rope, apply_overrides(RAW, {"model.width": 30}), "parameters", "model.width")
    assert found.value == 32
    start = apply_overrides(rope, {"model.width": 20})  # looks at 30 on the way to 32
    found = matched(start, apply_overrides(rope, {"model.width": 32}), "parameters", "model.width")
    assert (found.value, found.found) == (32, found.wanted)


@pytest.mark.parametrize(("field", "changes", "value"), [
    ("model.layers", {"model.layers": 5}, 5),
    ("model.mlp_width", {"model.mlp_width": 101}, 101),
])  # fmt: skip
def test_other_fields_are_found(field, changes, value):
    found = matched(RAW, apply_overrides(RAW, changes), "parameters", field)
    assert (found.field, found.value) == (field, value)
    assert found.found["parameters"] == found.wanted["parameters"]


def test_compute_is_matched_and_parameters_are_told():
    looped = apply_overrides(RAW, {"model.architecture": "looped(2)"})
    found = matched(looped, RAW, "compute", "model.width")
    near = [compute(build(resolve(apply_overrides(looped, {"model.width": w})))) for w in (found.value - 2, found.value,
            found.value + 2)]  # fmt: skip
    away = [abs(one - found.wanted["compute"]) for one in near]
    assert away[1] == min(away)
    assert found.found["parameters"] < found.wanted["parameters"]
    assert found.wanted["parameters"] == counted(16)


def test_a_match_is_told_with_what_it_leaves_unequal():
    told = Match("model.width", 12, "compute", {"parameters": 50, "compute": 990}, {"parameters": 100, "compute": 1000})
    assert told.lines() == [
        "                          config  reference  difference",
        "trained parameters            50        100    -50.00 %  not looked for",
        "forward FLOPs a sequence     990       1000     -1.00 %  matched",
        "use --config.model.width=12",
    ]
    far = Match("model.width", 8, "compute", {"parameters": 50, "compute": 985}, {"parameters": 100, "compute": 1000})
    assert far.lines()[2:] == [
        "forward FLOPs a sequence     985       1000     -1.50 %  the nearest there is",
        "use --config.model.width=8",
        "--field model.mlp_width or model.layers may come nearer",
    ]


@pytest.mark.parametrize(
    ("changes", "reference", "by", "field", "message"),
    [
        ({}, {}, "flops", "model.width", "--by: unknown quantity 'flops'; allowed: compute, parameters."),
        (
            {},
            {},
            "compute",
            "model.heads",
            "--field: unknown field 'model.heads', did you mean 'model.layers'? allowed: model.layers,"
            " model.mlp_width, model.width.",
        ),
        (
            {"model.mlp": False},
            {"model.width": 64},
            "parameters",
            "model.mlp_width",
            f"model.mlp_width: with 64 the config has 1440 trained parameters, whatever the value, and the reference"
            f" has {counted(64)}; allowed: another --field.",
        ),
        (
            {"model.layers": 3},
            {"model.width": 4},
            "parameters",
            "model.layers",
            f"model.layers: with 1 the config has {counted(16)} trained parameters, the fewest that it can have, and"
            f" the reference has {counted(4)}; allowed: another --field, or a larger reference.",
        ),
        (
            {"model.inputs": "one_hot", "model.width": 8},
            {},
            "parameters",
            "model.width",
            "model.width: with 8 the config has 928 trained parameters, the reference has 3520, and larger values are"
            " refused: model.width = 46 does not fit model.inputs = 'one_hot'; allowed: 8, the size of the task's"
            " inputs.",
        ),
        (
            {"model.architecture": "looped(0)"},
            {},
            "parameters",
            "model.width",
            "model.architecture: loops = 0 is not allowed; allowed: a whole number from 1 to 1000.",
        ),
        (
            {},
            {"model.architecture": "looped(0)"},
            "parameters",
            "model.width",
            "--reference: model.architecture: loops = 0 is not allowed; allowed: a whole number from 1 to 1000.",
        ),
    ],
)
def test_what_cannot_be_matched_is_refused(changes, reference, by, field, message):
    with pytest.raises(ConfigError) as error:
        matched(apply_overrides(RAW, changes), apply_overrides(RAW, reference), by, field)
    assert str(error.value) == message


def test_the_entry_prints_the_match(tmp_path, capsys):
    for name, raw in (("ours", apply_overrides(RAW, {"model.layers": 2})), ("theirs", RAW)):
        (tmp_path / f"{name}.py").write_text(f"def get_config(): return {raw!r}\n", encoding="utf-8")
    files = [f"--config={tmp_path}/ours.py", f"--reference={tmp_path}/theirs.py"]
    assert match.main([*files, "--field", "model.layers", "--config.train.steps=50"]) == 0
    *table, override = capsys.readouterr().out.splitlines()
    assert override == "use --config.model.layers=1"
    assert [line.split("%  ")[-1] for line in table[1:]] == ["matched", "not looked for"]
    assert all(what in line for what, line in zip(QUANTITIES.values(), table[1:], strict=True))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--config.model.width=8"], "model.width: is what is looked for; allowed: leave it out, or another --field."),
        (["--reference", "nowhere.py"], "--reference: unknown file 'nowhere.py'"),
    ],
)
def test_the_entry_refuses_in_one_sentence(tmp_path, given, message):
    (tmp_path / "ours.py").write_text(f"def get_config(): return {RAW!r}\n", encoding="utf-8")
    reference = [] if "--reference" in given else [f"--reference={tmp_path}/ours.py"]
    with pytest.raises(ConfigError) as error:
        match.main([f"--config={tmp_path}/ours.py", *reference, *given])
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)
