"""Which cells of a sweep share a program, and how that is told before it starts."""

from positionbias.config.resolve import VARIED
from positionbias.config.sharing import part, plan, programs, split
from positionbias.config.sweeps import Cell

OTHER = {  # another value of all that replicas may differ in, whatever the task
    "optimizer.learning_rate": 0.02,
    "optimizer.name": "adamw(weight_decay=0.3)",
    "optimizer.warmup_steps": 2,
    "model.init_scale": 0.5,
    "seed": 7,
}
BURSTS = "in_context_classification(items=4, dimension=8, classes=8, labels=4, burstiness=2, p_bursty={}, p_novel={})"


def cells(tiny, *overrides):
    return [Cell(f"c{i}", tiny(fields), fields) for i, fields in enumerate(overrides)]


def shared(found):
    return [[cell.name for cell in one.cells] for one in programs(found)]


def test_a_config_is_split_into_its_program_and_what_that_reads(tiny):
    program, own = split(tiny(OTHER))
    assert own == {"learning_rate": 0.02, "weight_decay": 0.3, "warmup_steps": 2, "init_scale": 0.5, "seed": 7}
    assert (program, own.keys()) == (split(tiny()).program, VARIED.keys())
    grid = {"train.vary": {"learning_rate": [0.1, 0.2]}}
    assert split(tiny(grid)).own["learning_rate"] == [0.1, 0.2]


def test_cells_share_what_replicas_may_differ_in_and_nothing_else(tiny):
    assert len(OTHER) == len(VARIED)
    each = [{field: value} for field, value in OTHER.items()]
    found = cells(tiny, {}, *each, OTHER, {"name": "other"})
    assert shared(found) == [[cell.name for cell in found]]
    assert programs(found)[0].fields == [*VARIED]
    assert programs(cells(tiny, {}, {"name": "other"}))[0].fields == ["name"]
    grids = cells(tiny, {"train.vary": {"seed": [3, 4]}}, {"train.vary": {"seed": [5, 6]}}, {})
    assert shared(grids) == [["c0", "c1", "c2"]]
    changes = {
        "train.replicas": 3,
        "train.steps": 20,
        "optimizer.name": "sgd",
        "optimizer.clip_norm": 1,
        "model.init.query": "fan_in(scale=2)",
        "model.mask": "bidirectional",
        "task": "inverse_permutation(n=4, alphabet=5)",
        "evaluation.items": 16,
        "checkpoint.every": 4,
    }
    apart = cells(tiny, {}, *({field: value} for field, value in changes.items()))
    assert shared(apart) == [[cell.name] for cell in apart]


def test_cells_of_one_program_stay_in_one_part(tiny):
    """Where the innermost loop is as long as there are parts, every second cell would tear all of them apart."""
    masks = ("causal", "bidirectional", "prefix(2)")
    fields = [{"model.mask": mask, "optimizer.learning_rate": rate} for mask in masks for rate in (0.1, 0.2)]
    found = cells(tiny, *fields, {"model.layers": 2})
    found = [found[i] for i in (0, 2, 4, 6, 1, 3, 5)]
    parts = [part(found, f"{place}/3") for place in (1, 2, 3)]
    assert [[cell.name for cell in one] for one in parts] == [["c0", "c1"], ["c2", "c3"], ["c4", "c6", "c5"]]
    assert [len(programs(one)) for one in parts] == [1, 1, 2]


def test_arguments_of_the_task_are_shared_where_replicas_differ_in_them(tiny):
    fields = {"model.inputs": "vector", "task": BURSTS.format(1, 0)}
    apart = cells(tiny, fields, {**fields, "task": BURSTS.format(0.5, 0)})
    assert shared(apart) == [["c0"], ["c1"]]
    grids = cells(tiny, *({**fields, "train.vary": {"p_bursty": v}} for v in ([0, 1], [0.5, 1])), fields)
    assert shared(grids) == [["c0", "c1"], ["c2"]]
    assert programs(grids)[0].fields == ["p_bursty"]


def test_the_plan_tells_cells_programs_who_shares_and_in_what_they_differ(tiny):
    rates = [{"optimizer.learning_rate": (i + 1) / 100} for i in range(8)]
    found = cells(tiny, {"model.mask": "bidirectional"}, *rates)
    assert list(plan(found, lambda config: f"by {config.name}")) == [
        "9 cells, 2 programs",
        "  8 cells differ in learning_rate, by tiny: c1, c2, c3, c4, c5, c6, and 2 more",
        "  1 cell with a program of its own: c0",
    ]
    two = cells(tiny, *({"seed": i, "model.init_scale": 1 + i, "optimizer.learning_rate": 1 + i} for i in range(2)))
    assert list(plan(two, lambda config: "so"))[1:] == [
        "  2 cells differ in learning_rate, init_scale and seed, so: c0, c1"
    ]
    assert list(plan(found[:2], lambda config: "")) == [
        "2 cells, 2 programs",
        "  2 cells with a program of their own: c0, c1",
    ]
    assert list(plan(found[:1], lambda config: "")) == ["1 cell, 1 program", "  1 cell with a program of its own: c0"]
    wide = cells(tiny, *({"model.width": 8 * (1 + i)} for i in range(8)))
    assert list(plan(wide, lambda config: ""))[1:] == [
        "  8 cells with a program of their own: c0, c1, c2, c3, c4, c5, and 2 more"
    ]


def test_of_many_programs_a_few_are_told_one_by_one(tiny):
    many = cells(tiny, *({"model.width": 8 * (1 + i // 2), "seed": i} for i in range(24)))
    told = list(plan(many, lambda config: "so"))
    assert told[0] == "24 cells, 12 programs"
    assert (told[1], told[8]) == ("  2 cells differ in seed, so: c0, c1", "  2 cells differ in seed, so: c14, c15")
    assert told[9:] == ["  8 cells share 4 more programs"]
