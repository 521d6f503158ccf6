"""From the lines of one run on a GPU, or of several, to results that are kept: bench/results/DEVICE.json."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from fastgen.bench.results import Results, Row

Item = Mapping[str, Any]
ERROR_CHARACTERS = 600


def device_name(results: Results) -> str:
    """The device as a file's name: NVIDIA H100 80GB HBM3 is h100-80gb-hbm3."""
    words = re.sub(r"[^a-z0-9]+", "-", str(results.environment["device"]).lower()).strip("-")
    return words.removeprefix("nvidia-")


def record(items: Sequence[Item]) -> Results:
    """What the stages reported. Of the same case or test the last item counts, as in a second run.

    Raises ValueError where there is no environment, as in a run that ended at once, or where the run was dry.
    """
    environments = [item for item in items if item["kind"] == "environment"]
    if not environments:
        raise ValueError("no item of kind environment: the run ended before it knew its device")
    if any(item.get("dry") for item in environments):
        raise ValueError("a dry run: its figures are no device's")
    names = {item["values"]["device"] for item in environments}
    if len(names) > 1:
        raise ValueError(f"runs on several devices: {', '.join(sorted(names))}")
    rows = {row.key: row for item in items if item["kind"] == "row" for row in [Row.from_dict(item["row"])]}
    found = Results(dict(environments[0]["values"]), list(rows.values()))
    found.ceilings = {item["name"]: item["value"] for item in items if item["kind"] == "ceiling"}
    # Of the same attempt, check or table the last one counts; what was measured later was not skipped, and a failure
    # that a later attempt mended is none.
    place = {(item["kind"], item.get("stage"), item["name"]): i for i, item in enumerate(items)}
    measured = {item["name"] for item in items if item["kind"] in ("row", "attempt")}
    for (kind, _, name), i in place.items():
        if kind == "skipped" and name not in measured:
            found.left_out[name] = items[i]["reason"]
        if kind == "stage" and items[i]["outcome"] in ("out of time", "broken"):
            found.left_out[f"the rest of stage {name}"] = items[i]["outcome"]
    mended = {
        key for key, i in place.items() if key[0] == "failure" and i < place.get(("attempt", *key[1:]), -1)
    }
    found.evidence = {"tests": tests(items)}
    for kind in ("check", "failure", "step_kernels", "probe", "old_new"):
        kept = [i for key, i in place.items() if key[0] == kind and key not in mended]
        if of_kind := [plain(items[i]) for i in kept]:
            found.evidence[kind] = of_kind
    return found


def tests(items: Sequence[Item]) -> dict[str, Any]:
    """How many tests there were and how they ended; each that failed, with the end of its error."""
    last = {item["name"]: item for item in items if item["kind"] == "test"}
    counts: dict[str, int] = {}
    for item in last.values():
        counts[item["outcome"]] = counts.get(item["outcome"], 0) + 1
    collected = [item["count"] for item in items if item["name"] == "collected tests"]
    failed = {
        name: str(item.get("error", ""))[-ERROR_CHARACTERS:]
        for name, item in last.items()
        if item["outcome"] in ("failed", "error")
    }
    return {"collected": max(collected, default=0), "counts": counts, "failed": failed}


def plain(item: Item) -> dict[str, Any]:
    """An item without what it is by its place."""
    return {name: value for name, value in item.items() if name not in ("kind", "at")}


def page(evidence: Mapping[str, Any]) -> str:
    """Markdown: tests, checks, probes, kernels of a step, old kernels beside new ones."""
    lines = []
    if found := evidence.get("tests"):
        summary = (
            ", ".join(f"{count} {outcome}" for outcome, count in sorted(found["counts"].items()))
            or "none ran"
        )
        lines.append(f"\n### Tests on the device\n\nOf {found['collected']}: {summary}.\n")
        if found["failed"]:
            lines.append("\n" + "".join(f"- failed: `{name}`\n" for name in found["failed"]))
    if checks := [item for item in evidence.get("check", []) if item["outcome"] != "passed"]:
        lines.append("\nChecks that failed: " + ", ".join(item["name"] for item in checks) + ".\n")
    if failures := evidence.get("failure"):
        lines.append("\nWhat could not be measured:\n\n")
        lines += [
            f"- {item['stage']}, {item['name']}: {item['error'].splitlines()[0][:200]}\n" for item in failures
        ]
    if probes := evidence.get("probe"):
        lines.append("\n### Probes\n\n| probe | contestant | us (quartiles) |\n|---|---|---|\n")
        for item in probes:
            times = item.get("us_per_node") or item.get("us_per_call") or {}
            lines += [
                f"| {item['name']} | {name} | {time['us']:.3g} ({time['low']:.3g} - {time['high']:.3g}) |\n"
                for name, time in times.items()
            ]
    for item in evidence.get("step_kernels", []):
        lines.append(
            f"\n### Kernels of one step: {item['name']}\n\n{item['kernels']:g} kernels, "
            f"{item['microseconds']:.0f} us; the longest:\n\n| kernel | count | us |\n|---|---|---|\n"
        )
        lines += [
            f"| `{name[:80]}` | {count:g} | {micros:g} |\n" for name, count, micros in item["rows"][:15]
        ]
    if compared := evidence.get("old_new"):
        lines.append("\n### Changed kernels: the old one's time over the new one's\n\n")
        lines.append("| case | ratio | new us |\n|---|---|---|\n")
        for item in compared:
            low, median, high = item["old_over_new"]
            micros = item["seconds"]["new"][1] * 1e6
            lines.append(f"| {item['name']} | {median:.2f} ({low:.2f} - {high:.2f}) | {micros:.3g} |\n")
    return "".join(lines)
