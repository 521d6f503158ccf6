"""The invertible 1x1 convolution, plain and as an LU decomposition."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import CheckpointError
from .layers import Layer, per_channel, pixels


class InvertibleConv(Layer):
    """y = W x + b over the channels of each pixel, or over a vector (Kingma & Dhariwal 2018, section 3.2).

    x: [B, C, H, W] or [B, C]. bias: [C], or None where the layer has none. Starts as a random rotation, its inverse
    and log-determinant are computed in float64.
    """

    bias: nn.Parameter | None

    def __init__(self, channels: int, bias: bool = False) -> None:
        super().__init__()
        self.channels = channels
        self.bias = nn.Parameter(torch.zeros(channels)) if bias else None

    def product(self) -> Tensor:
        """W, [C, C], in the parameters' type."""
        raise NotImplementedError

    def matrix(self) -> tuple[Tensor, Tensor, Tensor]:
        """W [C, C], b [C] (0 where the layer has none) and log |det W|, in the parameters' type."""
        weight = self.product()
        bias = weight.new_zeros(self.channels) if self.bias is None else self.bias
        return weight, bias, self.log_abs_det().to(weight.dtype)

    def log_abs_det(self) -> Tensor:
        """log |det W|, a float64 scalar."""
        raise NotImplementedError

    def inverse_matrix(self) -> Tensor:
        """The inverse of W, [C, C], float64. Raises CheckpointError where W has none."""
        try:
            return torch.linalg.inv(self.product().double())
        except torch.linalg.LinAlgError as error:
            raise self._singular("no inverse exists") from error

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        y = multiply(self.product().to(x.dtype), x)
        if self.bias is not None:
            y = y + per_channel(self.bias, x)
        return y, self._log_det(x)

    def inverse(self, y: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if self.bias is not None:
            y = y - per_channel(self.bias, y)
        return multiply(self.inverse_matrix().to(y.dtype), y), -self._log_det(y)

    def _log_det(self, x: Tensor) -> Tensor:
        return (pixels(x) * self.log_abs_det()).to(x.dtype).expand(x.shape[0])

    def check(self) -> None:
        """Raise CheckpointError where W is singular, or so nearly that float32 keeps no digit of its inverse.

        And where it is not finite.
        """
        product = self.product().detach().double()
        if not bool(product.isfinite().all()):
            raise CheckpointError("its weights are not finite; was its training stable?", argument=self.name)
        values = torch.linalg.svdvals(product)
        if not bool(values[-1] > values[0] * 2.0**-24):
            raise self._singular(f"singular values from {float(values[-1]):.3g} to {float(values[0]):.3g}")

    def _singular(self, why: str) -> CheckpointError:
        return CheckpointError(
            f"its {self.channels}x{self.channels} matrix is singular ({why}), so that the flow cannot be "
            "inverted; were the weights trained, and with a learning rate that is not too high?",
            argument=self.name,
        )


class PlainConv(InvertibleConv):
    """W itself is learned. weight: [C, C]."""

    def __init__(self, channels: int, bias: bool = False) -> None:
        super().__init__(channels, bias)
        self.weight = nn.Parameter(rotation(channels))

    def product(self) -> Tensor:
        return self.weight

    def log_abs_det(self) -> Tensor:
        return torch.linalg.slogdet(self.weight.double()).logabsdet


class LUConv(InvertibleConv):
    """W = P L (U + diag(sign * exp(log_s))), whose log-determinant is sum(log_s) (eq. 10, 11).

    permutation: int64 [C], fixed: row i of P L ... is row permutation[i] of L ...; sign: [C] of +-1, fixed. lower,
    upper: [C, C], of which only what lies below and above the diagonal is read. log_s: [C].

    Elsewhere: a matrix P in W = P L U has permutation = P.argmax(1). nflows' L U x + b has the permutation 0 .. C - 1,
    sign 1 and log_s = log(softplus(diagonal) + eps).
    """

    permutation: Tensor
    sign: Tensor

    def __init__(self, channels: int, bias: bool = False) -> None:
        super().__init__(channels, bias)
        order, sign, lower, upper, log_s = _factors(channels)
        self.register_buffer("permutation", order)
        self.register_buffer("sign", sign)
        self.lower, self.upper, self.log_s = nn.Parameter(lower), nn.Parameter(upper), nn.Parameter(log_s)

    def product(self) -> Tensor:
        identity = torch.eye(self.channels, dtype=self.lower.dtype, device=self.lower.device)
        diagonal = torch.diag(self.sign.to(self.lower.dtype) * torch.exp(self.log_s))
        with torch.autocast(self.lower.device.type, enabled=False):
            product = (self.lower.tril(-1) + identity) @ (self.upper.triu(1) + diagonal)
        return product[self.permutation]

    def log_abs_det(self) -> Tensor:
        return self.log_s.double().sum()

    def check(self) -> None:
        order, sign = self.permutation.tolist(), self.sign.tolist()
        if sorted(order) != list(range(self.channels)) or any(abs(value) != 1 for value in sign):
            raise CheckpointError(
                f"its permutation must hold each of 0 to {self.channels - 1} once and its signs be 1 or -1",
                argument=self.name,
            )
        super().check()


def _factors(channels: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """What `LUConv` holds of a random orthogonal matrix; without values where tensors are made without memory."""
    matrix = rotation(channels)
    if matrix.is_meta:
        order, sign, log_s = (
            torch.empty(channels, dtype=torch.int64),
            torch.empty(channels),
            torch.empty(channels),
        )
        return order, sign, matrix, torch.empty(channels, channels), log_s
    permutation, lower, upper = torch.linalg.lu(matrix.double())
    diagonal = upper.diagonal().to(matrix.dtype)
    order, sign, log_s = permutation.argmax(1), torch.sign(diagonal), diagonal.abs().log()
    return order, sign, lower.to(matrix.dtype).tril(-1), upper.to(matrix.dtype).triu(1), log_s


def multiply(matrix: Tensor, x: Tensor) -> Tensor:
    """matrix [C, C] times the channels of x [B, C, H, W] or [B, C], not in a lower precision than x's."""
    with torch.autocast(x.device.type, enabled=False):
        return F.linear(x, matrix) if x.dim() == 2 else F.conv2d(x, matrix[:, :, None, None])


def rotation(channels: int) -> Tensor:
    """A random orthogonal matrix [C, C]; without values where tensors are made without memory."""
    matrix = torch.randn(channels, channels)
    return matrix if matrix.is_meta else torch.linalg.qr(matrix.double()).Q.to(matrix.dtype)
