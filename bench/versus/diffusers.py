"""fastgen against diffusers at two sizes: zoo:ddpm-mnist, and the 35.7 M U-Net of google/ddpm-cifar10-32.

    python -m bench.versus.diffusers --clock cpu --json bench/results/cpu-diffusers.json

Further arguments are those of `python -m fastgen.bench families`, and override these.
"""

from __future__ import annotations

import sys

from fastgen.bench.__main__ import main

ARGUMENTS = ["families", "--model", "zoo:ddpm-mnist", "--model", "random:cifar10", "--against", "diffusers"]

if __name__ == "__main__":
    sys.exit(main([*ARGUMENTS, "--batch", "1,8", "--steps", "4", *sys.argv[1:]]))
