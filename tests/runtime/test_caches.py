"""Caches are best effort: one that cannot be read or written costs a warning, never the work."""

import types

import pytest

from runtime.backends.tensorrt import _save_runtime_cache
from runtime.files import read_cache, save_cache


@pytest.fixture
def blocked(tmp_path):
    """A path whose folder cannot be made, because a file has its name."""
    (tmp_path / "cache").write_text("a file")
    return tmp_path / "cache" / "kernels.cache"


def test_a_cache_is_read_back(tmp_path):
    path = tmp_path / "new" / "kernels.cache"
    assert read_cache(path) == b""
    assert save_cache(path, b"timings") is None
    assert read_cache(path) == b"timings"


def test_a_cache_that_cannot_be_written_is_named(blocked):
    assert save_cache(blocked, b"timings").startswith(f"cannot write the cache {blocked}: ")
    assert read_cache(blocked) == b""


@pytest.mark.parametrize("content", [b"kernels", None])
def test_the_runtime_cache_is_written_if_there_is_one(tmp_path, content):
    path = tmp_path / "new" / "kernels.cache"
    _save_runtime_cache(types.SimpleNamespace(serialize=lambda: content), path)
    assert read_cache(path) == (content or b"")


def test_a_runtime_cache_that_cannot_be_written_warns(blocked):
    cache = types.SimpleNamespace(serialize=lambda: b"kernels")
    with pytest.warns(RuntimeWarning, match="cannot write the cache"):
        _save_runtime_cache(cache, blocked)
