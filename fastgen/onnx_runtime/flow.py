"""The verbs of a flow on onnxruntime."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..config import shown
from ..engines.arguments import as_index, check_known, parameters, sample_count, sample_labels, sample_seeds
from ..errors import ConfigError
from .scalars import is_number, scalar
from .sessions import Sessions

Array = NDArray[Any]


class FlowModel:
    """A normalising flow. Made by :func:`fastgen.onnx_runtime.load`. Arrays are NumPy; images lie in [-1, 1]."""

    def __init__(self, manifest: dict[str, Any], sessions: Sessions, max_batch: int) -> None:
        self.manifest, self.sessions, self.max_batch = manifest, sessions, max_batch
        self.shape = tuple(manifest["shape"])
        self.latent_shapes = [tuple(shape) for shape in manifest["latent_shapes"]]

    def describe(self) -> dict[str, Any]:
        """What runs, where: plain data."""
        return {**self.manifest, "provider": self.sessions.provider, "max_batch": self.max_batch}

    def sample(
        self,
        n: int | None = None,
        *,
        seed: int | None = None,
        seeds: Sequence[int] | None = None,
        labels: Any = None,
        context: ArrayLike | None = None,
        temperature: float | None = None,
        **unknown: Any,
    ) -> Array:
        """`n` samples, float32 [n, *shape]: arguments as of ``FlowEngine.sample``; the same seeds, the same samples.

        Raises ConfigError (a ValueError), ArgumentError (a TypeError) for arguments that do not exist.
        """
        check_known(unknown, parameters(self.sample), "sample of an exported flow takes")
        if n is None and seeds is None and labels is None and context is not None and np.ndim(context) == 2:
            n = len(np.asarray(context))
        count = sample_count(n, seeds, labels)
        chosen = sample_seeds(count, seed, seeds)
        value = scalar(self.manifest["defaults"]["temperature"] if temperature is None else temperature)
        if not is_number(value) or not 0 <= value < math.inf:
            raise ConfigError(f"expected a number of at least 0, got {value!r}", argument="temperature")
        feed: dict[str, Array] = {
            "seeds": np.array(chosen, dtype=np.uint64).view(np.int64),
            "temperature": np.full(count, value, dtype=np.float32),
            **self._condition(count, labels, context),
        }
        return self._run("sample", feed, ["x"])[0]

    def log_prob(self, x: ArrayLike, *, labels: Any = None, context: ArrayLike | None = None) -> Array:
        """log p(x) in nats, float32 [n], of x float [n, *shape]; -inf where there is no density."""
        return self._run("encode", self._data(x, labels, context), ["log_prob"])[0]

    def encode(self, x: ArrayLike, *, labels: Any = None, context: ArrayLike | None = None) -> list[Array]:
        """The latents of x [n, *shape], one array per scale, the finest first.

        Raises ConfigError that names the value, where x has one that no latent belongs to.
        """
        return self._run("encode", self._supported(self._data(x, labels, context)), self._latents)

    def log_det(self, x: ArrayLike, *, labels: Any = None, context: ArrayLike | None = None) -> Array:
        """log |det d latents / d x| in nats, float32 [n], of x as for `encode`."""
        return self._run("encode", self._supported(self._data(x, labels, context)), ["log_det"])[0]

    def decode(
        self, latents: Sequence[ArrayLike], *, labels: Any = None, context: ArrayLike | None = None
    ) -> Array:
        """x [n, *shape] of the latents of every scale. Images are not clipped: they may leave [-1, 1]."""
        if not isinstance(latents, (list, tuple)) or len(latents) != len(self.latent_shapes):
            raise ConfigError(
                f"expected a list of {len(self.latent_shapes)} arrays, one per scale, got {shown(latents)}",
                argument="latents",
            )
        feed = {
            name: _real(f"latents[{i}]", value, shape)
            for i, (name, value, shape) in enumerate(
                zip(self._latents, latents, self.latent_shapes, strict=True)
            )
        }
        count = len(feed["latents_0"])
        for i, value in enumerate(feed.values()):
            if len(value) != count:
                raise ConfigError(f"expected {count} samples, got {len(value)}", argument=f"latents[{i}]")
        return self._run("decode", {**feed, **self._condition(count, labels, context)}, ["x"])[0]

    def bits_per_dim(
        self,
        x: ArrayLike,
        samples: int = 1,
        *,
        labels: Any = None,
        context: ArrayLike | None = None,
        seed: int = 0,
    ) -> Array:
        """-log2 P(x) a dimension, float64 [n]: a bound by `samples` dequantisations, as of ``FlowEngine.bits_per_dim``.

        x: where the flow models levels the levels, integers [n, *shape]; else data, and the result is exact.
        """
        samples, levels, dimensions = as_index(samples), self.manifest["levels"], math.prod(self.shape)
        if levels is None:
            log_prob = self.log_prob(x, labels=labels, context=context).astype(np.float64)
            return log_prob / (-math.log(2) * dimensions)
        if type(samples) is not int or samples < 1:
            raise ConfigError(f"expected an int of at least 1, got {samples!r}", argument="samples")
        k = np.asarray(x)
        if k.dtype.kind not in "iu" or k.shape[1:] != self.shape or not np.all((k >= 0) & (k < levels)):
            raise ConfigError(
                f"expected integers [n, {', '.join(map(str, self.shape))}] from 0 to {levels - 1}, got {shown(x)}",
                argument="x",
            )
        feed = {
            "levels": k.astype(np.int64),
            "seeds": np.array(sample_seeds(len(k), seed, None), dtype=np.uint64).view(np.int64),
            **self._condition(len(k), labels, context),
        }
        terms = []
        for draw in range(samples):
            draws = np.full(len(k), draw, dtype=np.int64)
            terms.append(self._run("elbo", {**feed, "draws": draws}, ["elbo"])[0].astype(np.float64))
        log_p = np.logaddexp.reduce(np.stack(terms), axis=0) - math.log(samples)
        found: Array = math.log2(levels) - log_p / (math.log(2) * dimensions)
        return found

    @property
    def _latents(self) -> list[str]:
        return [f"latents_{i}" for i in range(len(self.latent_shapes))]

    def _data(self, x: ArrayLike, labels: Any, context: ArrayLike | None) -> dict[str, Array]:
        data = _real("x", x, self.shape)
        return {"x": data, **self._condition(len(data), labels, context)}

    def _supported(self, feed: dict[str, Array]) -> dict[str, Array]:
        """`feed`, whose x has latents. Raises ConfigError, as ``FlowEngine.encode``."""
        if (bounds := self.manifest.get("support")) is None:
            return feed
        x, (low, high) = feed["x"], bounds
        if len(outside := np.argwhere((x < low) | (x > high))):
            where = outside[0].tolist()
            raise ConfigError(
                f"its value {x[tuple(where)]:.9g} at {where} lies where this flow has no density, which is from "
                f"{low:.9g} to {high:.9g}; clamp it (resizing overshoots)",
                argument="x",
            )
        return feed

    def _condition(self, count: int, labels: Any, context: ArrayLike | None) -> dict[str, Array]:
        classes, width = self.manifest["classes"], self.manifest["context"]
        chosen = sample_labels(count, labels, classes, self.manifest.get("class_names"), False)
        if context is not None and not width:
            raise ConfigError("this model takes none", argument="context")
        if classes is not None:
            return {"labels": np.array(chosen, dtype=np.int64)}
        if not width:
            return {}
        if context is None:
            raise ConfigError(f"this model needs one: float [n, {width}]", argument="context")
        given = np.asarray(context)
        return {"context": _real("context", np.broadcast_to(given, (count, width)), (width,))}

    def _run(self, name: str, feed: dict[str, Array], results: list[str]) -> list[Array]:
        """At most `max_batch` samples at a time."""
        session = self.sessions.get(name)
        count = len(next(iter(feed.values())))
        parts = [
            session.run(results, {key: value[start : start + self.max_batch] for key, value in feed.items()})
            for start in range(0, count, self.max_batch)
        ]
        return [np.concatenate(found) for found in zip(*parts, strict=True)]


def _real(name: str, value: ArrayLike, shape: tuple[int, ...]) -> Array:
    """float32 [n, *shape]. Raises ConfigError."""
    array = np.asarray(value)
    if (
        array.dtype.kind not in "fiu"
        or array.shape[1:] != shape
        or array.ndim != len(shape) + 1
        or not len(array)
    ):
        sizes = ", ".join(["n", *map(str, shape)])
        raise ConfigError(
            f"expected an array of numbers [{sizes}], got {array.dtype} {list(array.shape)}", argument=name
        )
    return np.ascontiguousarray(array, dtype=np.float32)
