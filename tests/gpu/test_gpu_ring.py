"""The slot ring on the GPU: every frame comes back right, and device memory does not grow."""

import ctypes

import pytest

from tests.gpu.checks import check_ring

pytestmark = pytest.mark.gpu


@pytest.fixture
def driver_copy():
    """The driver's device-to-device copy."""
    driver = ctypes.CDLL("libcuda.so.1")

    def copy(target: int, source: int, num_bytes: int, stream: int) -> None:
        status = driver.cuMemcpyDtoDAsync_v2(
            ctypes.c_uint64(target),
            ctypes.c_uint64(source),
            ctypes.c_size_t(num_bytes),
            ctypes.c_void_p(stream),
        )
        assert status == 0, f"cuMemcpyDtoDAsync returned {status}"

    return copy


@pytest.mark.parametrize("batch", [1, 8], ids=["batch1", "batch8"])
@pytest.mark.parametrize("use_graphs", [True, False], ids=["graphs", "no_graphs"])
def test_every_frame_comes_back(device, driver_copy, record, batch, use_graphs):
    check_ring(device, driver_copy, record, batch=batch, use_graphs=use_graphs)
