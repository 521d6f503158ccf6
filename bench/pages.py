"""Tables that programs write into pages of the docs."""

from __future__ import annotations

from pathlib import Path


def write_between(page: Path, marks: tuple[str, str], text: str) -> None:
    """Put `text` in place of what stands between two lines of a page. ValueError where the page lacks one of them."""
    before, rest = page.read_text(encoding="utf-8").split(marks[0])
    _, after = rest.split(marks[1])
    page.write_text(f"{before}{marks[0]}{text}{marks[1]}{after}", encoding="utf-8")
