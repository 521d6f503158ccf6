"""The verb of a diffusion model on onnxruntime: pictures of seeds, by ``sampler.onnx`` or step by step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..config import shown
from ..engines.arguments import as_index, check_known, parameters, sample_count, sample_labels, sample_seeds
from ..errors import ConfigError
from .manifest import check_digest, read_json
from .scalars import is_number, scalar
from .sessions import CUDA, Sessions
from .steps import Steps
from .table import ADJUSTED_WORDS, Table, table_from_json

Array = NDArray[Any]
Callback = Callable[[int, int, Array], Any]
MAX_GUIDANCE = 100.0


class DiffusionModel:
    """Samples of a denoising network. Made by :func:`fastgen.onnx_runtime.load`. Arrays are NumPy."""

    def __init__(self, manifest: dict[str, Any], sessions: Sessions, max_batch: int) -> None:
        self.manifest, self.sessions, self.max_batch = manifest, sessions, max_batch
        self.shape = tuple(manifest["shape"])
        self._tables: dict[str, Table] = {}
        self._steps: Steps | None = None

    def describe(self) -> dict[str, Any]:
        """What runs, where: plain data."""
        return {**self.manifest, "provider": self.sessions.provider, "max_batch": self.max_batch}

    @property
    def tables(self) -> list[tuple[str, int]]:
        """(solver, steps) of the tables that the export has."""
        names = [
            Path(name).stem.rpartition("-") for name in self.sessions.files if name.startswith("tables/")
        ]
        return sorted((solver, int(steps)) for solver, _, steps in names)

    def table(self, solver: str | None = None, steps: int | None = None) -> Table:
        """The table of a solver, by default the model's.

        Raises ConfigError where the export has none, CheckpointError where its file is damaged.
        """
        defaults = self.manifest["defaults"]
        solver = defaults["solver"] if solver is None else solver
        steps = as_index(defaults["steps"] if steps is None else steps)
        name = f"tables/{solver}-{steps}.json"
        if name not in self.sessions.files:
            there = ", ".join(f"{s} x {n}" for s, n in self.tables) or "none"
            raise ConfigError(
                f"this export has no table of {solver} x {steps}; it has {there}. "
                f"fastgen export MODEL -o {self.sessions.folder} --what tables --table {solver}:{steps} adds it",
                argument="solver, steps",
            )
        if name not in self._tables:
            path = self.sessions.folder / name
            check_digest(self.sessions.folder, self.sessions.files, name)
            self._tables[name] = table_from_json(read_json(path), str(path))
        return self._tables[name]

    def sample(
        self,
        n: int | None = None,
        *,
        seed: int | None = None,
        seeds: Sequence[int] | None = None,
        labels: int | str | Sequence[int | str | None] | None = None,
        solver: str | Mapping[str, Any] | None = None,
        steps: int | None = None,
        guidance_scale: float | Sequence[float] | None = None,
        callback: Callback | None = None,
        **unknown: Any,
    ) -> Array:
        """`n` images, float32 [n, C, H, W] in [-1, 1]: those that ``DiffusionEngine.sample`` draws of these arguments.

        n, seed, seeds, labels, steps: as there. solver: a name whose table the export has (`tables`), or a table, as
        a file of ``tables/`` holds it. guidance_scale: one, or one per sample; 1 is none.
        callback(step, total, states): after every evaluation, with the noisy states [n, C, H, W] of a batch of at most
        max_batch samples; it needs ``step.onnx``.

        Raises ConfigError (a ValueError); ArgumentError (a TypeError) for arguments that do not exist: options of a
        solver are in its table.
        """
        check_known(unknown, parameters(self.sample), "sample of an exported model takes")
        known = self.manifest
        count = sample_count(n, seeds, labels)
        chosen = np.array(sample_seeds(count, seed, seeds), dtype=np.uint64)
        null = known["null_class"]
        numbers = sample_labels(count, labels, known["classes"], known["class_names"], null is not None)
        if isinstance(solver, Mapping):
            if steps is not None:
                raise ConfigError("a table has its own; leave them out", argument="steps")
            table = table_from_json(solver, "solver")
        else:
            table = self.table(solver, steps)
        weights = self._weights(count, guidance_scale)
        weights[[number is None for number in numbers]] = 1.0  # without a label both halves would be the same
        label = (
            np.array([null if number is None else number for number in numbers]) if known["classes"] else None
        )
        only_step = "step" in self.sessions and "sampler" not in self.sessions
        by_step = callback is not None or only_step or self.sessions.cuda_graph
        parts = []
        for start in range(0, count, self.max_batch):
            part = slice(start, start + self.max_batch)
            own = None if label is None else label[part].astype(np.int64)
            run = self._by_step if by_step else self._at_once
            parts.append(run(table, chosen[part], own, weights[part], callback))
        return np.concatenate(parts)

    def trajectory(self, n: int | None = None, **arguments: Any) -> tuple[Array, Array]:
        """(images [n, C, H, W], states float32 [steps, n, C, H, W]), all in memory; needs ``step.onnx``.

        arguments: of `sample` without its callback. Raises what it raises.
        """
        known = [name for name in parameters(self.sample) if name != "callback"]
        check_known(arguments, known, "trajectory of an exported model takes")
        states: dict[int, list[Array]] = {}  # by step: those of one batch after the other

        def keep(step: int, total: int, x: Array) -> None:
            states.setdefault(step, []).append(x.copy())

        images = self.sample(n, **arguments, callback=keep)
        return images, np.stack([np.concatenate(parts) for parts in states.values()])

    def _weights(self, count: int, scale: Any) -> Array:
        scale = self.manifest["defaults"]["guidance_scale"] if scale is None else scale
        scale = scalar(scale)
        given = list(scale) if isinstance(scale, (list, tuple, np.ndarray)) else [scale] * count
        if len(given) != count:
            raise ConfigError(
                f"expected one, or one per sample ({count}), got {len(given)}", argument="guidance_scale"
            )
        for value in map(scalar, given):
            if not is_number(value) or not 0 <= value <= MAX_GUIDANCE:
                raise ConfigError(
                    f"expected numbers from 0 to {MAX_GUIDANCE:g}, got {shown(value)}",
                    argument="guidance_scale",
                )
        weights = np.array(given, dtype=np.float32)
        if self.manifest["null_class"] is None and np.any(weights != 1):
            raise ConfigError(
                "this model has no null class to be guided away from; leave it at 1",
                argument="guidance_scale",
            )
        return weights

    def _at_once(
        self, table: Table, seeds: Array, label: Array | None, weights: Array, callback: Callback | None
    ) -> Array:
        feed = {
            "seeds": seeds.view(np.int64),
            "rows": table.rows,
            "slot": table.slot,
            "noise_step": table.noise_step,
            "time": table.time,
            "initial_scale": table.initial_scale,
            "keep": np.zeros(0, dtype=np.int64),
        }
        if label is not None:
            feed["label"] = label
        if self.manifest["null_class"] is not None:
            feed["guidance"] = weights
        images: Array = self.sessions.get("sampler").run(["images"], feed)[0]
        return images

    def _by_step(
        self, table: Table, seeds: Array, label: Array | None, weights: Array, callback: Callback | None
    ) -> Array:
        if np.any(table.rows[:, ADJUSTED_WORDS]):
            raise ConfigError(
                "a dynamic threshold, guidance rescale or Langevin step is in sampler.onnx only: without a callback "
                "and a CUDA graph",
                argument="solver",
            )
        if self._steps is None:
            on_cuda = self.sessions.provider == CUDA
            self._steps = Steps(
                self.sessions.runtime, self.sessions.get("step"), "cuda" if on_cuda else "cpu"
            )
        return self._steps.run(
            self.shape, table, seeds, label, self.manifest["null_class"], weights, callback
        )
