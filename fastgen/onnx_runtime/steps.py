"""A loop over ``step.onnx``, whose tensors stay where the model runs, and which a CUDA graph can hold."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .noise import INITIAL, STEP, normals
from .table import GUIDANCE, NOISE_WORDS, ROW_WORDS, Table

Array = NDArray[Any]
SLOTS = 4


class Steps:
    """The loop of one session. device: "cpu" or "cuda".

    Two pairs of states are written in turn, so that no tensor is copied between steps. Bindings of a batch size are
    kept: a CUDA graph holds their addresses, one for each of the two directions.
    """

    def __init__(self, runtime: Any, session: Any, device: str) -> None:
        self.runtime, self.session, self.device = runtime, session, device
        self.names = [value.name for value in session.get_inputs()]
        self._kept: dict[tuple[int, int], _Bound] = {}

    def run(
        self,
        shape: tuple[int, ...],
        table: Table,
        seeds: Array,
        label: Array | None,
        null_class: int | None,
        weights: Array,
        callback: Callable[[int, int, Array], Any] | None,
    ) -> Array:
        """Images [B, *shape] in [-1, 1] of seeds uint64 [B], labels int64 [B] and guidance weights float32 [B]."""
        batch = len(seeds)
        guided = bool(np.any(weights != 1))
        evaluations = 2 * batch if guided else batch
        own = np.arange(batch)
        values = {
            "rows": np.zeros((batch, ROW_WORDS), dtype=np.float32),
            "slot": np.zeros(batch, dtype=np.int64),
            "z": np.zeros((batch, *shape), dtype=np.float32),
            "time": np.zeros(batch, dtype=np.float32),
            "sample_of": np.concatenate([own, own]) if guided else own,
            "unguided": own + batch if guided else own,
        }
        if label is not None:
            values["label"] = np.concatenate([label, np.full(batch, null_class)]) if guided else label
        values = {name: np.ascontiguousarray(value) for name, value in values.items() if name in self.names}
        key = (batch, evaluations)
        if key not in self._kept:
            self._kept[key] = _Bound(self, len(self._kept), shape, values)
        bound = self._kept[key]

        def noise(step: int, stream: int) -> Array:
            return normals(seeds, step, stream, math.prod(shape)).reshape(batch, *shape)

        bound.start(noise(0, INITIAL) * table.initial_scale, values)
        for i in range(len(table)):
            rows = np.tile(table.rows[i], (batch, 1))
            rows[:, GUIDANCE] = 1 + (weights - 1) * rows[:, GUIDANCE]
            given = {
                "rows": rows,
                "slot": np.full(batch, table.slot[i]),
                "time": np.full(batch, table.time[i]),
            }
            if np.any(rows[:, NOISE_WORDS]):
                given["z"] = noise(int(table.noise_step[i]), STEP)
            bound.step(i, given)
            if callback is not None:
                callback(i + 1, len(table), bound.state(i + 1))
        return np.clip(bound.state(len(table)), -1, 1)


class _Bound:
    """Tensors of one batch size on the device, and what is bound to what in even and in odd steps."""

    def __init__(self, loop: Steps, number: int, shape: tuple[int, ...], values: dict[str, Array]) -> None:
        self.loop = loop
        batch = len(values["rows"])
        make = loop.runtime.OrtValue.ortvalue_from_numpy
        empty = {
            "x": np.zeros((batch, *shape), dtype=np.float32),
            "history": np.zeros((batch, SLOTS, *shape), dtype=np.float32),
        }
        self.empty_history = empty["history"]
        self.values = {name: make(value, loop.device, 0) for name, value in values.items()}
        self.states = [{name: make(value, loop.device, 0) for name, value in empty.items()} for _ in range(2)]
        self.bindings, self.options = [], []
        for here, there in ((0, 1), (1, 0)):
            binding = loop.session.io_binding()
            for name, value in {**self.values, **self.states[here]}.items():
                binding.bind_ortvalue_input(name, value)
            for name, value in self.states[there].items():
                binding.bind_ortvalue_output(f"next_{name}", value)
            self.bindings.append(binding)
            options = loop.runtime.RunOptions()
            if loop.device == "cuda":  # which captured graph, where there are any
                options.add_run_config_entry("gpu_graph_id", str(2 * number + here + 1))
            self.options.append(options)

    def start(self, x: Array, values: dict[str, Array]) -> None:
        self.states[0]["x"].update_inplace(np.ascontiguousarray(x, dtype=np.float32))
        self.states[0]["history"].update_inplace(self.empty_history)
        self.update(values)

    def update(self, values: dict[str, Array]) -> None:
        for name, value in values.items():
            self.values[name].update_inplace(np.ascontiguousarray(value))

    def step(self, number: int, values: dict[str, Array]) -> None:
        self.update(values)
        side = number % 2
        self.loop.session.run_with_iobinding(self.bindings[side], self.options[side])

    def state(self, steps: int) -> Array:
        """A copy of x after so many steps."""
        found: Array = self.states[steps % 2]["x"].numpy()
        return found.copy()
