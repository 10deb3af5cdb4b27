"""What `auto` resolves to."""

import jax
import pytest

from positionbias.config.build import build
from positionbias.replicas import Layout
from positionbias.spec import ConfigError
from positionbias.training import auto


def resolved(config, platform="cpu", available=2):
    return auto.resolve(build(config), platform, available)


def test_a_cpu_runs_replicas_in_turn_on_small_pieces(tiny):
    found = resolved(tiny({"train.batch_size": 64}))
    assert found == auto.Auto(Layout("loop", 2), 32, 4, ("xla_dense",))  # 8 tokens a sequence: 32 sequences make 256


def test_an_accelerator_runs_whole_batches_side_by_side(tiny):
    found = resolved(tiny({"train.batch_size": 64}), "gpu", 1)
    assert found == auto.Auto(Layout("vmap", 1), 64, 4, ("xla_chunked",))


@pytest.mark.parametrize(
    ("replicas", "available", "expected"),
    [(4, 2, (2, 1)), (3, 2, (1, 2)), (6, 4, (3, 1)), (1, 8, (1, 8)), (8, 8, (8, 1)), (5, 4, (1, 4)), (2, 16, (2, 8))],
)
def test_devices_go_to_replicas_first_and_to_their_batches_next(tiny, replicas, available, expected):
    found = auto.layout(tiny({"train.replicas": replicas}), "cpu", available)
    assert (found.replica, found.data, found.fsdp) == (*expected, 1)


@pytest.mark.parametrize(
    ("mesh", "available", "expected"),
    [
        ({"data": 2}, 4, (2, 2, 1)),
        ({"fsdp": 2}, 4, (2, 1, 2)),
        ({"replica": 1}, 16, (1, 8, 1)),
        ({"replica": 1, "fsdp": 2}, 16, (1, 4, 2)),
        ({"replica": 1, "data": 1, "fsdp": 4}, 16, (1, 1, 4)),
    ],
)
def test_what_is_asked_of_a_mesh_is_kept(tiny, mesh, available, expected):
    found = auto.layout(tiny({f"train.mesh.{axis}": size for axis, size in mesh.items()}), "cpu", available)
    assert (found.replica, found.data, found.fsdp) == expected


def test_parts_of_a_batch_hold_whole_micro_batches(tiny):
    config = tiny({"train.replicas": 1, "train.microbatch": 4})
    assert auto.layout(config, "cpu", 8) == Layout("loop", 1, 2)
    assert resolved(tiny({"train.replicas": 1, "train.batch_size": 64}), "cpu", 4).microbatch == 16


def test_too_many_devices_are_refused(tiny):
    with pytest.raises(
        ConfigError, match=r"mesh asks for 2 x 1 x 1 = 2 devices, more than this machine has; allowed: 1 to"
    ):
        auto.layout(tiny({"train.mesh.replica": 2}), "cpu", 1)


def test_an_objective_that_fits_matrices_wants_them_whole(tiny):
    fits = {"objective": "focus_bilevel", "model.mlp": True, "train.mesh.fsdp": 2}
    with pytest.raises(ConfigError, match=r"train.mesh.fsdp = 2 leaves no device with whole matrices"):
        resolved(tiny(fits))


def test_a_cpu_is_split_into_no_more_devices_than_cores(tiny):
    config = tiny({"train.mesh.replica": 4096, "train.replicas": 4096})
    assert auto.virtual_devices(config, 8) == 8
    assert auto.virtual_devices(tiny({"train.replicas": 6, "train.mesh.data": 1}), 4) == 3
    with pytest.raises(ConfigError, match=r"train.mesh asks for 4096 x 1 x 1 = 4096 devices"):
        auto.layout(config, "cpu", 8)


def test_more_parameters_than_memory_are_refused(tiny, monkeypatch):
    config = tiny({"train.replicas": 2})
    size = 2 * 4 * sum(x.size for x in jax.tree.leaves(build(config).abstract))
    monkeypatch.setattr(auto, "memory", lambda: size)
    resolved(config)
    monkeypatch.setattr(auto, "memory", lambda: size - 1)
    with pytest.raises(ConfigError, match=r"^model: its parameters take 0\.0 GiB in 2 replicas, more than the"):
        resolved(config)


def test_drivers_of_all_rows_and_of_those_that_are_trained_are_told(tiny):
    long = {"task": "inverse_permutation(n=300, alphabet=8)", "model.operator": "softmax"}  # 300 of 600 rows answer
    assert resolved(tiny(long)).drivers == ("xla_chunked", "xla_dense")
    for fields in (
        {"model.operator": "softmax(impl='xla_chunked')"},
        {"model.operator": "even_softmax(price=0.1)"},
        {"objective": "next_token(others=0.5)"},
        {"model.architecture": "looped(loops=1)"},
    ):
        assert resolved(tiny({**long, **fields})).drivers == ("xla_chunked",), fields


def test_dispatches_divide_every_cadence(tiny):
    config = tiny({"train.steps": 60, "train.log_every": 12, "checkpoint.every": 18, "evaluation.every": 30})
    assert auto.dispatch(config) == 6
    assert auto.dispatch(tiny({"train.steps": 60, "train.log_every": 12, "train.steps_per_dispatch": 3})) == 3


def test_what_is_asked_for_is_kept(tiny):
    config = tiny(
        {"train.microbatch": 2, "train.replica_layout": "vmap", "train.mesh.replica": 1, "train.mesh.data": 1}
    )
    assert resolved(config) == auto.Auto(Layout("vmap", 1), 2, 4, ("xla_dense",))
