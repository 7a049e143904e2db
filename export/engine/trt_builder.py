"""Adapter to TensorRT's builder: compile an ONNX model with TensorRT 8.6, 10, 11 or TensorRT-RTX.

Code paths depend on the attributes of the loaded module, never on version numbers.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from export.engine.kernels import Kernel, kernels_from_log, kernels_of_plan
from export.engine.progress import BuildProgress, monitor_of
from export.errors import BuildError
from runtime.artefact.card import BatchRange
from runtime.cuda.device import open_device
from runtime.files import read_cache
from runtime.machine.gpus import parse_device
from runtime.tensorrt_api import TensorRt

Wait = Callable[[threading.Thread, BuildProgress], None]
"""Waits for a build thread, and may show its progress."""
_CANCEL_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildOptions:
    """Settings of one engine build."""

    precision: str
    """``fp32``, ``fp16`` or ``int8``."""
    tensorrt: str = "auto"
    """``auto``, ``tensorrt`` or ``tensorrt-rtx``."""
    batch: BatchRange | None = None
    """Optimization profile; ``None`` takes the artefact's range."""
    workspace_bytes: int | None = None
    """Scratch memory that kernels may use, in bytes; ``None`` keeps TensorRT's own limit."""
    sms: tuple[tuple[int, int], ...] = ()
    """Compute capabilities to build for; empty for the GPU of this machine, or RTX's portable set unless
    that GPU has 7.5."""
    device: str | int | None = None
    """GPU that builds, ``cuda:1`` or 1, in CUDA's order; ``None`` takes the first."""
    optimization_level: int | None = None
    """Effort of the search for fast kernels, 0 to 5; ``None`` takes TensorRT's default, 3."""
    aux_streams: int | None = None
    """Streams beside the main one at most, for layers that may run at once; ``None`` lets TensorRT choose."""
    timing_cache_path: Path | None = None
    """File that keeps kernel timings between builds; ``None`` for one per TensorRT version and GPU name in
    the user's cache folder."""
    version_compatible: bool = False
    """True if later TensorRT versions with the same major number must be able to load the engine."""
    hardware_compatible: bool = False
    """True if the engine must run on other GPUs from Ampere on."""
    frames: Path | None = None
    """fp16: frames to compare on, and to find nodes that could overflow and stay fp32; ``None`` compares on
    street scenes only."""
    verify: bool = True
    """fp16: False skips the comparison with the fp32 artefact."""


class BuiltPlan(NamedTuple):
    """Result of a build."""

    plan: bytes
    """Serialised engine."""
    kernels: tuple[Kernel, ...]
    """Compiled kernels; empty if they cannot be read."""
    timings: bytes
    """Content for the timing cache; empty if there is none."""


def build_plan(
    trt: TensorRt,
    model: bytes,
    options: BuildOptions,
    *,
    wait: Wait = lambda thread, progress: thread.join(),
) -> BuiltPlan:
    """Build an engine in a background thread.

    Args:
        trt: Loaded TensorRT library.
        model: Serialised ONNX model.
        options: Build settings; ``batch`` must be set, and ``timing_cache_path=None`` keeps no timings.
        wait: Waits for the build thread and may show progress. An exception raised in it, such as
            ``KeyboardInterrupt``, cancels the build; TensorRT 8.6 goes on until the process ends.

    Raises:
        BuildError: The graph cannot be parsed or built; the message holds TensorRT's own reason.
        BackendUnavailable: The builder needs a GPU, and this machine has none.
    """
    result: Future[BuiltPlan] = Future()
    progress = BuildProgress()
    monitor = monitor_of(trt, progress)

    def work() -> None:
        try:
            with _on_gpu(trt, options.device):
                result.set_result(_build(trt, model, options, monitor))
        except BaseException as error:
            result.set_exception(error)

    # The build call does not return early, so Ctrl-C needs a main thread that only waits.
    thread = threading.Thread(target=work, name="tensorrt-build", daemon=True)
    thread.start()
    try:
        wait(thread, progress)
    except BaseException:
        progress.cancel()
        if monitor is not None:
            thread.join(_CANCEL_SECONDS)
        raise
    return result.result()


@contextmanager
def _on_gpu(trt: TensorRt, device: str | int | None) -> Iterator[None]:
    """Make a GPU current for the calling thread, on which TensorRT builds; TensorRT-RTX needs none."""
    if device is None or trt.cross_compiles:
        yield
        return
    gpu = open_device(index=parse_device(device))
    try:
        with gpu.current():
            yield
    finally:
        gpu.close()


def _build(trt: TensorRt, model: bytes, options: BuildOptions, monitor: Any) -> BuiltPlan:
    module = trt.module
    builder = trt.create("Builder")
    with trt.log.watched() as messages:
        network = builder.create_network(_network_flags(trt))
        # The default name holds a counter, so that equal builds would differ.
        network.name = "esnet"
        _parse(trt, network, model)
        config = builder.create_builder_config()
        config.profiling_verbosity = module.ProfilingVerbosity.DETAILED
        _set_flags(trt, config, options)
        if options.optimization_level is not None:
            config.builder_optimization_level = options.optimization_level
        if options.aux_streams is not None:
            config.max_aux_streams = options.aux_streams
        if monitor is not None:
            config.progress_monitor = monitor
        _set_compute_capabilities(trt, config, options.sms)
        if options.workspace_bytes is not None:
            config.set_memory_pool_limit(module.MemoryPoolType.WORKSPACE, options.workspace_bytes)
        input_name, shape = _add_profile(builder, config, network, options.batch)
        if options.timing_cache_path is not None:
            _use_timings(config, read_cache(options.timing_cache_path))
        memory = builder.build_serialized_network(network, config)
        if memory is None:
            reason = trt.log.last_error()
            raise BuildError(
                f"{trt.kind} {trt.version} cannot build the engine: {reason or 'no reason given'}",
                hint=_hint_for(reason or "", options.precision),
            )
        cache = None if options.timing_cache_path is None else config.get_timing_cache()
        timings = None if cache is None else cache.serialize()
        plan = bytes(memory)
        kernels = kernels_from_log(text for _, text in messages)
        if not kernels:
            kernels = kernels_of_plan(
                trt,
                plan,
                version_compatible=options.version_compatible,
                input_name=input_name,
                shape=shape,
            )
    return BuiltPlan(plan=plan, kernels=kernels, timings=b"" if timings is None else bytes(timings))


def _network_flags(trt: TensorRt) -> int:
    """Request explicit batch and strong typing if the library has these flags; values differ by version."""
    flags = 0
    for name in ("EXPLICIT_BATCH", "STRONGLY_TYPED"):
        if trt.has(f"NetworkDefinitionCreationFlag.{name}"):
            flags |= 1 << int(getattr(trt.module.NetworkDefinitionCreationFlag, name))
    return flags


def _parse(trt: TensorRt, network: Any, model: bytes) -> None:
    parser = trt.module.OnnxParser(network, trt.log.logger)
    if parser.parse(model):
        return
    problems = [_parser_error(parser.get_error(index)) for index in range(parser.num_errors)]
    raise BuildError(
        f"{trt.kind} {trt.version} cannot read the graph: {'; '.join(problems) or trt.log.last_error()}",
        hint="export it with: esnet-export to-onnx WEIGHTS --optimize-for tensorrt",
    )


def _parser_error(error: Any) -> str:
    """Describe a parser error, with operator and node name if this version reports them."""
    name = error.node_name() if hasattr(error, "node_name") else ""
    operator = error.node_operator() if hasattr(error, "node_operator") else ""
    where = " ".join(part for part in (operator, repr(name) if name else "") if part)
    return f"{where or f'node {error.node()}'}: {' '.join(error.desc().split())}"


def _set_flags(trt: TensorRt, config: Any, options: BuildOptions) -> None:
    flags = trt.module.BuilderFlag
    config.clear_flag(flags.TF32)  # TF32 rounds fp32 products to 10 bits
    if trt.types_by_flags and options.precision != "fp32":  # 8.6 takes types from flags
        config.set_flag(getattr(flags, options.precision.upper()))
    if options.version_compatible:
        config.set_flag(flags.VERSION_COMPATIBLE)
    if trt.has("PreviewFeature.PROFILE_SHARING_0806"):
        # 8.6 otherwise gives the profile to one execution context; the runtime makes one for each batch size.
        config.set_preview_feature(trt.module.PreviewFeature.PROFILE_SHARING_0806, True)
    if options.hardware_compatible and not trt.cross_compiles:
        config.hardware_compatibility_level = trt.module.HardwareCompatibilityLevel.AMPERE_PLUS


def _set_compute_capabilities(trt: TensorRt, config: Any, sms: tuple[tuple[int, int], ...]) -> None:
    if not sms:
        return
    assert trt.cross_compiles, "build_engine checks it"
    known = trt.module.ComputeCapability
    config.num_compute_capabilities = len(sms)
    for index, (major, minor) in enumerate(sms):
        capability = getattr(known, f"SM{major}{minor}", None)
        if capability is None or not config.set_compute_capability(capability, index):
            names = ", ".join(name for name in dir(known) if name.startswith("SM"))
            raise BuildError(
                f"{trt.kind} {trt.version} does not build for SM {major}.{minor}, but for {names}",
                hint="for an H100, an H200 or a GTX 10xx, use --tensorrt tensorrt on that machine",
            )


def _use_timings(config: Any, content: bytes) -> None:
    """Set the timing cache; one that is damaged, or of another GPU or version, starts empty."""
    for data in dict.fromkeys((content, b"")):
        cache = config.create_timing_cache(data)
        if cache is not None and config.set_timing_cache(cache, False):
            return


def _add_profile(
    builder: Any, config: Any, network: Any, batch: BatchRange | None
) -> tuple[str, tuple[int, ...]]:
    """Set the batch range of a graph with a dynamic batch axis; a fixed one must match ``batch``.

    Returns:
        Name of the input, and its shape at the optimal batch.
    """
    assert batch is not None, "build_engine sets the batch range"
    tensor = network.get_input(0)
    shape = tuple(tensor.shape)
    if -1 in shape:
        profile = builder.create_optimization_profile()
        profile.set_shape(tensor.name, *((size, *shape[1:]) for size in batch))
        config.add_optimization_profile(profile)
    elif tuple(batch) != (shape[0],) * 3:
        raise BuildError(
            f"the graph has a fixed batch of {shape[0]}, --batch asks for {batch}",
            hint=f"use --batch {shape[0]}, or export with --batch {batch}",
        )
    return tensor.name, (batch.opt, *shape[1:])


def _hint_for(reason: str, precision: str) -> str:
    lowered = reason.lower()
    if precision == "int8" and "any implementation for node" in lowered:
        return (
            "TensorRT has no INT8 kernel for this node here: esnet-export quantize --keep NAME, with the "
            "convolution's name, keeps it in float"
        )
    if "workspace" in lowered or "memory" in lowered:
        return "allow more scratch memory with --workspace 4GiB, or free GPU memory"
    if "cuda" in lowered or "gpu" in lowered:
        return "esnet-doctor checks driver, GPU and TensorRT"
    return "--debug shows more; esnet-export inspect MODEL.onnx describes the graph"
