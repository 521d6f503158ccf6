"""The picture of brush strokes that ships with ``zoo:microast``: python -m tests.zoo.strokes FILE."""

from __future__ import annotations

import sys

import numpy as np
from PIL import Image, ImageDraw

COLOURS = np.array(
    [
        *((16, 24, 60), (24, 52, 110), (38, 96, 152), (86, 152, 178)),
        *((182, 200, 160), (240, 206, 98), (250, 232, 170), (214, 110, 50)),
    ]
)
RARE = len(COLOURS) - 1  # a colour of single strokes
BRUSHES = ((26, 2600), (15, 5200), (8, 6500))  # (width, strokes), the widest first


def strokes(size: int = 384, seed: int = 3) -> Image.Image:
    """Strokes along a field of swirls; colours follow a smooth tone, with some scatter."""
    random, side = np.random.default_rng(seed), 2 * size
    y, x = np.mgrid[0:side, 0:side] / side
    along, down = np.full((side, side), 0.35), 0.15 * np.sin(6 * x)
    for _ in range(7):
        (cx, cy), width, turn = random.random(2), random.uniform(0.08, 0.22), random.choice([-1, 1])
        dx, dy = x - cx, y - cy
        strength = turn * np.exp(-(dx**2 + dy**2) / (2 * width**2)) / width
        along, down = along - dy * strength, down + dx * strength
    tone = np.zeros((side, side))
    for _ in range(9):
        (cx, cy), width = random.random(2), random.uniform(0.05, 0.25)
        tone += random.uniform(-1, 1.2) * np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * width**2))
    tone = (tone - tone.min()) / (tone.max() - tone.min())
    image = Image.new("RGB", (side, side), (24, 44, 90))
    draw = ImageDraw.Draw(image)
    for width, count in BRUSHES:
        for _ in range(count):
            px, py = random.random(2) * side
            number = int(np.clip(tone[int(py), int(px)] * 6 + random.normal(0, 0.55), 0, RARE - 0.001))
            colour = COLOURS[RARE if random.random() < 0.05 else number] + random.normal(0, 14, 3)
            points = []
            for _ in range(int(random.integers(6, 14))):
                points.append((px, py))
                i, j = (int(np.clip(value, 0, side - 1)) for value in (py, px))
                length = np.hypot(along[i, j], down[i, j]) + 1e-6
                px, py = (
                    px + along[i, j] / length * width * 0.55,
                    py + down[i, j] / length * width * 0.55,
                )
            fill = tuple(int(value) for value in np.clip(colour, 0, 255))
            draw.line(points, fill=fill, width=width, joint="curve")
    return image.resize((size, size), Image.Resampling.LANCZOS)


if __name__ == "__main__":
    strokes().save(sys.argv[1], quality=88)
