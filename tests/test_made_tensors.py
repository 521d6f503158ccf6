"""Every tensor that fastgen makes says its device, and its type where that would be PyTorch's default.

What the user has set by torch.set_default_device or set_default_dtype is for the user's own tensors. Exempt is
``fastgen.models``: networks are built within a device's block and in float32 (``fastgen/models/building.py``), and a
user who builds one means those settings.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OF_DEFAULT_TYPE = {"empty", "eye", "linspace", "logspace", "normal", "ones", "rand", "randn", "zeros"}
MAKERS = OF_DEFAULT_TYPE | {
    "arange",
    "as_tensor",
    "asarray",
    "full",
    "randint",
    "randperm",
    "scalar_tensor",
    "tensor",
    "tril_indices",
    "triu_indices",
}
FILES = [
    path
    for package in ("fastgen", "fastgen_kernels", "converters")
    for path in sorted((ROOT / package).rglob("*.py"))
    if "fastgen/models" not in str(path.parent.relative_to(ROOT).as_posix())
]


def unsaid(source: str) -> Iterator[tuple[int, str]]:
    """(line, what is missing) of every call of torch's makers that leaves it to the defaults."""
    for node in ast.walk(ast.parse(source)):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        module, maker = node.func.value, node.func.attr
        if not (isinstance(module, ast.Name) and module.id == "torch" and maker in MAKERS):
            continue
        said = {keyword.arg for keyword in node.keywords}
        if None in said:  # **options
            continue
        for word in ("device", "dtype") if maker in OF_DEFAULT_TYPE else ("device",):
            if word not in said:
                yield node.lineno, f"torch.{maker} without {word}"


@pytest.mark.parametrize("package", ["fastgen", "fastgen_kernels", "converters"])
def test_tensors_say_their_device_and_type(package: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}: {what}"
        for path in FILES
        if path.is_relative_to(ROOT / package)
        for line, what in unsaid(path.read_text(encoding="utf-8"))
    ]
    assert not found


def test_a_tensor_that_says_nothing_is_found() -> None:
    source = "torch.zeros(3)\ntorch.tensor(x, device=d)\ntorch.empty(3, dtype=t)\ntorch.arange(2)"
    assert list(unsaid(source)) == [
        (1, "torch.zeros without device"),
        (1, "torch.zeros without dtype"),
        (3, "torch.empty without device"),
        (4, "torch.arange without device"),
    ]
