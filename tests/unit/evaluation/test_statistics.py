from __future__ import annotations

import numpy as np
import pytest

from positionbias.evaluation.statistics import (
    Interval,
    correlation,
    indices,
    interval,
    paired_difference,
    share,
    solved,
    undecided,
    verdict,
)
from positionbias.spec import ConfigError


def test_interval_is_students_t_over_replicas():
    # mean 2, standard error 1 / sqrt(3), t(2 degrees, 97.5 %) = 4.302653
    found = interval([1.0, 2.0, 3.0])
    assert (found.mean, found.n) == (2.0, 3)
    assert found.low == pytest.approx(2 - 4.302652729749464 / 3**0.5, abs=1e-12)
    assert found.high == pytest.approx(2 + 4.302652729749464 / 3**0.5, abs=1e-12)


def test_interval_of_two_uses_one_degree_of_freedom():
    found = interval([0.0, 1.0])  # t(1 degree, 97.5 %) = 12.7062, standard error 1/2
    assert found.high == pytest.approx(0.5 + 12.706204736174698 / 2, abs=1e-9)


def test_correlation_has_fishers_interval():
    """r = 0.8 of five: tanh(atanh(0.8) -+ 1.96 / sqrt(2)) = -0.2796 and 0.9862."""
    found = correlation([1.0, 2.0, 3.0, 4.0, 5.0], [1.0, 3.0, 2.0, 5.0, 4.0])
    assert (found.mean, found.n) == (pytest.approx(0.8), 5)
    assert found.low == pytest.approx(-0.2796401, abs=1e-6)
    assert found.high == pytest.approx(0.9861962, abs=1e-6)


def test_correlation_of_few_replicas_or_of_equal_ones_says_less():
    assert correlation([1.0, 2.0, None], [1.0, 3.0, 4.0]) == Interval(None, None, None, 2)
    assert correlation([1.0, 1.0, 1.0, 1.0], [1.0, 2.0, 3.0, 4.0]) == Interval(None, None, None, 4)
    three = correlation([1.0, 2.0, 3.0], [1.0, 3.0, 2.0])
    assert (three.mean, three.low, three.high) == (pytest.approx(0.5), None, None)
    assert correlation([1.0, 2.0, 3.0, 4.0], [2.0, 4.0, 6.0, 8.0]).low is None


def test_one_replica_has_no_interval():
    assert interval([0.25]) == Interval(0.25, None, None, 1)


def test_missing_replicas_are_left_out_and_counted():
    assert interval([0.5, None, float("nan")]) == Interval(0.5, None, None, 1)
    assert interval([]) == interval([None]) == Interval(None, None, None, 0)


def test_equal_replicas_have_an_interval_of_no_width():
    assert interval([0.5, 0.5, 0.5, 0.5]) == Interval(0.5, 0.5, 0.5, 4)


def test_paired_difference_removes_what_replicas_share():
    found = paired_difference([0.1, 0.5, 0.9], [0.0, 0.4, 0.8])
    assert found.mean == pytest.approx(0.1)
    assert found.high - found.low < 1e-12


def test_paired_difference_leaves_out_broken_pairs_and_refuses_unequal_numbers():
    assert paired_difference([1.0, None, 3.0], [0.5, 1.0, None]) == Interval(0.5, None, None, 1)
    with pytest.raises(ConfigError, match="replicas = 2 and 3 cannot be paired"):
        paired_difference([1, 2], [1, 2, 3])


@pytest.mark.parametrize(
    ("curve", "first", "middle", "last"),
    [
        ([0.9, 0.5, 0.7], 0.9, 0.5, 0.7),  # u = 1/6, 1/2, 5/6
        ([0.9, 0.5, 0.1, 0.7], 0.9, 0.5, 0.7),  # u = 1/8, 3/8, 5/8, 7/8: 3/8 is in the middle, 5/8 is not
        ([1.0, 0.0, 0.5, 0.5, 0.25, 0.75], 1.0, 0.5, 0.5),  # u = 1/4 is not first, 3/4 is last
        ([1.0, 0.8, 0.0, 0.4, 0.2, 0.0, 0.6, 0.5], 0.9, 0.3, 0.55),  # two positions each
    ],
)
def test_indices_take_the_quarters_the_design_names(curve, first, middle, last):
    assert indices(np.array(curve)) == pytest.approx(
        {
            "primacy": first - middle,
            "recency": last - middle,
            "tilt": first - last,
            "middle_dip": min(first - middle, last - middle),
        }
    )


@pytest.mark.parametrize("curve", [[], [1.0], [1.0, 0.0]])
def test_indices_of_a_short_curve_are_none(curve):
    assert indices(np.array(curve)) == dict.fromkeys(["primacy", "recency", "tilt", "middle_dip"])


def test_indices_ignore_a_missing_position_but_need_every_third():
    assert indices(np.array([1.0, np.nan, 0, 0.5, 0.5, 0, 0, 0]))["primacy"] == 0.5
    found = indices(np.array([np.nan, 0.5, 1.0]))
    assert found == {"primacy": None, "recency": 0.5, "tilt": None, "middle_dip": None}


def test_solved_allows_two_hundredths_below_the_ceiling():
    assert solved([0.981, 0.979, None, 0.5], [1.0, 1.0, 1.0, float("nan")]) == [True, False, None, None]


@pytest.mark.parametrize(
    ("flags", "part", "open_", "word"),
    [
        ([True] * 4, 1.0, False, "solved"),
        ([False] * 4, 0.0, False, "not solved"),
        ([True, False, False, False], 0.25, True, "undecided"),
        ([True] * 7 + [False], 0.875, False, "partly solved"),  # eight replicas may disagree
        ([True] * 6 + [False], 6 / 7, True, "undecided"),
        ([None, True], 1.0, False, "solved"),
        ([None, None], None, False, None),
    ],
)
def test_verdict_is_undecided_while_few_replicas_disagree(flags, part, open_, word):
    assert (share(flags), undecided(flags), verdict(flags)) == (part, open_, word)
