"""Functions that lose digits when written by ONNX's own operations, or that ONNX lacks, from operations that keep them.

ONNX's Sigmoid is accurate to 6e-8 of 1 in onnxruntime, so that its logarithm is off by 2e-4 at -8, by 0.6 at -16, and
infinite at -20; ONNX has the error function but neither its complement nor its logarithm.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Chebyshev interpolation of degree 9, on 0 < t <= 1, of log(erfcx(z) / t) where t = 2 / (2 + z); off by 2e-7.
TAIL = (
    -1.2655123112,
    1.0000377716,
    0.3737148406,
    0.1006541983,
    -0.206139561,
    0.3360064751,
    -1.2317614665,
    1.5835967351,
    -0.8726416535,
    0.1820451055,
)


def log_sigmoid(x: Tensor) -> Tensor:
    """log(1 / (1 + exp(-x))), to 1e-7 of 1 or of itself."""
    return -torch.relu(-x) - torch.log(1 + torch.exp(-x.abs()))


def log_tail(z: Tensor) -> Tensor:
    """log P(Z > z) of a standard normal Z, for z >= 0, to 1e-6."""
    t = 2 / (2 + z * math.sqrt(0.5))
    polynomial = TAIL[-1] * t + TAIL[-2]
    for coefficient in reversed(TAIL[:-2]):
        polynomial = polynomial * t + coefficient
    return torch.log(t) - 0.5 * z * z + polynomial - math.log(2)


def normal_cdf(z: Tensor) -> Tensor:
    """P(Z <= z) of a standard normal Z, relative to itself accurate to 1e-6."""
    tail = torch.exp(log_tail(z.abs()))
    return torch.where(z < 0, tail, 1 - tail)


def logistic(noise: Tensor) -> Tensor:
    """Standard logistic numbers from standard normal ones: as `fastgen.models.flow.priors.logistic`."""
    log_rest = log_tail(noise.abs())
    return torch.sign(noise) * (torch.log(1 - torch.exp(log_rest)) - log_rest)
