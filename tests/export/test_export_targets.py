"""The GPUs that an engine is built for: defaults, refusals before the build, and remarks."""

import sys
from types import SimpleNamespace

import pytest

from export.engine.build import build_engine
from export.engine.targets import PORTABLE_SMS, target_notes, targets_of
from export.engine.trt_builder import BuildOptions
from export.errors import BuildError
from runtime.artefact.engine_file import check_gpu, read_record
from runtime.errors import EngineMismatch
from tests.fake_trt import fake_tensorrt

PASCAL = ("NVIDIA GeForce GTX 1080 Ti", (6, 1))
VOLTA = ("Tesla V100-SXM2-16GB", (7, 0))
TURING = ("NVIDIA GeForce RTX 2080 Ti", (7, 5))
AMPERE = ("NVIDIA GeForce RTX 3060", (8, 6))
HOPPER = ("NVIDIA H100 80GB HBM3", (9, 0))
RTX = SimpleNamespace(kind="tensorrt-rtx", version="1.7.1", cross_compiles=True)


def tensorrt(version):
    return SimpleNamespace(kind="tensorrt", version=version, cross_compiles=False)


def options(precision="fp16", **settings):
    return BuildOptions(precision=precision, verify=False, **settings)  # random weights


@pytest.mark.parametrize(
    ("gpu", "sms"),
    [
        pytest.param(None, ["8.0", "8.6", "8.9", "12.0", "12.1"], id="no-gpu"),
        pytest.param(AMPERE, ["8.0", "8.6", "8.9", "12.0", "12.1"], id="ampere"),
        pytest.param(TURING, ["7.5"], id="turing"),
    ],
)
def test_a_default_rtx_engine_runs_on_the_gpu_that_is_here(gpu, sms):
    assert list(targets_of(RTX, options(), gpu).sms) == sms


def test_a_portable_rtx_engine_is_the_builders_own_default():
    """A list of the same capabilities would leave out those that are newer."""
    assert targets_of(RTX, options(), AMPERE).compiled_for == ()
    assert targets_of(RTX, options(), TURING).compiled_for == ((7, 5),)


@pytest.mark.parametrize("gpu", [PASCAL, VOLTA, HOPPER], ids=["pascal", "volta", "hopper"])
def test_rtx_is_refused_on_a_gpu_that_it_does_not_support(gpu):
    with pytest.raises(BuildError, match=f"TensorRT-RTX does not support .*{gpu[0]}") as caught:
        targets_of(RTX, options(), gpu)
    assert "--tensorrt tensorrt;" in caught.value.hint
    assert "--target" in caught.value.hint
    assert targets_of(RTX, options(sms=((8, 9),)), gpu).sms == ("8.9",)


@pytest.mark.parametrize(
    ("version", "gpu", "last"),
    [
        pytest.param("10.3.0", PASCAL, "8.6.1", id="pascal"),
        pytest.param("10.5.0", VOLTA, "10.4", id="volta"),
    ],
)
def test_a_tensorrt_that_dropped_the_gpu_is_refused_before_the_build(version, gpu, last):
    with pytest.raises(
        BuildError, match=rf"{version} does not support .*does is {last}$"
    ) as caught:
        targets_of(tensorrt(version), options(), gpu)
    assert "esnet-doctor" in caught.value.hint


@pytest.mark.parametrize(
    ("version", "gpu"), [("8.6.1", PASCAL), ("10.4.0", VOLTA), ("11.4.0", TURING)]
)
def test_the_last_tensorrt_of_a_gpu_builds(version, gpu):
    sm = f"{gpu[1][0]}.{gpu[1][1]}"
    assert targets_of(tensorrt(version), options(), gpu).sms == (sm,)


@pytest.mark.parametrize("sm", [(8, 0), (8, 7), (9, 0), (10, 3), (12, 1)], ids=str)
def test_a_hardware_compatible_engine_runs_from_ampere_on(sm, make_record):
    record = make_record(hardware_compatible=True)
    check_gpu("a.engine", record, gpu="some GPU", sm=sm)


@pytest.fixture
def make_record(make_artefact, tmp_path, monkeypatch):
    """Build an engine with a fake TensorRT and get its record."""

    def make(*, generation="10.3.0", gpu=AMPERE, precision="fp16", falls_back=False, **settings):
        module = fake_tensorrt(generation, sm=gpu[1])
        module.state.fall_back_to_float = falls_back
        monkeypatch.setitem(sys.modules, "tensorrt", module)
        monkeypatch.setattr("export.engine.build.cuda_gpu", lambda *_: gpu)
        path = tmp_path / "small.engine"
        chosen = options(precision, tensorrt="tensorrt", **settings)
        command = ["esnet-export", "build-engine", "small.onnx", "--target", "RTX 3060"]
        report = build_engine(make_artefact(), path, chosen, command=command)
        make.notes = report.notes
        return read_record(path)

    return make


def test_a_hardware_compatible_engine_does_not_run_on_turing(make_record):
    record = make_record(hardware_compatible=True)
    with pytest.raises(EngineMismatch, match=r"capability 8\.0\+, RTX 2080 Ti has 7\.5"):
        check_gpu("a.engine", record, gpu="RTX 2080 Ti", sm=(7, 5))


def test_hardware_compatible_engines_are_not_built_before_ampere():
    with pytest.raises(BuildError, match=r"needs a GPU from Ampere on to build.*SM 7\.5"):
        targets_of(tensorrt("11.4.0"), options(hardware_compatible=True), TURING)


def test_hardware_compatible_engines_are_not_built_on_a_jetson():
    orin = ("Orin", (8, 7))
    with pytest.raises(BuildError, match=r"not available on a Jetson.*SM 8\.7") as caught:
        targets_of(tensorrt("10.3.0"), options(hardware_compatible=True), orin)
    assert caught.value.hint == "omit --hardware-compatible"


@pytest.mark.parametrize("sm", [(8, 0), (9, 0), (10, 3), (12, 0)], ids=str)
def test_hardware_compatible_engines_are_built_from_ampere_on(sm):
    gpu = ("some GPU", sm)
    assert targets_of(tensorrt("11.4.0"), options(hardware_compatible=True), gpu).sms == ("8.0+",)


def test_hardware_compatible_has_no_effect_on_rtx():
    assert target_notes(RTX, options(), None) == ()
    (note,) = target_notes(RTX, options(hardware_compatible=True), None)
    assert note.startswith("--hardware-compatible has no effect")


@pytest.mark.parametrize(
    ("sms", "offered"), [(((8, 9),), True), (((9, 0),), False), (((6, 1),), False)]
)
@pytest.mark.parametrize("gpu", [None, AMPERE], ids=["no-gpu", "ampere"])
def test_rtx_is_only_offered_for_targets_that_it_supports(sms, offered, gpu):
    with pytest.raises(BuildError) as caught:
        targets_of(tensorrt("11.4.0"), options(sms=sms), gpu)
    assert ("tensorrt-rtx" in caught.value.hint) is offered


def test_fp16_on_pascal_is_one_warning_and_an_engine(make_record):
    """TensorRT 8.6 may choose FP32 kernels there, because they are faster."""
    record = make_record(generation="8.6.1", gpu=PASCAL, falls_back=True)
    assert record.precision["built"] == {"Float": 66}
    assert [note for note in make_record.notes if "1/64" in note] == [
        "FP16 runs at 1/64 of the FP32 rate on SM 6.1: use INT8, the fast choice there, or FP32"
    ]


@pytest.mark.parametrize("is_compatible", [True, False])
def test_the_record_says_whether_the_engine_is_version_compatible(make_record, is_compatible):
    record = make_record(version_compatible=is_compatible)
    assert record.build["version_compatible"] is is_compatible


def test_the_recorded_command_can_be_pasted(make_record):
    command = make_record().rebuild_command
    assert command == "esnet-export build-engine small.onnx --target 'RTX 3060'"


def test_a_turing_engine_is_compiled_for_turing_alone(make_artefact, tmp_path, monkeypatch):
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    monkeypatch.setattr("export.engine.build.cuda_gpu", lambda *_: TURING)
    path = tmp_path / "a.rtx.engine"
    chosen = options(tensorrt="tensorrt-rtx")
    build_engine(make_artefact(), path, chosen, command=["esnet-export"])
    assert path.read_bytes()[32] == 0x01  # the header's mask of compute capabilities
    assert read_record(path).target["sms"] == ["7.5"]


def test_every_portable_capability_runs_rtx():
    for sm in PORTABLE_SMS:
        assert targets_of(RTX, options(), ("some GPU", sm)).compiled_for == ()
