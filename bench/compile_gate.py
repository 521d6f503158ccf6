"""The compile gate: what the compiler makes of every operation's production launches, held against its budget.

`python -m bench.compile_gate` compiles them for sm_80, sm_90 and sm_100 in a child process, with no GPU, and says
what is wrong with each; `--also DIR` does it once more with the triton in DIR (`pip install --no-deps --target DIR
triton==3.6.0`). A new operation in `OPS` is covered without a word here. Exit code 1
where anything is outside its budget.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from fastgen_kernels import OPS, Budget

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results" / "compile-gate.json"
PAGE = ROOT / "docs" / "compile-gate.md"
TABLE = "<!-- made by python -m bench.compile_gate --record -->\n"  # the rest of the page
BUDGETS = {name: op.budget for name, op in OPS.items()} | {
    "normals": Budget(wide=0.0)
}  # normals loads nothing
REGISTER_FILE = 65_536  # 32-bit registers of a multiprocessor
SHARED_BYTES = {
    80: 163 << 10,
    90: 227 << 10,
    100: 227 << 10,
}  # a block may ask for, by CUDA's programming guide

Report = dict[str, Any]


def compiled(
    names: list[str], triton: Path | None = None, module: str = "bench.compile_only"
) -> list[Report]:
    """Reports of the operations `names`, with the installed triton or the one in folder `triton`.

    module: what the child process runs with `names`. RuntimeError with its words where a kernel does not compile.
    """
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, [*([triton] if triton else []), ROOT]))
    command = [sys.executable, "-m", module, *names]
    child = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, cwd=ROOT)
    if child.returncode:
        raise RuntimeError(f"compiling {', '.join(names)} failed:\n{child.stderr[-4000:]}")
    return json.loads(child.stdout)


def version(triton: Path | None = None) -> str:
    """Of the triton that `compiled` uses."""
    environment = os.environ | ({"PYTHONPATH": str(triton)} if triton else {})
    command = [sys.executable, "-c", "import triton; print(triton.__version__)"]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=True).stdout.strip()


def wide_share(reports: list[Report], kind: str) -> float:
    """Share of the bytes of `kind` ("loads", "stores") that a case's kernels move in accesses of 16 bytes.

    Static counts, times the threads that run them: a kernel of a few programs weighs nothing beside one of thousands.
    """
    wide = total = 0
    for report in reports:
        threads = report["programs"] * report["warps"] * 32
        for size, count in report[kind].items():
            moved = int(size) * count * threads
            total += moved
            wide += moved if int(size) >= 16 else 0
    return wide / total if total else 1.0


def complaints(reports: list[Report], budget: Budget) -> list[str]:
    """What is wrong with the kernels of one case, type and architecture."""
    found = []
    for report in reports:
        kernel, registers = report["kernel"], report["registers"]
        if registers > budget.registers:
            found.append(f"{kernel}: {registers} registers, {budget.registers} allowed")
        if registers * report["warps"] * 32 > REGISTER_FILE:
            found.append(f"{kernel}: {report['warps']} warps of {registers} registers cannot be launched")
        if report["local_bytes"]:
            found.append(
                f"{kernel}: {report['local_bytes']} bytes of local memory (spills or an indexed array)"
            )
        if report["shared_bytes"] > SHARED_BYTES[report["architecture"]]:
            found.append(f"{kernel}: {report['shared_bytes']} bytes of shared memory do not fit")
        half = report["dtype"] in ("float16", "bfloat16")
        plain = report["full_precision_dots"] if half else 0
        plain += max(0, report["plain_dots"] - report["full_precision_dots"])
        if plain or (report["dots"] and not report["tensor_core"]):
            found.append(f"{kernel}: a half-precision or tf32 product without tensor-core instructions")
        if report["reads_tensors"] and not report["loads"]:
            found.append(f"{kernel}: reads tensors, but no access of theirs was found")
        if report["slow_trigonometry"]:
            found.append(f"{kernel}: sine or cosine with the slow reduction of large angles")
    for kind in ("loads", "stores"):
        share = wide_share(reports, kind)
        if share < budget.wide:
            counts = ", ".join(f"{r['kernel']} {r[kind]}" for r in reports)
            found.append(
                f"{share:.0%} of the bytes of {kind} in 16-byte accesses, {budget.wide:.0%} wanted: {counts}"
            )
    return found


def grouped(reports: list[Report], *keys: str) -> dict[tuple, list[Report]]:
    """`reports` by their values at `keys`."""
    groups: dict[tuple, list[Report]] = defaultdict(list)
    for report in reports:
        groups[tuple(report[key] for key in keys)].append(report)
    return groups


def judge(reports: list[Report]) -> list[str]:
    """Complaints about all `reports`, each with its place."""
    return [
        f"{op} {case} {dtype} sm_{architecture}: {complaint}"
        for (op, case, dtype, architecture), group in grouped(
            reports, "op", "case", "dtype", "architecture"
        ).items()
        for complaint in complaints(group, BUDGETS.get(op, Budget()))
    ]


def table(results: dict[str, list[Report]]) -> str:
    """Markdown: for every operation, architecture and triton the worst over its production cases."""
    lines = [
        "| operation | triton | architecture | kernels | registers (allowed) | 16-byte loads | 16-byte stores "
        "| shared memory |",
        "|---|---|---|---|---|---|---|---|",
    ]
    reports = [{**report, "triton": triton} for triton, found in results.items() for report in found]
    for (op, triton, architecture), group in sorted(grouped(reports, "op", "triton", "architecture").items()):
        cases = grouped(group, "case", "dtype")
        shares = [
            min(wide_share(reports, kind) for reports in cases.values()) for kind in ("loads", "stores")
        ]
        budget = BUDGETS.get(op, Budget())
        lines.append(
            f"| {op} | {triton} | sm_{architecture} | {len({r['kernel'] for r in group})} "
            f"| {max(r['registers'] for r in group)} ({budget.registers}) | {shares[0]:.0%} | {shares[1]:.0%} "
            f"| {max(r['shared_bytes'] for r in group) / 1024:.0f} KiB |"
        )
    return "\n".join(lines) + "\n"


def source(name: str) -> str:
    """A digest of the code behind operation `name`: its folder, what it imports of the others, what they share.

    Of the lines that are neither empty nor a comment, as text, which every version of Python reads alike.
    """
    package = ROOT / "fastgen_kernels"
    folders, texts = ["noise" if name == "normals" else name], []
    for folder in folders:  # grows on the way
        for file in sorted((package / folder).glob("*.py")):
            texts.append(file.read_text())
            folders += [other for other in siblings(texts[-1]) if other not in folders]
    texts += [(package / shared).read_text() for shared in ("launching.py", "rows.py")]
    lines = [line.rstrip() for text in texts for line in text.splitlines()]
    code = [line for line in lines if line and not line.lstrip().startswith("#")]
    return hashlib.sha256("\n".join(code).encode()).hexdigest()[:12]


def siblings(text: str) -> list[str]:
    """The folders beside an operation's own that the file with this text imports: `from ..adain.reference import x`."""
    found: list[str] = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.level == 2:
            found += [node.module] if node.module else [alias.name for alias in node.names]
    folders = dict.fromkeys(module.split(".")[0] for module in found)
    return [folder for folder in folders if (ROOT / "fastgen_kernels" / folder).is_dir()]


def record(results: dict[str, list[Report]], kept: dict[str, list[Report]]) -> None:
    """Write the reports, a line each, and the documentation's table. kept: those that stay, by triton too."""
    sources = {name: source(name) for name in BUDGETS}
    results = {
        triton: [*kept.get(triton, []), *({**report, "source": sources[report["op"]]} for report in reports)]
        for triton, reports in results.items()
    }
    versions = []
    for triton, reports in results.items():
        lines = ",\n".join(json.dumps(report) for report in reports)
        versions.append(f"{json.dumps(triton)}: [\n{lines}\n]")
    RESULTS.write_text("{\n" + ",\n".join(versions) + "\n}\n")
    words, marker, _ = PAGE.read_text().partition(TABLE)
    PAGE.write_text(words + marker + table(results))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Compile every production case without a GPU and judge the result."
    )
    parser.add_argument("ops", nargs="*", help="operations; all by default", metavar="OP")
    parser.add_argument(
        "--also", type=Path, action="append", default=[], metavar="DIR", help="another triton's folder"
    )
    parser.add_argument(
        "--record",
        action="store_true",
        help=f"write {RESULTS.name} and the table of {PAGE.name}; operations that are not named stay as they are there",
    )
    chosen = parser.parse_args(arguments)
    if unknown := sorted(set(chosen.ops) - set(BUDGETS)):
        parser.error(f"unknown operation {', '.join(unknown)}; known: {', '.join(BUDGETS)}")
    for folder in chosen.also:
        if not (folder / "triton").is_dir():
            parser.error(f"--also {folder}: no triton in it")
    names = chosen.ops or list(BUDGETS)
    results = {version(folder): compiled(names, folder) for folder in (None, *chosen.also)}
    if chosen.record:
        before = json.loads(RESULTS.read_text()) if chosen.ops else {}
        if chosen.ops and set(before) != set(results):
            parser.error(
                f"--record with names: {RESULTS.name} is of triton {', '.join(before)}; use the same with --also"
            )
        kept = {triton: [r for r in reports if r["op"] not in names] for triton, reports in before.items()}
        record(results, kept)
    found = [f"triton {triton}: {line}" for triton, reports in results.items() for line in judge(reports)]
    print(
        "\n".join(found) if found else f"{sum(map(len, results.values()))} kernels, all within their budgets",
        file=sys.stderr,
    )
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
