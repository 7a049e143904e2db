"""Load the weights of any public ESNet implementation, without running code from the file."""

from __future__ import annotations

import pickle
import re
import shlex
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from esnet.errors import CheckpointError, LabelSetError
from esnet.families import FAMILIES, Family
from esnet.labels import LABEL_SETS, LabelSet, label_set_from_dict, label_set_hint, numbered_classes
from esnet.model import ESNet
from runtime.artefact.card_values import MAX_CLASSES
from runtime.artefact.untrusted import parse_json
from runtime.files import sha256_of

_WEIGHTS_DIR = Path(__file__).parent / "weights"
SHIPPED_WEIGHTS = {"camvid": _WEIGHTS_DIR / "esnet_camvid.safetensors"}
"""Weights in this package, by name."""
SHIPPED_RANGES = {"camvid": _WEIGHTS_DIR / "esnet_camvid.ranges.json"}
"""Activation ranges for INT8 in this package, by the name of their weights."""

CLASSES_KEY = "classes"
"""Key of the label set in a checkpoint's metadata: the content of a label set file, as JSON."""
_WRAPPERS = ("module.", "model.", "network.", "net.", "_orig_mod.")
_CONTAINERS = ("state_dict", "model_state_dict", "model")


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """The network of a weights file, in evaluation mode, with the file's metadata."""

    network: ESNet
    """The network, float32, on the CPU."""
    family: Family
    """Public implementation whose keys the file has."""
    metadata: Mapping[str, str]
    """Metadata of a safetensors file or of a checkpoint of ``esnet-train``; empty for other files."""
    path: Path
    """Path of the file."""
    sha256: str
    """SHA-256 of the file, hexadecimal."""

    @property
    def label_set(self) -> LabelSet:
        """Label set in the file, or known set that the file names; without one, numbered classes.

        Raises:
            LabelSetError: The file's label set is damaged.
        """
        num_classes = self.network.config.num_classes
        found = LABEL_SETS.get(self.metadata.get("label_set", ""))
        if stored := self.metadata.get(CLASSES_KEY):
            try:
                found = label_set_from_dict(parse_json(stored))
            except ValueError as error:
                raise LabelSetError(
                    f"{self.path} holds a damaged label set: {error}",
                    hint=label_set_hint(num_classes),
                ) from error
        if found is None or found.num_classes != num_classes:
            return numbered_classes(num_classes)
        return found


def load_checkpoint(source: str | Path) -> Checkpoint:
    """Read a checkpoint and build its network.

    Args:
        source: A ``.safetensors`` or torch file, or the name of shipped weights (``camvid``). A torch file
            may hold the state dict inside ``{"state_dict": ...}`` and with prefixes such as ``module.``.

    Returns:
        The network with all its weights from the file.

    Raises:
        CheckpointError: The file does not exist, cannot be read without running code, is not an ESNet, or has
            missing, unknown or misshapen keys, which the message lists.

    Example:
        >>> checkpoint = load_checkpoint("camvid")
        >>> checkpoint.family.name, checkpoint.network.config.num_classes
        ('authors', 11)
    """
    path = resolve_weights(source)
    tensors, metadata = _read_tensors(path)
    tensors = _without_wrapper(tensors)
    family = _recognise(tensors, path)
    return Checkpoint(
        network=_fill(family, tensors, path),
        family=family,
        metadata=metadata,
        path=path,
        sha256=sha256_of(path),
    )


def resolve_weights(source: str | Path) -> Path:
    """Get the path of a weights file, or of shipped weights by name.

    Raises:
        CheckpointError: There is neither such a file nor such a name.
    """
    path = Path(source)
    if str(source) in SHIPPED_WEIGHTS and not path.is_file():
        return SHIPPED_WEIGHTS[str(source)]
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise CheckpointError(
            f"weights file {str(source)!r} {what}",
            hint=f"use .pt, .pth, .ckpt, .safetensors or shipped weights: {', '.join(SHIPPED_WEIGHTS)}",
        )
    return path


def _read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    if path.suffix.lower() == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
                return tensors, dict(file.metadata() or {})
        except SafetensorError as error:
            raise CheckpointError(
                f"{path} is not a complete safetensors file: {error}", hint=_COPY_AGAIN
            ) from error
    content = _load_torch_file(path)
    return _state_dict_in(content, path), _metadata_in(content)


def _load_torch_file(path: Path) -> object:
    """Unpickle tensors and plain containers; refuse everything that could run code."""
    with path.open("rb") as file:
        magic = file.read(4)
    if not magic.startswith((b"PK", b"\x80")):
        if path.suffix.lower() in (".onnx", ".engine", ".plan"):
            raise CheckpointError(
                f"{path} is already an exported model, not a checkpoint",
                hint=f"it runs as it is: {shlex.join(['esnet-bench', str(path)])}",
            )
        what = "is empty" if not magic else f"is not a torch checkpoint: it starts with {magic!r}"
        raise CheckpointError(f"{path} {what}", hint=_EXPECTED_FILES)
    try:
        with torch.serialization.safe_globals(_numpy_scalars()), warnings.catch_warnings():
            # "pickle protocol 4 detected": such a file either loads or fails below.
            warnings.simplefilter("ignore", UserWarning)
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        asked_for = re.search(r"GLOBAL (\S+)", str(error))
        if found := re.search(r"pickle protocol[ =]*(\d+)|Unsupported operand (\d+)", str(error)):
            raise CheckpointError(
                f"{path} has a pickle format that torch cannot read safely: {found[0]}",
                hint="save model.state_dict() with torch.save without pickle_protocol",
            ) from error
        raise CheckpointError(
            f"{path} holds more than tensors, and reading it could run code"
            + (f": it asks for {asked_for[1]}" if asked_for else ""),
            hint="save model.state_dict() with torch.save and use that file",
        ) from error
    except Exception as error:  # torch's reader raises errors without a common base class
        reason = str(error).strip().partition("\n")[0][:200] or type(error).__name__
        raise CheckpointError(
            f"{path} cannot be read as a state dict: {reason}", hint=_COPY_AGAIN
        ) from error


_EXPECTED_FILES = "give a state dict saved with torch.save, or a .safetensors file"
_COPY_AGAIN = "the file may be truncated: copy or download it again"


def _numpy_scalars() -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """List numpy's scalar types: trainers store them (``best_score``), and loading them runs no code."""
    scalar: Any = np.float64().__reduce__()[0]
    modules = ("numpy.core.multiarray", "numpy._core.multiarray")  # numpy 1 and numpy 2
    kinds = (np.float32, np.float64, np.int32, np.int64, np.bool_)
    dtypes = [type(np.dtype(kind)) for kind in kinds]
    return [*((scalar, f"{module}.scalar") for module in modules), np.dtype, *dtypes]


def _state_dict_in(content: object, path: Path) -> dict[str, Tensor]:
    """Find the state dict: the content itself, or one of its ``_CONTAINERS`` entries.

    Tensors that are not plain arrays in memory are left out: their keys count as missing.
    """
    candidates = [content]
    if isinstance(content, Mapping):
        candidates += [content[key] for key in _CONTAINERS if key in content]
    for candidate in reversed(candidates):
        if isinstance(candidate, Mapping):
            tensors = {str(k): v for k, v in candidate.items() if _is_plain(v)}
            if tensors:
                return tensors
    found = _shown(map(str, content)) if isinstance(content, Mapping) else type(content).__name__
    raise CheckpointError(f"{path} holds no state dict, but {found}", hint=_EXPECTED_FILES)


def _is_plain(value: object) -> bool:
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and not (value.is_nested or value.is_quantized or value.is_meta or value.is_complex())
    )


def _metadata_in(content: object) -> dict[str, str]:
    """Read the metadata of a checkpoint of ``esnet-train``; empty for other files."""
    metadata = content.get("esnet") if isinstance(content, Mapping) else None
    items = metadata.items() if isinstance(metadata, Mapping) else ()
    return {str(key): str(value) for key, value in items}


def _without_wrapper(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Strip the key prefixes of DataParallel, Lightning and torch.compile."""
    for wrapper in _WRAPPERS:
        if tensors and all(key.startswith(wrapper) for key in tensors):
            return _without_wrapper({key[len(wrapper) :]: value for key, value in tensors.items()})
    return tensors


def _recognise(tensors: Mapping[str, Tensor], path: Path) -> Family:
    """Choose the family with the largest fraction of its keys in the file, at least half."""
    best = max(FAMILIES.values(), key=lambda family: family.share_of_keys(tensors))
    if best.share_of_keys(tensors) < 0.5:
        raise CheckpointError(
            f"{path} is not an ESNet checkpoint: it holds {_shown(tensors)}",
            hint=f"known layouts: {', '.join(FAMILIES)}; the closest, {best.name}, has keys like "
            f"{_shown([best.head_key, *best.expected_shapes(1)])}",
        )
    return best


def _fill(family: Family, tensors: Mapping[str, Tensor], path: Path) -> ESNet:
    """Build the family's network and load all keys, or list those that do not fit."""
    num_classes = _num_classes(family, tensors, path)
    expected = family.expected_shapes(num_classes)
    if problems := _key_problems(expected, tensors):
        raise CheckpointError(
            f"{path} looks like an ESNet of the {family.name} layout with {num_classes} classes, "
            f"but its keys differ: {'; '.join(problems)}",
            hint="the network must be ESNet as published: no added, removed or resized layers",
        )
    network = ESNet(family.config(num_classes))
    network.load_state_dict(
        {ours: tensors[key] for ours, key in family.keys(network).items() if key in tensors},
        strict=False,  # num_batches_tracked may be absent; everything else was checked above
    )
    return network.eval()


def _num_classes(family: Family, tensors: Mapping[str, Tensor], path: Path) -> int:
    """Get K from the shape of the last layer's weight, (16, K, k, k)."""
    head = tensors.get(family.head_key)
    if head is None or head.ndim != 4 or head.shape[1] == 0:
        missing = [key for key in family.expected_shapes(1) if key not in tensors]
        raise CheckpointError(
            f"{path} looks like an ESNet of the {family.name} layout, but its last layer "
            f"{family.head_key} is missing or misshapen; missing: {_shown(missing, 8)}",
            hint="the network must be ESNet as published, with its decoder",
        )
    if head.shape[1] > MAX_CLASSES:
        raise CheckpointError(
            f"{path} claims {head.shape[1]} classes, at most {MAX_CLASSES} fit into 8-bit labels",
            hint=_COPY_AGAIN,
        )
    return int(head.shape[1])


def _key_problems(
    expected: Mapping[str, tuple[int, ...]], tensors: Mapping[str, Tensor]
) -> list[str]:
    counters = "num_batches_tracked"
    problems = {
        "missing": [k for k in expected if k not in tensors and not k.endswith(counters)],
        "unknown": [k for k in tensors if k not in expected and not k.endswith(counters)],
        "misshapen": [
            f"{key} {tuple(tensors[key].shape)} instead of {shape}"
            for key, shape in expected.items()
            if key in tensors and tuple(tensors[key].shape) != shape
        ],
    }
    return [f"{len(keys)} {what} ({_shown(keys, 8)})" for what, keys in problems.items() if keys]


def _shown(keys: Iterable[str], limit: int = 3) -> str:
    names = list(keys)
    rest = f", and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest or "nothing"
