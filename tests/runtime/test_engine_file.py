"""An engine's record, and the checks before it is loaded."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest

from runtime.artefact.card import ModelCard
from runtime.artefact.engine_file import (
    EngineRecord,
    check_gpu,
    check_library,
    check_plan,
    gpu_note,
    load_error,
    read_record,
    record_path,
    write_engine,
)
from runtime.errors import BackendUnavailable, CudaError, EngineMismatch, ModelFileError

COMMAND = "esnet-export build-engine small.onnx --fp16"


def rtx_plan(size: int = 256) -> bytes:
    header = bytearray(64)
    header[:4] = b"vtrt"
    header[16:24] = size.to_bytes(8, "little")
    return bytes(header) + bytes(size - 64)


@pytest.fixture
def engine(make_artefact, tmp_path) -> Path:
    plan = rtx_plan()
    record = EngineRecord(
        card=ModelCard.from_file(make_artefact()),
        plan_sha256=hashlib.sha256(plan).hexdigest(),
        onnx={"name": "small.onnx", "sha256": "0" * 64},
        tensorrt={"kind": "tensorrt-rtx", "version": "1.7.1"},
        target={"sms": ["8.6", "8.9"], "gpu": None},
        precision={"asked": "fp16", "built": {"Half": 66}, "fp32_nodes": []},
        profile=(1, 1, 8),
        kernels={"count": 75, "bytes_moved": 9},
        build={"key": "k", "command": COMMAND, "seconds": 1.0},
    )
    path = tmp_path / "small.engine"
    write_engine(path, plan, record)
    return path


def test_a_record_comes_back_as_it_was_written(engine):
    record = read_record(engine)
    assert record.profile == (1, 1, 8)
    assert record.card.class_names[0] == "sky"
    assert record.rebuild_command == COMMAND
    check_plan(engine, record)


def test_both_files_are_there_and_nothing_else(engine):
    assert sorted(path.name for path in engine.parent.iterdir()) == [
        "small.engine",
        "small.engine.json",
    ]


def test_a_crash_between_the_two_files_leaves_no_lying_record(engine, monkeypatch):
    record = read_record(engine)
    monkeypatch.setattr(EngineRecord, "to_json", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_engine(engine, rtx_plan(512), record)
    with pytest.raises(ModelFileError, match=r"has no small\.engine\.json beside it"):
        read_record(engine)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        pytest.param(lambda p: p.unlink(), "does not exist", id="missing"),
        pytest.param(lambda p: record_path(p).unlink(), "has no small.engine.json", id="no-record"),
        pytest.param(lambda p: record_path(p).write_text("{"), "is damaged", id="not-json"),
        pytest.param(lambda p: record_path(p).write_text("[]"), "is damaged", id="a-list"),
        pytest.param(lambda p: change(p, schema=9), "schema 9, expected 1", id="schema"),
        pytest.param(lambda p: change(p, card={}), "model card schema None", id="no-card"),
        pytest.param(lambda p: change(p, extra=1), "is damaged", id="unknown-field"),
        pytest.param(
            lambda p: change(p, tensorrt={"kind": "tensorrt"}),
            r"tensorrt\.version is 'None', expected a version",
            id="no-version",
        ),
        pytest.param(lambda p: change(p, tensorrt=[]), "is damaged", id="tensorrt-is-a-list"),
    ],
)
def test_a_missing_or_lying_record_is_told_apart(engine, spoil, message):
    spoil(engine)
    with pytest.raises(ModelFileError, match=message) as caught:
        read_record(engine)
    assert caught.value.hint


def change(path: Path, **fields) -> None:
    beside = record_path(path)
    beside.write_text(json.dumps({**json.loads(beside.read_text()), **fields}))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(b"", "is empty", id="empty"),
        pytest.param(
            rtx_plan()[:200],
            "is truncated or extended: 200 bytes, its header says 256",
            id="truncated",
        ),
        pytest.param(bytes(range(200)), "is not a TensorRT-RTX engine", id="garbage"),
        pytest.param(rtx_plan()[:-1] + b"x", "the sha256 differs", id="edited"),
    ],
)
def test_a_changed_plan_is_found_before_it_is_loaded(engine, content, message):
    record = read_record(engine)
    engine.write_bytes(content)
    with pytest.raises(EngineMismatch, match=message) as caught:
        check_plan(engine, record)
    assert caught.value.hint == f"build it again: {COMMAND}"


@pytest.mark.parametrize(("kind", "version"), [("tensorrt-rtx", "1.6.0"), ("tensorrt", "1.7.1")])
def test_another_tensorrt_is_named_with_the_rebuild(engine, kind, version):
    with pytest.raises(
        EngineMismatch, match=f"built by tensorrt-rtx 1.7.1, here is {kind} {version}"
    ) as caught:
        check_library(engine, read_record(engine), kind=kind, version=version)
    assert COMMAND in caught.value.hint


def version_compatible(engine, built, *, kind="tensorrt"):
    change(
        engine,
        tensorrt={"kind": kind, "version": built},
        build={"command": COMMAND, "version_compatible": True},
    )
    return read_record(engine)


@pytest.mark.parametrize(
    ("built", "here"),
    [("8.6.1", "8.6.1"), ("10.3.0", "10.16.1.11"), ("11.0.0.114", "11.4.0.106")],
)
def test_a_version_compatible_engine_runs_on_newer_versions_of_its_major_line(engine, built, here):
    record = version_compatible(engine, built)
    check_library(engine, record, kind="tensorrt", version=here)


@pytest.mark.parametrize(
    ("built", "kind", "here"),
    [
        pytest.param("10.16.1", "tensorrt", "10.3.0", id="older"),
        pytest.param("10.3.0", "tensorrt", "11.4.0", id="next-major"),
        pytest.param("10.3.0", "tensorrt", "8.6.1", id="last-major"),
        pytest.param("10.3.0", "tensorrt-rtx", "10.4.0", id="another-kind"),
        pytest.param("", "tensorrt", "10.4.0", id="no-number"),
    ],
)
def test_a_version_compatible_engine_does_not_run_everywhere(engine, built, kind, here):
    record = version_compatible(engine, built)
    major = built.partition(".")[0]
    words = (
        f"as a version-compatible engine, for {built} and newer {major}.x, here is {kind} {here}"
    )
    with pytest.raises(EngineMismatch, match=words):
        check_library(engine, record, kind=kind, version=here)


def test_another_gpu_is_named_with_both_capabilities(engine):
    check_gpu(engine, read_record(engine), gpu="NVIDIA GeForce RTX 3060", sm=(8, 6))
    with pytest.raises(
        EngineMismatch, match=r"for compute capability 8\.6, 8\.9, NVIDIA GTX 1080 Ti has 6\.1"
    ):
        check_gpu(engine, read_record(engine), gpu="NVIDIA GTX 1080 Ti", sm=(6, 1))


@pytest.mark.parametrize(
    ("kind", "sms", "built_on", "is_warned"),
    [
        pytest.param("tensorrt", ["8.6"], "NVIDIA GeForce RTX 3060", True, id="another-model"),
        pytest.param("tensorrt", ["8.6"], "NVIDIA GeForce RTX 3090", False, id="the-same"),
        pytest.param("tensorrt", ["8.0+"], "NVIDIA GeForce RTX 3060", False, id="compatible"),
        pytest.param("tensorrt-rtx", ["8.6"], "NVIDIA GeForce RTX 3060", False, id="rtx"),
        pytest.param("tensorrt", ["8.6"], None, False, id="unknown"),
    ],
)
def test_an_engine_of_another_gpu_model_is_warned_of(engine, kind, sms, built_on, is_warned):
    record = replace(
        read_record(engine),
        tensorrt={"kind": kind, "version": "10.3.0"},
        target={"sms": sms, "gpu": built_on},
    )
    note = gpu_note(engine, record, gpu="NVIDIA GeForce RTX 3090")
    assert (note is not None) is is_warned
    if note:
        assert note.startswith("small.engine was built on NVIDIA GeForce RTX 3060, ")
        assert note.endswith(f"build it again here: {COMMAND}")


def hint_for(engine, sm):
    with pytest.raises(EngineMismatch) as caught:
        check_gpu(engine, read_record(engine), gpu="some GPU", sm=sm)
    return caught.value.hint


@pytest.mark.parametrize("sm", [(7, 5), (12, 0)], ids=str)
def test_an_rtx_engine_is_built_for_a_gpu_that_rtx_supports(engine, sm):
    assert hint_for(engine, sm) == f"build it for this GPU: {COMMAND} --target sm_{sm[0]}{sm[1]}"


@pytest.mark.parametrize("sm", [(6, 1), (7, 0), (8, 7), (9, 0)], ids=str)
def test_a_gpu_that_rtx_does_not_support_is_sent_to_tensorrt(engine, sm):
    """The recorded command would build the same engine again."""
    hint = hint_for(engine, sm)
    assert COMMAND not in hint.replace(f"{COMMAND} --tensorrt tensorrt", "")
    assert hint.startswith(f"TensorRT-RTX does not support SM {sm[0]}.{sm[1]}; esnet-doctor")
    assert hint.endswith("then: esnet-export build-engine small.onnx --fp16 --tensorrt tensorrt")


@pytest.mark.parametrize(("sm", "is_kept"), [((8, 9), True), ((7, 5), False)], ids=str)
def test_a_tensorrt_engine_is_built_again_on_the_other_gpu(engine, sm, is_kept):
    change(
        engine,
        tensorrt={"kind": "tensorrt", "version": "10.3.0"},
        target={"sms": ["8.6"], "gpu": "NVIDIA GeForce RTX 3060"},
        build={"command": f"{COMMAND} --hardware-compatible"},
    )
    hint = hint_for(engine, sm)
    assert hint.startswith("build it again: ")
    assert ("--hardware-compatible" in hint) is is_kept


@pytest.mark.parametrize(
    ("reason", "error", "hint"),
    [
        pytest.param(
            "Error Code 6: cudaError 35: CUDA driver version is insufficient for CUDA runtime version",
            BackendUnavailable,
            "update the driver",
            id="old-driver",
        ),
        pytest.param("out of memory", CudaError, "free GPU memory", id="memory"),
        pytest.param("magic tag differs", EngineMismatch, "build it again: ", id="another"),
    ],
)
def test_an_engine_that_does_not_load_gets_the_right_advice(engine, reason, error, hint):
    found = load_error(engine, read_record(engine), reason)
    assert type(found) is error
    assert reason in str(found)
    assert found.hint.startswith(hint)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("plan_sha256", 5),
        ("onnx", []),
        ("target", {"sms": 5, "gpu": None}),
        ("target", {"sms": ["8.6; rm"], "gpu": None}),
        ("target", {"sms": ["8.6"], "gpu": ["a"]}),
        ("precision", {"asked": "fp16", "built": [1]}),
        ("profile", [1, 1, 10**12]),
        ("kernels", {"count": "many"}),
        ("build", {"command": 5, "seconds": 1}),
        ("tensorrt", {"kind": "tensorrt", "version": "1" * 5000}),
    ],
)
def test_a_record_with_a_wrong_value_is_damaged(engine, name, value):
    change(engine, **{name: value})
    with pytest.raises(ModelFileError, match=f"is damaged: {name}.* expected"):
        read_record(engine)


def test_a_deep_record_is_damaged(engine):
    record_path(engine).write_text('{"schema":' + "[" * 200_000)
    with pytest.raises(ModelFileError, match="is damaged"):
        read_record(engine)


@pytest.mark.parametrize(
    "command", ["rm -rf x", "\x1b[31mesnet-export build-engine", "esnet-export '"]
)
def test_a_recorded_command_is_shown_only_if_it_is_ours(engine, command):
    change(engine, build={"command": command, "seconds": 1.0})
    assert read_record(engine).rebuild_command == "esnet-export build-engine MODEL.onnx"


def test_arguments_of_a_recorded_command_are_quoted(engine):
    change(engine, build={"command": f"{COMMAND}; rm -rf x", "seconds": 1.0})
    command = read_record(engine).rebuild_command
    assert command == "esnet-export build-engine small.onnx '--fp16;' rm -rf x"
