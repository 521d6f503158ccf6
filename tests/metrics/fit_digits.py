"""Fits the network of ``fastgen.metrics`` that gives digits features.

    FASTGEN_REAL_DATA=... python -m tests.metrics.fit_digits

trains it on digits 0-8999 of MNIST's test set, moved by up to two pixels, writes ``digits.safetensors`` in float16 and
prints how many of digits 9000-9999 it gets right.
"""

from __future__ import annotations

import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from fastgen.metrics.features import DIGITS_FILE, DigitNet, open_features
from tests import real
from tests.zoo.quality import HELD_OUT, TRAINING

EPOCHS, BATCH, SHIFT = 12, 64, 2


def fit() -> None:
    digits, labels = (torch.from_numpy(array.copy()) for array in real.mnist())
    x, y = digits[TRAINING][:, None], labels[TRAINING]
    torch.manual_seed(0)
    network = DigitNet()
    steps = EPOCHS * (len(x) // BATCH)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(x))[: len(x) // BATCH * BATCH].split(BATCH):
            shift = torch.randint(-SHIFT, SHIFT + 1, (2,)).tolist()
            _, logits = network(torch.roll(x[rows], shift, (2, 3)))
            loss = F.cross_entropy(logits, y[rows], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    save_file({name: value.half().contiguous() for name, value in network.state_dict().items()}, DIGITS_FILE)


def accuracy() -> float:
    """Of held-out digits, the share that the file's network gets right."""
    digits, labels = (torch.from_numpy(array.copy()) for array in real.mnist())
    _, logits = open_features("digits")(digits[HELD_OUT][:, None])
    assert logits is not None
    return float((logits.argmax(1) == labels[HELD_OUT]).double().mean())


if __name__ == "__main__":
    fit()
    print(f"{accuracy():.1%} of held-out digits")
