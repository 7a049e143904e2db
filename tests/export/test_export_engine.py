"""``build-engine``: engines built by TensorRT-RTX without a GPU, and other versions with a strict fake."""

import json
import re
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from onnx import helper

from esnet.checkpoint import load_checkpoint
from esnet.data.scenes import street_scene
from esnet.labels import CAMVID
from export.engine.build import build_engine
from export.engine.kernels import Edge, Kernel, kernels_from_inspector
from export.engine.precision import require_types
from export.engine.progress import BuildProgress
from export.engine.trt_builder import BuildOptions, build_plan
from export.errors import BuildError, ParityError, PrecisionError
from export.graph.qdq import TENSORRT_SCHEME, insert_qdq, quantizable_tensors
from export.metadata import card_from_plan, with_card
from export.plan import ExportPlan, graph_from_network
from export.report import text_from_engine
from runtime.artefact.card import BatchRange, ModelCard
from runtime.artefact.engine_file import read_record, record_path
from runtime.errors import BackendUnavailable, InvalidInput
from runtime.tensorrt_api import load_tensorrt
from tests import fake_trt
from tests.conftest import random_network
from tests.fake_trt import GENERATIONS, fake_tensorrt

GPU = ("NVIDIA GeForce RTX 3060", (8, 6))


@pytest.fixture
def artefact(make_artefact, tmp_path) -> Path:
    """Small fp32 artefact in a folder of its own."""
    path = tmp_path / "small.onnx"
    path.write_bytes(make_artefact().read_bytes())
    return path


@pytest.fixture
def rtx():
    """Skip without TensorRT-RTX, which builds on any machine."""
    pytest.importorskip(
        "tensorrt_rtx", reason="tensorrt-rtx is not installed (Linux x86-64 and Windows only)"
    )


@pytest.fixture
def use_fake(monkeypatch):
    """Install a fake TensorRT of a version, and a GPU."""

    def use(generation: str, **settings):
        module = fake_tensorrt(generation, **settings)
        monkeypatch.setitem(sys.modules, "tensorrt", module)
        monkeypatch.setattr(
            "export.engine.build.cuda_gpu", lambda *_: GPU if module.state.has_gpu else None
        )
        return module.state

    return use


def build(artefact: Path, precision: str = "fp16", *, output: Path | None = None, **settings):
    run = {name: settings.pop(name) for name in ("force", "dry_run", "wait") if name in settings}
    settings = {"verify": False, **settings}  # random weights do not survive FP16
    options = BuildOptions(precision=precision, **settings)
    return build_engine(
        artefact, output, options, command=["esnet-export", "build-engine", "small.onnx"], **run
    )


def quantized_of(artefact: Path) -> Path:
    """Write the INT8 artefact that ``quantize`` makes of a file, with a range of 1 for every tensor."""
    model, card = onnx.load(artefact), ModelCard.from_file(artefact)
    ranges = dict.fromkeys(quantizable_tensors(model), (-1.0, 1.0))
    card = replace(card, precision="int8", quantization={"float_name": artefact.name})
    path = artefact.with_name("small_int8-tensorrt.onnx")
    onnx.save(with_card(insert_qdq(model, ranges, TENSORRT_SCHEME), card), path)
    return path


class TestTensorRtRtx:
    @pytest.mark.parametrize(("precision", "type_name"), [("fp32", "Float"), ("fp16", "Half")])
    def test_an_engine_computes_in_what_was_asked_for(self, rtx, artefact, precision, type_name):
        report = build(artefact, precision, tensorrt="tensorrt-rtx")
        record = read_record(report.path)
        assert set(record.precision["built"]) == {type_name}
        assert record.precision["built"][type_name] >= 63
        assert record.precision["mac_shares"] == {type_name: 1.0}
        assert record.card.precision == precision

    def test_the_engine_is_a_plain_plan_and_its_record_tells_all(self, rtx, artefact):
        report = build(artefact, tensorrt="tensorrt-rtx")
        plan = report.path.read_bytes()
        assert plan[:4] == b"vtrt"
        record = json.loads(record_path(report.path).read_text())
        assert record["tensorrt"]["kind"] == "tensorrt-rtx"
        assert record["target"]["sms"] == ["8.0", "8.6", "8.9", "12.0", "12.1"]
        assert record["kernels"]["count"] > 60
        assert record["build"]["command"] == "esnet-export build-engine small.onnx"
        assert record["card"]["class_names"] == list(ModelCard.from_file(artefact).class_names)

    def test_two_builds_are_alike_to_the_last_bit(self, rtx, artefact):
        # With a dynamic batch, TensorRT-RTX 1.7 gives shape variables new names in every build.
        plans = [
            build(
                artefact, tensorrt="tensorrt-rtx", batch=BatchRange(1, 1, 1), force=True
            ).path.read_bytes()
            for _ in range(2)
        ]
        assert plans[0] == plans[1]

    def test_nothing_changed_nothing_built(self, rtx, artefact):
        assert [build(artefact, tensorrt="tensorrt-rtx").status for _ in range(2)] == [
            "built",
            "unchanged",
        ]

    @pytest.mark.parametrize("change", ["batch", "plan", "record", "onnx"])
    def test_any_change_builds_again(self, rtx, artefact, change):
        path = build(artefact, tensorrt="tensorrt-rtx").path
        settings = {}
        if change == "batch":
            settings["batch"] = BatchRange(1, 2, 2)
        elif change == "plan":
            path.write_bytes(path.read_bytes()[:-1] + b"x")
        elif change == "record":
            record_path(path).write_text("{")
        else:
            model = onnx.load(artefact)
            model.producer_version = "another"
            onnx.save(model, artefact)
        assert build(artefact, tensorrt="tensorrt-rtx", **settings).status == "built"

    def test_the_profile_is_the_batch_that_was_asked_for(self, rtx, artefact):
        record = read_record(
            build(artefact, tensorrt="tensorrt-rtx", batch=BatchRange(1, 2, 4)).path
        )
        assert record.profile == record.card.batch == (1, 2, 4)

    def test_a_target_is_compiled_for_without_having_it(self, rtx, artefact):
        record = read_record(build(artefact, tensorrt="tensorrt-rtx", sms=((8, 9),)).path)
        assert record.target["sms"] == ["8.9"]

    def test_the_deployed_form_stays_lean(self, rtx):
        plan = ExportPlan(size_hw=(512, 1024), batch=BatchRange(1, 1, 1), precision="fp16")
        model = graph_from_network(random_network(num_classes=19), plan)
        options = BuildOptions(precision="fp16", batch=BatchRange(1, 1, 1), sms=((8, 9),))
        kernels = build_plan(
            load_tensorrt("tensorrt-rtx"), model.SerializeToString(), options
        ).kernels
        assert len(kernels) <= 75
        assert sum(kernel.num_bytes for kernel in kernels) <= 600e6

    def test_int8_is_built_and_a_note_says_what_it_computes_in(self, rtx, artefact):
        quantized = quantized_of(artefact)
        report = build(quantized, "int8", tensorrt="tensorrt-rtx")
        command = f"esnet-export build-engine {artefact} --fp16 --tensorrt tensorrt-rtx"
        assert "computes 66 convolutions in Float" in report.notes[-1]
        assert report.notes[-1].endswith(command)

    def test_a_gpu_that_it_does_not_know_is_refused(self, rtx, artefact):
        with pytest.raises(BuildError, match=r"does not build for SM 9\.0, but for .*SM89"):
            build(artefact, tensorrt="tensorrt-rtx", sms=((9, 0),))
        assert not list(artefact.parent.glob("*.engine*"))

    @pytest.mark.parametrize(
        ("broken", "message"),
        [
            pytest.param("op", "MyOp", id="unknown-op"),
            pytest.param("transpose", "Transpose .*must have type", id="uint8-transpose"),
        ],
    )
    def test_a_graph_that_does_not_parse_is_named_by_its_node(self, rtx, artefact, broken, message):
        spoil(artefact, broken)
        with pytest.raises(BuildError, match=f"cannot read the graph: .*{message}"):
            build(artefact, "fp32", tensorrt="tensorrt-rtx")

    def test_too_little_workspace_says_what_to_do(self, rtx, artefact):
        with pytest.raises(BuildError) as caught:
            build(artefact, "fp32", tensorrt="tensorrt-rtx", workspace_bytes=1 << 10)
        assert "--workspace" in caught.value.hint

    def test_version_compatible_engines_do_not_exist(self, rtx, artefact):
        with pytest.raises(BuildError, match="no version-compatible engines"):
            build(artefact, tensorrt="tensorrt-rtx", version_compatible=True)

    def test_ctrl_c_leaves_nothing_behind(self, rtx, artefact):
        def interrupted(thread: threading.Thread, progress: BuildProgress) -> None:
            threads.append(thread)
            raise KeyboardInterrupt

        threads: list[threading.Thread] = []
        with pytest.raises(KeyboardInterrupt):
            build(artefact, tensorrt="tensorrt-rtx", wait=interrupted)
        assert not threads[0].is_alive()
        assert [path.name for path in artefact.parent.iterdir()] == ["small.onnx"]

    def test_its_progress_is_reported(self, rtx, artefact):
        seen = []

        def watch(thread: threading.Thread, progress: BuildProgress) -> None:
            while thread.is_alive():
                seen.append((progress.share, progress.phase))
                thread.join(0.002)
            seen.append((progress.share, ""))

        report = build(artefact, tensorrt="tensorrt-rtx", wait=watch)
        shares = [share for share, _ in seen]
        assert shares == sorted(shares)
        assert (shares[0], shares[-1] > 0.5) == (0.0, True)
        assert "Preparing graph for optimization" in {phase for _, phase in seen}
        assert any(note.startswith("the first run on a GPU is slow") for note in report.notes)


@pytest.mark.parametrize("generation", GENERATIONS)
class TestEveryGeneration:
    def test_effort_and_streams_are_those_that_are_asked_for(self, use_fake, artefact, generation):
        state = use_fake(generation)
        options = {"optimization_level": 5, "aux_streams": 0}
        first = build(artefact, tensorrt="tensorrt", **options)
        config = state.last_config
        assert (config.builder_optimization_level, config.max_aux_streams) == (5, 0)
        assert build(artefact, tensorrt="tensorrt", **options).status == "unchanged"
        again = build(artefact, tensorrt="tensorrt", optimization_level=4, aux_streams=0)
        assert (first.status, again.status) == ("built", "built")

    def test_ctrl_c_cancels_a_build_with_a_progress_monitor(
        self, use_fake, artefact, generation, monkeypatch
    ):
        monkeypatch.setattr(fake_trt, "STEP_SECONDS", 0.02)
        use_fake(generation)
        threads, shares = [], []

        def interrupted(thread: threading.Thread, progress: BuildProgress) -> None:
            threads.append(thread)
            while progress.phase != "Timing tactics" and thread.is_alive():
                thread.join(0.001)
            shares.append(progress.share)
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            build(artefact, tensorrt="tensorrt", wait=interrupted)
        has_monitor = not generation.startswith("8.")
        assert (0.25 <= shares[0] < 0.5) is has_monitor
        threads[0].join()
        assert [path.name for path in artefact.parent.iterdir()] == ["small.onnx"]

    def test_trtexec_measures_the_same_engine_in_the_same_way(self, use_fake, artefact, generation):
        use_fake(generation)
        report = build(artefact, tensorrt="tensorrt", batch=BatchRange(1, 4, 8))
        path, is_new = report.path, generation.startswith("11.")
        graph = "--includeDataTransfers" if is_new else "--useCudaGraph"
        command = f"trtexec --loadEngine={path} --shapes=frames:4x64x128x3 {graph}"
        assert read_record(path).build["trtexec"] == command
        text = " ".join(text_from_engine(report).split())
        assert f"trtexec {command} its latency is the scope pinned" in text

    @pytest.mark.parametrize(("precision", "type_name"), [("fp32", "Float"), ("fp16", "Half")])
    def test_an_engine_is_built_and_its_types_are_checked(
        self, use_fake, artefact, generation, precision, type_name
    ):
        use_fake(generation)
        record = read_record(build(artefact, precision, tensorrt="tensorrt").path)
        assert set(record.precision["built"]) == {type_name}
        assert record.tensorrt["version"] == generation
        assert record.target == {"sms": ["8.6"], "gpu": GPU[0]}

    def test_a_silent_fall_back_to_fp32_fails_and_writes_nothing(
        self, use_fake, artefact, generation
    ):
        use_fake(generation).fall_back_to_float = True
        with pytest.raises(
            PrecisionError, match="fp16 was requested, but of 66 convolutions 66 in Float"
        ):
            build(artefact, tensorrt="tensorrt")
        assert [path.name for path in artefact.parent.iterdir()] == ["small.onnx"]

    def test_the_types_of_a_version_compatible_engine_are_checked(
        self, use_fake, artefact, generation
    ):
        use_fake(generation).fall_back_to_float = True
        with pytest.raises(PrecisionError, match="66 in Float"):
            build(artefact, tensorrt="tensorrt", version_compatible=True)

    def test_fp32_means_fp32(self, use_fake, artefact, generation):
        state = use_fake(generation)
        build(artefact, "fp32", tensorrt="tensorrt")
        flags = sys.modules["tensorrt"].BuilderFlag
        assert not state.last_config.get_flag(flags.TF32)

    def test_types_come_from_the_graph_wherever_they_can(self, use_fake, artefact, generation):
        state = use_fake(generation)
        build(artefact, tensorrt="tensorrt")
        flags = sys.modules["tensorrt"].BuilderFlag
        sets_flag = hasattr(flags, "FP16") and state.last_config.get_flag(flags.FP16)
        assert sets_flag == (generation == "8.6.1")

    def test_contexts_may_share_the_profile(self, use_fake, artefact, generation):
        """Newer versions always share it."""
        state = use_fake(generation)
        build(artefact, tensorrt="tensorrt")
        expected = set() if generation.startswith("11.") else {"PROFILE_SHARING_0806"}
        assert state.last_config._previews == expected

    def test_timings_are_kept_for_this_version_and_gpu(
        self, use_fake, artefact, generation, monkeypatch, tmp_path
    ):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        use_fake(generation)
        for _ in range(2):
            build(artefact, tensorrt="tensorrt", force=True)
        name = f"timing-{generation}-nvidia-geforce-rtx-3060.cache"
        cache = tmp_path / "cache" / "esnet-deploy" / name
        assert cache.read_bytes() == b"timed;timed;"

    def test_timings_that_cannot_be_saved_are_a_note(
        self, use_fake, artefact, generation, tmp_path
    ):
        use_fake(generation)
        (tmp_path / "cache").write_text("a file in place of the folder")
        cache = tmp_path / "cache" / "timings"
        report = build(artefact, tensorrt="tensorrt", timing_cache_path=cache)
        assert read_record(report.path).precision["built"] == {"Half": 66}
        assert report.notes[-1].startswith(f"cannot write the cache {cache}: ")

    @pytest.mark.parametrize(
        "missing",
        [("get_timing_cache",), ("create_timing_cache", "get_timing_cache")],
        ids=["no-result", "none-made"],
    )
    def test_a_builder_without_a_timing_cache_builds(
        self, use_fake, artefact, generation, tmp_path, monkeypatch, missing
    ):
        use_fake(generation)
        for method in missing:
            monkeypatch.setattr(fake_trt._Config, method, lambda *arguments: None)
        cache = tmp_path / "timings"
        assert build(artefact, tensorrt="tensorrt", timing_cache_path=cache).status == "built"
        assert not cache.exists()

    def test_rejected_timings_are_measured_again(
        self, use_fake, artefact, generation, tmp_path, monkeypatch
    ):
        """TensorRT refuses the timings of another GPU or version."""
        set_timing_cache = fake_trt._Config.set_timing_cache

        def refuse(config, cache, ignore_mismatch):
            assert not ignore_mismatch
            is_other = cache._data.startswith(b"other")
            return not is_other and set_timing_cache(config, cache, ignore_mismatch)

        use_fake(generation)
        monkeypatch.setattr(fake_trt._Config, "set_timing_cache", refuse)
        cache = tmp_path / "timings"
        cache.write_bytes(b"other GPU")
        build(artefact, tensorrt="tensorrt", timing_cache_path=cache)
        assert cache.read_bytes() == b"timed;"

    def test_without_a_gpu_it_says_so(self, use_fake, artefact, generation):
        use_fake(generation, has_gpu=False)
        with pytest.raises(
            BuildError, match="builds on the GPU that will run the engine"
        ) as caught:
            build(artefact, tensorrt="tensorrt")
        assert "--tensorrt tensorrt-rtx" in caught.value.hint

    def test_without_a_driver_the_builder_says_so(self, use_fake, artefact, generation):
        module = use_fake(generation)
        trt = load_tensorrt("tensorrt")
        module.has_gpu = False
        with pytest.raises(BackendUnavailable, match="no NVIDIA driver or no GPU"):
            trt.create("Builder")

    def test_the_reason_of_a_failed_build_is_its_own(self, use_fake, artefact, generation):
        use_fake(
            generation
        ).build_error = "Could not find any implementation for node conv: out of memory"
        with pytest.raises(
            BuildError, match="cannot build the engine: Could not find any implementation"
        ) as caught:
            build(artefact, tensorrt="tensorrt")
        assert "--workspace" in caught.value.hint

    def test_another_gpu_cannot_be_built_for(self, use_fake, artefact, generation):
        use_fake(generation)
        with pytest.raises(BuildError, match=r"builds only for the GPU of this machine.*SM 8\.6"):
            build(artefact, tensorrt="tensorrt", sms=((8, 9),))

    def test_a_bad_graph_is_named_as_far_as_the_parser_tells(self, use_fake, artefact, generation):
        use_fake(generation)
        spoil(artefact, "transpose")
        with pytest.raises(BuildError, match="first input has type UInt8"):
            build(artefact, "fp32", tensorrt="tensorrt")


def spoil(artefact: Path, how: str) -> None:
    """Change the artefact into a graph that no TensorRT parses."""
    card = ModelCard.from_file(artefact)
    model = onnx.load(artefact)
    if how == "op":
        node = model.graph.node[-1]
        node.op_type, node.domain = "MyOp", "my.domain"
        model.opset_import.append(helper.make_opsetid("my.domain", 1))
    else:
        cast = next(node for node in model.graph.node if "frames" in node.input)
        model.graph.node.insert(
            0, helper.make_node("Transpose", ["frames"], ["turned"], name="turn", perm=[0, 2, 1, 3])
        )
        model.graph.node.insert(
            1, helper.make_node("Transpose", ["turned"], ["back"], name="back", perm=[0, 2, 1, 3])
        )
        cast.input[0] = "back"
    onnx.save(with_card(model, card), artefact)


def test_8_6_reads_no_newer_opset(use_fake, tmp_path):
    use_fake("8.6.1")
    plan = ExportPlan(size_hw=(64, 128), opset=18)
    model = graph_from_network(random_network(), plan)
    path = tmp_path / "new.onnx"
    onnx.save(with_card(model, card_from_plan(plan, CAMVID, name="new")), path)
    with pytest.raises(BuildError, match="opset 18 is not supported"):
        build(path, tensorrt="tensorrt")


def test_a_dry_run_says_what_it_would_do_and_does_nothing(use_fake, artefact):
    state = use_fake("10.3.0")
    report = build(artefact, tensorrt="tensorrt", dry_run=True)
    assert report.status == "dry run"
    assert report.record.target["sms"] == ["8.6"]
    assert state.builds == 0
    assert [path.name for path in artefact.parent.iterdir()] == ["small.onnx"]


def test_fp32_nodes_are_found_on_frames_and_named(use_fake, tmp_path):
    """The activations of this network exceed 65504, so float16 would overflow."""
    use_fake("10.3.0")
    network = random_network()
    layer = network.decoder.layers[1]
    layer.bn1.weight.data *= 3e5
    layer.conv3x1_2.weight.data /= 3e5
    plan = ExportPlan(size_hw=(64, 128))
    path = tmp_path / "hot.onnx"
    card = card_from_plan(plan, CAMVID, name="hot")
    onnx.save(with_card(graph_from_network(network, plan), card), path)
    frames = tmp_path / "frames"
    frames.mkdir()
    cv2.imwrite(
        str(frames / "a.png"), np.random.default_rng(0).integers(0, 256, (64, 128, 3), np.uint8)
    )
    report = build(path, tensorrt="tensorrt", frames=frames)
    fp32_nodes = report.record.precision["fp32_nodes"]
    assert any(name.startswith("decoder.layers.1") for name in fp32_nodes)
    assert all(name.startswith("decoder.layers.1") for name in fp32_nodes)
    assert f"{len(fp32_nodes)} nodes stay in FP32" in report.notes[0]
    assert set(report.record.precision["built"]) == {"Half"}


def test_without_frames_overflow_is_not_checked_and_it_says_so(use_fake, artefact):
    use_fake("10.3.0")
    note = "FP16 is compared on street scenes only; pass --frames DIR"
    assert build(artefact, tensorrt="tensorrt").notes[0] == note


class TestComparisonInHalf:
    """FP16 is compared with the FP32 artefact before it is built, as ``to-onnx --fp16`` is with torch."""

    @pytest.fixture
    def camvid(self, tmp_path, request) -> Path:
        """The shipped weights; with a parameter, that is added to every logit."""
        network, plan = load_checkpoint("camvid").network, ExportPlan(size_hw=(64, 128))
        network.decoder.output_conv.bias.data += getattr(request, "param", 0)
        path = tmp_path / "camvid.onnx"
        card = card_from_plan(plan, CAMVID, name="camvid")
        onnx.save(with_card(graph_from_network(network, plan), card), path)
        return path

    def test_a_graph_that_agrees_is_built_and_the_record_says_so(self, use_fake, camvid):
        use_fake("10.3.0")
        report = build(camvid, tensorrt="tensorrt", verify=True)
        assert 0.99 < report.parity.equal_labels <= 1
        assert read_record(report.path).precision["equal_labels"] == report.parity.equal_labels
        assert "parity    max |logit difference|" in text_from_engine(report)

    @pytest.mark.parametrize("camvid", [4000], indirect=True)  # float16 counts in steps of 2 there
    def test_a_graph_that_to_onnx_refuses_is_refused(self, use_fake, camvid):
        use_fake("10.3.0")
        with pytest.raises(
            ParityError, match="FP16 graph does not compute what the FP32"
        ) as caught:
            build(camvid, tensorrt="tensorrt", verify=True)
        assert "% of labels are equal, required 99.0%" in str(caught.value)
        assert "--no-verify" in caught.value.hint
        assert not list(camvid.parent.glob("*.engine*"))

    @pytest.mark.parametrize("camvid", [4000], indirect=True)
    def test_an_engine_that_was_not_compared_does_not_pass_for_one_that_was(self, use_fake, camvid):
        use_fake("10.3.0")
        assert build(camvid, tensorrt="tensorrt", verify=False).status == "built"
        with pytest.raises(ParityError):
            build(camvid, tensorrt="tensorrt", verify=True)

    def test_an_fp16_file_that_was_never_compared_is_named(self, use_fake, make_artefact, tmp_path):
        use_fake("10.3.0")
        path = tmp_path / "half.onnx"
        path.write_bytes(make_artefact(precision="fp16").read_bytes())
        note = f"{path} was not compared with its checkpoint: it was exported with --no-verify"
        assert note in build(path, tensorrt="tensorrt").notes

    def test_the_largest_activation_is_not_that_of_padding_classes(
        self, use_fake, camvid, tmp_path
    ):
        use_fake("10.3.0")
        cv2.imwrite(str(tmp_path / "a.png"), street_scene((64, 128)).image)
        report = build(camvid, tensorrt="tensorrt", frames=tmp_path / "a.png", dry_run=True)
        assert re.match(r"largest activation 2\d\d at input\.cast/out, FP16", report.notes[0])


@pytest.mark.parametrize(
    ("has", "asked", "message"),
    [
        pytest.param(
            "fp16", "fp32", "is already FP16; start from the FP32 ONNX file", id="fp16-fp32"
        ),
        pytest.param(
            "fp32", "int8", "is FP32; an INT8 engine needs a quantized artefact", id="int8"
        ),
    ],
)
def test_a_precision_that_the_artefact_lacks_is_refused(
    use_fake, make_artefact, tmp_path, has, asked, message
):
    use_fake("10.3.0")
    path = tmp_path / "a.onnx"
    path.write_bytes(make_artefact(precision=has).read_bytes())
    with pytest.raises(BuildError, match=message):
        build(path, asked, tensorrt="tensorrt")


def test_a_batch_that_the_graph_does_not_have_is_refused(use_fake, make_artefact, tmp_path):
    use_fake("10.3.0")
    path = tmp_path / "fixed.onnx"
    path.write_bytes(make_artefact(batch=BatchRange(2, 2, 2)).read_bytes())
    with pytest.raises(BuildError, match="fixed batch of 2, --batch asks for 1:4:8"):
        build(path, "fp32", tensorrt="tensorrt", batch=BatchRange(1, 4, 8))


def test_trtexec_takes_no_shape_for_a_fixed_batch(use_fake, make_artefact, tmp_path):
    use_fake("10.3.0")
    path = tmp_path / "fixed.onnx"
    path.write_bytes(make_artefact(batch=BatchRange(2, 2, 2)).read_bytes())
    report = build(path, "fp32", tensorrt="tensorrt")
    assert report.record.build["trtexec"] == f"trtexec --loadEngine={report.path} --useCudaGraph"


def test_a_folder_that_is_not_there_is_refused_first(use_fake, artefact):
    state = use_fake("10.3.0")
    with pytest.raises(InvalidInput, match="nowhere does not exist"):
        build(artefact, output=artefact.parent / "nowhere" / "a.engine", tensorrt="tensorrt")
    assert state.builds == 0


def conv(type_name: str) -> Kernel:
    return Kernel("CaskConvolution", "c", (Edge(type_name, 8),), (Edge(type_name, 8),))


@pytest.mark.parametrize(
    ("precision", "types", "num_fp32", "is_right"),
    [
        pytest.param("fp16", ["Half"] * 9, 0, True, id="fp16"),
        pytest.param("fp16", ["Half"] * 9 + ["Float"], 0, False, id="one-in-float"),
        pytest.param("fp16", ["Half"] * 9 + ["Float"], 1, True, id="an-fp32-node"),
        pytest.param("fp32", ["Float"] * 9 + ["Half"], 0, False, id="fp32-lower"),
        pytest.param("int8", ["Int8"] * 60 + ["Half"] * 4, 0, True, id="int8"),
        pytest.param("int8", ["Half"] * 60, 0, False, id="int8-not-at-all"),
        pytest.param("fp16", [], 0, True, id="nothing-known"),
    ],
)
def test_the_precision_contract(precision, types, num_fp32, is_right):
    kernels = [conv(name) for name in types]
    if is_right:
        require_types(kernels, precision, num_fp32=num_fp32)
    else:
        with pytest.raises(PrecisionError, match=f"{precision} was requested"):
            require_types(kernels, precision, num_fp32=num_fp32)


@pytest.mark.parametrize(
    ("told", "type_name"),
    [
        ({"Format/Datatype": "Channel major FP16 format where channel % 8 == 0"}, "Half"),
        ({"Format/Datatype": "Row major linear FP32"}, "Float"),
        ({"Format/Datatype": "Four wide channel vectorized row major Int8 format"}, "Int8"),
        ({"Datatype": "Half", "Format": "Row major linear"}, "Half"),
        ({"Format/Datatype": "Row major UInt8 format"}, "UInt8"),
    ],
)
def test_the_inspectors_words_are_understood(told, type_name):
    tensor = {"Name": "x", "Dimensions": [1, 2, 3], **told}
    layer = {"Name": "a", "LayerType": "kgen", "Inputs": [tensor], "Outputs": [tensor]}
    (kernel,) = kernels_from_inspector(json.dumps({"Layers": [layer, "a name alone"]}))
    assert kernel.outputs[0].type == type_name


class TestCommand:
    def run(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        code = "from export.cli import main; main()"
        words = [sys.executable, "-c", code, "build-engine", *map(str, arguments)]
        return subprocess.run(words, capture_output=True, text=True, check=False)

    def test_it_says_what_was_built_and_what_comes_next(self, rtx, artefact):
        done = self.run(artefact, "--fp16", "--tensorrt", "tensorrt-rtx", "--no-verify")
        assert done.returncode == 0, done.stderr
        assert "fp16 requested; convolutions compute in: 66 Half" in done.stdout
        assert (
            f"next      esnet-bench {artefact.with_name('small_fp16.rtx.engine')}"
            in done.stdout.replace("\n          ", " ")
        )

    def test_an_engine_is_not_called_onnx(self, rtx, artefact):
        done = self.run(artefact, "--fp16", "--tensorrt", "tensorrt-rtx", "-o", "a.onnx")
        assert (done.returncode, done.stderr) == (
            2,
            "error: output a.onnx does not end in .engine or .plan\nhint: for example a.engine\n",
        )

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            pytest.param([], "give one of --fp32, --fp16, --int8, got none", id="no-precision"),
            pytest.param(["--fp16", "--int8"], "got --fp16 and --int8", id="two"),
            pytest.param(
                ["--fp16", "--workspace", "lots"], "'lots' is not a number of bytes", id="workspace"
            ),
            pytest.param(["--fp16", "--workspace", "2"], "size '2' is 2 bytes", id="no-unit"),
            pytest.param(
                ["--fp16", "--optimization-level", "6"], "less than or equal to 5", id="level"
            ),
            pytest.param(["--fp16", "--target", "GTX 9999"], "GTX 9999", id="target"),
            pytest.param(["--fp16", "--batch", "8:1"], "batch '8:1'", id="batch"),
        ],
    )
    def test_bad_input_is_one_line(self, artefact, options, message):
        done = self.run(artefact, *options)
        assert done.returncode == 2
        assert message in done.stderr.splitlines()[0]
        assert "Traceback" not in done.stderr
