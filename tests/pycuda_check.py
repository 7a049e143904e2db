"""Check that the real PyCUDA has every name that ``runtime/cuda/pycuda_device.py`` uses.

Run by ``scripts/check_pycuda.sh`` with a PyCUDA that was built without a GPU.
"""

from __future__ import annotations

import re
from pathlib import Path

import pycuda.driver as cuda

from runtime.cuda.device import open_device
from runtime.errors import BackendUnavailable

SOURCE = Path(__file__).parents[1] / "runtime" / "cuda" / "pycuda_device.py"
# PyCUDA class -> members that the file uses.
MEMBERS = {
    "Device": ["count", "name", "compute_capability", "pci_bus_id", "retain_primary_context"],
    "Context": ["push", "pop", "detach"],
    "Stream": ["handle", "wait_for_event", "synchronize"],
    "Event": ["record", "synchronize", "time_since"],
    "DeviceAllocation": ["free"],
    "event_flags": ["DISABLE_TIMING"],
}


def main() -> None:
    """Run the check and print the names."""
    text = SOURCE.read_text()
    names = sorted(
        set(re.findall(r"\bcuda\.([A-Za-z_]\w*)", text)) - {"device", "driver", "h", "resources"}
    )
    missing = [name for name in names if not hasattr(cuda, name)]
    missing += [
        f"{owner}.{member}"
        for owner, members in MEMBERS.items()
        for member in members
        if not hasattr(getattr(cuda, owner), member)
    ]
    assert not missing, f"PyCUDA lacks {missing}"
    try:
        open_device("pycuda")
    except BackendUnavailable as error:
        print(f"without a driver: {error}")
    else:
        print("a GPU was opened")
    print(
        f"pycuda: {len(names)} functions and {sum(map(len, MEMBERS.values()))} members found: {names}"
    )


if __name__ == "__main__":
    main()
