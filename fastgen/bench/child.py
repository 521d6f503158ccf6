"""A fresh process's work, as a script would do it: import, load, draw (or call a verb), again. See `fresh.py`.

Run by its path, not as a module, so that nothing is imported but what the project needs itself.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Order = dict[str, Any]
Draw = Callable[[], Any]
FLOOR = "import torch"


def fastgen(order: Order, mark: Callable[[str], None]) -> Draw:
    """order: folder, device, dtype, verb, and its arguments or a file with its tensors."""
    import torch

    import fastgen

    mark("imports")
    engine: Any = fastgen.load(order["folder"], device=order["device"], dtype=order["dtype"])
    if "tensors" in order:
        tensors = torch.load(order["tensors"], weights_only=True, map_location=order["device"])
        return lambda: engine.call(order["verb"], *tensors)
    verb = getattr(engine, order["verb"])
    return lambda: verb(**order["arguments"])


def diffusers(order: Order, mark: Callable[[str], None]) -> Draw:
    """order: folder (one of diffusers), device, inputs: a file with x, labels and what else the loop needs."""
    import diffusers
    import torch

    given = torch.load(order["inputs"], weights_only=True)
    scheduler_class, network_class = getattr(diffusers, given["scheduler"]), diffusers.UNet2DModel
    mark("imports")
    dtype, layout = getattr(torch, given["dtype"]), torch.channels_last
    net = network_class.from_pretrained(order["folder"], subfolder="unet", torch_dtype=dtype)
    net = net.to(order["device"], memory_format=layout).eval()
    scheduler = scheduler_class.from_config(given["config"])
    x, labels, scale = given["x"].to(order["device"]), given["labels"], given["guidance_scale"]
    labels = None if labels is None else labels.to(order["device"])

    @torch.inference_mode()
    def draw() -> Any:
        scheduler.set_timesteps(given["steps"], device=x.device)
        state = x
        for t in scheduler.timesteps:
            inputs = scheduler.scale_model_input(state, t)
            inputs = torch.cat([inputs, inputs]) if scale != 1 else inputs
            out = net(inputs.to(dtype, memory_format=layout), t, class_labels=labels, return_dict=False)[0]
            out = out.float()
            if scale != 1:
                conditional, free = out.chunk(2)
                out = free + scale * (conditional - free)
            state = scheduler.step(out, t, state, return_dict=False)[0]
        return state.clamp(-1, 1)

    return draw


def floor(mark: Callable[[str], None]) -> None:
    """What no process that draws with PyTorch can be faster than: it imports it, and does no more."""
    import torch  # noqa: F401

    mark("imports")


def peak(device: str) -> int:
    """Most bytes held so far: of the GPU by PyTorch's allocator, or by the whole process, imports included."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.max_memory_reserved(device)
    try:
        status = Path("/proc/self/status").read_text()  # a child's ru_maxrss begins with what its parent held
        (line,) = [line for line in status.splitlines() if line.startswith("VmHWM:")]
        return int(line.split()[1]) << 10
    except (OSError, ValueError):
        import resource  # not on Windows

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def main(text: str) -> None:
    """Do what `text`, an order as JSON, says; print the report."""
    order = json.loads(text)
    marks: dict[str, dict[str, float]] = {"wall": {}, "cpu": {}}

    def mark(phase: str) -> None:
        marks["wall"][phase] = time.time() - order["started"]
        marks["cpu"][phase] = time.process_time()

    def drawn() -> Any:
        found = draw()
        return (
            tuple(x.cpu() for x in found) if isinstance(found, tuple) else found.cpu()
        )  # waits for the device

    if order["who"] == FLOOR:
        floor(mark)
        print(json.dumps(marks))
        return
    draw = {"fastgen": fastgen, "diffusers": diffusers}[order["who"]](order, mark)
    mark("loaded")
    first = drawn()
    mark("first image")
    drawn()
    mark("second image")
    import torch

    torch.save(first, order["result"])
    print(json.dumps({**marks, "peak_bytes": peak(order["device"])}))


if __name__ == "__main__":
    main(sys.argv[1])
