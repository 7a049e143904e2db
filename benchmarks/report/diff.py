"""``esnet-bench diff``: compare two reports and find results that became slower."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.errors import BenchmarkError
from benchmarks.report.tables import TextTable
from runtime.artefact.untrusted import parse_json

_STEADY_WITHIN = 0.03


class Timing(NamedTuple):
    """Time per frame with its interval, milliseconds; a rate is converted."""

    median: float
    """Median."""
    low: float
    """Lower end of the 95 % interval."""
    high: float
    """Upper end of the 95 % interval."""
    is_stable: bool
    """True if the run was stable."""

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f}-{self.high:.2f})"


class Change(NamedTuple):
    """One timing in both reports."""

    name: str
    """Model and scope."""
    before: Timing
    """Timing in the first report."""
    after: Timing
    """Timing in the second report."""
    verdict: str
    """``SLOWER`` if slower than chance, the limit and the machine explain; ``inconclusive`` if the intervals
    are apart, but a run was unstable; else the reason why not."""

    @property
    def slower(self) -> float:
        """Relative slow-down; negative if faster."""
        return self.after.median / self.before.median - 1


def diff_reports(before: Path, after: Path, max_slower: float) -> tuple[list[Change], list[str]]:
    """Compare timings that occur in both JSON reports, and warn about other differences.

    ``max_slower`` is the allowed relative slow-down, 0.05 for 5 %.

    Raises:
        BenchmarkError: A file is not a report, the modes differ, or no result is in both.
    """
    first, second = _load(before), _load(after)
    if first["mode"] != second["mode"]:
        raise BenchmarkError(
            f"{before} is of mode {first['mode']}, {after} of {second['mode']}",
            hint="compare reports of one mode",
        )
    old, new = dict(_timings(first)), dict(_timings(second))
    machine = _machine_slower(first, second)
    changes = [
        Change(name, was, new[name], _verdict(was, new[name], max_slower, machine))
        for name, was in old.items()
        if name in new
    ]
    if not changes:
        found = "; ".join(", ".join(list(names)[:3]) or "none" for names in (old, new))
        raise BenchmarkError(f"{before} and {after} have no result in common: {found}")
    return changes, list(_warnings(first, second, old, new))


def diff_table(changes: list[Change]) -> TextTable:
    """Make a table with one row for each change."""
    rows = [
        [change.name, *map(str, change[1:3]), f"{100 * change.slower:+.1f} %", change.verdict]
        for change in changes
    ]
    return TextTable("Milliseconds", ("result", "before", "after", "slower by", "verdict"), rows)


def _verdict(before: Timing, after: Timing, max_slower: float, machine_slower: float) -> str:
    if after.low <= before.high and after.high >= before.low:
        return "same"
    if not (before.is_stable and after.is_stable):
        return "inconclusive"
    ratio = after.median / before.median
    if ratio / (1 + max(0.0, machine_slower)) - 1 > max_slower:
        return "SLOWER"
    if ratio <= 1:
        return "faster"
    return "within limit" if ratio - 1 <= max_slower else "machine slower"


def _load(path: Path) -> dict[str, Any]:
    hint = "write one with: esnet-bench MODEL --json FILE"
    try:
        content = parse_json(path.read_bytes())
    except OSError as error:
        raise BenchmarkError(f"{path} cannot be read: {error.strerror}", hint=hint) from error
    except ValueError as error:
        raise BenchmarkError(f"{path} cannot be read as JSON: {error}", hint=hint) from error
    try:
        has_results = isinstance(content["mode"], str) and isinstance(content["results"], list)
        for result in content["results"]:
            has_results &= all(isinstance(result["model"][key], str) for key in ("name", "sha256"))
        _machine_slower(content, content)
        timings = list(_timings(content))
    except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError):
        has_results, timings = False, []
    numbers = [value for _, timing in timings for value in timing[:3]]
    if not has_results or not all(0 < value < math.inf for value in numbers):
        raise BenchmarkError(f"{path} is not a report of esnet-bench", hint=hint)
    return content  # type: ignore[no-any-return]


def _timings(report: dict[str, Any]) -> Iterator[tuple[str, Timing]]:
    for result in report["results"]:
        size = result.get("batch", 1)
        for scope, values in result["scopes"].items():
            if "p50" in values:
                times = [values[name] / size for name in ("p50", "p50_low", "p50_high")]
            else:
                times = [1e3 / values[name] for name in ("fps", "fps_high", "fps_low")]
            timing = Timing(times[0], times[1], times[2], values["is_stable"])
            yield f"{result['model']['name']}, batch {size}, {scope}", timing


def _machine_slower(first: dict[str, Any], second: dict[str, Any]) -> float:
    """Return the relative slow-down of the CPU; 0 on a GPU, or if a report does not contain it."""
    for report in (first, second):
        on_cpu = report.get("environment", {}).get("gpu", "none") == "none"
        if not on_cpu or "machine_reference" not in report:
            return 0.0
    return float(second["machine_reference"]["p50"] / first["machine_reference"]["p50"] - 1)


def _warnings(
    first: dict[str, Any], second: dict[str, Any], old: dict[str, Timing], new: dict[str, Timing]
) -> Iterator[str]:
    old_facts, new_facts = ({**r, **r.get("environment", {})} for r in (first, second))
    for key in ("frames", "cpu", "gpu", "libraries"):
        was, now = old_facts.get(key), new_facts.get(key)
        if was != now:
            yield f"{key}: {was} before, {now} after"
    machine = _machine_slower(first, second)
    if abs(machine) > _STEADY_WITHIN:
        yield f"machine: the time of the reference computation changed by {100 * machine:+.1f} %"
    for name in sorted(old.keys() & new.keys()):
        if not (old[name].is_stable and new[name].is_stable):
            yield f"{name}: unstable run, measure again"
    for name in sorted(old.keys() ^ new.keys()):
        yield f"{name}: only {'before' if name in old else 'after'}"
    hashes = {result["model"]["name"]: result["model"]["sha256"] for result in first["results"]}
    for model in (result["model"] for result in second["results"]):
        was, now = hashes.get(model["name"], model["sha256"]), model["sha256"]
        if was != now:
            yield f"{model['name']}: different files: {was[:12]} before, {now[:12]} after"
