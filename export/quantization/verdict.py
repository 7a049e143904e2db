"""Verdict on the checks of a quantized file: mismatches, agreement with fp32, and mIoU."""

from __future__ import annotations

from collections.abc import Sequence

from export.errors import ParityError
from export.graph.qdq import Scheme
from export.quantization.check import BackendCheck, BackendChecker

HINTS = {
    "cpu": "try --keep BLOCK, another --method, or more --calibration frames",
    "tensorrt": "OpenVINO and ONNX Runtime execute --scheme cpu correctly on CPUs",
}
"""Hint for a failed check, by scheme."""
_GOOD_AGREEMENT = 0.99


def mismatches(checks: Sequence[BackendCheck], scheme: Scheme) -> list[str]:
    """Describe the mismatches that forbid writing: any for the cpu scheme, else if no backend matches."""
    problems = [
        f"{check.backend} does not match the simulation: {check.agreement:.2%} of labels agree"
        for check in checks
        if scheme.name == "cpu" and not check.matches_reference
    ]
    if not any(check.matches_reference for check in checks):
        problems.append("no backend here matches the simulation")
    return problems


def low_agreement(
    checks: Sequence[BackendCheck], checker: BackendChecker, least: float, hint: str
) -> tuple[str, ...]:
    """Warn about backends that match the simulation but differ from fp32; below ``least``, refuse them.

    Generated scenes only warn: INT8 changes more labels there than on the frames that the ranges are from.

    Raises:
        ParityError: Fewer labels agree on real frames.
    """
    good = max(_GOOD_AGREEMENT, least)
    low = [c for c in checks if c.matches_reference and c.agreement_fp32 < good]
    texts = [
        f"{check.backend}: {check.agreement_fp32:.2%} of labels agree with FP32 on {checker.frames}"
        for check in low
    ]
    if checker.is_real and any(check.agreement_fp32 < least for check in low):
        raise ParityError(
            f"{'; '.join(texts)}; required {100 * least:g} %",
            hint=f"{hint}; --min-agreement 0 writes the file anyway",
        )
    advice = (
        "expected 99 %" if checker.is_real else "check real ones: --calibration DIR or --data DIR"
    )
    return tuple(f"{text}, {advice}" for text in texts)


def worst_drop(checks: Sequence[BackendCheck], miou_fp32: float | None) -> float | None:
    """Get the largest mIoU drop in points over the backends that match; ``None`` without labels."""
    if miou_fp32 is None:
        return None
    mious = [check.miou for check in checks if check.matches_reference and check.miou is not None]
    return max((100 * (miou_fp32 - miou) for miou in mious), default=None)
