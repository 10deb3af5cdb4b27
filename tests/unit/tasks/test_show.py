"""What a person is shown of a task beside its sample: the positional prior, declared and measured."""

import numpy as np
import pytest

from positionbias.spec import ConfigError
from positionbias.tasks import show
from positionbias.tasks.associative_recall import AssociativeRecall
from positionbias.tasks.inverse_permutation import InversePermutation
from positionbias.tasks.reversal import Reversal


def test_the_prior_is_shown_declared_and_measured():
    task = AssociativeRecall(pairs=2, keys=4, values=4, delays=14, gap_power=0.01)
    lines = show.described(task)[-6:]
    assert lines[0] == "delay after the context: share of slots 0 to 13"
    shares = task.prior(task.conditions()[0])["query"]
    assert lines[1] == f"    declared {' '.join(f'{share:.3f}' for share in shares[:11])} ... {shares[13]:.3f}"
    label, *measured = lines[2].removesuffix(" in 4096 samples").split()
    assert label == "measured"
    np.testing.assert_allclose(
        [float(share) for share in measured if share != "..."], shares[[*range(11), 13]], atol=0.04
    )
    assert lines[3] == "slot of the asked pair: share of slots 0 to 1"
    assert lines[4] == "    declared 0.500 0.500"


def test_of_many_answers_the_first_are_told_and_how_many_are_left():
    for n, more in ((8, []), (9, ["... 1 more row"]), (40, ["... 32 more rows"])):
        lines = show.described(InversePermutation(n=n))
        at = [i for i, line in enumerate(lines) if line.startswith("row ")]
        assert len(at) == 8
        assert lines[at[-1] + 1 : lines.index(show.LEGEND.splitlines()[0])] == more


def test_the_other_conditions_and_filler_are_told():
    lines = show.described(AssociativeRecall(pairs=2, keys=4, values=4, delays=3, shift=2), "shifted")
    assert lines[1] == "condition shifted (also: train); 9 rows, 6 of them context"
    after = lines.index(show.LEGEND.splitlines()[-1]) + 1
    assert lines[after] == "'-': filler, a token that means nothing"
    lines = show.described(InversePermutation(n=4))
    assert lines[1] == "condition train; 8 rows, 4 of them context"
    assert not any("filler" in line for line in lines)


def test_help_says_what_the_words_mean(capsys):
    with pytest.raises(SystemExit):
        show.main(["--help"])
    assert show.LEGEND in capsys.readouterr().out
    with pytest.raises(
        ConfigError, match=r"^command line: task is missing; write the spec of a task, as in python -m "
    ):
        show.main([])


def test_a_baseline_that_does_not_exist_is_told_with_the_reason():
    lines = show.described(Reversal(pairs=2, both=1))
    assert 'no baseline "nearest": no other name stands in front of the answer' in lines
    assert list(Reversal.no_baselines) == ["nearest"]


def test_the_measured_prior_is_that_of_the_samples_and_not_the_declared_one():
    class Declares(AssociativeRecall):
        def prior(self, condition):
            return {"query": np.array([0.9, 0.1]), "evidence": np.array([1.0])}

    lines = show.priors(Declares(pairs=1, keys=4, values=4, delays=2), AssociativeRecall().conditions()[0])
    assert lines[1] == "    declared 0.900 0.100"
    assert 0.45 < float(lines[2].split()[1]) < 0.55


def test_groups_are_told_row_by_row_where_there_are_some():
    lines = show.described(AssociativeRecall(pairs=2, keys=4, values=4, delays=1, shift=0))
    assert lines[6:8] == ["segment of rows: 1 1 2 2 0", "role of rows: 1 2 1 2 3"]
    assert not any(line.startswith(("frame of", "scale of")) for line in lines)
    long = show.described(AssociativeRecall(pairs=40, keys=64, values=4, delays=1, shift=0))
    assert [len(line) <= 96 and line.endswith("...") for line in long if line.startswith("segment of")] == [True]
