"""``--device`` of every command, on a machine without a GPU: what it accepts, and what it says."""

import re

import numpy as np
import pytest

from runtime.machine.cuda_driver import CudaGpu, CudaListing
from runtime.output.images import write_image

LISTS_NONE = "no GPU cuda:1: CUDA lists none"
NO_CUDA = "has no CUDA provider"


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    monkeypatch.setattr("runtime.machine.machine.list_cuda_gpus", lambda: None)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        pytest.param("esnet-doctor", 2, LISTS_NONE, id="doctor"),
        pytest.param("esnet-bench {model}", 3, NO_CUDA, id="bench"),
        pytest.param("esnet-bench {model} --backend openvino", 2, "not run on a GPU", id="cpu"),
        pytest.param("esnet-bench compare --size 64x128", 2, LISTS_NONE, id="compare"),
        pytest.param("esnet-segment {data} -m {model} -o {data}/out", 3, NO_CUDA, id="segment"),
        pytest.param("esnet-eval -m {model} --data {data}", 3, NO_CUDA, id="eval"),
        pytest.param("esnet-eval -m camvid --data {data}", 2, r"torch .* lists none", id="weights"),
        pytest.param("esnet-export build-engine {model} --fp32", 2, LISTS_NONE, id="build-engine"),
    ],
)
def test_without_a_gpu(invoke, make_artefact, tmp_path, words, code, message):
    write_image(tmp_path / "frame.png", np.zeros((64, 128, 3), np.uint8))
    words = words.format(model=make_artefact(), data=tmp_path)
    done = invoke(*words.split(), "--device", "1")
    assert done.returncode == code, done.stderr
    first = done.stderr.splitlines()[0]
    assert first.startswith("error: ")
    assert re.search(message, first)


def test_the_doctor_checks_for_the_gpu_that_is_named(invoke, monkeypatch):
    gpus = (
        CudaGpu("NVIDIA GeForce RTX 4090", "8.9", 24 << 30, "0000:01:00.0"),
        CudaGpu("NVIDIA TITAN Xp", "6.1", 12 << 30, "0000:02:00.0"),
    )
    listing = CudaListing(gpus, "")
    monkeypatch.setattr("runtime.machine.machine.list_cuda_gpus", lambda: listing)
    done = invoke("esnet-doctor", "--device", "cuda:1")
    assert "cuda:1 NVIDIA TITAN Xp" in done.stdout
    assert "gpu: NVIDIA TITAN Xp (SM 6.1): TensorRT 8.6.1 at most" in done.stdout
    assert "gpu: NVIDIA GeForce RTX 4090" not in done.stdout
