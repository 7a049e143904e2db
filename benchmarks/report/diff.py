"""``esnet-bench diff``: whether a report is slower than an earlier one, by more than chance and a limit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.errors import BenchmarkError
from benchmarks.report.tables import TextTable

_STEADY_WITHIN = 0.03
_SCOPES = {"engine": "engine", "transfer": "transfer", "end_to_end": "end to end", "age": "age"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """A time with its interval, milliseconds; of a rate, the time of a frame."""

    middle: float
    """Median."""
    low: float
    """Lower end of its 95 % interval."""
    high: float
    """Upper end."""
    is_stable: bool
    """Whether its run called it so."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """One figure, before and after."""

    name: str
    """Model and scope."""
    before: Figure
    """Of the first report."""
    after: Figure
    """Of the second."""
    max_slower: float
    """Share by which it may be slower."""
    machine_slower: float
    """Share by which the machine itself was slower, by the machine_reference; 0 where it is not known."""

    @property
    def slower(self) -> float:
        """By which share of the first it is slower; negative where it is faster."""
        return self.after.middle / self.before.middle - 1

    @property
    def is_apart(self) -> bool:
        """Whether the intervals do not overlap: the change is more than chance within a run."""
        return self.after.low > self.before.high or self.after.high < self.before.low

    @property
    def is_slow_down(self) -> bool:
        """Whether it is slower beyond limit, chance and what the machine explains."""
        excess = (1 + self.slower) / (1 + max(0.0, self.machine_slower)) - 1
        return self.is_apart and excess > self.max_slower


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """What two reports have in common, and what makes them hard to compare."""

    changes: tuple[Change, ...]
    """Figures that both have."""
    warnings: tuple[str, ...]
    """Where they differ in more than speed."""


def diff_reports(before: Path, after: Path, max_slower: float) -> Difference:
    """Compare two JSON reports of ``esnet-bench``, figure by figure.

    Args:
        before: The first.
        after: The second.
        max_slower: Share by which a figure may be slower, 0.05 for 5 %.

    Raises:
        BenchmarkError: Not reports, of different modes, or without a figure in common.
    """
    first, second = _load(before), _load(after)
    if first["mode"] != second["mode"]:
        raise BenchmarkError(
            f"{before} is of mode {first['mode']}, {after} of {second['mode']}",
            hint="compare reports of one mode",
        )
    old, new = dict(_figures(first)), dict(_figures(second))
    machine = _machine_slower(first, second)
    changes = tuple(
        Change(
            name=name,
            before=old[name],
            after=new[name],
            max_slower=max_slower,
            machine_slower=machine,
        )
        for name in old
        if name in new
    )
    if not changes:
        raise BenchmarkError(
            f"{before} and {after} have no figure in common: {_some(old)}; {_some(new)}"
        )
    return Difference(changes=changes, warnings=tuple(_warnings(first, second, old, new)))


def diff_table(difference: Difference) -> TextTable:
    """Lay out one row for each figure."""
    rows = [
        [
            change.name,
            _text(change.before),
            _text(change.after),
            f"{100 * change.slower:+.1f} %",
            _word(change),
        ]
        for change in difference.changes
    ]
    return TextTable("milliseconds", ("figure", "before", "after", "slower by", "verdict"), rows)


def _word(change: Change) -> str:
    if change.is_slow_down:
        return "SLOWER"
    if not change.is_apart:
        return "same"
    if change.slower <= 0:
        return "faster"
    return "within limit" if change.slower <= change.max_slower else "machine slower"


def _load(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise BenchmarkError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict) or "mode" not in content or "results" not in content:
        raise BenchmarkError(
            f"{path} is not a report of esnet-bench",
            hint="write one with: esnet-bench MODEL --json",
        )
    return content


def _figures(report: dict[str, Any]) -> Iterator[tuple[str, Figure]]:
    for result in report["results"]:
        for key, scope in _SCOPES.items():
            values = result.get(key)
            if isinstance(values, dict) and "p50" in values:
                times = [values[name] for name in ("p50", "p50_low", "p50_high")]
            elif isinstance(values, dict) and "fps" in values:
                times = [1e3 / values[name] for name in ("fps", "fps_high", "fps_low")]
            else:
                continue
            yield (
                f"{result['name']}, {scope}",
                Figure(
                    middle=times[0],
                    low=times[1],
                    high=times[2],
                    is_stable=values.get("is_stable", True),
                ),
            )


def _machine_slower(first: dict[str, Any], second: dict[str, Any]) -> float:
    """Get by which share the CPU was slower; 0 where a GPU computes, or the reports do not tell."""
    for report in (first, second):
        on_cpu = report.get("environment", {}).get("gpu", "none") == "none"
        if not on_cpu or "machine_reference" not in report:
            return 0.0
    return float(second["machine_reference"]["p50"] / first["machine_reference"]["p50"] - 1)


def _warnings(
    first: dict[str, Any], second: dict[str, Any], old: dict[str, Figure], new: dict[str, Figure]
) -> Iterator[str]:
    for key in ("frames", "size_hw"):
        if first.get(key) != second.get(key):
            yield f"{key}: {first.get(key)} before, {second.get(key)} after"
    for key in ("cpu", "gpu", "libraries"):
        was, now = (report.get("environment", {}).get(key) for report in (first, second))
        if was != now:
            yield f"{key}: {was} before, {now} after"
    machine = _machine_slower(first, second)
    if abs(machine) > _STEADY_WITHIN:
        yield f"the machine itself: the same computation took {100 * machine:+.1f} % time"
    for name in sorted(old.keys() & new.keys()):
        if not (old[name].is_stable and new[name].is_stable):
            yield f"{name}: its run was unstable: measure again before you believe it"
    for name in sorted(old.keys() ^ new.keys()):
        yield f"{name}: only {'before' if name in old else 'after'}"
    hashes = {result["name"]: result.get("sha256") for result in first["results"]}
    for result in second["results"]:
        was = hashes.get(result["name"])
        if was and result.get("sha256") and was != result["sha256"]:
            yield f"{result['name']}: another file: {was[:12]} before, {result['sha256'][:12]} after"


def _text(figure: Figure) -> str:
    return f"{figure.middle:.2f} ({figure.low:.2f}-{figure.high:.2f})"


def _some(names: dict[str, Figure]) -> str:
    return ", ".join(list(names)[:3]) or "none"
