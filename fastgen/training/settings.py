"""What a training run is asked to do: the options of ``fastgen train``, checked. Importing it needs no PyTorch."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..config import bounded, one_of

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class RunConfig:
    """What a run is made of. Rates are per step; `precision` auto becomes fp32 or bf16 when the run starts;
    `weights_dtype` is the dtype of the saved average (the run itself keeps float32). `target` and `side_by_side` say
    where the targets of paired data are, `background` what lies under transparent pixels (``training.data.load``).
    `styles` and `encoder` are of style transfer: a folder of images, and what has the encoder's weights. `init` is the
    model whose weights a super-resolution network begins with, `teacher` the one that is distilled, a folder or
    zoo:NAME. A step's gradients are those of `accumulate` parts of its batch, one after the other.
    """

    data: str = "digits"
    labels: str | None = None
    target: str | None = None
    styles: str | None = None
    encoder: str | None = None
    init: str | None = None
    teacher: str | None = None
    side_by_side: bool = False
    background: str | None = None
    subset: tuple[int, ...] | None = bounded(0, 2**31, default=None, max_items=2)
    steps: int = bounded(1, 100_000_000, default=2000)
    batch_size: int = bounded(1, 65536, default=128)
    accumulate: int = bounded(1, 65536, default=1)
    lr: float = bounded(0.0, 1.0, default=1e-3)
    warmup: int = bounded(0, 1_000_000, default=100)
    decay: str = one_of("cosine", "linear", default="cosine")
    weight_decay: float = bounded(0.0, 10.0, default=0.01)
    grad_clip: float = bounded(0.0, 1e9, default=1.0)
    ema_decay: float = bounded(0.0, 1.0, default=0.999)
    label_dropout: float = bounded(0.0, 1.0, default=0.1)
    flip: bool = False
    seed: int = bounded(0, 2**31 - 1, default=0)
    precision: str = one_of("auto", "fp32", "bf16", default="auto")
    weights_dtype: str = one_of("float32", "float16", default="float32")
    save_every: int = bounded(1, 100_000_000, default=200)
    preview_every: int = bounded(0, 100_000_000, default=500)

    def settled(self, device: torch.device) -> RunConfig:
        """With `precision` chosen for `device`."""
        from ..runtime.device import fast_bf16

        if self.precision != "auto":
            return self
        return dataclasses.replace(self, precision="bf16" if fast_bf16(device) else "fp32")
