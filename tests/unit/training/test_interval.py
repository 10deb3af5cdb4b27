"""The metrics of a logging interval."""

import json

import numpy as np
import pytest

from positionbias.training.interval import Interval, NonFinite


def metrics(loss, norm=None):
    loss = np.asarray(loss, np.float32)
    return {"loss": loss, "accuracy": loss * 0, "gradient_norm": np.ones_like(loss) if norm is None else norm}


def test_means_are_per_replica_over_the_whole_interval():
    interval = Interval()
    interval.add(metrics([[1, 2], [3, 5]]), 2)
    interval.add(metrics([[3, 6], [7, 9]]), 4)
    assert interval.close()["loss"] == [3.0, 6.0]
    assert interval.saved() == {}


def test_an_interval_survives_json_to_the_bit():
    interval, again = Interval(), None
    interval.add(metrics([[0.1, 1 / 3]]), 2)
    again = Interval(json.loads(json.dumps(interval.saved())))
    for one in (interval, again):
        one.add(metrics([[np.pi, 2e-30]]), 4)
    assert interval.close() == again.close()


@pytest.mark.parametrize("name", ["loss", "gradient_norm"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_number_that_is_not_finite_names_steps_and_replica(name, value):
    interval = Interval()
    bad = metrics([[1, 1, 1], [1, 1, 1]])
    bad[name] = bad[name].copy()
    bad[name][1, 2] = value
    words = name.replace("_", " ")
    with pytest.raises(NonFinite, match=rf"the {words} of replica 1 is not finite at step 9 \(in steps 7 to 9\)"):
        interval.add(bad, 9)
