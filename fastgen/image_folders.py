"""Which files of a folder are its images: one rule for everything that reads folders of them."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from typing import NoReturn

from .errors import DataError

SKIPPED = (".", "__")  # what such names begin with: thumbnails, and what archive programs leave (__MACOSX)


def image_paths(folder: str | Path, suffixes: Collection[str]) -> list[Path]:
    """The files in `folder` and its sub-folders whose suffixes, in any case, are in `suffixes`; sorted.

    Names that begin with a dot or ``__`` are skipped, of files and of folders. Links to files count, and links to
    folders are followed; one to a folder that it lies in is refused, for it has no end. Raises DataError for such a
    link, for a folder that cannot be read, `folder` or below it, and where there are no images.
    """
    root, found = Path(folder), []
    try:
        for place, folders, files in os.walk(root, onerror=_raise, followlinks=True):
            here = Path(place)
            folders[:] = [name for name in folders if not name.startswith(SKIPPED)]
            for name in folders:
                if (here / name).is_symlink() and _is_circle(here / name, root):
                    raise DataError("is a link to a folder that it lies in; remove it", argument=here / name)
            # A link to nothing and a pipe count, too: their reader says what they are.
            found += [
                here / name
                for name in files
                if Path(name).suffix.lower() in suffixes and not name.startswith(SKIPPED)
            ]
    except OSError as error:
        where = root if error.filename is None else error.filename
        raise DataError(f"cannot be read: {error.strerror or error}", argument=where) from error
    if not found:
        raise DataError(f"no images ({', '.join(sorted(suffixes))}) in it", argument=root)
    return sorted(found)


def _is_circle(link: Path, root: Path) -> bool:
    """Whether `link` leads to a folder on the way to it from `root`, other links on it followed, or above one."""
    target = link.resolve()
    depth = len(link.relative_to(root).parts)
    return any(target in (way := place.resolve(), *way.parents) for place in link.parents[:depth])


def _raise(error: OSError) -> NoReturn:
    raise error
