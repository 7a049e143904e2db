"""A file appears whole or not at all, with the umask's permissions; an unusable output path is refused."""

import errno
import hashlib
import os
import subprocess
import sys

import pytest

from runtime.errors import InvalidInput
from runtime.files import atomic_path, cache_dir, require_outputs, sha256_of


@pytest.fixture
def umask():
    """Set the umask for one test."""
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


def test_the_file_appears_when_the_block_ends(tmp_path):
    with atomic_path(tmp_path / "a.onnx") as temporary:
        temporary.write_text("new")
        assert not (tmp_path / "a.onnx").exists()
    assert (tmp_path / "a.onnx").read_text() == "new"
    assert os.listdir(tmp_path) == ["a.onnx"]


def test_the_temporary_file_lies_beside_it_with_the_same_suffix(tmp_path):
    with atomic_path(tmp_path / "a.onnx") as temporary:
        assert temporary.parent == tmp_path
        assert temporary.suffix == ".onnx"


def test_an_old_file_is_replaced(tmp_path):
    (tmp_path / "a").write_text("old")
    with atomic_path(tmp_path / "a") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "a").read_text() == "new"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_after_an_error_the_old_file_is_there_and_nothing_else(tmp_path, error):
    def write():
        with atomic_path(tmp_path / "a") as temporary:
            temporary.write_text("half")
            raise error

    (tmp_path / "a").write_text("old")
    with pytest.raises(error):
        write()
    assert os.listdir(tmp_path) == ["a"]
    assert (tmp_path / "a").read_text() == "old"


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_permissions_are_as_the_umask_says(tmp_path, umask, mask, mode):
    umask(mask)
    with atomic_path(tmp_path / "a") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "a").stat().st_mode & 0o777 == mode


def test_the_umask_is_left_alone(tmp_path, umask):
    umask(0o027)
    with atomic_path(tmp_path / "a"):
        assert umask(0o027) == 0o027


@pytest.mark.parametrize("folder", ["none", "file"])
def test_an_unusable_folder_is_reported_under_the_name_asked_for(tmp_path, folder):
    (tmp_path / "file").touch()
    path = tmp_path / folder / "a.onnx"
    with pytest.raises(OSError, match=r"/a\.onnx'$") as error, atomic_path(path):
        pytest.fail("the block must not run")
    assert error.value.filename == str(path)


def test_two_writers_do_not_meet(tmp_path):
    with atomic_path(tmp_path / "a") as first, atomic_path(tmp_path / "a") as second:
        first.write_text("1")
        second.write_text("2")
    assert (tmp_path / "a").read_text() == "1"


def test_sha256_is_that_of_the_bytes(tmp_path):
    content = bytes(range(256)) * 9000
    (tmp_path / "a").write_bytes(content)
    assert sha256_of(tmp_path / "a") == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        pytest.param("nowhere/a.json", "output folder .*nowhere does not exist", id="no-folder"),
        pytest.param("source/a.json", "output folder .*source does not exist", id="file-as-folder"),
        pytest.param(".", "is a folder", id="folder"),
        pytest.param("pipe", "is not a regular file", id="pipe"),
        pytest.param("source", "is the input file itself", id="input"),
    ],
)
def test_an_output_that_cannot_be_meant_is_refused(tmp_path, name, message):
    source = tmp_path / "source"
    source.write_text("input")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InvalidInput, match=message):
        require_outputs(None, tmp_path / "fine.json", tmp_path / name, source=source)


def test_a_folder_without_write_permission_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: False)  # tests may run as root
    with pytest.raises(InvalidInput, match="is in a folder that is not writable"):
        require_outputs(tmp_path / "a.json")


def test_new_and_existing_files_may_be_outputs(tmp_path):
    (tmp_path / "old").write_text("old")
    require_outputs(tmp_path / "old", None, tmp_path / "new")


def test_the_next_write_removes_what_a_killed_process_left(tmp_path):
    code = (
        "import os, signal, sys; from pathlib import Path; from runtime.files import atomic_path\n"
        "with atomic_path(Path(sys.argv[1])) as path: os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "a[1].onnx"], check=False)
    subprocess.run([sys.executable, "-c", code, tmp_path / "other.onnx"], check=False)
    assert len(os.listdir(tmp_path)) == 2
    with atomic_path(tmp_path / "a[1].onnx") as temporary:
        temporary.touch()
    left = sorted(os.listdir(tmp_path))
    assert left[1] == "a[1].onnx"
    assert left[0].startswith(".other-")


def test_a_file_reaches_the_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr("os.fsync", lambda file: synced.append((tmp_path / "a").exists()))
    with atomic_path(tmp_path / "a") as temporary:
        temporary.touch()
    assert synced == [False]


def test_the_cache_needs_no_home_if_xdg_names_one(monkeypatch, tmp_path):
    monkeypatch.setattr("pathlib.Path.home", lambda: pytest.fail("the home folder is not needed"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir() == tmp_path / "esnet-deploy"


def test_a_full_disk_is_reported_with_the_file(tmp_path):
    with pytest.raises(OSError, match="No space left") as error, atomic_path(tmp_path / "a"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert error.value.filename == str(tmp_path / "a")
