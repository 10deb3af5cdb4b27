"""Hundreds of generated mistakes are each refused in one sentence that says what is to blame."""

import pytest
from broken import BASE, Broken, cases, put, write
from hypothesis import given, settings
from hypothesis import strategies as st

from positionbias.config.cli import apply_overrides, load_config
from positionbias.config.resolve import leaves, resolve
from positionbias.config.schema import Config
from positionbias.spec import ConfigError, type_name

CASES = cases()


def check_sentence(text: str) -> None:
    assert "\n" not in text
    assert text.endswith((".", "?"))
    assert len(text) < 1200


def test_there_are_at_least_two_hundred_and_the_base_is_whole():
    assert len(CASES) >= 200
    assert isinstance(resolve(BASE), Config)


@pytest.mark.parametrize("case", CASES, ids=[str(i) for i in range(len(CASES))])
def test_refused_in_one_sentence(case: Broken):
    with pytest.raises(ConfigError) as caught:
        resolve(apply_overrides(case.config, case.overrides))
    check_sentence(str(caught.value))
    assert case.blamed in str(caught.value), case


@pytest.mark.parametrize("case", CASES[::25], ids=[str(i) for i in range(0, len(CASES), 25)])
def test_written_as_a_file_it_is_the_same_mistake(case: Broken, tmp_path):
    _, path, *flags = write(case, tmp_path)
    overrides = [tuple(flag.removeprefix("--config.").split("=", 1)) for flag in flags]
    with pytest.raises(ConfigError) as from_file:
        resolve(load_config(path, overrides))
    check_sentence(str(from_file.value))
    with pytest.raises(ConfigError) as direct:
        resolve(apply_overrides(case.config, case.overrides))
    if isinstance(case.config, dict):
        assert str(from_file.value) == str(direct.value)


@pytest.mark.parametrize("path", [path for path, leaf in leaves().items() if "number" in type_name(leaf.annotation)])
def test_every_number_is_bounded(path):
    bounds = set(leaves()[path].field.metadata) - {"doc"}
    whole = "a whole number" in type_name(leaves()[path].annotation)
    assert bounds == ({"least", "most"} if whole else {"above"})


@pytest.mark.parametrize("path", list(leaves()))
def test_a_misspelled_field_names_the_nearest(path):
    wrong = path[:-1] + path[-1] * 2
    for attempt in (lambda: resolve(put({wrong: 1})), lambda: apply_overrides(BASE, {wrong: "1"})):
        with pytest.raises(ConfigError, match=f"did you mean '{path.rpartition('.')[2]}'"):
            attempt()


_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.binary(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(path=st.sampled_from(list(leaves())), value=_values)
def test_any_value_resolves_or_is_refused_politely(path, value):
    try:
        assert isinstance(resolve(put({path: value})), Config)
    except ConfigError as error:
        check_sentence(str(error))


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(
    path=st.sampled_from([*leaves(), "task.n", "model.operator.scaled", "train.vary.seed", "optimizer.name.b1"]),
    text=st.text(max_size=30) | st.from_regex(r"[\[(]?[a-z_]{1,8}[&|~(*+ ][a-z0-9=, )\]]{0,12}", fullmatch=True),
)
def test_any_override_resolves_or_is_refused_politely(path, text):
    try:
        assert isinstance(resolve(apply_overrides(BASE, [(path, text)])), Config)
    except ConfigError as error:
        check_sentence(str(error))
