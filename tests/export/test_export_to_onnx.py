"""``export_onnx``: the artefact, its card, the comparison with torch, and atomic writing."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import save_file

from esnet.checkpoint import CLASSES_KEY
from esnet.errors import LabelSetError
from esnet.families import FAMILIES, IMAGENET_MEAN, IMAGENET_STD
from esnet.labels import LabelSet, label_set_from_dict
from export.errors import ExportError, ParityError
from export.graph.editor import op_counts
from export.graph.head import append_labels
from export.plan import ExportPlan, fold_batchnorm
from export.report import text_from_export
from export.to_onnx import export_onnx
from runtime.artefact.card import BatchRange, ModelCard
from runtime.errors import BackendUnavailable, InvalidInput
from runtime.machine.onednn import has_bf16

SMALL = ExportPlan(size_hw=(64, 128))
ORCHARD = LabelSet(
    name="orchard",
    class_names=("path", "tree", "Äpfel"),
    palette=((128, 64, 128), (0, 128, 0), (255, 0, 0)),
    ignore_index=200,
    label_values={7: 0, 21: 1, 22: 1, 40: 2},
)


@pytest.fixture(scope="session")
def report(checkpoint_path, tmp_path_factory):
    """Export shared by the tests that only read it."""
    output = tmp_path_factory.mktemp("export") / "model.onnx"
    command = ["esnet-export", "to-onnx"]
    return export_onnx(checkpoint_path, output, SMALL, label_set="camvid", command=command)


@pytest.fixture
def save_checkpoint(make_network, tmp_path):
    """Write the checkpoint of a random network with its family's keys."""

    def save(family="authors", *, num_classes=11, metadata=None) -> Path:
        network = make_network(family, num_classes=num_classes)
        state, keys = network.state_dict(), FAMILIES[family].keys(network)
        path = tmp_path / "net.safetensors"
        save_file({theirs: state[ours] for ours, theirs in keys.items()}, path, metadata)
        return path

    return save


def test_card_in_the_file_is_the_reports(report):
    assert ModelCard.from_file(report.path) == report.card


def test_card_tells_the_weights_apart(report, checkpoint_path):
    assert report.card.source == {
        "weights": "street.pt",
        "sha256": hashlib.sha256(checkpoint_path.read_bytes()).hexdigest(),
        "family": "authors",
    }


def test_card_says_what_goes_in_and_out(report):
    card = report.card
    assert (card.input, card.outputs, card.size_hw, card.batch) == (
        "frames",
        ("labels",),
        (64, 128),
        (1, 1, 8),
    )
    assert (card.label_set, card.num_classes, card.precision) == ("camvid", 11, "fp32")


@pytest.mark.skipif(not has_bf16(), reason="this CPU has no bf16 arithmetic")
def test_labels_in_bf16_are_compared_where_the_cpu_has_it(report):
    assert 0.5 < report.parity.equal_labels_bf16 < 1  # random weights


def test_without_bf16_its_labels_are_unknown(checkpoint_path, tmp_path, monkeypatch):
    monkeypatch.setattr("export.verify.has_bf16", lambda: False)
    parity = export_onnx(checkpoint_path, tmp_path / "model.onnx", SMALL).parity
    assert parity.equal_labels_bf16 is None
    assert "bf16" not in parity.as_text()


def test_card_holds_the_parity_that_was_measured(report):
    assert report.card.parity == dataclasses.asdict(report.parity)
    assert report.parity.num_frames == 3


def test_report_gives_the_hash_of_the_file(report):
    assert report.sha256 == hashlib.sha256(report.path.read_bytes()).hexdigest()


def test_report_counts_nodes_before_and_after(report):
    assert report.counts_before["BatchNormalization"] == 35
    assert report.counts_after == op_counts(onnx.load(report.path).graph.node)


def test_closing_block_names_path_hash_edges_and_the_next_command(report):
    text = " ".join(text_from_export(report).split())
    for part in (
        "BatchNormalization 35 -> 0",
        "Cast 0 -> 3, Mul 0 -> 3, ArgMax 0 -> 1, Transpose 0 -> 1",
        "BatchNormalization 0, Pad 0, Shape 0, Dropout 0",
        "in frames uint8 (1..8, 64, 128, 3) RGB",
        "out labels uint8 (N, 64, 128) 11 classes of camvid",
        f"wrote {report.path}",
        f"sha256 {report.sha256[:12]}",
        f"next esnet-bench {report.path}",
    ):
        assert part in text


def test_without_a_gpu_the_form_for_this_cpu_is_named(report, monkeypatch):
    monkeypatch.setattr("export.report.nvidia_gpus", tuple)
    text = " ".join(text_from_export(report).split())
    assert (
        "note no NVIDIA GPU here, and the graph is optimized for tensorrt; for openvino: " in text
    )
    assert "--optimize-for openvino next esnet-bench" in text
    monkeypatch.setattr("export.report.nvidia_gpus", lambda: ("a GPU",))
    assert "note" not in text_from_export(report)


def test_second_export_gives_the_same_bytes(report, checkpoint_path, tmp_path):
    command = ["esnet-export", "to-onnx"]
    again = export_onnx(
        checkpoint_path, tmp_path / "again.onnx", SMALL, label_set="camvid", command=command
    )
    assert again.path.read_bytes() == report.path.read_bytes()


@pytest.mark.parametrize(
    ("plan", "expected"),
    [
        pytest.param(SMALL, "net_64x128_fp32_tensorrt.onnx", id="labels"),
        pytest.param(
            ExportPlan(
                size_hw=(64, 64), optimized_for="openvino", outputs=("labels", "confidence")
            ),
            "net_64x64_fp32_openvino_labels-confidence.onnx",
            id="labels-and-confidence",
        ),
    ],
)
def test_default_name_tells_what_it_is_and_lies_beside_the_weights(plan, expected, save_checkpoint):
    weights = save_checkpoint()
    assert export_onnx(weights, plan=plan, verify=False).path == weights.with_name(expected)


def test_shipped_weights_are_exported_to_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    report = export_onnx("camvid", plan=SMALL, verify=False)
    assert report.path == Path("camvid_64x128_fp32_tensorrt.onnx")
    assert report.card.name == "camvid"


@pytest.mark.parametrize(
    ("family", "mean", "std"),
    [
        pytest.param("authors", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), id="authors-none"),
        pytest.param("zh320", IMAGENET_MEAN, IMAGENET_STD, id="zh320-imagenet"),
        pytest.param("pytorchcv", IMAGENET_MEAN, IMAGENET_STD, id="pytorchcv-imagenet"),
    ],
)
def test_normalisation_is_the_familys_unless_it_is_given(family, mean, std, save_checkpoint):
    weights = save_checkpoint(family)
    card = export_onnx(weights, plan=SMALL).card
    assert (card.mean, card.std) == (mean, std)
    card = export_onnx(weights, plan=SMALL, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4)).card
    assert (card.mean, card.std) == ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))


@pytest.mark.parametrize(
    "plan",
    [
        pytest.param(ExportPlan(size_hw=(64, 128), batch=BatchRange(4, 4, 4)), id="fixed-batch"),
        pytest.param(ExportPlan(size_hw=(64, 128), batch=BatchRange(2, 3, 4)), id="batch-from-2"),
        pytest.param(ExportPlan(size_hw=(64, 128), input="tensor"), id="tensor-input"),
        pytest.param(ExportPlan(size_hw=(64, 128), outputs=("logits",)), id="logits"),
        pytest.param(
            ExportPlan(size_hw=(64, 128), outputs=("labels", "confidence")), id="confidence"
        ),
        pytest.param(
            ExportPlan(size_hw=(64, 128), optimized_for="openvino", opset=21), id="openvino-21"
        ),
    ],
)
def test_every_kind_of_artefact_is_compared_with_torch(plan, checkpoint_path, tmp_path):
    parity = export_onnx(checkpoint_path, tmp_path / "model.onnx", plan).parity
    assert parity.max_abs_logit_diff < 1e-4 * parity.max_abs_logit
    assert parity.equal_labels > 0.999


def test_comparison_leaves_torchs_number_of_threads_as_it_was(checkpoint_path, tmp_path):
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        export_onnx(checkpoint_path, tmp_path / "model.onnx", SMALL)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_fp16_artefact_of_trained_weights_passes(tmp_path):
    plan = ExportPlan(size_hw=(64, 128), precision="fp16", outputs=("logits",), input="tensor")
    report = export_onnx("camvid", tmp_path / "model.onnx", plan)
    assert report.card.precision == "fp16"
    assert report.path.stat().st_size < 4e6


def test_half_checkpoint_gives_a_float_artefact(make_network, tmp_path):
    state = {key: value.half() for key, value in make_network("zh320").state_dict().items()}
    theirs = FAMILIES["zh320"].keys(make_network("zh320"))
    torch.save({theirs[key]: value for key, value in state.items()}, tmp_path / "half.pth")
    report = export_onnx(tmp_path / "half.pth", plan=SMALL)
    assert (report.card.source["family"], report.card.precision) == ("zh320", "fp32")


@pytest.mark.parametrize(
    ("num_classes", "hint"),
    [
        pytest.param(8, "name them with --label-set classes.yaml", id="8"),
        pytest.param(11, "--label-set camvid or --label-set classes.yaml", id="11"),
        pytest.param(19, "--label-set cityscapes or --label-set classes.yaml", id="19"),
    ],
)
def test_classes_that_nobody_named_are_numbered_and_the_user_is_told(
    num_classes, hint, save_checkpoint
):
    report = export_onnx(save_checkpoint(num_classes=num_classes), plan=SMALL, verify=False)
    names = tuple(f"class {index}" for index in range(num_classes))
    assert (report.card.label_set, report.card.class_names) == (f"{num_classes}-classes", names)
    text = " ".join(text_from_export(report).split())
    assert f"out labels uint8 (N, 64, 128) {num_classes} classes form" in text
    assert hint in text


def test_label_set_in_the_weights_stands_in_the_card_alone(save_checkpoint):
    metadata = {"label_set": "orchard", CLASSES_KEY: json.dumps(ORCHARD.as_dict())}
    card = export_onnx(
        save_checkpoint(num_classes=3, metadata=metadata), plan=SMALL, verify=False
    ).card
    assert label_set_from_dict(card.classes) == ORCHARD
    assert f"file: {CLASSES_KEY}" not in card.source


def test_label_set_of_a_file_goes_before_that_of_the_weights(save_checkpoint, tmp_path):
    (tmp_path / "classes.json").write_text(json.dumps(ORCHARD.as_dict()))
    weights = save_checkpoint(num_classes=3, metadata={CLASSES_KEY: '{"names": ["a", "b", "c"]}'})
    label_set = tmp_path / "classes.json"
    report = export_onnx(weights, plan=SMALL, verify=False, label_set=label_set)
    assert label_set_from_dict(report.card.classes) == ORCHARD
    assert "do not name their classes" not in text_from_export(report)


def test_damaged_label_set_in_the_weights_is_refused_with_the_way_around(save_checkpoint):
    weights = save_checkpoint(num_classes=3, metadata={CLASSES_KEY: "["})
    with pytest.raises(LabelSetError, match="Expecting value") as caught:
        export_onnx(weights, plan=SMALL, verify=False)
    assert "--label-set" in caught.value.hint


def test_metadata_of_the_weights_names_the_label_set_and_stands_in_the_card(save_checkpoint):
    weights = save_checkpoint(metadata={"label_set": "camvid", "epochs": "60"})
    card = export_onnx(weights, plan=SMALL, verify=False).card
    assert card.source["file: epochs"] == "60"
    assert card.label_set == "camvid"


def test_label_set_that_only_the_weights_file_knows_does_not_stand_in_the_way(save_checkpoint):
    weights = save_checkpoint(num_classes=20, metadata={"label_set": "our-town"})
    assert export_onnx(weights, plan=SMALL, verify=False).card.label_set == "20-classes"


def test_label_set_that_does_not_fit_is_refused(save_checkpoint):
    with pytest.raises(LabelSetError, match="'cityscapes' has 19 classes, the checkpoint has 11"):
        export_onnx(save_checkpoint(), plan=SMALL, label_set="cityscapes")


def test_given_frames_are_compared_instead_of_generated_ones(checkpoint_path, tmp_path, frames):
    for index, image in enumerate(frames[:2]):
        write_ppm(tmp_path / f"{index}.ppm", image)
    output = tmp_path / "model.onnx"
    parity = export_onnx(checkpoint_path, output, SMALL, frames=tmp_path).parity
    assert (parity.num_frames, parity.frames) == (2, f"frames of {tmp_path.name}")


def write_ppm(path: Path, image: np.ndarray) -> None:
    height, width, _ = image.shape
    path.write_bytes(b"P6 %d %d 255\n" % (width, height) + image.tobytes())


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        pytest.param("nowhere", InvalidInput, "nowhere' does not exist", id="missing"),
        pytest.param("broken.png", ExportError, "no frame of .* could be read", id="unreadable"),
    ],
)
def test_frames_that_cannot_be_read_are_refused(name, error, message, checkpoint_path, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"not an image")
    with pytest.raises(error, match=message):
        export_onnx(checkpoint_path, tmp_path / "model.onnx", SMALL, frames=tmp_path / name)


def with_noise(model: onnx.ModelProto) -> onnx.ModelProto:
    """Fold BN and change one weight."""
    result = fold_batchnorm(model)
    weight = result.graph.initializer[0]
    array = onnx.numpy_helper.to_array(weight) + np.float32(0.1)
    weight.CopyFrom(onnx.numpy_helper.from_array(array, weight.name))
    return result


def with_argmin(model: onnx.ModelProto, *, confidence: bool) -> onnx.ModelProto:
    """Append labels of the class with the smallest logit."""
    result = append_labels(model, confidence=confidence)
    for node in result.graph.node:
        node.op_type = node.op_type.replace("ArgMax", "ArgMin")
    return result


@pytest.mark.parametrize(
    ("transform", "spoilt", "message"),
    [
        pytest.param("fold_batchnorm", with_noise, "logits differ by", id="weights"),
        pytest.param("append_labels", with_argmin, "% of labels are equal", id="labels-alone"),
    ],
)
def test_wrong_graph_is_refused_and_not_written(
    transform, spoilt, message, checkpoint_path, tmp_path, monkeypatch
):
    monkeypatch.setattr(f"export.plan.{transform}", spoilt)
    with pytest.raises(ParityError, match=message) as caught:
        export_onnx(checkpoint_path, tmp_path / "model.onnx", SMALL)
    assert "--no-verify writes it without this check" in caught.value.hint
    assert not list(tmp_path.iterdir())


def test_wrong_graph_is_written_without_verification(checkpoint_path, tmp_path, monkeypatch):
    monkeypatch.setattr("export.plan.append_labels", with_argmin)
    report = export_onnx(checkpoint_path, tmp_path / "model.onnx", SMALL, verify=False)
    assert report.path.exists()
    assert report.parity is None
    assert not ModelCard.from_file(report.path).parity


def test_nan_in_the_weights_is_refused(make_network, tmp_path):
    state = dict(make_network("authors").state_dict())
    state["decoder.output_conv.bias"] = torch.full((11,), float("nan"))
    torch.save(state, tmp_path / "nan.pt")
    with pytest.raises(ParityError, match="logits differ by nan"):
        export_onnx(tmp_path / "nan.pt", plan=SMALL)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, OSError])
@pytest.mark.parametrize("step", ["measure_parity", "with_card"])
def test_interrupted_export_leaves_no_file(step, error, checkpoint_path, tmp_path, monkeypatch):
    def interrupt(*_: object, **__: object) -> None:
        assert list(tmp_path.iterdir()), "nothing is being written yet, so this test proves nothing"
        raise error

    monkeypatch.setattr(f"export.to_onnx.{step}", interrupt)
    with pytest.raises(error):
        export_onnx(checkpoint_path, tmp_path / "model.onnx", SMALL)
    assert not list(tmp_path.iterdir())


def test_interrupted_export_leaves_the_old_file(
    make_artefact, checkpoint_path, tmp_path, monkeypatch
):
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    output = tmp_path / "model.onnx"
    output.write_bytes(make_artefact().read_bytes())
    monkeypatch.setattr("export.to_onnx.measure_parity", interrupt)
    with pytest.raises(KeyboardInterrupt):
        export_onnx(checkpoint_path, output, SMALL)
    assert output.read_bytes() == make_artefact().read_bytes()


@pytest.mark.parametrize(
    ("output", "message"),
    [
        pytest.param(
            "nowhere/model.onnx", "output folder .*nowhere does not exist", id="no-folder"
        ),
        pytest.param("net.safetensors/m.onnx", "does not exist", id="file-as-folder"),
        pytest.param("", "is a folder", id="folder"),
        pytest.param("net.safetensors", "is the input file itself", id="weights"),
    ],
)
def test_output_that_cannot_be_meant_is_refused(output, message, save_checkpoint, tmp_path):
    weights = save_checkpoint()
    with pytest.raises(InvalidInput, match=message):
        export_onnx(weights, tmp_path / output, SMALL)
    assert list(tmp_path.iterdir()) == [weights]


def test_output_that_is_a_pipe_or_device_is_refused(checkpoint_path, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InvalidInput, match="pipe is not a regular file"):
        export_onnx(checkpoint_path, tmp_path / "pipe", SMALL)


def test_comparison_without_a_backend_is_refused_with_the_way_out(checkpoint_path, monkeypatch):
    monkeypatch.setattr("export.parity.installed_backends", tuple)
    with pytest.raises(
        BackendUnavailable, match="no installed backend can run the exported graph"
    ) as caught:
        export_onnx(checkpoint_path, plan=SMALL)
    assert "--no-verify" in caught.value.hint


def test_card_is_json_that_any_reader_can_parse(report):
    entries = {entry.key: entry.value for entry in onnx.load(report.path).metadata_props}
    assert json.loads(entries["esnet_card"])["class_names"][0] == "sky"
