import gc
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from positionbias import runtime


@runtime.no_garbage()
def failing_start():
    assert not gc.isenabled()
    raise KeyError


def test_garbage_is_collected_again_after_a_start_that_fails():
    before = gc.get_freeze_count()
    with pytest.raises(KeyError):
        failing_start()
    assert gc.isenabled()
    assert gc.get_freeze_count() == before  # frozen garbage would never go: a sweep would keep every cell it has run


def test_a_collector_that_is_off_stays_off():
    gc.disable()
    try:
        with runtime.no_garbage(), runtime.no_garbage():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv(runtime.CACHE_VARIABLE, "off")
    assert runtime.cache_folder() is None
    monkeypatch.setenv(runtime.CACHE_VARIABLE, str(tmp_path))
    assert runtime.cache_folder() == tmp_path
    monkeypatch.delenv(runtime.CACHE_VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert runtime.cache_folder() == tmp_path / "positionbias" / "compiled"


@pytest.mark.parametrize(
    "options", [{}, {runtime.FUSION[2:]: "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"}], ids=["", "of a step"]
)
def test_products_of_what_is_broadcast_are_right_where_they_are_compiled(options):
    """Such a product read memory that was never written: hundreds of millions and more, seldom a right number."""
    q, k = (jax.random.normal(jax.random.key(i), (64, 2, 64, 45)) for i in range(2))

    def scored(q, k):
        return q @ jnp.zeros((64, 2, 45, 16)) + jnp.sum(q * k, axis=-1, keepdims=True)

    for _ in range(4):
        jax.clear_caches()
        compiled = jax.jit(scored).lower(q, k).compile(options)
        np.testing.assert_allclose(compiled(q, k), scored(q, k), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("given", "kept"), [("", []), ("--xla_a=1", ["--xla_a=1"])])
def test_the_setting_for_products_stands_beside_others_and_once(monkeypatch, given, kept):
    monkeypatch.setenv("XLA_FLAGS", given)
    for _ in range(2):
        runtime.sound_products()
    flags = os.environ["XLA_FLAGS"].split()
    assert flags == [*kept, f"{runtime.FUSION}="]


def test_a_train_step_asks_for_the_faster_products_where_nothing_was_told_of_them(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_a=1")
    runtime.sound_products()
    assert runtime.step_options("cpu") == {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"}
    assert runtime.step_options("gpu") == {}
    monkeypatch.setenv("XLA_FLAGS", f"{runtime.FUSION}=LIBRARY_FUSION_TYPE_DOT")
    assert runtime.step_options("cpu") == {}


def test_the_setting_for_products_leaves_what_was_told(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", f"{runtime.FUSION}=LIBRARY_FUSION_TYPE_DOT")
    runtime.sound_products()
    assert os.environ["XLA_FLAGS"] == f"{runtime.FUSION}=LIBRARY_FUSION_TYPE_DOT"


@pytest.mark.parametrize(
    ("coordinator", "bound"),
    [
        ("127.0.0.1:4711", "127.0.0.1:4711"),
        ("localhost:4711", "localhost:4711"),
        ("192.0.2.1:4711", None),  # an address for documentation: no machine has it
        ("some.machine:4711", None),
        (None, None),
    ],
)
def test_the_first_process_listens_where_it_was_told_if_it_can(monkeypatch, coordinator, bound):
    asked = []
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    monkeypatch.setattr(jax.distributed, "initialize", lambda *_, **named: asked.append(named))
    runtime._join(runtime.Processes(coordinator, 2, 0))
    assert asked == [{"coordinator_bind_address": bound}]


@pytest.fixture
def affinity(monkeypatch, tmp_path):
    """Four cores, and those that this process has been tied to since."""
    tied = [{4, 5, 6, 7}]
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: tied[-1], raising=False)
    monkeypatch.setattr(os, "sched_setaffinity", lambda process, cores: tied.append(set(cores)), raising=False)
    monkeypatch.setattr(runtime, "_claims", [])
    monkeypatch.setattr(runtime, "_most", None)
    monkeypatch.setattr(runtime.tempfile, "gettempdir", lambda: str(tmp_path))
    return tied


def test_processes_that_keep_to_some_cores_have_others(affinity):
    runtime.keep_to(1)
    assert (affinity[-1], runtime.cores()) == ({4}, 1)
    affinity.append(affinity[0])  # as another process has them
    runtime.keep_to(2)
    assert affinity[-1] == {5, 6}
    affinity.append(affinity[0])
    runtime.keep_to(3)  # one is free, two are shared
    assert len(affinity[-1]) == 3
    assert 7 in affinity[-1]
    for claim in runtime._claims[:1]:
        os.close(claim)  # as when a process ends
    affinity.append(affinity[0])
    runtime.keep_to(1)
    assert affinity[-1] == {4}
    for claim in runtime._claims[1:]:
        os.close(claim)


def test_who_may_use_all_cores_claims_none_and_no_folder_is_no_obstacle(affinity, tmp_path):
    runtime.keep_to(4)
    assert (affinity, runtime._claims) == ([{4, 5, 6, 7}], [])
    (tmp_path / f"positionbias-cores-{os.getuid()}").touch()
    runtime.keep_to(2)
    assert len(affinity[-1]) == 2


def test_where_a_process_cannot_be_tied_to_cores_xla_is_told(monkeypatch):
    monkeypatch.delattr(os, "sched_setaffinity", raising=False)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(runtime, "_most", None)
    monkeypatch.setenv("PJRT_NPROC", "8")
    runtime.keep_to(3)
    assert (os.environ["PJRT_NPROC"], runtime.cores()) == ("3", 3)


def test_a_cpu_may_be_split_into_as_many_devices_as_xla_is_told(monkeypatch):
    monkeypatch.setattr(runtime, "cores", lambda: 3)
    for given, most in (("", 3), ("--xla_force_host_platform_device_count=8", 8), ("--xla_other=1", 3)):
        monkeypatch.setenv("XLA_FLAGS", given)
        assert runtime.most_devices() == most


def test_a_ray_of_ones_own_is_kept_from_other_machines(monkeypatch):
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "1")
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    runtime.keep_ray_here()
    assert os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "0"
    assert os.environ["RAY_AUTH_MODE"] == "token"
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    runtime.keep_ray_here()
    assert os.environ["RAY_AUTH_MODE"] == "disabled"
