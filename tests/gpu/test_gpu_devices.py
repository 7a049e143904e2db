"""Each CUDA library opens the GPU, copies, and adds little host time; PyCUDA beside cuda-bindings."""

import pytest

from tests.gpu.checks import check_copy, measure_copies, measure_overhead

pytestmark = pytest.mark.gpu


def test_bytes_survive_the_copy_to_the_gpu_and_back(device, record):
    record(gpu=device.name, sm=f"{device.sm[0]}.{device.sm[1]}")
    check_copy(device)


def test_copies_from_pinned_and_pageable_memory(device, record):
    measure_copies(device, record)


def test_host_overhead_of_submit_and_collect(device, record):
    record(submit_and_collect_us_p50=measure_overhead(device))
