"""Masks without any order: 200 of them, from a fiftieth of all pairs to nearly all, and new ones every day.

Four make one call, as the heads of two examples; all share a program. A failure names the seed of its masks, with which
`check` makes them again on any day.
"""

import datetime
import functools

import kernels_oracle
import numpy as np
import pytest
from kernels_oracle import Case, agree, drawn, drivers, formula, kernel, rotating

ROWS, COLUMNS, BLOCKS = 70, 50, (16, 16)
SEEDS = range(50)
MORE = range(50, 550)
DAILY = 10
STATS = ("lse", "received")


def table(captured):
    return lambda b, h, q, k: captured[b, h, q, k]


CASE = Case(table, options={"block_sizes": BLOCKS})


def masks(seed):
    """Booleans [2, 2, T, S]; of each mask, some tiles are empty, others full, and some rows see nothing."""
    random = np.random.default_rng(seed)
    density = 0.02 + 0.93 * (4 * (seed % 50) + np.arange(4)).reshape(2, 2, 1, 1) / 199
    seen = random.random((2, 2, ROWS, COLUMNS)) < density
    tiles = random.random((2, 2, -(-ROWS // BLOCKS[0]), -(-COLUMNS // BLOCKS[1])))
    spread = tiles.repeat(BLOCKS[0], axis=2).repeat(BLOCKS[1], axis=3)[:, :, :ROWS, :COLUMNS]
    seen = np.where(spread < 0.15, False, np.where(spread > 0.85, True, seen))
    seen[:, :, random.integers(0, ROWS, 3)] = False
    return seen


@functools.cache
def programs():
    through = ("o", *STATS)
    return formula(CASE, STATS, through), {impl: kernel(CASE, impl, STATS, through) for impl in drivers()}


def check(seed):
    by_formula, by_driver = programs()
    params = drawn(ROWS, COLUMNS, seed=seed) | {"captured": masks(seed)}
    known = by_formula(params)
    for impl, run in by_driver.items():
        agree(run(params), known, about=f"masks of seed {seed}, {impl}:")


@pytest.mark.parametrize("seed", SEEDS)
def test_random_masks(seed):
    check(seed)


def test_other_random_masks_every_day():
    for seed in rotating(MORE, DAILY):
        check(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", MORE)
def test_many_random_masks(seed):
    check(seed)


def test_the_masks_are_of_all_densities_and_all_differ():
    found = [one for seed in SEEDS for one in masks(seed).reshape(4, -1)]
    densities = [one.mean() for one in found]
    assert len(found) == len({one.tobytes() for one in found}) == 200
    assert min(densities) < 0.2
    assert max(densities) > 0.75


def test_other_days_run_other_masks(monkeypatch):
    def on(day):
        class Day(datetime.date):
            @classmethod
            def today(cls):
                return datetime.date.fromordinal(day)

        monkeypatch.setattr(kernels_oracle.datetime, "date", Day)
        return tuple(rotating(MORE, DAILY))

    days = [on(700_000 + day) for day in range(30)]
    assert days[0] == on(700_000)
    assert len(set(days)) == 30
    assert all(len(set(day)) == DAILY and set(day) <= set(MORE) for day in days)
