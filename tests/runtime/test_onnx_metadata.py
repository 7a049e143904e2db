"""Metadata is read as ONNX wrote it, and no damage ends in anything but ``ModelFileError``."""

import contextlib
import itertools
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.artefact.card import ModelCard
from runtime.artefact.onnx_file import check_graph, read_metadata
from runtime.errors import ModelFileError

quietly = settings(max_examples=300, deadline=None, database=None)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("onnx") / "model.onnx"


@pytest.mark.parametrize(
    "entries",
    [
        pytest.param({}, id="none"),
        pytest.param({"": ""}, id="empty-strings"),
        pytest.param(
            {"名": "räder \N{OLD PERSIAN SIGN XSHAAYATHIYA}", "line": "a\nb"}, id="unicode"
        ),
        pytest.param({f"key {i}": str(i) * i for i in range(300)}, id="many-and-long"),
    ],
)
def test_metadata_is_read_as_onnx_wrote_it(save_onnx, entries):
    assert read_metadata(save_onnx(entries)) == entries


@quietly
@given(entries=st.dictionaries(st.text(), st.text()))
def test_any_text_comes_back(save_onnx, entries):
    assert read_metadata(save_onnx(entries)) == entries


def test_the_weights_are_stepped_over(make_artefact):
    assert set(read_metadata(make_artefact())) == {"esnet_card", "esnet_graph_sha256"}


def test_every_truncation_is_refused(small_model_bytes, scratch):
    for size in range(len(small_model_bytes)):
        scratch.write_bytes(small_model_bytes[:size])
        with pytest.raises(ModelFileError, match=r"truncated|empty|no graph|without a model card"):
            ModelCard.from_file(scratch)


@pytest.mark.parametrize("share", [0.001, 0.5, 0.999], ids=["start", "middle", "end"])
def test_a_truncated_artefact_is_called_cut_short(make_artefact, scratch, share):
    content = make_artefact().read_bytes()
    scratch.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ModelFileError, match=r"is truncated: \d+ bytes, expected at least \d+"):
        read_metadata(scratch)


@quietly
@given(content=st.binary(min_size=1, max_size=200))
def test_random_bytes_are_refused(scratch, content):
    scratch.write_bytes(content)
    with pytest.raises(ModelFileError):
        ModelCard.from_file(scratch)


@quietly
@given(data=st.data())
def test_a_changed_byte_leaves_a_card_or_a_refusal(small_model_bytes, scratch, data):
    position = data.draw(st.integers(0, len(small_model_bytes) - 1))
    content = bytearray(small_model_bytes)
    content[position] = data.draw(st.integers(0, 255))
    scratch.write_bytes(content)
    with contextlib.suppress(ModelFileError):  # any other exception fails the test
        ModelCard.from_file(scratch)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"\x89PNG\r\n\x1a\n" + bytes(64), id="png"),
        pytest.param(b"PK\x03\x04" + bytes(64), id="zip-or-pth"),
        pytest.param(b"hello, this is a text file\n", id="text"),
        pytest.param(b"\xff" * 64, id="endless-varint"),
        pytest.param(bytes(64), id="zeros"),
        pytest.param(b"\x72\x04\x0a\x02\xff\xfe", id="metadata-not-utf8"),
        pytest.param(b"\x08\x08", id="no-graph"),
    ],
)
def test_other_files_are_not_onnx(scratch, content):
    scratch.write_bytes(content)
    with pytest.raises(ModelFileError, match="is not an ONNX file"):
        read_metadata(scratch)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param(Path.touch, "is empty", id="empty"),
        pytest.param(Path.mkdir, "is a folder", id="folder"),
        pytest.param(lambda path: None, "does not exist", id="missing"),
    ],
)
def test_what_is_no_file_is_named(tmp_path, make, message):
    path = tmp_path / "model.onnx"
    make(path)
    with pytest.raises(ModelFileError, match=message):
        read_metadata(path)


def test_the_file_is_closed_again(save_onnx, tmp_path):
    def open_files() -> int:
        return sum(1 for _ in Path("/proc/self/fd").iterdir())

    path, before = save_onnx({"a": "b"}), open_files()
    for _ in itertools.repeat(None, 20):
        read_metadata(path)
    assert open_files() == before


def test_a_graph_that_was_changed_after_its_export_is_refused(make_artefact, tmp_path):
    data = bytearray(make_artefact().read_bytes())
    data[len(data) // 2] ^= 1  # a weight
    path = tmp_path / "damaged.onnx"
    path.write_bytes(data)
    check_graph(make_artefact())
    with pytest.raises(ModelFileError, match="was changed after its export"):
        check_graph(path)


def test_a_graph_without_a_hash_is_refused(save_onnx):
    with pytest.raises(ModelFileError, match="has no hash of its graph"):
        check_graph(save_onnx({"author": "someone else"}))
