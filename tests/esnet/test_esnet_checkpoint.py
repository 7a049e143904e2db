"""Checkpoints: every layout loads, nothing in a file is run, and what does not fit is named."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from esnet.checkpoint import load_checkpoint
from esnet.errors import CheckpointError
from esnet.families import FAMILIES

HEAD = "decoder.output_conv.weight"

each_family = pytest.mark.parametrize("family", FAMILIES)


def torch_bytes(content: object, **settings: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **settings)
    return buffer.getvalue()


SMALL_FILE = torch_bytes({"weight": torch.ones(3)})
SMALL_LEGACY_FILE = torch_bytes({"weight": torch.ones(3)}, _use_new_zipfile_serialization=False)


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture
def weights_path(tmp_path) -> Path:
    return tmp_path / "weights.pt"


@each_family
def test_family_is_recognised_by_its_keys(family, make_state_dict, weights_path):
    torch.save(make_state_dict(family), weights_path)
    assert load_checkpoint(weights_path).family is FAMILIES[family]


@each_family
def test_every_weight_of_the_file_is_in_the_network(family, make_state_dict, weights_path):
    saved = make_state_dict(family, seed=3)
    torch.save(saved, weights_path)
    network = load_checkpoint(weights_path).network
    loaded = network.state_dict()
    for ours, theirs in FAMILIES[family].keys(network).items():
        assert torch.equal(loaded[ours], saved[theirs]), theirs


@pytest.mark.parametrize(
    "wrap",
    [
        pytest.param(lambda state: state, id="bare"),
        pytest.param(lambda state: prefixed("module.", state), id="DataParallel"),
        pytest.param(lambda state: prefixed("model._orig_mod.", state), id="Lightning-compiled"),
        pytest.param(lambda state: {"state_dict": state}, id="state_dict"),
        pytest.param(lambda state: {"model": prefixed("module.", state)}, id="model-of-module"),
        pytest.param(
            lambda state: {
                "epoch": 3,
                "class_weights": torch.ones(11),
                "state_dict": state,
                "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{}]},
                "best_score": np.float64(0.7),
                "best_epoch": np.int64(2),
            },
            id="trainer-with-numpy-scalars",
        ),
        pytest.param(
            lambda state: {k: v for k, v in state.items() if "num_batches_tracked" not in k},
            id="without-batch-counters",
        ),
        pytest.param(lambda state: {k: v.half() for k, v in state.items()}, id="half"),
    ],
)
@pytest.mark.parametrize("is_legacy", [False, True], ids=["zip", "legacy"])
def test_wrapped_state_dict_loads(wrap, is_legacy, make_state_dict, weights_path):
    state = make_state_dict("authors")
    weights_path.write_bytes(torch_bytes(wrap(state), _use_new_zipfile_serialization=not is_legacy))
    loaded = load_checkpoint(weights_path).network.state_dict()[HEAD]
    torch.testing.assert_close(loaded, state[HEAD], rtol=1e-3, atol=1e-4)


def prefixed(prefix: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {prefix + key: value for key, value in state.items()}


@pytest.mark.parametrize("name", ["weights.safetensors", "WEIGHTS.SAFETENSORS"])
def test_safetensors_loads_with_its_metadata(name, make_state_dict, tmp_path):
    state = make_state_dict("zh320")
    save_file(state, tmp_path / name, metadata={"label_set": "camvid"})
    checkpoint = load_checkpoint(tmp_path / name)
    assert checkpoint.metadata == {"label_set": "camvid"}
    assert torch.equal(checkpoint.network.decoder.output_bn.bias, state["full_conv.up_conv.1.bias"])


def test_network_is_float32_and_in_evaluation_mode(make_state_dict, weights_path):
    torch.save({key: value.half() for key, value in make_state_dict().items()}, weights_path)
    network = load_checkpoint(weights_path).network
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    assert not any(module.training for module in network.modules())


@pytest.mark.parametrize("num_classes", [1, 8, 20])
def test_number_of_classes_is_read_off_the_last_layer(num_classes, make_state_dict, weights_path):
    torch.save(make_state_dict(num_classes=num_classes), weights_path)
    assert load_checkpoint(weights_path).network.config.num_classes == num_classes


def test_shipped_weights_load_by_name():
    checkpoint = load_checkpoint("camvid")
    assert (checkpoint.family.name, checkpoint.network.config.num_classes) == ("authors", 11)


def test_own_file_goes_before_shipped_weights_of_the_same_name(
    make_state_dict, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    torch.save(make_state_dict(num_classes=3), "camvid")
    assert load_checkpoint("camvid").network.config.num_classes == 3


def test_a_folder_does_not_hide_shipped_weights_of_the_same_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "camvid").mkdir()
    assert load_checkpoint("camvid").network.config.num_classes == 11


def test_sha256_is_that_of_the_files_bytes(make_state_dict, weights_path):
    torch.save(make_state_dict(), weights_path)
    expected = hashlib.sha256(weights_path.read_bytes()).hexdigest()
    assert load_checkpoint(weights_path).sha256 == expected


@pytest.mark.parametrize(
    "make_bytes",
    [
        pytest.param(pickle.dumps, id="bare-pickle"),
        pytest.param(lambda bomb: pickle.dumps({"state_dict": bomb}, 2), id="pickle-protocol-2"),
        pytest.param(torch_bytes, id="torch-zip"),
        pytest.param(
            lambda bomb: torch_bytes(bomb, _use_new_zipfile_serialization=False), id="torch-legacy"
        ),
    ],
)
def test_code_in_a_file_is_refused_and_does_not_run(make_bytes, tmp_path, weights_path):
    weights_path.write_bytes(make_bytes(Bomb(tmp_path / "ran")))
    with pytest.raises(CheckpointError):
        load_checkpoint(weights_path)
    assert not (tmp_path / "ran").exists()
    with suppress(
        RuntimeError
    ):  # a bare pickle lacks torch's magic number, which is read from it first
        torch.load(weights_path, weights_only=False)
    assert (tmp_path / "ran").exists(), "the bomb is a dud, so this test proves nothing"


def test_refusal_of_code_names_what_the_file_asks_for(tmp_path, weights_path):
    torch.save(Bomb(tmp_path / "ran"), weights_path)
    with pytest.raises(CheckpointError, match=r"could run code: it asks for \w+\.mkdir") as caught:
        load_checkpoint(weights_path)
    assert "model.state_dict()" in caught.value.hint


def test_whole_pickled_model_is_refused_with_the_way_to_save_it(make_network, weights_path):
    torch.save(make_network(), weights_path)
    with pytest.raises(CheckpointError, match=r"asks for esnet\.model\.ESNet") as caught:
        load_checkpoint(weights_path)
    assert "model.state_dict()" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        pytest.param("w.pt", b"", "is empty", id="empty"),
        pytest.param(
            "w.pt", b"hello", "is not a torch checkpoint: it starts with b'hell'", id="text"
        ),
        pytest.param("w.pt", SMALL_FILE[:-30], "cannot be read as a state dict", id="cut-zip"),
        pytest.param(
            "w.pt", SMALL_LEGACY_FILE[:-3], "cannot be read as a state dict", id="cut-legacy"
        ),
        pytest.param(
            "w.pt", SMALL_FILE, "is not an ESNet checkpoint: it holds weight", id="no-ESNet"
        ),
        pytest.param("w.pt", torch_bytes([1, 2]), "holds no state dict, but list", id="list"),
        pytest.param(
            "w.pt", torch_bytes({"epoch": 3}), "holds no state dict, but epoch", id="no-tensors"
        ),
        pytest.param("w.pt", torch_bytes({}), "holds no state dict, but nothing", id="no-entries"),
        pytest.param(
            "w.safetensors", b"", "not a complete safetensors file", id="empty-safetensors"
        ),
        pytest.param(
            "w.safetensors",
            SMALL_FILE,
            "not a complete safetensors file",
            id="misnamed-safetensors",
        ),
    ],
)
def test_file_that_is_no_checkpoint_is_refused(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path / name)


def test_safetensors_without_tensors_is_refused(tmp_path):
    save_file({}, tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match="it holds nothing"):
        load_checkpoint(tmp_path / "w.safetensors")


@pytest.mark.parametrize("share", [0.01, 0.5, 0.999])
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_truncated_checkpoint_is_refused_as_one(share, suffix, make_state_dict, tmp_path):
    path = tmp_path / f"weights.{suffix}"
    (torch.save if suffix == "pt" else save_file)(make_state_dict(), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path)
    assert caught.value.hint == "the file may be truncated: copy or download it again"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        pytest.param("nowhere.pt", "nowhere.pt' does not exist", id="missing"),
        pytest.param("", "is a folder", id="folder"),
    ],
)
def test_path_without_a_file_is_refused_with_the_shipped_names(name, message, tmp_path):
    with pytest.raises(CheckpointError, match=message) as caught:
        load_checkpoint(tmp_path / name)
    assert "shipped weights: camvid" in caught.value.hint


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(
            {HEAD.replace("weight", "bias"): None},
            "1 missing (decoder.output_conv.bias)",
            id="missing",
        ),
        pytest.param({"aux.weight": torch.ones(2)}, "1 unknown (aux.weight)", id="unknown"),
        pytest.param(
            {"encoder.initial_block.bn.weight": torch.ones(8)},
            "1 misshapen (encoder.initial_block.bn.weight (8,) instead of (16,))",
            id="misshapen",
        ),
        pytest.param(
            {HEAD: None},
            "its last layer decoder.output_conv.weight is missing or misshapen; "
            "missing: decoder.output_conv.weight",
            id="no-last-layer",
        ),
    ],
)
def test_keys_that_do_not_fit_are_listed(change, message, make_state_dict, weights_path):
    state = make_state_dict() | change
    torch.save({key: value for key, value in state.items() if value is not None}, weights_path)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(weights_path)
    assert message in str(caught.value)


def test_long_lists_of_keys_are_cut(make_state_dict, weights_path):
    state = make_state_dict()
    torch.save({k: v for k, v in state.items() if "bn1" not in k}, weights_path)
    with pytest.raises(CheckpointError, match=r"48 missing \((\S+, ){8}and 40 more\)"):
        load_checkpoint(weights_path)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """Torch files, cut or with bytes changed."""
    content = bytearray(draw(st.sampled_from([SMALL_FILE, SMALL_LEGACY_FILE])))
    for position in draw(st.lists(st.integers(0, len(content) - 1), max_size=4)):
        content[position] = draw(st.integers(0, 255))
    return bytes(content[: draw(st.integers(0, len(content)))])


@settings(max_examples=200, deadline=None, derandomize=True)
@given(content=damaged())
def test_damage_of_any_kind_is_told_as_a_checkpoint_error(content, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "damaged.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError):
        load_checkpoint(path)


@pytest.mark.parametrize("protocol", [4, 5])
def test_a_newer_pickle_protocol_is_not_called_dangerous(make_state_dict, tmp_path, protocol):
    torch.save(make_state_dict(), tmp_path / "a.pt", pickle_protocol=protocol)
    with pytest.raises(CheckpointError, match="a pickle format that torch cannot read") as error:
        load_checkpoint(tmp_path / "a.pt")
    assert "run code" not in str(error.value)


def test_a_head_that_claims_millions_of_classes_is_refused(make_state_dict, tmp_path):
    state = make_state_dict()
    state["decoder.output_conv.weight"] = torch.zeros(1).expand(16, 10**7, 2, 2)
    torch.save(state, tmp_path / "a.pt")
    assert (tmp_path / "a.pt").stat().st_size < 10_000_000
    with pytest.raises(CheckpointError, match="claims 10000000 classes, at most 255"):
        load_checkpoint(tmp_path / "a.pt")


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda t: torch.nested.nested_tensor([t, t]), id="nested"),
        pytest.param(lambda t: torch.quantize_per_tensor(t, 1, 0, torch.quint8), id="quantized"),
        pytest.param(lambda t: t.to_sparse(), id="sparse"),
        pytest.param(lambda t: t.to("meta"), id="meta"),
        pytest.param(lambda t: t.to(torch.complex64), id="complex"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_a_tensor_that_is_no_plain_array_is_missing(make_state_dict, tmp_path, change):
    state = make_state_dict()
    state["decoder.output_conv.bias"] = change(state["decoder.output_conv.bias"])
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"1 missing \(decoder\.output_conv\.bias\)"):
        load_checkpoint(tmp_path / "a.pt")
