"""Python in the documentation runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    "README.md",
    "docs/any-scheduler.md",
    "docs/processes.md",
    "docs/guidance.md",
    "docs/editing.md",
    "docs/likelihood.md",
    "docs/unlike-requests.md",
    "docs/flows.md",
    "docs/gans.md",
    "docs/stylegan.md",
    "docs/vae.md",
    "docs/large-requests.md",
    "docs/metrics.md",
    "docs/style.md",
    "docs/from-other-flows.md",
    "docs/super-resolution.md",
    "docs/pix2pix.md",
    "docs/your-own-network.md",
    *sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("docs/kernels/*.md")),
]


def blocks(page: str) -> list[str]:
    return re.findall(
        r"^```python\n(.*?)^```", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )


@pytest.mark.parametrize("page", PAGES)
def test_python_blocks_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page's blocks, one after the other, as a reader would type them."""
    monkeypatch.chdir(tmp_path)
    found = blocks(page)
    assert found
    names: dict[str, object] = {"__name__": "page"}
    for block in found:
        exec(compile(block, page, "exec"), names)
