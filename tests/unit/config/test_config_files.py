"""Config files: what they return, their arguments, and what is said of files that are wrong."""

import pytest

from positionbias import errors
from positionbias.config import files
from positionbias.config.cli import load_config
from positionbias.config.resolve import resolve
from positionbias.spec import ConfigError

FILE = """
import ml_collections
from typing import Literal

def get_config(n: int = 4, mask="causal", rate: float | None = None, kind: Literal["a", "b"] = "a", on=True, free=None):
    config = ml_collections.ConfigDict()
    config.name = f"{kind}-{on}-{free!r}".replace("'", "")
    config.task = f"inverse_permutation(n={n})"
    config.model = ml_collections.ConfigDict()
    config.model.mask = mask
    if rate is not None:
        config.optimizer = {"learning_rate": rate}
    return config
"""


@pytest.fixture
def write(tmp_path):
    def make(text, name="study.py"):
        path = tmp_path / name
        path.write_text(text)
        return str(path)

    return make


def refused(path) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith((".", "?"))
    return str(caught.value)


def test_a_configdict_becomes_plain_dicts(write):
    raw = load_config(write(FILE), [("model.layers", "1")])
    assert raw == {
        "name": "a-True-None",
        "task": "inverse_permutation(n=4)",
        "model": {"mask": "causal", "layers": 1},
    }
    assert type(raw["model"]) is dict


def test_arguments_are_read_by_their_annotation_or_default(write):
    path = write(FILE)
    config = resolve(load_config(f"{path}:n=6, mask=causal & (prefix(2) | sliding_window(3)),rate=2,kind=b,on=False"))
    assert config.task == "inverse_permutation(n=6, alphabet=16, scratch=False)"
    assert config.model.mask == "causal & (prefix(length=2) | sliding_window(width=3))"
    assert config.optimizer.learning_rate == 2.0
    assert config.name == "b-False-None"
    assert load_config(f"{path}:free=word")["name"] == "a-True-word"
    assert load_config(f"{path}:free=3,rate=None")["name"] == "a-True-3"
    assert files.read(f"{path}:free=[1, 'a,b']").arguments == {"free": [1, "a,b"]}
    assert files.read(f"{path}:free='a,b',n=5").arguments == {"free": "a,b", "n": 5}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("m=3", "--config: unknown argument of {path}: 'm'; allowed: free, kind, mask, n, on, rate."),
        ("maks=3", "--config: unknown argument of {path}: 'maks', did you mean 'mask'? allowed: free, kind,"),
        ("n", "--config: cannot read the file argument 'n'; allowed: name=value with the names n, mask, rate,"),
        ("n=4,", "--config: cannot read the file argument ''; allowed:"),
        ("", "--config: cannot read the file argument ''; allowed:"),
        ("=4", "--config: cannot read the file argument '=4'; allowed:"),
        ("n=4,n=4", "--config: the file argument 'n' is given twice."),
        ("n=four", "--config {path}:n: 'four' is not allowed; allowed: a whole number."),
        ("n=4.0", "--config {path}:n: 4.0 is not allowed; allowed: a whole number."),
        ("rate=fast", "--config {path}:rate: 'fast' is not allowed; allowed: a number or None."),
        ("kind=c", "--config {path}:kind: 'c' is not allowed; allowed: 'a' or 'b'."),
        ("on=1", "--config {path}:on: 1 is not allowed; allowed: True or False."),
    ],
)
def test_wrong_arguments(write, arguments, sentence):
    path = write(FILE)
    assert refused(f"{path}:{arguments}").startswith(sentence.format(path=path))


def test_an_argument_without_default_must_be_given(write):
    path = write("def get_config(n): return {'name': 'a', 'seed': n}")
    assert refused(path) == f"--config: {path} needs its argument 'n'; write {path}:n=VALUE."
    assert load_config(f"{path}:n=3")["seed"] == 3


def test_collected_arguments_are_refused(write):
    path = write("def get_config(**kwargs): return kwargs")
    assert "takes '**kwargs'" in refused(path)


def test_a_missing_file_names_the_nearest(write, tmp_path):
    path = write(FILE)
    message = refused(str(tmp_path / "stduy.py:n=4"))
    assert f"unknown file '{tmp_path / 'stduy.py'}', did you mean '{path}'? allowed: {path}." in message
    (tmp_path / "configs").mkdir()
    inside = write(FILE, "configs/study.py")
    assert f"did you mean '{inside}'?" in refused(str(tmp_path / "config" / "study.py"))
    assert refused(str(tmp_path)) == f"--config: '{tmp_path}' is a folder; allowed: {path}."
    assert refused(str(tmp_path / "configs")).endswith(f"is a folder; allowed: {inside}.")


def test_of_many_files_only_the_nearest_is_named(write, tmp_path):
    paths = [write(FILE, f"study{n}.py") for n in range(errors.FEW + 1)]
    wanted = tmp_path / "study99.py"
    assert refused(str(wanted)) == f"--config: unknown file '{wanted}', did you mean '{paths[9]}'?"
    assert refused("zz.py").startswith("--config: unknown file 'zz.py'; allowed: ")


def test_only_config_files_are_offered_those_under_configs_too(write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write("from setuptools import setup\nsetup()\n", "setup.py")
    message = "--config: unknown file 'stup.py'; allowed: a Python file that defines get_config."
    assert refused("stup.py") == message
    assert refused(".") == "--config: '.' is a folder; allowed: a Python file that defines get_config."
    write("from setup import get_config\n", "mine.py")
    (tmp_path / "configs" / "recall").mkdir(parents=True)
    write(FILE, "configs/recall/quick.py")
    (tmp_path / "configs" / "folder.py").mkdir()
    allowed = "allowed: configs/recall/quick.py, mine.py."
    assert refused("stup.py") == f"--config: unknown file 'stup.py'; {allowed}"
    assert refused("recall_quick.py").endswith(f", did you mean 'configs/recall/quick.py'? {allowed}")
    assert refused(".") == f"--config: '.' is a folder; {allowed}"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("import os\nx = 1 / 0\n", "line 2: ZeroDivisionError: division by zero."),
        ("def get_config(:\n", "line 1: SyntaxError: invalid syntax."),
        ("import no_such_module\n", "line 1: ModuleNotFoundError: No module named 'no_such_module'."),
        ("def get_config():\n    a = {}\n    return a['b']\n", "line 3: KeyError: 'b'."),
        ("def get_config():\n    raise SystemExit\n", "line 2: SystemExit: raised."),
        ("def get_config():\n    raise ValueError('two\\nlines')\n", "line 2: ValueError: two lines."),
        ("raise BaseException('whatever')\n", "line 1: BaseException: whatever."),
        ("raise SystemExit(3)\n", "line 1: SystemExit: 3."),
        ("def get_config():\n    raise GeneratorExit\n", "line 2: GeneratorExit: raised."),
        (
            "class Odd(Exception):\n    def __str__(self): raise self\nraise Odd\n",
            "line 3: Odd: raised.",
        ),
        ("def h(): assert 0\ndef get_config():\n    h()\n", "line 1: AssertionError: raised."),
        (
            "import ml_collections\ndef get_config():\n    c = ml_collections.ConfigDict({'a': 1})\n    c.a = 'x'\n",
            "line 4: TypeError: ",
        ),
    ],
)
def test_a_file_that_raises_is_told_with_its_line(write, text, sentence):
    path = write(text)
    assert refused(path).startswith(f"--config: {path}, {sentence}")


def test_files_without_a_config(write):
    path = write("def get_confg(): return {}")
    assert refused(path) == (
        f"--config: {path} defines no function get_config (did you mean 'get_confg'?); allowed: get_config(...) ->"
        " config."
    )
    path = write("def get_config(): return None")
    assert refused(path) == f"--config: get_config of {path} returned None; allowed: a ConfigDict or a dict."


def test_an_async_get_config_is_refused(write, recwarn):
    path = write("async def get_config(): return {}")
    assert refused(path) == f"--config: get_config of {path} is async; allowed: a plain function."
    path = write("def get_config(): return {}\nasync def sweep(add): add({})")
    read = files.read(path)
    with pytest.raises(ConfigError, match=r"sweep of .* is async; allowed: a plain function\.$"):
        read.call(read.functions("sweep")["sweep"], None)
    assert not list(recwarn)


def test_ctrl_c_in_a_config_is_an_interrupt(write):
    path = write("def get_config(): raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        load_config(path)


def test_nothing_is_left_beside_the_file(write, tmp_path):
    load_config(write(FILE))
    assert [found.name for found in tmp_path.iterdir()] == ["study.py"]


def test_the_file_keeps_its_own_rules_for_annotations(write):
    path = write("def get_config(n: int = 3): return {'name': get_config.__annotations__['n'].__name__}")
    assert load_config(path) == {"name": "int"}


def test_the_file_as_it_is_now_is_read(write):
    path = write("def get_config(): return {'seed': 1}")
    assert load_config(path) == {"seed": 1}
    write("def get_config(): return {'seed': 2}")
    assert load_config(path) == {"seed": 2}
