"""OpenVINO's compiled networks are cached; a damaged or missing cache changes no labels."""

import os
import subprocess
import sys

import numpy as np
import pytest

from runtime.backend import open_backend
from runtime.backends.openvino import OpenVinoBackend
from runtime.files import trim_cache


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """An empty cache; gives the folder of OpenVINO's networks."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "esnet-deploy" / "openvino"


@pytest.fixture
def labels_of(frame):
    def infer(path):
        with open_backend(path, "openvino") as backend:
            return backend.infer(frame[None])[0]

    return infer


@pytest.fixture
def no_compiler(monkeypatch):
    """Make every compilation fail."""
    monkeypatch.setattr(OpenVinoBackend, "_model", None)


def test_the_second_opening_compiles_nothing(cache, make_artefact, labels_of, request):
    expected = labels_of(make_artefact())
    request.getfixturevalue("no_compiler")
    np.testing.assert_array_equal(labels_of(make_artefact()), expected)


def test_an_empty_cache_compiles(cache, make_artefact, labels_of, no_compiler):
    with pytest.raises(AttributeError):
        labels_of(make_artefact())


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda content: b"", id="empty"),
        pytest.param(lambda content: content[:-1], id="cut"),
        pytest.param(lambda content: bytes(len(content)), id="zeros"),
        pytest.param(lambda content: content[:5000] + b"?" + content[5001:], id="one-byte"),
    ],
)
def test_a_damaged_network_is_compiled_and_kept_again(
    cache, make_artefact, labels_of, damage, request
):
    expected = labels_of(make_artefact())
    (path,) = cache.iterdir()
    path.write_bytes(damage(path.read_bytes()))
    np.testing.assert_array_equal(labels_of(make_artefact()), expected)
    request.getfixturevalue("no_compiler")
    np.testing.assert_array_equal(labels_of(make_artefact()), expected)


def test_another_artefact_is_another_network(cache, make_artefact, labels_of):
    labels_of(make_artefact())
    labels_of(make_artefact(optimized_for="openvino"))
    assert len(list(cache.iterdir())) == 2


def test_a_cache_that_cannot_be_written_is_no_error(
    make_artefact, labels_of, monkeypatch, tmp_path
):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert labels_of(make_artefact()).shape == (1, 64, 128)


def test_processes_share_the_cache(cache, make_artefact):
    code = (
        "import sys, zlib, numpy as np; from runtime.backend import open_backend\n"
        "frame = np.random.default_rng(0).integers(0, 256, (1, 64, 128, 3), np.uint8)\n"
        "with open_backend(sys.argv[1], 'openvino') as backend:\n"
        "    print(zlib.crc32(backend.infer(frame)[0]))\n"
    )
    words = [sys.executable, "-c", code, str(make_artefact())]
    running = [subprocess.Popen(words, stdout=subprocess.PIPE) for _ in range(3)]
    results = {process.communicate()[0] for process in running}
    assert len(results) == 1
    assert {process.returncode for process in running} == {0}
    assert len(list(cache.iterdir())) == 1


def test_the_cache_keeps_what_was_used_last(tmp_path):
    for age, name in enumerate("abc"):
        (tmp_path / name).write_bytes(bytes(10))
        os.utime(tmp_path / name, (0, 100 - age))
    trim_cache(tmp_path, 20)
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b"}


def test_a_missing_cache_needs_no_trimming(tmp_path):
    trim_cache(tmp_path / "none", 20)
