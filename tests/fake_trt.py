"""Fake TensorRT of any version, with exactly the attributes of the real bindings (``trt_api.json``).

It parses with onnx, "compiles" a plan that holds the model and its types, and runs it with ONNX Runtime.
It follows the rules that this project relies on: flags and their values, strong or weak typing, profiles for
dynamic shapes, None instead of exceptions, no uint8 transpose, plans bound to version and GPU. Contexts have
state: a graph must be captured after a run of the same shape, addresses and memory, is invalid once one of
them changes, and memory is shared by contexts of one stream only.
"""

from __future__ import annotations

import importlib.machinery
import json
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

API = json.loads((Path(__file__).parent / "trt_api.json").read_text())
GENERATIONS = ("8.6.1", "10.3.0", "10.16.1", "11.4.0")
_MAGIC = b"ftrt"
STEP_SECONDS = 0.0
"""Duration of a step that is reported to a progress monitor."""
ACTIVATIONS = 4096
"""Bytes of an engine's activations."""
_TYPE_NAMES = {
    TensorProto.FLOAT: ("FLOAT", "FP32", np.float32),
    TensorProto.FLOAT16: ("HALF", "FP16", np.float16),
    TensorProto.UINT8: ("UINT8", "UINT8", np.uint8),
}


def fake_tensorrt(generation: str, *, sm: tuple[int, int] = (8, 6), has_gpu: bool = True) -> Any:
    """Make a fake ``tensorrt`` module.

    Args:
        generation: Key of ``trt_api.json``.
        sm: Compute capability of the GPU.
        has_gpu: False makes the constructors of Builder and Runtime fail.
    """
    table = API[generation]
    module = types.ModuleType("tensorrt")
    module.__version__ = generation.removeprefix("rtx ")
    module.__spec__ = importlib.machinery.ModuleSpec("tensorrt", None)
    module.state = State(sm=sm, has_gpu=has_gpu)
    for name, members in table.items():
        if name == "__functions__":
            continue
        if isinstance(members, dict):
            setattr(module, name, _enum(name, members))
        else:
            setattr(module, name, _strict(_CLASSES.get(name, _Plain), name, members, module))
    severity = {"INTERNAL_ERROR": 0, "ERROR": 1, "WARNING": 2, "INFO": 3, "VERBOSE": 4}
    module.ILogger.Severity = _enum("Severity", severity)
    module.nptype = lambda dtype: next(n for t, (k, _, n) in _TYPE_NAMES.items() if k == dtype.name)
    return module


class State:
    """State of the fake that tests set and inspect."""

    def __init__(self, *, sm: tuple[int, int], has_gpu: bool) -> None:
        self.sm, self.has_gpu = sm, has_gpu
        self.builds = 0
        self.loaded = 0
        self.last_config: Any = None
        self.fall_back_to_float = False
        self.has_int8_kernel: Callable[[onnx.NodeProto], bool] = lambda node: True
        self.build_error: str | None = None
        self.run: Any = None
        """Enqueues a model: (model, shape, addresses, stream, check); its kernel calls ``check``."""
        self.is_capturing: Callable[[int], bool] = lambda stream: False
        self.check_memory: Callable[[int, int], None] = lambda address, size: None
        self.contexts = self.own_activations = self.recaptures = 0
        self.streams: dict[int, int] = {}


def build_plan(trt: Any, model: bytes, batch: tuple[int, int, int]) -> bytes:
    """Build a plan of a model with the input ``frames``, for a range of batch sizes."""
    logger = trt.ILogger()
    builder = trt.Builder(logger)
    explicit = trt.NetworkDefinitionCreationFlag.__members__.get("EXPLICIT_BATCH")
    network = builder.create_network(0 if explicit is None else 1 << explicit)
    assert trt.OnnxParser(network, logger).parse(model)
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    shape = network.get_input(0).shape[1:]
    profile.set_shape("frames", *((size, *shape) for size in batch))
    config.add_optimization_profile(profile)
    if "PROFILE_SHARING_0806" in trt.PreviewFeature.__members__:
        config.set_preview_feature(trt.PreviewFeature.PROFILE_SHARING_0806, True)
    return bytes(builder.build_serialized_network(network, config))


class _Member(int):
    """Enum member as in pybind11: convertible by ``int()``, with a name."""

    name: str


def _enum(name: str, members: dict[str, int]) -> type:
    cls = type(name, (), {})
    for key, value in members.items():
        member = _Member(value)
        member.name = key
        setattr(cls, key, member)
    cls.__members__ = members
    return cls


class _Plain:
    def __init__(self, *args: object) -> None:
        pass


def _strict(base: type, name: str, members: list[str], module: Any) -> type:
    """Derive a class with exactly the public attributes of the real one."""
    allowed = set(members)

    def __getattribute__(self: Any, key: str) -> Any:
        if not key.startswith("_") and key not in allowed and not _is_own(self, key):
            raise AttributeError(f"{module.__version__} {name} has no {key!r}")
        return object.__getattribute__(self, key)

    def __setattr__(self: Any, key: str, value: Any) -> None:
        if not key.startswith("_") and key not in allowed and not _is_own(self, key):
            raise AttributeError(f"{module.__version__} {name} has no {key!r} to set")
        object.__setattr__(self, key, value)

    hidden = {key: _Hidden() for key in vars(base) if key[0] != "_" and key not in allowed}
    body = {"__getattribute__": __getattribute__, "__setattr__": __setattr__, "_module": module}
    missing = {
        member: _never
        for member in allowed
        if not hasattr(base, member) and member not in base.__dict__
    }
    return type(name, (base,), {**missing, **hidden, **body})


class _Hidden:
    """A member of the fake that this version of TensorRT lacks."""

    def __get__(self, *_: object) -> Any:
        raise AttributeError("this version has no such member")


def _is_own(instance: Any, key: str) -> bool:
    """Return True for attributes of a subclass outside this module, and for those set by the fake."""
    own = object.__getattribute__(instance, "__dict__")
    return type(instance).__module__ != __name__ or key in own


def _never(*args: object, **kwargs: object) -> Any:
    raise NotImplementedError("the fake does not do this")


class _Logger:
    def __init__(self) -> None:
        pass


class _Builder:
    def __new__(cls, logger: Any) -> Any:
        if not cls._module.state.has_gpu:
            logger.log(1, "CUDA initialization failure with error: 35")
            raise TypeError("pybind11::init(): factory function returned nullptr")
        return object.__new__(cls)

    def __init__(self, logger: Any) -> None:
        self._logger = logger

    def create_network(self, flags: int = 0) -> Any:
        known = self._module.NetworkDefinitionCreationFlag.__members__
        assert flags < 1 << (max(known.values()) + 1), f"flags {flags:b} name no flag of {known}"
        network = self._module.INetworkDefinition()
        network._strong = "EXPLICIT_BATCH" not in known or bool(
            "STRONGLY_TYPED" in known and flags >> known["STRONGLY_TYPED"] & 1
        )
        network._explicit = "EXPLICIT_BATCH" not in known or bool(
            flags >> known["EXPLICIT_BATCH"] & 1
        )
        network.name = f"Unnamed Network {self._module.state.builds}"
        return network

    def create_builder_config(self) -> Any:
        return self._module.IBuilderConfig()

    def create_optimization_profile(self) -> Any:
        return self._module.IOptimizationProfile()

    def build_serialized_network(self, network: Any, config: Any) -> Any:
        state = self._module.state
        state.builds += 1
        state.last_config = config
        problem = state.build_error
        monitor = vars(config).get("progress_monitor")
        if monitor is not None and not _report(monitor):
            problem = "BuildCanceled (Build canceled by user)"
        dynamic = [
            v for v in network._model.graph.input if not v.type.tensor_type.shape.dim[0].dim_value
        ]
        if dynamic and not config._profiles:
            problem = (
                "Network has dynamic or shape inputs, but no optimization profile has been defined."
            )
        if problem:
            self._logger.log(1, problem)
            return None
        header = {
            "version": self._module.__version__,
            "sm": state.sm,
            "name": network.name,
            "types": self._types(network, config),
            "int8": self._int8_nodes(network, config),
            "version_compatible": config.get_flag(self._module.BuilderFlag.VERSION_COMPATIBLE),
            "shares_profile": not self._module.__version__.startswith("8.")
            or "PROFILE_SHARING_0806" in config._previews
            or not dynamic,
            "profile": config._profiles[0]._shapes if config._profiles else {},
        }
        text = json.dumps(header, sort_keys=True).encode()
        plan = _MAGIC + len(text).to_bytes(4, "little") + text + network._model.SerializeToString()
        return HostMemory(plan)

    def _int8_nodes(self, network: Any, config: Any) -> list[str]:
        """List the convolutions with quantized inputs for which this GPU has an INT8 kernel."""
        flag = self._module.BuilderFlag.__members__.get("INT8")
        if not network._strong and not config._flags >> flag & 1:
            return []
        nodes = network._model.graph.node
        quantized = {node.output[0] for node in nodes if node.op_type == "DequantizeLinear"}
        has_kernel = self._module.state.has_int8_kernel
        return [
            n.name
            for n in nodes
            if {*n.input} & quantized and "Conv" in n.op_type and has_kernel(n)
        ]

    def _types(self, network: Any, config: Any) -> str:
        flags = self._module.BuilderFlag.__members__
        if network._strong:
            weights = {t.data_type for t in network._model.graph.initializer if len(t.dims) == 4}
            chosen = "FP16" if TensorProto.FLOAT16 in weights else "FP32"
        else:
            chosen = "FP16" if "FP16" in flags and config._flags >> flags["FP16"] & 1 else "FP32"
        return "FP32" if self._module.state.fall_back_to_float else chosen


def _report(monitor: Any) -> bool:
    """Report phases as TensorRT does, and return False if the monitor asks to give up."""
    monitor.phase_start("Building engine", None, 4)
    goes_on = monitor.step_complete("Building engine", 0)
    monitor.phase_start("Timing tactics", "Building engine", 50)
    for step in range(50):
        goes_on = goes_on and monitor.step_complete("Timing tactics", step)
        time.sleep(STEP_SECONDS if goes_on else 0)
    monitor.phase_finish("Timing tactics")
    for step in range(1, 4):
        goes_on = goes_on and monitor.step_complete("Building engine", step)
    monitor.phase_finish("Building engine")
    return goes_on


class HostMemory(bytes):
    """Serialised engine."""

    @property
    def nbytes(self) -> int:
        return len(self)


class _Network:
    def __init__(self) -> None:
        self._model = onnx.ModelProto()

    def get_input(self, index: int) -> Any:
        value = self._model.graph.input[index]
        tensor = self._module.ITensor()
        tensor.name = value.name
        object.__setattr__(
            tensor, "shape", tuple(dim.dim_value or -1 for dim in value.type.tensor_type.shape.dim)
        )
        return tensor


class _Parser:
    def __init__(self, network: Any, logger: Any) -> None:
        self._network, self._errors = network, []
        assert network._explicit, "explicit batch was not requested"

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> Any:
        return self._errors[index]

    def parse(self, model: bytes) -> bool:
        parsed = onnx.load_model_from_string(model)
        opset = next(entry.version for entry in parsed.opset_import if entry.domain == "")
        if self._module.__version__.startswith("8.") and opset > 17:
            return self._fail("", "", f"opset {opset} is not supported")
        bytes_in = {
            v.name for v in parsed.graph.input if v.type.tensor_type.elem_type == TensorProto.UINT8
        }
        for node in parsed.graph.node:
            if node.op_type == "Transpose" and bytes_in & set(node.input):
                return self._fail(
                    node.name, "Transpose", "first input has type UInt8 but must have type Float"
                )
            if node.domain not in ("", "ai.onnx"):
                return self._fail(node.name, node.op_type, "No importer registered for op")
        self._network._model = parsed
        return True

    def _fail(self, name: str, operator: str, text: str) -> bool:
        error = self._module.ParserError()
        for key, value in {
            "node_name": name,
            "node_operator": operator,
            "desc": text,
            "node": 0,
        }.items():
            if key in dir(type(error)):
                object.__setattr__(error, key, lambda value=value: value)
        self._errors.append(error)
        return False


class _Config:
    def __init__(self) -> None:
        self._flags = 1 << self._module.BuilderFlag.__members__["TF32"]
        self._profiles: list[Any] = []
        self._pools: dict[str, int] = {}
        self._previews: set[str] = set()
        self._cache = b""

    def set_flag(self, flag: Any) -> None:
        self._flags |= 1 << int(flag)

    def clear_flag(self, flag: Any) -> None:
        self._flags &= ~(1 << int(flag))

    def get_flag(self, flag: Any) -> bool:
        return bool(self._flags >> int(flag) & 1)

    def set_preview_feature(self, feature: Any, enable: bool) -> None:
        assert enable
        self._previews.add(feature.name)

    def set_memory_pool_limit(self, pool: Any, size: int) -> None:
        self._pools[pool.name] = size

    def add_optimization_profile(self, profile: Any) -> int:
        self._profiles.append(profile)
        return len(self._profiles) - 1

    def create_timing_cache(self, data: bytes) -> Any:
        cache = self._module.ITimingCache()
        cache._data = data + b"timed;"
        return cache

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        self._cache = cache
        return True

    def get_timing_cache(self) -> Any:
        return self._cache


class _TimingCache:
    def serialize(self) -> bytes:
        return HostMemory(self._data)


class _Profile:
    def __init__(self) -> None:
        self._shapes: dict[str, Any] = {}

    def set_shape(self, name: str, low: Any, opt: Any, high: Any) -> None:
        assert all(a <= b <= c for a, b, c in zip(low, opt, high, strict=True))
        self._shapes[name] = [tuple(low), tuple(opt), tuple(high)]


class _Runtime(_Builder):
    _host_code_allowed = False

    @property
    def engine_host_code_allowed(self) -> bool:
        return self._host_code_allowed

    @engine_host_code_allowed.setter
    def engine_host_code_allowed(self, allowed: bool) -> None:
        self._host_code_allowed = allowed

    def deserialize_cuda_engine(self, plan: bytes) -> Any:
        state = self._module.state
        if plan[:4] != _MAGIC:
            self._logger.log(
                1, "Serialization assertion stdVersionRead == kSERIALIZATION_VERSION failed"
            )
            return None
        length = int.from_bytes(plan[4:8], "little")
        header = json.loads(plan[8 : 8 + length])
        if header["version"] != self._module.__version__:
            self._logger.log(
                1, "The engine plan file is not compatible with this version of TensorRT"
            )
            return None
        if tuple(header["sm"]) != state.sm:
            self._logger.log(1, "The engine plan file is generated on an incompatible device")
            return None
        if header.get("version_compatible") and not self._host_code_allowed:
            self._logger.log(1, "Host code is not allowed for this engine: engineHostCodeAllowed")
            return None
        state.loaded += 1
        engine = self._module.ICudaEngine()
        engine._header, engine._model = header, onnx.load_model_from_string(plan[8 + length :])
        engine._logger, engine._contexts = self._logger, 0
        return engine


class _Engine:
    @property
    def num_io_tensors(self) -> int:
        return len(self._edges())

    def _edges(self) -> list[Any]:
        return [*self._model.graph.input, *self._model.graph.output]

    def _edge(self, name: str) -> Any:
        return next(edge for edge in self._edges() if edge.name == name)

    def get_tensor_name(self, index: int) -> str:
        return self._edges()[index].name

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(d.dim_value or -1 for d in self._edge(name).type.tensor_type.shape.dim)

    def get_tensor_dtype(self, name: str) -> Any:
        kind = _TYPE_NAMES[self._edge(name).type.tensor_type.elem_type][0]
        return getattr(self._module.DataType, kind)

    def create_engine_inspector(self) -> Any:
        inspector = self._module.EngineInspector()
        inspector._engine = self
        return inspector

    @property
    def device_memory_size(self) -> int:
        return ACTIVATIONS

    device_memory_size_v2 = device_memory_size

    def create_runtime_config(self) -> Any:
        return self._module.IRuntimeConfig()

    def create_execution_context(self, how: Any = None) -> Any:
        is_config = isinstance(how, _RuntimeConfig)
        strategy = how._allocation if is_config else how
        context = self._new_context()
        if strategy is None or strategy.name != "USER_MANAGED":
            context._memory = -1
            self._module.state.own_activations += 1
        context._captures = is_config and how.cuda_graph_strategy.name == "WHOLE_GRAPH_CAPTURE"
        return context

    def create_execution_context_without_device_memory(self) -> Any:
        return self._new_context()

    def _new_context(self) -> Any:
        self._module.state.contexts += 1
        context = self._module.IExecutionContext()
        context._engine = self
        # TensorRT 8.6 binds the only profile to the first context.
        is_first, is_old = self._contexts == 0, self._module.__version__.startswith("8.")
        context._profile = 0 if is_first or not is_old or not self._header["profile"] else -1
        self._contexts += 1
        return context


class _Inspector:
    def get_engine_information(self, layout: Any) -> str:
        assert layout.name == "JSON"
        graph = self._engine._model.graph
        word, int8 = (self._engine._header[key] for key in ("types", "int8"))
        layers = []
        for node in graph.node:
            if "Conv" in node.op_type:
                type_name = "INT8" if node.name in int8 else word
                text = f"Channel major {type_name} format"
                edge = {"Dimensions": [1, 16, 8, 8], "Format/Datatype": text}
                name = f"{node.name}.weight + {node.name} + {node.name}.relu"
                edges = {"Inputs": [edge], "Outputs": [edge]}
                layers.append({"Name": name, "LayerType": "CaskConvolution", **edges})
        return json.dumps({"Layers": layers})


class _RuntimeCache:
    def __init__(self) -> None:
        self._data = b""

    def serialize(self) -> bytes:
        return HostMemory(b"kernels")

    def deserialize(self, data: bytes) -> None:
        self._data = data


class _RuntimeConfig:
    _allocation: Any = None
    cuda_graph_strategy: Any = None

    def create_runtime_cache(self) -> Any:
        return self._module.IRuntimeCache()

    def set_runtime_cache(self, cache: Any) -> None:
        self._cache = cache

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self._allocation = strategy


def shares_profile(header: dict[str, Any]) -> bool:
    """Check that several contexts may use an engine's only profile."""
    return bool(header["shares_profile"])


class _Context:
    def __init__(self) -> None:
        self._shape: tuple[int, ...] | None = None
        self._addresses: dict[str, int] = {}
        self._memory: int | None = None
        self._epoch, self._last_epoch = 0, -1
        self._captures = False

    def _change(self, before: Any, after: Any) -> Any:
        """Start a new epoch if a value changes."""
        self._epoch += before != after
        return after

    @property
    def active_optimization_profile(self) -> int:
        return self._profile

    def set_optimization_profile_async(self, index: int, stream_handle: int) -> bool:
        assert (index, type(stream_handle)) == (0, int)
        if self._profile < 0 and not shares_profile(self._engine._header):
            self._engine._logger.log(1, "Profile 0 has been chosen by another IExecutionContext")
            return False
        self._profile = self._change(self._profile, 0)
        return True

    @property
    def device_memory(self) -> Any:
        raise AttributeError("unreadable attribute")

    @device_memory.setter
    def device_memory(self, address: int) -> None:
        assert type(address) is int, "8.6 and 10 take no other integers"
        self._memory = self._change(self._memory, address)

    def set_device_memory(self, address: int, size: int) -> None:
        assert size >= ACTIVATIONS
        self.device_memory = address

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        if self._profile < 0:
            return False
        allowed = self._engine._header["profile"].get(name)
        if allowed and not allowed[0][0] <= shape[0] <= allowed[2][0]:
            return False
        self._shape = self._change(self._shape, tuple(shape))
        return True

    def set_tensor_address(self, name: str, memory: int) -> bool:
        assert type(memory) is int, "8.6 and 10 take no other integers"
        self._addresses[name] = self._change(self._addresses.get(name), memory)
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        assert type(stream_handle) is int
        assert set(self._addresses) == {edge.name for edge in self._engine._edges()}
        assert self._memory, "no activations were given"
        state, epoch = self._module.state, self._epoch
        if self._memory > 0:
            state.check_memory(self._memory, ACTIVATIONS)
        assert state.streams.setdefault(self._memory, stream_handle) == stream_handle, (
            "two streams run in the same activations"
        )
        is_captured = state.is_capturing(stream_handle)
        assert not is_captured or self._last_epoch == epoch, "captured without a warm-up"
        state.recaptures += self._captures and self._last_epoch != epoch
        self._last_epoch = epoch

        def check() -> None:
            assert not is_captured or self._epoch == epoch, "its context changed since the capture"

        addresses = dict(self._addresses)
        return bool(state.run(self._engine._model, self._shape, addresses, stream_handle, check))


_CLASSES = {
    "ILogger": _Logger,
    "Builder": _Builder,
    "INetworkDefinition": _Network,
    "OnnxParser": _Parser,
    "IBuilderConfig": _Config,
    "ITimingCache": _TimingCache,
    "IOptimizationProfile": _Profile,
    "Runtime": _Runtime,
    "ICudaEngine": _Engine,
    "EngineInspector": _Inspector,
    "IExecutionContext": _Context,
    "IRuntimeConfig": _RuntimeConfig,
    "IRuntimeCache": _RuntimeCache,
}
