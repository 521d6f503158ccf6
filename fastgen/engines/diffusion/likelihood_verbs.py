"""Verbs of likelihood: log_prob, bits_per_dim. The package ``likelihood`` is imported when they are called."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from torch import Tensor

if TYPE_CHECKING:
    from .engine import DiffusionEngine
    from .likelihood import DiffusionBits, LogProb

LEVELS = 256  # of images


class Likelihood:
    """What a ``DiffusionEngine`` says of the likelihood of data."""

    def log_prob(
        self,
        x: Tensor,
        samples: int = 1,
        *,
        labels: Any = None,
        seed: int = 0,
        method: str = "ode",
        **options: Any,
    ) -> LogProb:
        """log p(x) in nats of continuous x, float [n, C, H, W] in the engine's units, and its kind: see ``LogProb``.

        The density is that of x at the model's lowest noise level, which it knows nothing below.

        labels: one for all or one per sample; None: p(x) without a label, where the model has learnt that.
        samples: random directions, of which a trace that is not exact is estimated; draws of the bound's noise.
        seed: of their noise; that of x[k] is seed + k. Without effect on an exact number.
        method: "ode", the probability flow (Song et al. 2021); options: solver, steps, rtol, atol, trace. "bound", the
            variational bound; options: timesteps, levels, variance_type. See ``ODEOptions`` and ``BoundOptions``.

        The reference network runs, in float32 at least. Raises ConfigError, ArgumentError, and FastgenError for a
        solver whose package is missing.
        """
        from . import likelihood  # which drawing does not need

        return likelihood.log_prob(cast("DiffusionEngine", self), x, samples, labels, seed, method, options)

    def bits_per_dim(
        self,
        x: Tensor,
        samples: int = 1,
        *,
        labels: Any = None,
        seed: int = 0,
        method: str = "ode",
        **options: Any,
    ) -> DiffusionBits:
        """-log2 P(x) a dimension, [n], and what kind of number it is: see ``DiffusionBits``.

        x: images whose values are 256 levels, or the levels as integers; where the engine draws no images
        (`value_range` None) as for `log_prob`, and the numbers are those of its density. dequantisation: of
        method="ode", "uniform" or "decoder". Other arguments: see `log_prob`; samples are draws of dequantisation, too.
        """
        from . import likelihood

        return likelihood.bits_per_dim(
            cast("DiffusionEngine", self), x, samples, labels, seed, method, options
        )
