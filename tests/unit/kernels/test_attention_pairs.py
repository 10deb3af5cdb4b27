"""Gradients of operands that are read by whole tiles, as XLA sums them for kernels that cannot."""

import numpy as np
import pytest
from kernels_oracle import Case, check, drawn

from positionbias.kernels import PerHead, PerKey, PerQuery, Relative
from positionbias.kernels.softmax_attention import mosaic_tpu, pairs
from positionbias.kernels.softmax_attention.problem import STATS

ROWS, COLUMNS = 37, 26
IMPL = "mosaic_tpu_interpret"


@pytest.fixture(autouse=True)
def _by_xla(monkeypatch):
    monkeypatch.setattr(mosaic_tpu.tpu_pairs, "pairs", lambda interpret, *told: pairs.pairs(*told))


def normal(*shape):
    return np.random.default_rng(len(shape)).normal(size=shape, scale=0.5).astype(np.float32)


def score(captured):
    """Reads operands of every kind, two of them by difference and four for all pairs."""

    def told(s, b, h, q, k, lag, own_lag, slope, row, key):
        s = s * (1 + 0.1 * own_lag) + lag - slope * abs(q - k) + row * key
        s = s + captured["all"][q, k] + captured["own"][b, q, k] * captured["head"][h, q, k]
        return s + captured["both"][b, h, q, k]

    return told


KINDS = {"lag": Relative, "own_lag": Relative, "slope": PerHead, "row": PerQuery, "key": PerKey}


@pytest.fixture
def params():
    lags = ROWS + COLUMNS - 1
    aux = {
        "lag": normal(lags),
        "own_lag": normal(2, lags),
        "slope": normal(2),
        "row": normal(2, ROWS),
        "key": normal(COLUMNS),
    }
    captured = {
        "all": normal(ROWS, COLUMNS),
        "own": normal(2, ROWS, COLUMNS),
        "head": normal(2, ROWS, COLUMNS),
        "both": normal(2, 2, ROWS, COLUMNS),
    }
    return drawn(ROWS, COLUMNS) | {"aux": aux, "captured": captured}


def half_blind(_):
    return lambda b, h, q, k: (k <= q + h) & (q % 5 != 3)


@pytest.mark.parametrize("block_sizes", [(16, 16), (8, 16)])
def test_through_all_statistics(params, block_sizes):
    options = {"block_sizes": block_sizes}
    check(Case(half_blind, score, KINDS, options), params, [IMPL], stats=STATS)


def test_with_dropout_and_without_normalisation(params):
    options = {"block_sizes": (16, 16), "normalise": False, "scale": 0.05, "dropout": (0.3, 7)}
    check(Case(half_blind, score, KINDS, options), params, [IMPL], stats=("received", "block_mass"))
