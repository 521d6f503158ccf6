"""What the compiler makes of wide rows: a child of the compile gate's, as `bench.compile_only` without them.

Of the production cases that take them only: the others' kernels are the gate's own.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import fastgen_kernels
from bench.compile_only import reports
from fastgen_kernels.rows import wide_rows

CASES = {
    "adain": ("vgg1_last", "vgg16_last", "stylegan256_last", "patchgan64_last", "stylegan16_last"),
    "group_norm": ("cifar256", "cifar256_up", "scale_shift64"),
}

if __name__ == "__main__":
    found = []
    for name in sys.argv[1:]:
        op = fastgen_kernels.OPS[name]
        fastgen_kernels.OPS = {
            **fastgen_kernels.OPS,
            name: replace(op, cases=tuple(map(op.case, CASES[name]))),
        }
        with wide_rows():
            found += reports(name)
    json.dump(found, sys.stdout)
