"""CAB's four patterns, over every operator: each runs, as causal as it is called, or is refused with its reason."""

import re
import typing

import jax
import numpy as np
import pytest
from test_operators import DIMS, made, setting, streams
from test_operators import EXAMPLES as OPERATORS

from positionbias import compatibility, spec
from positionbias.config.attentions import check_pattern
from positionbias.errors import ConfigError
from positionbias.models.sites import Sites
from positionbias.operators.base import Pattern
from positionbias.operators.recurrent import of_one_sequence
from positionbias.positions.base import Placed

AXIS, EXAMPLES = "operators", OPERATORS
FOUR = typing.get_args(Pattern)
NONE = Placed(spec.build("positions", "none", "position"))
# Those whose layout counts the tokens there are: halves, shuffles, windows that are shifted at the end, a divisor.
COUNTING = ("hyper_attention", "stochastic", "gated_stochastic", "neighborhood", "count='length'")
# Those that know where tokens are stored, whatever masks and position schemes say.
PLACED = {
    "associative_memory", "chunk_hybrid", "combiner", "fourier", "gated_stochastic", "hyper_attention", "lookahead",
    "neighborhood", "orthogonal_memory", "power", "prefix_linear_attention", "routing",
    "shared_prompt", "depth_causal", "short_convolution", "stochastic", "varied_window",
}  # fmt: skip


def called(operator, *asked):
    """What one operator of either kind makes of each (arrays, tokens_q, tokens_k, mask, streams), in one program."""
    params = made(operator, DIMS)

    def one(arrays, tokens_q, tokens_k, mask, given):
        if operator.reads == "stream":
            if of_one_sequence(tokens_q, tokens_k):
                return operator.mix(given[0], tokens_q, mask, params, Sites())
            return operator.mix_across(*given, tokens_q, tokens_k, mask, params, Sites())
        return operator(*arrays, tokens_q, tokens_k, mask, NONE, params | operator.projected(*given, params), Sites())

    def each(arrays):
        return [one(now, *told, given) for (now, given), (_, *told, _) in zip(arrays, asked, strict=True)]

    return jax.tree.map(np.asarray, jax.jit(each)([(arrays, given) for arrays, *_, given in asked]))


def cut(tokens, stop, whole):
    """The first tokens; or all, of which the others are padding, where there have to be as many."""
    return tokens._replace(valid=np.arange(tokens.length) < stop) if whole else tokens.cut(0, stop)


@pytest.mark.parametrize("pattern", FOUR)
def test_it_is_as_causal_as_it_is_called_or_refused_with_its_reason(built, pattern):
    """CAB: of the first queries, with no more keys than those if they are theirs, a causal form gives what it gives."""
    if pattern not in built.patterns:
        why = built.lacking(pattern)
        assert why[0].islower()
        assert not why.endswith(".")
        kind = pattern.partition("_")[2]
        with pytest.raises(
            ConfigError, match=f" {kind} attention, which layer 3 needs, as {re.escape(why)}; allowed: "
        ):
            check_pattern(built, pattern, "layer 3")
        return
    check_pattern(built, pattern, "layer 3")
    (q, k, v), tokens_q, tokens_k, mask = setting(built, pattern)
    given = streams((q, k, v))
    asked, stops = [((q, k, v), tokens_q, tokens_k, mask, given)], (2, 5) if pattern.startswith("causal") else ()
    own, counts = pattern.endswith("self"), any(word in spec.canonical(built) for word in COUNTING)
    for stop in stops:
        rows = slice(0, q.shape[1] if counts else stop)
        first = cut(tokens_q, stop, counts)
        keys = first if own else tokens_k
        arrays = q[:, rows], *((x[:, rows] for x in (k, v)) if own else (k, v))
        asked.append((arrays, first, keys, mask, (given[0][:, rows], given[1][:, rows] if own else given[1])))
    whole, *parts = called(built, *asked)
    assert np.isfinite(whole).all()
    assert (np.abs(whole) > 0).any()
    for stop, some in zip(stops, parts, strict=True):
        np.testing.assert_allclose(some[:, :stop], whole[:, :stop], rtol=1e-5, atol=1e-5)


def test_what_knows_no_places_is_equivariant(built):
    """Without a mask, rows in another order, told what they were told, come out in that order."""
    if "noncausal_self" not in built.patterns or built.spec_name in PLACED:
        return
    (q, k, v), tokens, _, _ = setting(built, "noncausal_self")
    given, mask = streams((q, k, v)), spec.build("masks", "bidirectional", "mask")
    order = np.array([3, 0, 5, 1, 4, 2])
    told = type(tokens)(*(field[order] for field in tokens))._replace(index=tokens.index)
    turned = [x[:, order] for x in (q, k, v)], told, told, mask, [x[:, order] for x in given]
    found, moved = called(built, ((q, k, v), tokens, tokens, mask, given), turned)
    np.testing.assert_allclose(moved, found[:, order], rtol=1e-4, atol=1e-5)


def test_the_table_has_every_operator_and_pattern():
    found = compatibility.patterns()
    assert found.rows == tuple(spec.names("operators"))
    assert found.columns == FOUR
    assert set(found.cells) == {(row, column) for row in found.rows for column in FOUR}
    assert [found.cells["linear_attention", pattern] for pattern in FOUR] == ["+"] * 4
    lightnet = compatibility.table(found).splitlines()
    assert "| `lightnet` | + | + | + | + |" in lightnet
    number = found.cells["hla2", "causal_cross"]
    assert found.notes[int(number) - 1] == "a query and a key of the same token are multiplied."
    assert found.cells["hla2", "noncausal_cross"] == number
