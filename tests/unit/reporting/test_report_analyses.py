"""Where the numbers of an analysis stand along the axis of its figure."""

from positionbias.reporting.analyses import _lines


def places(**labels):
    array = {"axes": ["step"], "sizes": [3], "numbers": [{"mean": 0.1}, {"mean": 0.2}, {"mean": 0.3}]}
    return [row["position"] for row in _lines({"labels": labels}, array, "numbers")[""]]


def test_names_that_are_numbers_are_where_they_say_and_others_one_by_one():
    assert places(step=["0", "50", "200"]) == [0, 50, 200]
    assert places(step=["-1", "0.5", "2"]) == [-1, 0.5, 2]
    assert places(step=["first", "2", "3"]) == [0, 1, 2]
    assert places() == [0, 1, 2]
