"""A fake ``pynvml``, the module of nvidia-ml-py: same names, arguments, results and errors.

As in nvidia-ml-py: functions raise ``NVMLError`` with NVML's code in ``value``, a query before ``nvmlInit``
is an error, handles are opaque, text is ``str`` (``bytes`` in old versions), power is in mW, and a function
that the driver does not export raises ``NVML_ERROR_FUNCTION_NOT_FOUND``.
"""

from __future__ import annotations

import functools
import types
from dataclasses import dataclass, field

UNINITIALIZED, NOT_SUPPORTED, NO_DRIVER, FUNCTION_NOT_FOUND, GPU_IS_LOST = 1, 3, 9, 13, 15


class NVMLError(Exception):
    """As in pynvml, where each code has a subclass."""

    def __init__(self, value: int) -> None:
        super().__init__(f"NVML error {value}")
        self.value = value


@dataclass
class FakeGpu:
    """One GPU; each query named in ``unsupported`` raises its error code."""

    name: str = "NVIDIA GeForce RTX 3060"
    memory_bytes: int = 11264 << 20
    used_bytes: int = 812 << 20
    capability: tuple[int, int] = (8, 6)
    bus_id: str = "00000000:01:00.0"
    clock: int = 1980
    max_clock: int = 2100
    temperature: int = 45
    milliwatts: int = 312104
    reasons: int = 0x4
    unsupported: dict[str, int] = field(default_factory=dict)


class FakeNvml(types.ModuleType):
    """The module; put it into ``sys.modules`` as ``pynvml``."""

    NVMLError = NVMLError
    NVML_CLOCK_SM = 1
    NVML_TEMPERATURE_GPU = 0

    def __init__(
        self,
        *gpus: FakeGpu,
        driver: str = "580.95.05",
        as_bytes: bool = False,
        has_driver: bool = True,
        not_exported: tuple[str, ...] = (),
    ) -> None:
        super().__init__("pynvml")
        self.gpus, self.driver, self.as_bytes = gpus, driver, as_bytes
        self.has_driver, self.not_exported = has_driver, not_exported
        self.inits = 0

    def __getattribute__(self, name: str):
        value = super().__getattribute__(name)
        if not name.startswith("nvml") or name == "nvmlInit":
            return value

        @functools.wraps(value)
        def call(*arguments):
            if not self.inits:
                raise NVMLError(UNINITIALIZED)
            if name in self.not_exported:
                raise NVMLError(FUNCTION_NOT_FOUND)
            gpu = arguments[0] if arguments and isinstance(arguments[0], FakeGpu) else None
            if gpu is not None and name in gpu.unsupported:
                raise NVMLError(gpu.unsupported[name])
            return value(*arguments)

        return call

    def _text(self, text: str):
        return text.encode() if self.as_bytes else text

    def nvmlInit(self):
        if not self.has_driver:
            raise NVMLError(NO_DRIVER)
        self.inits += 1

    def nvmlShutdown(self):
        self.inits -= 1

    def nvmlDeviceGetCount(self):
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index):
        gpu = self.gpus[index]
        if "nvmlDeviceGetHandleByIndex" in gpu.unsupported:
            raise NVMLError(gpu.unsupported["nvmlDeviceGetHandleByIndex"])
        return gpu

    def nvmlSystemGetDriverVersion(self):
        return self._text(self.driver)

    def nvmlDeviceGetName(self, handle):
        return self._text(_known(handle).name)

    def nvmlDeviceGetPciInfo(self, handle):
        return types.SimpleNamespace(busId=self._text(_known(handle).bus_id))

    def nvmlDeviceGetMemoryInfo(self, handle):
        gpu = _known(handle)
        return types.SimpleNamespace(total=gpu.memory_bytes, used=gpu.used_bytes)

    def nvmlDeviceGetCudaComputeCapability(self, handle):
        return _known(handle).capability

    def nvmlDeviceGetClockInfo(self, handle, clock):
        assert clock == self.NVML_CLOCK_SM
        return _known(handle).clock

    def nvmlDeviceGetMaxClockInfo(self, handle, clock):
        assert clock == self.NVML_CLOCK_SM
        return _known(handle).max_clock

    def nvmlDeviceGetTemperature(self, handle, sensor):
        assert sensor == self.NVML_TEMPERATURE_GPU
        return _known(handle).temperature

    def nvmlDeviceGetPowerUsage(self, handle):
        return _known(handle).milliwatts

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle):
        return _known(handle).reasons

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle):
        return _known(handle).reasons


def _known(handle) -> FakeGpu:
    """NVML answers a null handle with NVML_ERROR_INVALID_ARGUMENT (2)."""
    if handle is None:
        raise NVMLError(2)
    return handle
