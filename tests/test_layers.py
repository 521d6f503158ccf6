"""Rooms import only rooms to their left; `import fastgen` stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# From left to right; modules of one layer may import each other.
LAYERS = [
    {"fastgen_kernels"},
    {"fastgen.errors", "fastgen.config", "fastgen.files", "fastgen.tensor_file"},
    {"fastgen.models", "fastgen.diffusion"},
    {
        "fastgen.checkpoint",
        "fastgen.exports",
        "fastgen.fused",
        "fastgen.runtime",
        "fastgen.streaming",
        "fastgen.training",
        "fastgen.image_files",
        "fastgen.image_folders",
        "fastgen.images",
        "fastgen.metrics",
    },
    {"fastgen.architectures", "fastgen.engines", "fastgen.onnx_runtime", "fastgen.zoo"},
    {"fastgen.converters"},
    {"fastgen.families"},
    {"fastgen.sources", "fastgen.api", "fastgen"},
    {"fastgen.commands", "fastgen.bench", "fastgen.cli", "fastgen.__main__"},
]
HEAVY = ["triton", "diffusers", "onnx", "onnxruntime", "matplotlib", "PIL", "sklearn", "huggingface_hub"]


def modules() -> dict[str, Path]:
    """Every module of the packages: dotted name -> file."""
    found = {}
    for package, folder in (
        ("fastgen", "fastgen"),
        ("fastgen_kernels", "fastgen_kernels"),
        ("fastgen.converters", "converters"),
    ):
        for path in (ROOT / folder).rglob("*.py"):
            parts = [package, *path.relative_to(ROOT / folder).with_suffix("").parts]
            found[".".join(p for p in parts if p != "__init__")] = path
    return found


def layer(name: str) -> int:
    """Where a module stands: the longest prefix that a layer names."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        prefix = ".".join(parts[:length])
        for i, names in enumerate(LAYERS):
            if prefix in names and (
                prefix != "fastgen" or prefix == name
            ):  # its modules have places of their own
                return i
    raise AssertionError(f"{name}: say in LAYERS where it belongs")


def imports(name: str, path: Path, known: set[str]) -> set[str]:
    """Modules of ours that `name` imports, at the top or inside functions; type-checking blocks left out."""
    tree = ast.parse(path.read_text())
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found = set()
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                full = f"{source}.{alias.name}"
                # `from .. import __version__` reads a constant, which is there before the package imports anything
                if full in known:
                    found.add(full)
                elif alias.name != "__version__":
                    found.add(source)
    return {f for f in found if f.split(".")[0] in ("fastgen", "fastgen_kernels", "converters")}


def test_no_import_points_right() -> None:
    known = modules()
    wrong = [
        f"{name} imports {target}"
        for name, path in known.items()
        for target in imports(name, path, set(known))
        if layer(target) > layer(name)
    ]
    assert wrong == []


def test_the_walk_sees_a_wrong_import(tmp_path: Path) -> None:
    path = tmp_path / "batches.py"
    path.write_text("def f():\n    from ..engines import DiffusionEngine\n")
    (target,) = imports("fastgen.runtime.batches", path, {"fastgen.engines"})
    assert target == "fastgen.engines"
    assert layer(target) > layer("fastgen.runtime.batches")


def test_a_new_room_must_be_placed() -> None:
    with pytest.raises(AssertionError, match="say in LAYERS"):
        layer("fastgen.newroom")


def test_nothing_imports_the_top_level_name_converters() -> None:
    known = modules()
    assert not [
        n for n, p in known.items() if "converters" in {t.split(".")[0] for t in imports(n, p, set(known))}
    ]


def test_every_package_is_installed() -> None:
    import tomllib

    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    packages = {name for name, path in modules().items() if path.name == "__init__.py"}
    assert sorted(listed) == sorted(packages)


@pytest.mark.parametrize("module", ["fastgen", "fastgen_kernels"])
def test_import_is_light(module: str) -> None:
    code = f"import sys, {module}; print([m for m in {HEAVY} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
