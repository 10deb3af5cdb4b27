import gc

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
