"""The one adapter to TensorRT's builder: from an ONNX model to a plan, on 8.6, 10, 11 and TensorRT-RTX.

What a version offers is asked of its module; no version is compared.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.engine.kernels import Kernel, kernels_from_inspector, kernels_from_log
from export.errors import BuildError
from runtime.artefact.card import BatchRange
from runtime.files import atomic_path
from runtime.tensorrt_api import TensorRt

NETWORK_NAME = "esnet"  # by default it is numbered, and no two plans are alike


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildOptions:
    """What a builder is asked for."""

    precision: str
    """``fp32``, ``fp16`` or ``int8``."""
    tensorrt: str = "auto"
    """``auto``, ``tensorrt`` or ``tensorrt-rtx``."""
    batch: BatchRange | None = None
    """Optimization profile; ``None`` takes the artefact's range."""
    workspace_bytes: int | None = None
    """Scratch memory that kernels may use; ``None`` leaves TensorRT's own limit."""
    sms: tuple[tuple[int, int], ...] = ()
    """Compute capabilities to build for; empty is the GPU at hand, or the library's portable choice."""
    timing_cache_path: Path | None = None
    """Kernel timings kept between builds, where the builder knows them; ``None`` keeps none."""
    version_compatible: bool = False
    """Loadable by later TensorRT versions."""
    hardware_compatible: bool = False
    """Runs on other GPUs from Ampere on."""
    frames: Path | None = None
    """fp16: frames to find nodes on that could overflow and must stay fp32; ``None`` checks none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BuiltPlan:
    """What a builder gave."""

    plan: bytes
    """The serialised engine."""
    kernels: tuple[Kernel, ...]
    """What it was compiled to; empty where that cannot be read."""


def build_plan(
    trt: TensorRt,
    model: bytes,
    options: BuildOptions,
    *,
    wait: Callable[[threading.Thread], None] = threading.Thread.join,
) -> BuiltPlan:
    """Build an engine.

    Args:
        trt: The library.
        model: A serialised ONNX model.
        options: What is asked for.
        wait: Waits for the thread that builds, and may show progress; what it raises (Ctrl-C) abandons
            the build.

    Raises:
        BuildError: The graph does not parse, or cannot be built; with TensorRT's own reason.
        BackendUnavailable: The builder needs a GPU that is not here.
    """
    done: list[BuiltPlan | BaseException] = []

    def work() -> None:
        try:
            done.append(_build(trt, model, options))
        except BaseException as error:  # handed to the caller's thread
            done.append(error)

    # TensorRT does not return before it is done: Ctrl-C reaches a main thread that only waits.
    thread = threading.Thread(target=work, name="tensorrt-build", daemon=True)
    thread.start()
    wait(thread)
    thread.join()
    if isinstance(done[0], BaseException):
        raise done[0]
    return done[0]


def _build(trt: TensorRt, model: bytes, options: BuildOptions) -> BuiltPlan:
    module = trt.module
    builder = trt.new_builder()
    with trt.log.watched() as messages:
        network = builder.create_network(_network_flags(trt))
        network.name = NETWORK_NAME
        _parse(trt, network, model)
        config = builder.create_builder_config()
        config.profiling_verbosity = module.ProfilingVerbosity.DETAILED
        _set_flags(trt, config, options)
        _set_targets(trt, config, options)
        if options.workspace_bytes is not None:
            config.set_memory_pool_limit(module.MemoryPoolType.WORKSPACE, options.workspace_bytes)
        _add_profile(builder, config, network, options.batch)
        cache = _load_timing_cache(trt, config, options.timing_cache_path)
        memory = builder.build_serialized_network(network, config)
        if memory is None:
            raise BuildError(
                f"{trt.kind} {trt.version} cannot build it: {trt.log.last_error() or 'it gave no reason'}",
                hint=_hint_for(trt.log.last_error() or ""),
            )
        _save_timing_cache(config, cache, options.timing_cache_path)
        plan = bytes(memory)
        kernels = kernels_from_log(text for _, text in messages) or _inspected(trt, plan)
    return BuiltPlan(plan=plan, kernels=kernels)


def _network_flags(trt: TensorRt) -> int:
    """Ask for explicit batch and strong types wherever they are asked for; the values differ by version."""
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
    """Name the node, where the parser tells, and say what is wrong with it."""
    name = error.node_name() if hasattr(error, "node_name") else ""
    operator = error.node_operator() if hasattr(error, "node_operator") else ""
    where = " ".join(part for part in (operator, repr(name) if name else "") if part)
    return f"{where or f'node {error.node()}'}: {' '.join(error.desc().split())}"


def _set_flags(trt: TensorRt, config: Any, options: BuildOptions) -> None:
    flags = trt.module.BuilderFlag
    config.clear_flag(flags.TF32)  # fp32 is fp32; TF32 rounds products to 10 bits
    if trt.types_by_flags:  # 8.6 chooses types by itself among those that are allowed
        for precision, names in {"fp16": ["FP16"], "int8": ["INT8"]}.items():
            if options.precision == precision:
                for name in names:
                    config.set_flag(getattr(flags, name))
    if options.version_compatible:
        config.set_flag(flags.VERSION_COMPATIBLE)
    if options.hardware_compatible and not trt.cross_compiles:
        config.hardware_compatibility_level = trt.module.HardwareCompatibilityLevel.AMPERE_PLUS


def _set_targets(trt: TensorRt, config: Any, options: BuildOptions) -> None:
    if not options.sms:
        return
    if not trt.cross_compiles:
        raise BuildError(
            f"{trt.kind} {trt.version} builds for the GPU at hand alone",
            hint="build on the machine that will run it, or with --tensorrt tensorrt-rtx",
        )
    config.num_compute_capabilities = len(options.sms)
    for index, (major, minor) in enumerate(options.sms):
        name = f"SM{major}{minor}"
        capability = getattr(trt.module.ComputeCapability, name, None)
        if capability is None or not config.set_compute_capability(capability, index):
            known = [n for n in dir(trt.module.ComputeCapability) if n.startswith("SM")]
            raise BuildError(
                f"{trt.kind} {trt.version} does not build for SM {major}.{minor}, but for {', '.join(known)}",
                hint="on an H100 or H200 and on GTX 10xx, build with TensorRT itself",
            )


def _add_profile(builder: Any, config: Any, network: Any, batch: BatchRange | None) -> None:
    """Give a dynamic batch its range; a graph with a fixed one needs none."""
    assert batch is not None, "build_engine fills it in"
    tensor = network.get_input(0)
    shape = tuple(tensor.shape)
    if -1 not in shape:
        if shape[0] not in batch or batch[0] != batch[2]:
            raise BuildError(
                f"the graph has a fixed batch of {shape[0]}, --batch asks for {':'.join(map(str, batch))}",
                hint=f"--batch {shape[0]}, or export with --batch {':'.join(map(str, batch))}",
            )
        return
    profile = builder.create_optimization_profile()
    profile.set_shape(tensor.name, *((size, *shape[1:]) for size in batch))
    config.add_optimization_profile(profile)


def _load_timing_cache(trt: TensorRt, config: Any, path: Path | None) -> Any:
    if path is None:
        return None
    cache = config.create_timing_cache(path.read_bytes() if path.is_file() else b"")
    config.set_timing_cache(cache, False)  # not from another GPU
    return cache


def _save_timing_cache(config: Any, cache: Any, path: Path | None) -> None:
    if cache is None or path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_bytes(bytes(config.get_timing_cache().serialize()))


def _inspected(trt: TensorRt, plan: bytes) -> tuple[Kernel, ...]:
    """Ask the inspector, which needs the engine loaded on the GPU it was built on."""
    engine = trt.new_runtime().deserialize_cuda_engine(plan)
    if engine is None:
        return ()
    layout = trt.module.LayerInformationFormat.JSON
    return kernels_from_inspector(engine.create_engine_inspector().get_engine_information(layout))


def _hint_for(reason: str) -> str:
    lowered = reason.lower()
    if "workspace" in lowered or "memory" in lowered:
        return "give it more room: --workspace 4GiB; or free GPU memory"
    if "cuda" in lowered or "gpu" in lowered:
        return "esnet-doctor tells whether driver, GPU and TensorRT fit together"
    return "--debug shows more; parity of the graph itself: esnet-export inspect MODEL.onnx"
