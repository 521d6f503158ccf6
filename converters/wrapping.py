"""State dicts within the files of training scripts: under keys, under a prefix, averaged or not.

    {"state_dict": ..., "epoch": 3}, {"model": ..., "ema": {"shadow": ...}}        keys, one within another
    module., _orig_mod., flow., module._orig_mod.net.                              prefixes of the names

What is a model's state dict follows from the names of its tensors, not from the keys that it lies under.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from fastgen.errors import CheckpointError, ConfigError

from .base import Report, Tensors

Recognises = Callable[[Iterable[str]], bool]

MAX_KEYS = 4  # one within another
MAX_DICTS = 1000
MAX_PREFIX = 6  # names between dots, as in module._orig_mod.flow.
# What torch.compile, FSDP and activation checkpointing put into names, wherever the module that they wrap is.
INSERTED = re.compile(r"(?:(?<=\.)|^)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
AVERAGED = re.compile(
    r"(?:^|[^a-z])ema(?:$|[^a-z])|averaged|shadow|(?:^|[^a-z])swa(?:$|[^a-z])|(?:^|\.)g_running(?:$|\.)"
)
MOST = 8  # names in a message
MAX_SHOWN = 80  # characters of each


@dataclass(frozen=True)
class StateDict:
    """Tensors by name, and where in the file. keys: "" for the file itself, "ema" or "ema.shadow" within it."""

    keys: str
    tensors: Tensors


@dataclass(frozen=True)
class Candidate:
    """A state dict that is of the kind that is looked for. names: {name without prefix: name in the file}."""

    keys: str
    prefix: str
    names: Mapping[str, str] = field(repr=False)
    tensors: Tensors = field(repr=False)

    @property
    def label(self) -> str:
        """What tells it from others, for the user: keys, then the prefix."""
        return ".".join(filter(None, (self.keys, self.prefix.removesuffix("."))))

    @property
    def averaged(self) -> int:
        """How often it is said that these are averaged weights (EMA): by keys, by a prefix or torch's AveragedModel."""
        outer = self.prefix.removesuffix("module.")
        torchs = outer != self.prefix and f"{outer}n_averaged" in self.tensors.shapes
        return _averaged(self.keys) + (torchs or _averaged(self.prefix))

    def renamed(self) -> Tensors:
        """Its tensors under the names without prefix."""
        return self.tensors.renamed(self.names)


def within(content: Any) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Every state dict in an object of ``torch.load``, the outermost first: (keys, {name: tensor})."""
    level: list[tuple[str, Mapping[Any, Any]]] = [("", content)] if isinstance(content, Mapping) else []
    seen: set[int] = set()
    for _ in range(MAX_KEYS + 1):
        inner = []
        for keys, values in level:
            if id(values) in seen or len(seen) >= MAX_DICTS:
                continue
            seen.add(id(values))
            if found := {n: t for n, t in values.items() if isinstance(n, str) and isinstance(t, Tensor)}:
                yield keys, found
            inner += [
                (f"{keys}.{key}" if keys else key, value)
                for key, value in values.items()
                if isinstance(key, str) and isinstance(value, Mapping)
            ]
        level = inner


def holds(found: Iterable[StateDict], recognises: Recognises) -> bool:
    """Whether one of the state dicts, or a part of it under a prefix, is of that kind."""
    return any(True for each in found for _ in _candidates(each, recognises))


def choose(
    found: Sequence[StateDict],
    recognises: Recognises,
    where: str,
    report: Report,
    variant: str | None = None,
    beside: Sequence[str] = (),
) -> Candidate:
    """The state dict of that kind; what was chosen goes into the report.

    variant: which, where there are several: keys or a prefix; by default the averaged ones. beside: the keys of what
    else the file holds. Raises CheckpointError that names keys and prefixes where nothing fits, or several do;
    ConfigError for a `variant` that is not there.
    """
    candidates = [c for each in found for c in _candidates(each, recognises)]
    if not candidates:
        raise CheckpointError(unknown(found, beside), argument=where)
    if variant is None:
        most = max(c.averaged for c in candidates)  # in an EMA's own state dict lies the trained model, too
        usual = [c for c in candidates if c.averaged == most]
    else:
        usual = [c for c in candidates if variant in (c.label, c.keys, c.prefix.removesuffix("."))]
        if not usual:
            raise ConfigError(
                f"{quoted(variant)} was asked for, but {where} has {_listed(map(_label, candidates))}",
                argument="variant",
            )
    if len(usual) > 1:
        raise CheckpointError(
            f"holds several sets of weights: {_listed(map(_label, usual))}; say which, with variant= (--variant)",
            argument=where,
        )
    _report(usual[0], candidates, report, variant is not None, beside)
    return usual[0]


def of_module(
    state: Mapping[str, Tensor], recognises: Recognises, where: str, report: Report
) -> dict[str, Tensor]:
    """As `choose`, the tensors of a live module's state dict."""
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    whole = StateDict("", Tensors(shapes, state.__getitem__, where))
    return {new: state[old] for new, old in choose([whole], recognises, where, report).names.items()}


def unknown(found: Sequence[StateDict], beside: Sequence[str] = ()) -> str:
    """What there is where no model that is looked for was found, for a message: keys, prefixes, the first names."""
    said = []
    for each in found[:MOST]:
        names = list(each.tensors.shapes)
        prefix = common_prefix(names)
        place = f"under the key {quoted(each.keys)} " if each.keys else ""
        under = f" with the prefix {quoted(prefix)}" if prefix else ""
        count = f"{len(names)} tensor{'s' if len(names) > 1 else ''}"
        said.append(f"{place}{count}{under}, such as {_listed((n[:MAX_SHOWN] for n in names), 2)}")
    others = [key for key in beside if key not in {each.keys.split(".")[0] for each in found}]
    return f"its tensors are of no model that is known here: {'; '.join(said) or 'there are none'}" + (
        f"; beside them {_listed(map(quoted, others))}" if others else ""
    )


def common_prefix(names: Sequence[str]) -> str:
    """What all names have in common up to a dot, "" for nothing."""
    shared = []
    for pieces in zip(*(name.split(".")[:-1] for name in names), strict=False):
        if len(set(pieces)) > 1:
            break
        shared.append(pieces[0] + ".")
    return "".join(shared)


def _candidates(each: StateDict, recognises: Recognises) -> Iterator[Candidate]:
    """The shortest prefixes under which `each` is of that kind."""
    left = _without_insertions(each.tensors.shapes)
    for depth in range(MAX_PREFIX):
        groups: dict[str, dict[str, str]] = {}
        for name, original in left.items():
            parts = name.split(".", depth)
            if len(parts) > depth:
                groups.setdefault(name[: len(name) - len(parts[-1])], {})[parts[-1]] = original
        for prefix, names in groups.items():
            if recognises(names):
                yield Candidate(each.keys, prefix, names, each.tensors)
                for name in names:
                    del left[prefix + name]


def _without_insertions(names: Iterable[str]) -> dict[str, str]:
    """{name without what wrappers put into it: name}; as they are where two would be the same."""
    names = list(names)
    cleaned = {INSERTED.sub("", name): name for name in names}
    return cleaned if len(cleaned) == len(names) else {name: name for name in names}


def _report(
    chosen: Candidate, candidates: list[Candidate], report: Report, asked: bool, beside: Sequence[str]
) -> None:
    kind = "averaged weights (EMA)" if chosen.averaged else "weights"
    inserted = sorted({m[0] for name in chosen.names.values() for m in INSERTED.finditer(name)})
    told = [f"the key {quoted(chosen.keys)}"] if chosen.keys else []
    told += [f"the prefix {quoted(chosen.prefix)}"] if chosen.prefix else []
    told += [f"names with {', '.join(inserted)}"] if inserted else []
    if told:
        report.renamed.append(f"{kind} under {' and '.join(told)}, which the names here are without")
    if (others := [c for c in candidates if c is not chosen]) and not asked:
        report.assumed.append(
            f"{kind} of {_label(chosen)}, not those of {_listed(map(_label, others))}; "
            "variant=... (--variant ...) takes others"
        )
    if not chosen.averaged and (lost := [key for key in beside if _averaged(key)]) and not asked:
        report.assumed.append(
            f"{kind} that are not averaged: what lies under {_listed(map(quoted, lost))} has not the model's names"
        )
    taken = {name for c in candidates if c.keys == chosen.keys for name in c.names.values()}
    if unused := [name for name in chosen.tensors.shapes if name not in taken]:
        report.ignored.append(f"{len(unused)} tensors beside the model's: {_listed(unused, 3)}")
    keys = {c.keys.split(".")[0] for c in candidates}
    if rest := [quoted(key) for key in beside if key not in keys]:
        report.ignored.append(f"{_listed(rest)}: not the model's weights")


def _label(candidate: Candidate) -> str:
    return quoted(candidate.label) if candidate.label else "the file itself"


def quoted(text: str) -> str:
    """A name out of a file, in a message."""
    return repr(text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 3] + "...")


def _averaged(words: str) -> bool:
    # A border before a capital that a small letter follows, or that follows one, as in EMACallback.
    words = re.sub(r"(?<=[A-Z])(?=[A-Z][a-z])|(?<=[a-z])(?=[A-Z])", "_", words)
    return AVERAGED.search(words.lower()) is not None


def _listed(values: Iterable[str], most: int = MOST) -> str:
    values = list(values)
    return ", ".join(values[:most]) + (f" and {len(values) - most} more" if len(values) > most else "")
