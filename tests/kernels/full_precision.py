"""What `bench.compile_only` reports, of float32 launches without TF32. Run by the tests of kernels."""

from __future__ import annotations

import json
import sys

import torch

from bench.compile_only import compiling, report
from fastgen_kernels import OPS

CASES = {
    "patch_conv": ("first64", "second64"),
    "patch_score": ("score1", "score64"),
    "conv_norm": ("cifar32_up_second", "cifar4_first", "lsun64_second"),
}


def reports(name: str) -> list[dict]:
    torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]
    found = []
    for case in CASES[name]:
        generator = torch.Generator().manual_seed(0)
        arguments = OPS[name].case(case).make(generator, torch.device("cpu"), torch.float32)
        for architecture in (80, 90, 100):
            with compiling(architecture) as compiled:
                OPS[name].fused(**arguments)
            facts = {"op": name, "case": case, "dtype": "float32", "architecture": architecture}
            found += [facts | {"programs": programs} | report(kernel) for kernel, programs in compiled]
    return found


if __name__ == "__main__":
    json.dump([found for name in sys.argv[1:] for found in reports(name)], sys.stdout)
