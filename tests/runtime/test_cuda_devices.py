"""The CUDA libraries: our calls exist in the real modules, and errors are reported with hints.

``tests/gpu_rules`` runs them over the stub of the driver.
"""

import re
from pathlib import Path

import pytest

import runtime.cuda
from runtime.cuda.device import open_device
from runtime.cuda.resources import cuda_error, error_from_text
from runtime.errors import BackendUnavailable, CudaError, InvalidInput

FOLDER = Path(runtime.cuda.__file__).parent


def has_driver() -> bool:
    try:
        open_device("cuda-bindings").close()
    except BackendUnavailable:
        return False
    return True


def test_every_name_we_touch_is_in_the_real_bindings():
    driver = pytest.importorskip("cuda.bindings.driver", reason="cuda-bindings is not installed")
    text = (FOLDER / "bindings_device.py").read_text()
    names = set(re.findall(r"\bdriver\.(\w+)", text)) - {"py"}
    members = re.findall(r"\b(CU_\w+)\b", text)
    assert len(names) > 20
    assert [name for name in names if not hasattr(driver, name)] == []
    enums = [getattr(driver, name) for name in names if name.startswith("CU")]
    assert [m for m in members if not any(hasattr(enum, m) for enum in enums)] == []


@pytest.mark.parametrize("library", [None, "cuda-bindings"])
def test_without_a_driver_no_library_is_to_be_installed(library):
    if has_driver():
        pytest.skip("this machine has a driver")
    with pytest.raises(BackendUnavailable, match=r"this machine has no NVIDIA driver$") as caught:
        open_device(library)
    assert caught.value.hint.startswith("install the driver, or run the ONNX file")
    assert "pip" not in caught.value.hint


def test_an_unknown_library_is_refused():
    with pytest.raises(InvalidInput, match="unknown CUDA library 'cupy'"):
        open_device("cupy")


def test_without_any_library_each_is_named(no_cuda_libraries):
    with pytest.raises(BackendUnavailable, match=r"pycuda: .*pycuda.*; cuda-bindings: .*cuda") as e:
        open_device()
    assert "pip install 'esnet-deploy[pycuda]'" in e.value.hint


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("CUDA_ERROR_OUT_OF_MEMORY", "smaller batch"),
        ("CUDA_ERROR_ILLEGAL_ADDRESS", "restart it"),
        ("CUDA_ERROR_ILLEGAL_INSTRUCTION", "restart it"),
        ("CUDA_ERROR_MISALIGNED_ADDRESS", "restart it"),
        ("CUDA_ERROR_INVALID_PC", "restart it"),
        ("CUDA_ERROR_DEVICE_UNAVAILABLE", "another process"),
        ("CUDA_ERROR_NOT_PERMITTED", "esnet-doctor"),
        ("CUDA_ERROR_INVALID_VALUE", "esnet-doctor"),
    ],
)
def test_an_error_says_what_to_do(name, hint):
    error = cuda_error("cuMemAlloc", name, "words")
    assert isinstance(error, CudaError)
    assert str(error) == f"cuMemAlloc failed: {name}, words"
    assert hint in error.hint


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("CUDA-capable device(s) is/are busy or unavailable", "CUDA_ERROR_DEVICE_UNAVAILABLE"),
        ("misaligned address", "CUDA_ERROR_MISALIGNED_ADDRESS"),
        ("an illegal instruction was encountered", "CUDA_ERROR_ILLEGAL_INSTRUCTION"),
        ("device-side assert triggered", "CUDA_ERROR_ASSERT"),
    ],
)
def test_an_error_is_known_by_its_text(text, name):
    assert str(error_from_text("cuCtxSynchronize", text)).startswith(
        f"cuCtxSynchronize failed: {name}"
    )
