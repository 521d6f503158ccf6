"""What `bench.compile_only` reports, of conv_norm's launches with programmatic dependent launch, on sm_90 and later."""

from __future__ import annotations

import json
import sys

import torch

from bench.compile_only import compiling, report
from fastgen_kernels import OPS, dependent_launch

# (case, weights that its product reads)
CASES = (("cifar32_first", 1), ("cifar16_up_second", 2), ("cifar4_up_second", 2))


def reports(name: str) -> list[dict]:
    found = []
    for case, weights in CASES:
        generator = torch.Generator().manual_seed(0)
        arguments = OPS[name].case(case).make(generator, torch.device("cpu"), torch.bfloat16)
        for architecture in (90, 100):
            with dependent_launch(), compiling(architecture) as compiled:
                OPS[name].fused(**arguments)
            facts = {
                "op": name,
                "case": case,
                "dtype": "bfloat16",
                "architecture": architecture,
                "weights": weights,
            }
            for kernel, programs in compiled:
                ptx = kernel.asm["ptx"]
                counts = {
                    "waits": ptx.count("griddepcontrol.wait"),
                    "prefetches": ptx.count("prefetch.global.L2"),
                }
                counts["allows"] = ptx.count("griddepcontrol.launch_dependents")
                found.append(facts | counts | {"programs": programs} | report(kernel))
    return found


if __name__ == "__main__":
    json.dump([found for name in sys.argv[1:] for found in reports(name)], sys.stdout)
