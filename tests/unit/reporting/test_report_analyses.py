"""Where the numbers of an analysis stand along the axis of its figure, and what colours mean."""

import re
import types

import numpy as np
import pytest

from positionbias.reporting import maps
from positionbias.reporting.analyses import _lines, analysed


def places(**labels):
    array = {"axes": ["step"], "sizes": [3], "numbers": [{"mean": 0.1}, {"mean": 0.2}, {"mean": 0.3}]}
    return [row["position"] for row in _lines({"labels": labels}, array, "numbers")[""]]


def test_names_that_are_numbers_are_where_they_say_and_others_one_by_one():
    assert places(step=["0", "50", "200"]) == [0, 50, 200]
    assert places(step=["-1", "0.5", "2"]) == [-1, 0.5, 2]
    assert places(step=["first", "2", "3"]) == [0, 1, 2]
    assert places(step=["1", "nan", "inf"]) == [0, 1, 2], "names, which no axis has a place for"
    assert places() == [0, 1, 2]


def shown(trained, drawn):
    ticks = [[str(i) for i in range(n)] for n in trained.shape]
    return maps.two_maps("name", "label", trained, drawn, ("from_layer", "to_layer"), ticks)


def test_a_map_of_many_numbers_has_a_bar_on_the_scale_of_the_trained_models():
    """Noise before training is larger."""
    trained, noise = np.zeros((9, 9)), np.full((9, 9), 50.0)
    trained[2, 3] = 0.4
    told = re.findall(r"<!-- (.*?) -->", shown(trained, noise))
    assert "0.40" in told
    assert "50" not in told
    assert "50" in re.findall(r"<!-- (.*?) -->", shown(np.zeros((9, 9)), noise)), "nothing else to go by"


def test_a_map_of_few_numbers_has_these_and_no_bar():
    told = re.findall(r"<!-- (.*?) -->", shown(np.full((2, 2), -0.001), np.full((2, 2), 50.0)))
    assert (told.count("50.00"), told.count("0.00")) == (4, 4)
    assert "from layer" in told


@pytest.mark.parametrize(("numbers", "turned"), [(range(11), 0), (range(100, 106), 0), (range(100, 111), 22)])
def test_names_of_columns_are_turned_where_they_would_run_into_each_other(numbers, turned):
    ticks = [["0", "1"], list(map(str, numbers))]
    map_ = maps.two_maps("name", "label", *np.zeros((2, 2, len(numbers))), ("from_layer", "to_layer"), ticks)
    assert map_.count("rotate(-90)") == 1 + turned, "and the name of the rows"


ABOUT = "Attention that looks back.\n\nIt <is> told at length."
FOUND = {
    "analysis": "look_back(window=2)",
    "about": ABOUT,
    "condition": "train",
    "step": 4,
    "items": 8,
    "replicas": 2,
    "shown": "distance",
    "labels": {},
    "arrays": {"distance": {"axes": ["step"], "sizes": [1], "numbers": [{"mean": 0.5}], "at_init": [{"mean": 0.1}]}},
}


def test_a_figure_says_what_its_numbers_are_and_the_page_at_length():
    run = types.SimpleNamespace(summary={}, analyses={"look_back": FOUND})
    page = "".join(analysed(run))
    caption = re.search(r"<figcaption>(.*?)</figcaption>", page)[1]
    assert "step 4. Attention that looks back." in caption
    assert "at length" not in caption
    assert "<code>look_back</code> Attention that looks back.\n\nIt &lt;is&gt; told at length." in page
    older = types.SimpleNamespace(summary={}, analyses={"look_back": {k: v for k, v in FOUND.items() if k != "about"}})
    assert "What the numbers are" not in "".join(analysed(older))
