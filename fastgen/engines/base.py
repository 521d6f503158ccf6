"""What every engine has: its networks, a lock, batches of captured verbs; what becomes of it in a fork."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NoReturn, Self
from weakref import WeakSet

import torch
from torch import Tensor, nn

import fastgen_kernels

from .. import __version__
from ..checkpoint import Spec
from ..config import check_flags, from_dict, shown
from ..errors import ArgumentError, ConfigError, FastgenError
from ..images import Range
from ..runtime.batches import Batches
from ..runtime.capture import plainly
from ..runtime.device import choose_device, choose_dtype, dtype_name, placed
from .arguments import as_index
from .fingerprint import fingerprint
from .layers import Name, jittering
from .verb import Networks, Tensors, Verb
from .verification import Check, Verification, verify
from .weights import Weights, count_writes

_ENGINES: WeakSet[Engine] = WeakSet()


@dataclass(frozen=True)
class NoSettings:
    """Settings of a checkpoint whose engine has none."""


class Engine:
    """A model at work. Made by :func:`fastgen.load`.

    Calls from several threads queue; one engine works for one call at a time. On a CPU an engine may also be used in a
    process forked from the one that loaded it, on one core there (OpenMP's threads do not survive a fork); an engine on
    a GPU, and a process that is spawned, need a `load` of their own. Engines cannot be pickled or copied.

    Weights that change in place, and tensors and modules that are replaced, show in the next call.

    A new engine says `kind` (``Spec.engine``) and `settings_type` (a dataclass, ``Spec.settings``), and writes `verbs`.
    Where verbs run on something made of the weights (folded filters, packed matrices), `_prepare` makes it, again after
    every change of the weights; an engine whose verbs read the weights themselves may say ``folds = False``.
    """

    kind: ClassVar[str]
    settings_type: ClassVar[type] = NoSettings
    one_network: ClassVar[bool] = False  # whether a model has one, of any name
    operation: ClassVar[str] = "operations"  # what `describe` calls the kernels' path
    # Whether `_prepare` keeps values that are computed from the weights.
    folds: ClassVar[bool] = True

    def __init__(
        self,
        networks: Networks,
        settings: Any = None,
        *,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype | None = "auto",
        source: str = "",
        architectures: dict[str, str] | None = None,
        provenance: Mapping[str, Any] | None = None,
        channels_last: bool = True,
        max_batch: int = 64,
        graph: bool | str = True,
    ) -> None:
        """`networks`, by part, are moved to `device` and `dtype` and belong to the engine from here on.

        dtype: "auto" is bfloat16 on CUDA and float32 on a CPU; None leaves the networks' types as they are.
        source, architectures, provenance: where they came from, for records. channels_last: their memory format.
        max_batch: samples at a time (more are done in turns; fewer once memory has run out). graph: capture each verb
        as one CUDA graph for each power of two of samples on CUDA; False runs one operation at a time; "recorded" is a
        stand-in for the CPU that refuses what a graph cannot hold.

        Raises ConfigError that names the argument, FastgenError where the device's operations cannot run.
        """
        self.networks = networks if isinstance(networks, nn.ModuleDict) else nn.ModuleDict(networks)
        self.settings = self.settings_type() if settings is None else settings
        self.source, self.architectures, self.provenance = source, architectures or {}, provenance or {}
        check_flags(channels_last=channels_last)
        self.device = choose_device(device)
        try:
            self.path = fastgen_kernels.select(self.device.type)
        except RuntimeError as error:  # no triton
            raise FastgenError(str(error)) from error
        self.channels_last = channels_last
        with torch.inference_mode(False):  # weights outlive the caller's mode
            self.dtype = self._place(dtype)
        self._placed = placed(self.networks)
        self.networks.eval()
        self.batches = Batches(self.device, max_batch=max_batch, backend=capture_backend(graph))
        self._weights: Weights | None = None
        self._verbs: dict[str, Verb] = {}
        # Not an RLock: a stream may be begun in one thread and ended in another.
        self._lock = threading.Lock()
        self._owner: int | None = None  # the thread whose call the engine is busy with
        self._lost = False  # on a GPU that this forked process cannot use
        self._refresh()
        assert self._weights is not None
        self._weights.sha256 = self.provenance.get("sha256")
        _ENGINES.add(self)

    @property
    def network(self) -> nn.Module:
        """The first network, of a model that has one; another one of its kind may be put in its place."""
        return next(iter(self.networks.values()))

    @network.setter
    def network(self, network: nn.Module) -> None:
        self.networks[next(iter(self.networks))] = network

    @property
    def value_range(self) -> Range | None:
        """The values of the images that the engine draws, to which it clamps them; None where it draws no images."""
        return None

    @classmethod
    def from_spec(cls, networks: nn.ModuleDict, spec: Spec, **options: Any) -> Self:
        """From the filled networks of a checkpoint, by part. options: those of the engine. Raises ConfigError."""
        settings = cls.settings_of(spec)
        return cls(networks, settings, **cls.records(spec), **options)

    @classmethod
    def check_parts(cls, spec: Spec) -> None:
        """Before weights are read: whether these are the engine's networks. Raises ConfigError."""
        if cls.one_network and len(spec.parts) != 1:
            raise ConfigError(
                f"a {cls.kind} model has one network, this one has {', '.join(spec.parts)}", argument="parts"
            )

    @classmethod
    def settings_of(cls, spec: Spec) -> Any:
        """A checkpoint's settings, checked. Raises ConfigError."""
        if spec.engine != cls.kind:
            raise ConfigError(f"expected {cls.kind}, got {spec.engine!r}", argument="engine")
        return from_dict(cls.settings_type, spec.settings, "settings")

    @staticmethod
    def records(spec: Spec) -> dict[str, Any]:
        """The keyword arguments of an engine that say where its networks came from."""
        architectures = {name: part.architecture for name, part in spec.parts.items()}
        return {"architectures": architectures, "provenance": spec.provenance}

    def verbs(self) -> dict[str, Verb]:
        """What the engine computes for a batch, by name: see ``Verb``."""
        raise NotImplementedError

    def call(self, name: str, *tensors: Tensor) -> Tensors:
        """The results of a verb for tensors [n, ...] on the device, in turns that fit in memory, captured.

        The tensors are those of ``verbs()[name].arguments``, unchecked. Raises ArgumentError for another name.
        """
        if name not in self._verbs:
            raise ArgumentError(
                f"expected one of {', '.join(self._verbs)}, got {shown(name)}", argument="name"
            )
        with self._working():
            return self._call(name, *tensors)

    def describe(self) -> dict[str, Any]:
        """What runs, where and how: plain data."""
        runs: Any = self._runs
        return {
            "engine": self.kind,
            "source": self.source,
            "sha256": self.provenance.get("sha256"),
            "converted": self.provenance.get("report"),
            "networks": self.architectures,
            "parameters": sum(p.numel() for p in self.networks.parameters()),
            **self._facts(),
            "device": str(self.device),
            "dtype": dtype_name(self.dtype),
            self.operation: self.path,
            "backend": runs.graphs.backend,
            "captured": runs.graphs.describe(),
            "max_batch": runs.max_batch,
            "micro_batch": runs.micro_batch,
            "defaults": self._defaults(),
        }

    def metadata(self, request: Any) -> dict[str, Any]:
        """What ``fastgen sample --like`` needs to repeat `request`: JSON for ``save_grid(..., metadata=...)``.

        Its `sha256` is that of the checkpoint's file; of weights that no file holds, because they have changed since or
        are a module's, `fingerprint`.
        """
        return {
            "fastgen": __version__,
            "model": self.source,
            "sha256": self._sha256(),
            "dtype": dtype_name(self.dtype),
            "request": request.to_dict(),
        }

    def verify(self, *, reference: nn.Module | None = None, batch: int = 2, seed: int = 0) -> Verification:
        """Compare what runs here with plain float64 on the CPU, on `batch` random samples, verb by verb.

        Every layer is held against itself on the very inputs it got, within what rounding explains; a verb's results
        may be a few times as far from float64 as random rounding of its layers is; a captured call must equal the
        uncaptured one bit for bit. ``print`` the result, or take its ``to_dict()``; ``passed`` is the verdict.

        reference: the networks in full precision, for the drift of the whole (by default the engine's own weights): a
            ModuleDict by part as `networks`, or the network itself where there is one.
        """
        batch, seed = as_index(batch), as_index(seed)
        most = self._runs.max_batch
        if type(batch) is not int or not 1 <= batch <= most:
            raise ConfigError(
                f"expected an int from 1 to max_batch = {most}, got {shown(batch)}", argument="batch"
            )
        if type(seed) is not int or not 0 <= seed < 1 << 63:
            raise ConfigError(f"expected an int from 0 to 2^63 - 1, got {shown(seed)}", argument="seed")
        wanted = None if reference is None else self._reference(reference)
        with self._working():
            try:
                return verify(self, wanted, batch, seed)
            finally:
                if self._runs is not self.batches:  # captured for this comparison alone
                    self.batches.clear()

    def refresh(self) -> None:
        """Make anew what is made of the weights, for changes that are not seen: through `.data`, hooks added."""
        with self._alone():
            self._weights = None  # nothing of them is known
            self._refresh()

    @plainly
    def _refresh(self) -> None:
        """`refresh`, where the engine works for this call already. Where it is refused, the next call tries again."""
        before, self._weights = self._weights, None
        known = None if before is None or before.changed else before.sha256
        self.batches.clear()
        if (found := placed(self.networks)) != self._placed:
            (device, dtype), (is_on, is_in) = self._placed, found
            raise ConfigError(
                f"its weights are {dtype_name(is_in)} on {is_on}, the engine was made for {dtype_name(dtype)} on "
                f"{device}: put them back (.to), or make an engine of its own for them",
                argument="networks",
            )
        self.networks.eval()
        if self.folds:
            count_writes(self.networks)
        weights = Weights(self.networks, writes=self.folds)
        self._prepare()
        self._verbs = self.verbs()
        weights.sha256 = known
        self._weights = weights

    def _sha256(self) -> str:
        """Of the weights as they are now, read once for each of their states."""
        weights = self._weights
        # What has changed the next call looks at anew; without `folds` nobody sees writes.
        if weights is None or weights.changed or not self.folds:
            return fingerprint(self.networks)
        if weights.sha256 is None:
            weights.sha256 = fingerprint(self.networks)
        return weights.sha256

    # What an engine may say of itself.

    def _place(self, dtype: str | torch.dtype | None) -> torch.dtype:
        """Move the networks to the device and to `dtype`; returns the type that they are in. Raises ConfigError."""
        own = placed(self.networks)[1]
        chosen = choose_dtype(own if dtype is None else dtype, self.device)
        layout: dict[str, Any] = {"memory_format": torch.channels_last} if self.channels_last else {}
        self.networks.to(self.device, None if dtype is None else chosen, **layout)
        return chosen

    def _prepare(self) -> None:
        """Make what verbs run on of the weights as they are now."""

    def _facts(self) -> dict[str, Any]:
        """What `describe` says besides: the shape of a sample, classes."""
        return {}

    def _defaults(self) -> dict[str, Any]:
        """What a verb uses where its caller says nothing."""
        return {}

    def _reference(self, reference: nn.Module) -> nn.ModuleDict:
        """`reference` by part, checked. Raises ConfigError where it cannot stand beside the engine's networks."""
        if isinstance(reference, nn.ModuleDict) and set(reference) == set(self.networks):
            return reference
        if (
            not isinstance(reference, nn.Module)
            or isinstance(reference, nn.ModuleDict)
            or len(self.networks) != 1
        ):
            parts = f" of {', '.join(reference)}" if isinstance(reference, nn.ModuleDict) else ""
            raise ConfigError(
                f"expected a ModuleDict of {', '.join(self.networks)}, got {type(reference).__qualname__}{parts}",
                argument="reference",
            )
        return nn.ModuleDict(dict.fromkeys(self.networks, reference))

    def running(self) -> Networks:
        """The modules that verbs call, by name, for `verify`: layers are judged where they run."""
        return self.networks

    def layer_checks(self, found: Mapping[str, list[Check]]) -> Iterator[Check]:
        """What `verify` lists of the layers of `running` modules, by module: all of them."""
        for part, checks in found.items():
            for check in checks:
                names = [check.name] if len(self.networks) == 1 and check.name else [part, check.name]
                yield replace(check, name=".".join(filter(None, names)))

    def rounding_off(
        self, networks: nn.ModuleDict, known: Mapping[Name, Tensor | None], generator: torch.Generator
    ) -> AbstractContextManager[None]:
        """Within this, `networks` (float64, on the CPU) round at random as the engine's types do.

        known: by layer of `running`, the most that rounding explains of each element of its result.
        """
        return jittering(networks, known, self.dtype, generator)

    def more_checks(self, batch: int, seed: int, generator: torch.Generator) -> Iterator[Check]:
        """What `verify` looks at besides the verbs."""
        return iter(())

    # How calls are kept apart.

    @property
    def _runs(self) -> Any:
        """What divides work into batches and captures it: graphs, max_batch, micro_batch."""
        return self.batches

    def _call(self, name: str, *tensors: Tensor) -> Tensors:
        """`call`, where the engine works for this call already."""
        return self.batches(name, self._verbs[name].fast, *tensors)

    @contextmanager
    def _working(self) -> Iterator[None]:
        """Within the block the engine works for this call only, on the weights as they are now."""
        with self._alone():
            if self._weights is None or self._weights.changed:
                self._refresh()
            elif self._weights.training:
                self.networks.eval()
            yield

    def __reduce__(self) -> NoReturn:
        raise ArgumentError(
            f"an engine cannot be pickled or copied; load it where it is used (this one is {self.source!r})"
        )

    def _check_alive(self) -> None:
        """Raise FastgenError where a fork has cut the engine off from its device."""
        if self._lost:
            raise FastgenError(
                f"this engine was loaded on {self.device} before this process was forked, and a GPU does not survive "
                "that; load it in this process, or start processes with multiprocessing's spawn"
            )

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Within the block the engine works for this call only. Raises FastgenError where that cannot be."""
        self._check_alive()
        if self._owner == threading.get_ident():
            raise FastgenError(
                "this engine is busy in this thread: first finish its stream, or leave its callback or its session, "
                "whose add() takes the same arguments"
            )
        with self._lock:
            self._owner = threading.get_ident()
            try:
                yield
            finally:
                self._owner = None

    def _restart(self) -> None:
        """Forget a call that was broken off in its midst."""
        self._refresh()

    def _forked(self) -> None:
        """In a child process: the lock's holder did not come along, and may have been in the midst of a step."""
        self._lost = self.device.type != "cpu"
        if self._lock.locked():
            self._lock, self._owner = threading.Lock(), None
            if not self._lost:
                self._restart()


def only_part(networks: Networks) -> tuple[str, nn.Module]:
    """(part, network) of a model that has one network."""
    ((name, network),) = networks.items()
    return name, network


def capture_backend(graph: bool | str) -> str:
    """The `backend` of ``fastgen.runtime.graphs.Graphs`` for an engine's `graph`. Raises ConfigError."""
    chosen = {True: "auto", False: "eager", "recorded": "recorded"}
    if not isinstance(graph, (bool, str)) or graph not in chosen:
        raise ConfigError(f"expected True, False or 'recorded', got {graph!r}", argument="graph")
    return chosen[graph]


def _after_fork() -> None:
    """Make the engines of a forked process usable."""
    engines = list(_ENGINES)
    if engines:
        torch.set_num_threads(1)  # GNU OpenMP would wait forever for threads that did not come along
    for engine in engines:
        engine._forked()


os.register_at_fork(after_in_child=_after_fork)
