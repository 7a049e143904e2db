"""bf16 is offered where the CPU computes it, not where OpenVINO emulates it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import runtime
from runtime.backend import open_backend
from runtime.errors import InvalidInput
from runtime.machine.onednn import emulates_bf16, has_bf16

AVX512 = {"avx512f", "avx512_vnni"}


@pytest.fixture
def cpu(monkeypatch):
    """Make this CPU one with these flags, limited to an instruction set."""

    def set_flags(flags, limit=""):
        monkeypatch.setattr("runtime.machine.onednn.cpu_flags", lambda: frozenset(flags))
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)

    return set_flags


@pytest.mark.parametrize(
    ("flags", "limit", "computes", "emulates"),
    [
        pytest.param(AVX512 | {"avx512_bf16"}, "", True, True, id="zen-5"),
        pytest.param(AVX512 | {"amx_bf16", "avx512_bf16"}, "", True, True, id="sapphire-rapids"),
        pytest.param(AVX512, "", False, True, id="ice-lake"),
        pytest.param({"avx2"}, "", False, False, id="avx2"),
        pytest.param(AVX512 | {"avx512_bf16"}, "AVX512_CORE_BF16", True, True, id="to-bf16"),
        pytest.param(AVX512 | {"avx512_bf16"}, "avx512_core_vnni", False, True, id="to-vnni"),
        pytest.param(AVX512 | {"avx512_bf16"}, "AVX2", False, False, id="to-avx2"),
        pytest.param(AVX512 | {"avx512_bf16"}, "nonsense", True, True, id="unknown-limit"),
    ],
)
def test_bf16_depends_on_flags_and_limit(cpu, flags, limit, computes, emulates):
    cpu(flags, limit)
    assert (has_bf16(), emulates_bf16()) == (computes, emulates)


def test_openvino_refuses_bf16_without_its_arithmetic(cpu, make_artefact):
    cpu(AVX512)
    with pytest.raises(InvalidInput, match=r"cannot run bf16 on .*, it offers fp32$"):
        open_backend(make_artefact(), "openvino", precision="bf16")


@pytest.mark.parametrize("limit", ["AVX512_CORE_VNNI", "AVX2"])
def test_an_int8_artefact_opens_below_bf16(limit):
    """With AVX2 alone, OpenVINO lists bf16 but cannot compile it."""
    probe = Path(runtime.__file__).with_name("probe_int8.onnx")
    code = "import sys; from runtime.backend import open_backend; open_backend(sys.argv[1], 'openvino')"
    done = subprocess.run(
        [sys.executable, "-c", code, str(probe)],
        env=os.environ | {"ONEDNN_MAX_CPU_ISA": limit},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
