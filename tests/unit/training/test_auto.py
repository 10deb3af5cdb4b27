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
    ("replicas", "available", "expected"), [(4, 2, 2), (3, 2, 1), (6, 4, 3), (1, 8, 1), (8, 8, 8), (5, 4, 1)]
)
def test_devices_divide_replicas(tiny, replicas, available, expected):
    assert auto.devices(tiny({"train.replicas": replicas}), available) == expected


def test_too_many_devices_are_refused(tiny):
    with pytest.raises(ConfigError, match=r"train.devices = 2 is more than this machine has; allowed: 1 to 1"):
        auto.devices(tiny({"train.devices": 2}), 1)


def test_a_cpu_is_split_into_no_more_devices_than_cores(tiny):
    config = tiny({"train.devices": 4096, "train.replicas": 4096})
    assert auto.virtual_devices(config, 8) == 8
    assert auto.virtual_devices(tiny({"train.replicas": 6}), 4) == 3
    with pytest.raises(ConfigError, match=r"train.devices = 4096 is more than this machine has; allowed: 1 to 8"):
        auto.devices(config, 8)


def test_more_parameters_than_memory_are_refused(tiny, monkeypatch):
    config = tiny({"train.replicas": 2})
    size = 2 * 4 * sum(x.size for x in jax.tree.leaves(build(config).abstract))
    monkeypatch.setattr(auto, "memory", lambda: size)
    resolved(config)
    monkeypatch.setattr(auto, "memory", lambda: size - 1)
    with pytest.raises(ConfigError, match=r"^model: its parameters take 0\.0 GiB in 2 replicas, more than the"):
        resolved(config)


def test_dispatches_divide_every_cadence(tiny):
    config = tiny({"train.steps": 60, "train.log_every": 12, "checkpoint.every": 18, "evaluation.every": 30})
    assert auto.dispatch(config) == 6
    assert auto.dispatch(tiny({"train.steps": 60, "train.log_every": 12, "train.steps_per_dispatch": 3})) == 3


def test_what_is_asked_for_is_kept(tiny):
    config = tiny({"train.microbatch": 2, "train.replica_layout": "vmap", "train.devices": 1})
    assert resolved(config) == auto.Auto(Layout("vmap", 1), 2, 4, ("xla_dense",))
