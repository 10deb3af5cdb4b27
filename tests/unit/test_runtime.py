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


def test_products_of_what_is_broadcast_are_right_where_they_are_compiled():
    """Such a product read memory that was never written: hundreds of millions and more, seldom a right number."""
    q, k = (jax.random.normal(jax.random.key(i), (64, 2, 64, 45)) for i in range(2))

    def scored(q, k):
        return q @ jnp.zeros((64, 2, 45, 16)) + jnp.sum(q * k, axis=-1, keepdims=True)

    for _ in range(4):
        jax.clear_caches()
        np.testing.assert_allclose(jax.jit(scored)(q, k), scored(q, k), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("given", "kept"), [("", []), ("--xla_a=1", ["--xla_a=1"])])
def test_the_setting_for_products_stands_beside_others_and_once(monkeypatch, given, kept):
    monkeypatch.setenv("XLA_FLAGS", given)
    for _ in range(2):
        runtime.sound_products()
    flags = os.environ["XLA_FLAGS"].split()
    assert flags == [*kept, f"{runtime.FUSION}="]


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
