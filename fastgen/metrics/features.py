"""Networks that give images features, by which sets of images are compared.

``digits`` ships with fastgen: a small classifier of handwritten digits, for images of digits alone. Others are files of
the user's: the Inception weights of torch-fidelity (``weights-inception-2015-12-05-6726825d.pth``, or the same tensors
as safetensors), by whose features FID, KID and the Inception score are defined; or a TorchScript module of his own.
"""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import CheckpointError, ConfigError
from ..files import open_ordinary
from ..models.building import without_values
from ..models.inception import Inception
from ..tensor_file import TensorFile

DIGITS = "digits"
DIGITS_FILE = Path(__file__).with_name("digits.safetensors")
INCEPTION_NAMES = {"Conv2d_1a_3x3.conv.weight", "Mixed_7c.branch_pool.conv.weight", "fc.weight"}


class DigitNet(nn.Module):
    """uint8 [B, 1 or 3, H, W] of digits, white on black -> (features [B, 64], logits [B, 10]). Resized to 28x28."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 16, 5, 2, 2), nn.Conv2d(16, 32, 5, 2, 2)
        self.hidden, self.last = nn.Linear(32 * 49, 64), nn.Linear(64, 10)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x = images.to(self.last.weight.dtype).mean(1, keepdim=True) / 255
        if x.shape[2:] != (28, 28):
            x = F.interpolate(x, (28, 28), mode="bilinear", antialias=True)
        x = F.relu(self.conv2(F.relu(self.conv1(x)))).flatten(1)
        features = F.relu(self.hidden(x))
        return features, self.last(features)


@dataclass(frozen=True)
class FeatureNetwork:
    """name: in reports. network: uint8 images [B, C, H, W] -> features [B, D], or (features, logits [B, K]) of a
    classifier. channels: C. inception: whether its Fréchet distance is the FID.
    """

    name: str
    network: Callable[[Tensor], Any]
    channels: int
    device: torch.device
    inception: bool = False

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """(features, logits or None), float32, on the CPU, of uint8 images [B, C, H, W]. Raises ConfigError."""
        found = self.network(images.to(self.device))
        features, logits = found if isinstance(found, tuple) else (found, None)
        if not isinstance(features, Tensor) or features.ndim != 2 or len(features) != len(images):
            got = list(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise ConfigError(
                f"expected features [B, D] of {len(images)} images, got {got}", argument=self.name
            )
        return features.float().cpu(), None if logits is None else logits.float().cpu()

    def of(self, batches: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Features and logits batch by batch."""
        return map(self, batches)


def open_features(source: str | Path, device: str | torch.device = "cpu") -> FeatureNetwork:
    """The network that `source` means: ``digits``, or a file (see above).

    A file of tensors is read without executing anything; a TorchScript file is a program, which PyTorch's interpreter
    runs: take it from where you trust. Raises CheckpointError for a file that is neither.
    """
    where = torch.device(device)
    if str(source) == DIGITS:
        network = _filled(DigitNet, dict(TensorFile(DIGITS_FILE).read({})), DIGITS_FILE)
        return FeatureNetwork(DIGITS, network.to(where), 1, where)
    path = Path(source)
    tensors = _tensors(path)
    if tensors is not None:
        if not set(tensors) >= INCEPTION_NAMES:
            raise CheckpointError(
                f"holds tensors, but not those of torch-fidelity's Inception ({', '.join(sorted(INCEPTION_NAMES))}); a "
                "network of your own comes as TorchScript (torch.jit.save)",
                argument=path,
            )
        return FeatureNetwork(
            path.name, _filled(Inception, tensors, path).to(where), 3, where, inception=True
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", DeprecationWarning
            )  # of TorchScript itself: files of it are there
            script = torch.jit.load(str(path), map_location=where).eval()
    except Exception as error:  # PyTorch raises any type of error for a damaged file
        raise CheckpointError(
            f"is neither tensors (.pth, .safetensors) nor TorchScript: {str(error).partition(chr(10))[0]}",
            argument=path,
        ) from error
    return FeatureNetwork(path.name, script, 3, where)


def _tensors(path: Path) -> Mapping[str, Tensor] | None:
    """The tensors of a state dict by name; None where the file is none. Raises CheckpointError for no file."""
    open_ordinary(path, CheckpointError).close()
    if path.suffix == ".safetensors":
        with TensorFile(path) as file:
            return dict(file.read({}))
    if _is_script(path):
        return None
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # damaged: the next reader says so
        return None
    return (
        found if isinstance(found, Mapping) and all(isinstance(v, Tensor) for v in found.values()) else None
    )


def _is_script(path: Path) -> bool:
    """Whether it is an archive with a program, as ``torch.jit.save`` writes it."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _filled(make: Callable[[], nn.Module], tensors: Mapping[str, Tensor], path: Path) -> nn.Module:
    """The network with these weights, in float32. Raises CheckpointError where they do not fit."""
    with without_values():
        network = make()
    wide = {name: value.float() if value.is_floating_point() else value for name, value in tensors.items()}
    # A count of batches is not in every file, and has no effect.
    for name, value in network.state_dict().items():
        if name.endswith("num_batches_tracked"):
            wide.setdefault(name, torch.zeros(value.shape, dtype=value.dtype, device="cpu"))
    try:
        network.load_state_dict(wide, assign=True)
    except RuntimeError as error:
        raise CheckpointError(f"does not fit: {' '.join(str(error).split())[:300]}", argument=path) from error
    return network.eval().requires_grad_(False)
