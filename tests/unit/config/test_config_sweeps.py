"""Sweeps: cells, their names, products of named sweeps, and what is refused before anything runs."""

import pytest

from positionbias.config.sharing import part
from positionbias.config.sweeps import cells, product, zipped
from positionbias.spec import ConfigError

FILE = """
from positionbias.config.sweeps import product, zipped

def get_config(n: int = 4):
    return {"name": "s", "task": f"inverse_permutation(n={n})", "train": {"steps": 40}}

"""
DEPTH = """
def sweep_depth(add):
    for overrides in product({"model.layers": [1, 2], "model.position": ["none", "rope(base=500)"]}):
        add(overrides)
"""
WIDTH = """
def sweep_width(add):
    add({})
    add({"model.width": 32}, name="narrow")
"""


@pytest.fixture
def write(tmp_path):
    def make(*texts):
        path = tmp_path / "study.py"
        path.write_text(FILE + "\n".join(texts))
        return str(path)

    return make


def refused(*arguments) -> str:
    with pytest.raises(ConfigError) as caught:
        cells(*arguments)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith((".", "?"))
    return str(caught.value)


def names(*arguments) -> list[str]:
    return [cell.name for cell in cells(*arguments)]


def test_cells_of_a_curve(write):
    """Which is told, joined where sweeps multiply, and refused where it is no text."""
    path = write("def sweep_a(add):\n    add({'model.layers': 1}, curve='one')\n    add({'model.layers': 2})")
    assert [cell.curve for cell in cells(path, "a")] == ["one", None]
    both = write(
        "def sweep_a(add):\n    add({'model.layers': 1}, curve='one')",
        "def sweep_b(add):\n    add({'model.width': 32}, curve='narrow')\n    add({})",
    )
    assert [cell.curve for cell in cells(both, "a,b")] == ["one, narrow", "one"]
    for wrong in ("3", "' '"):
        assert "add: curve = " in refused(write(f"def sweep(add):\n    add({{}}, curve={wrong})"))


def test_product_and_zipped():
    assert list(product({"a": [1, 2], "b": ["x", "y"]})) == [
        {"a": 1, "b": "x"},
        {"a": 1, "b": "y"},
        {"a": 2, "b": "x"},
        {"a": 2, "b": "y"},
    ]
    assert list(zipped({"a": (1, 2), "b": ["x", "y"]})) == [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}]


@pytest.mark.parametrize(
    ("call", "axes", "sentence"),
    [
        (zipped, {"a": [1, 2], "b": [1]}, "zipped: the lists must be equally long, but a has 2, b has 1."),
        (product, {"a": "causal"}, "product: a = 'causal' is not allowed; allowed: a list of values."),
        (product, {"a": []}, "product: a = [] is not allowed; allowed: a list of values."),
    ],
)
def test_wrong_lists(call, axes, sentence):
    with pytest.raises(ConfigError) as caught:
        list(call(axes))
    assert str(caught.value) == sentence


def test_cells_are_resolved_and_named_after_their_overrides(write):
    found = cells(write(DEPTH), "depth")
    assert [cell.name for cell in found] == [
        "layers-1_position-none",
        "layers-1_position-rope-base-500",
        "layers-2_position-none",
        "layers-2_position-rope-base-500",
    ]
    assert found[1].config.model.position.startswith("rope(base=500.0, ")
    assert found[1].overrides == {"model.layers": 1, "model.position": "rope(base=500)"}
    assert found[2].config.model.layers == 2


def test_text_and_typed_values_mean_the_same(write):
    path = write("def sweep(add):\n    add({'model.layers': '3', 'task.n': 5, 'train.vary.seed': '[1, 2, 3, 4]'})\n")
    (cell,) = cells(path)
    assert cell.config.model.layers == 3
    assert cell.config.task == "inverse_permutation(n=5, alphabet=16, scratch=False)"
    assert cell.config.train.vary == {"seed": [1, 2, 3, 4]}


def test_named_sweeps_multiply(write):
    path = write("def sweep_d(add):\n    add({'model.layers': 1})\n    add({'model.layers': 4}, name='deep')\n", WIDTH)
    found = cells(path, "d, width")
    assert [cell.name for cell in found] == ["layers-1", "layers-1_narrow", "deep_base", "deep_narrow"]
    assert [(c.config.model.layers, c.config.model.width) for c in found] == [(1, 64), (1, 32), (4, 64), (4, 32)]
    assert names(path, "width") == ["base", "narrow"]


def test_which_sweep_is_meant(write):
    only = write(WIDTH)
    assert names(only) == ["base", "narrow"]
    both = write(WIDTH, "def sweep(add):\n    add({'seed': 1})\n")
    assert names(both) == names(both, "default") == ["seed-1"]
    several = write(WIDTH, DEPTH)
    assert refused(several).startswith("--sweep: must be given for ")
    assert refused(several).endswith("; allowed: width, depth.")


def test_the_command_line_and_file_arguments_hold_in_every_cell(write):
    path = write("def sweep(add):\n    add({'seed': 1})\n    add({'task': 'inverse_permutation(alphabet=5)'})\n")
    found = cells(f"{path}:n=6", None, [("task.scratch", "True"), ("train.batch_size", "8")])
    assert [cell.config.task for cell in found] == [
        "inverse_permutation(n=6, alphabet=16, scratch=True)",
        "inverse_permutation(n=8, alphabet=5, scratch=True)",
    ]
    assert {cell.config.train.batch_size for cell in found} == {8}
    assert found[0].overrides == {"seed": 1}


def test_made_names_are_kept_apart(write):
    lists = "{'model.mask': ['causal', '~causal', 'causal & segments', 'causal | segments']}"
    found = names(write(f"def sweep(add):\n    for o in product({lists}):\n        add(o)\n"))
    assert [name.rpartition("-")[0] for name in found] == ["mask-causal", "mask-causal"] + ["mask-causal-segments"] * 2
    assert len(set(found)) == 4


def test_long_names_are_cut_and_kept_apart(write):
    mask = " | ".join(["causal"] * 20)
    path = write(
        f"def sweep(add):\n    add({{'model.mask': '{mask}'}})\n    add({{'model.mask': '{mask} & causal'}})\n"
    )
    found = names(path)
    assert [len(name) for name in found] == [80, 80]
    assert found[0] != found[1]


def test_fields_of_one_last_name_are_told_apart(write):
    path = write("def sweep(add):\n    add({'evaluation.every': 20, 'checkpoint.every': 20})\n")
    assert names(path) == ["evaluation.every-20_checkpoint.every-20"]


@pytest.mark.parametrize(
    ("sweep", "sentence"),
    [
        ("    pass", "--sweep: the sweep 'default' of {path} adds no cell; call add(overrides) in it."),
        ("    add({'model.layrs': 1})", "cell 'layrs-1': model.layrs: unknown field 'layrs', did you mean 'layers'?"),
        ("    add({'model.layers': 0})", "cell 'layers-0': model.layers = 0 is not allowed"),
        ("    add({'model': {'layers': 1}})", "cell 'model-layers-1': model: is a group of fields"),
        ("    add({}, name='a')\n    add({'seed': 1}, name='A')", "--sweep: two cells are called 'a'"),
        ("    add({'seed': 0}, name='a')\n    add({})", "--sweep: the cells 'a' and 'base' are the same config."),
        ("    add({}, name='a/b')", "--config: {path}, line 8: cell name: 'a/b' is not allowed, did you mean 'a_b'?"),
        ("    add({}, name=3)", "--config: {path}, line 8: add: the cell name 3 is not allowed; allowed: text."),
        ("    add('seed')", "--config: {path}, line 8: add: 'seed' is not allowed; allowed: a dict of dotted fields."),
        ("    add({1: 2})", "--config: {path}, line 8: add: {{1: 2}} is not allowed"),
        ("    1 / 0", "--config: {path}, line 8: ZeroDivisionError: division by zero."),
        ("    list(product({'seed': 3}))", "--config: {path}, line 8: product: seed = 3 is not allowed;"),
    ],
)
def test_refused_before_anything_runs(write, sweep, sentence):
    path = write(f"def sweep(add):\n{sweep}\n")
    assert refused(path).startswith(sentence.format(path=path))


def test_wrong_sweep_names(write):
    path = write(DEPTH, WIDTH)
    assert refused(path, "deepth") == "--sweep: unknown sweep 'deepth', did you mean 'depth'? allowed: depth, width."
    assert refused(path, "depth,depth").startswith("--sweep: 'depth' is given twice;")
    assert refused(path, "depth,").startswith("--sweep: unknown sweep ''")
    assert refused(write(), "depth").startswith("--sweep: ")


def test_clashes(write):
    again = "def sweep_again(add):\n    add({'model.layers': 3})\n"
    path = write(DEPTH, again)
    assert refused(path, "depth,again") == "--sweep: depth and again both set model.layers; allowed: only one of them."
    message = refused(path, "depth", [("model.layers", "2")])
    assert message == "model.layers: is set by the sweep and on the command line; allowed: one of them."


def test_a_mistake_on_the_command_line_names_no_cell(write):
    assert refused(write(WIDTH), None, [("model.layrs", "2")]).startswith("model.layrs: unknown field")


def test_of_several_cells_that_are_refused_the_one_asked_for_is_named(write, root):
    """And none where the command line alone is refused alike."""
    steps = "train.log_every = 100 is more than train.steps = 2; allowed: at most that."
    with pytest.raises(ConfigError) as caught:
        cells(str(root / "configs" / "recall" / "operators.py"), None, {"train.steps": 2}, "based-4")
    assert str(caught.value) == steps
    path = write(
        "def sweep(add):\n"
        "    add({'model.layers': 1}, name='one')\n"
        "    for name in ('two', 'three'):\n"
        "        add({'model.layers': len(name), 'model.operator': '[softmax, softmax]'}, name=name)\n"
    )
    entries = "model.operator: the pattern '[softmax, softmax]' has 2 entries, allowed:"
    given = {"model.mask": "[causal, causal, causal]"}
    mask = "model.mask: the pattern '[causal, causal, causal]' has 3 entries, allowed:"
    assert refused(path).startswith(f"cell 'two': {entries} 3, ")
    assert refused(path, None, (), "three").startswith(f"cell 'three': {entries} 5, ")
    assert refused(path, None, (), "one, three").startswith(f"cell 'three': {entries} 5, ")
    assert refused(path, None, given, "one").startswith(f"cell 'one': {mask} 1, ")
    beside = "which is planned beside those of --cells"
    assert refused(path, None, (), "one").startswith(f"cell 'two', {beside}: {entries} 3, ")


def test_a_part_of_a_sweep_is_named_or_is_one_of_some_shares(write):
    found = cells(write(DEPTH + WIDTH), "depth,width")
    assert len(found) == 8
    known = [cell.name for cell in found]
    shares = [[cell.name for cell in part(found, f"{place}/3")] for place in (1, 2, 3)]
    assert shares == [known[:2], known[2:5], known[5:]]
    assert part(found, "1/1") == found
    assert [cell.name for cell in part(found, f"{known[4]}, {known[1]}")] == [known[1], known[4]]


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (
            "0/3",
            "--cells: '0/3' is not allowed; allowed: I/N with I from 1 to N, and N from 1 to the 2 cells there are.",
        ),
        ("2/1", "--cells: '2/1' is not allowed; allowed: I/N with"),
        ("3/3", "--cells: '3/3' is not allowed; allowed: I/N with"),
        ("0/0", "--cells: '0/0' is not allowed; allowed: I/N with"),
        ("1/2,2/2", "--cells: '1/2,2/2' is not allowed; allowed: names of cells, or one share as in 3/12."),
        ("-1/2", "--cells: '-1/2' is not allowed; allowed: names of cells, or one share as in 3/12."),
        ("narow", "--cells: unknown cell 'narow', did you mean 'narrow'? allowed: base, narrow."),
        ("", "--cells: unknown cell ''; allowed: base, narrow."),
        ("base,base", "--cells: 'base' is given twice; allowed: each cell once."),
    ],
)
def test_parts_that_there_are_not(write, given, sentence):
    with pytest.raises(ConfigError) as caught:
        part(cells(write(WIDTH), "width"), given)
    assert str(caught.value).startswith(sentence)
