"""What a classifier tells of a planted boolean, and of what no linear map tells."""

import jax
import numpy as np
import pytest

from positionbias.analysis.linear_probe import PLACES, LinearProbe
from positionbias.errors import ConfigError


def ask(planted, **arguments):
    return jax.jit(lambda: LinearProbe(**arguments).measure(planted, [0, 1], jax.random.key(0)))()


def test_the_planted_boolean_is_told_in_its_row_and_shuffled_labels_are_not(planted):
    found = ask(planted, variable="condition")
    answer, random = PLACES.index("answer"), PLACES.index("random")
    assert found["accuracy"][0, answer] == 1
    assert float(found["accuracy"][0, random]) == pytest.approx(0.5, abs=0.1), "that row holds nothing"
    assert float(found["shuffled"][0, answer]) == pytest.approx(0.5, abs=0.1)
    assert found["selectivity"][0, answer] == found["accuracy"][0, answer] - found["control"][0, answer]
    assert 0.5 <= found["majority"] < 0.6


def test_an_answer_is_told_only_once_it_is_there(planted):
    """Behind layer 0 stand the boolean and the fact, and under "use" the document's object besides."""
    found = ask(planted, variable="answer", examples=512)
    assert found["accuracy"][1, PLACES.index("answer")] == 1
    assert found["shuffled"][1, PLACES.index("answer")] < 0.3
    assert found["accuracy"][1, PLACES.index("random")] < 0.3


def test_labels_of_tokens_are_told_where_the_stream_tells_the_token_and_there_alone(planted):
    """The last row asks of a subject, whose fact stands in the stream: eight subjects, and not all have one fact."""
    found = ask(planted, variable="condition")
    answer, random = PLACES.index("answer"), PLACES.index("random")
    run, batch = planted.run, planted.batch(jax.random.key(3))
    facts = np.asarray(run.task._objects)[np.asarray(batch.inputs[:, -1]) - 2, 0]
    assert len(set(facts)) > 2
    assert found["control"][0, answer] > 0.7
    assert found["control"][1, answer] < found["control"][0, answer] - 0.1, "only what is said is there"
    assert found["shuffled"][0, answer] < 0.6
    assert found["control"][0, random] < 0.9


def test_an_unknown_variable_is_refused(planted):
    with pytest.raises(ConfigError, match="variable: unknown variable 'slots', did you mean 'slot'"):
        LinearProbe(variable="slots").check(planted)
