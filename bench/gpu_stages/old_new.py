"""Changed kernels, the old ones against the new ones on one card: two processes that measure in turns.

The stage compares the folder of the option `old` with this checkout, operation by operation. Each version of
fastgen_kernels has a process of its own, for both register the same operations with PyTorch; only one works at a time.
"""

from __future__ import annotations

import filecmp
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from .stage import Stage

ROOT = Path(__file__).resolve().parents[2]
ROUNDS = 11
REPEATS = 32  # calls in a graph, whose launch is not to count
MOST_CASES = 6  # of an operation
UNIT_SECONDS = 5.0


def run(stage: Stage) -> None:
    """Report medians of both versions for every large case of every operation that changed."""
    if "old" not in stage.options:
        stage.add("fact", "old kernels", given=False)
        return
    old = Path(stage.options["old"])
    names = changed(old)
    stage.add("fact", "changed operations", names=names)
    with tempfile.TemporaryDirectory() as folder:
        # Alone on the path: an older checkout's other packages are not to be found.
        (Path(folder) / "fastgen_kernels").symlink_to(old / "fastgen_kernels", target_is_directory=True)
        folders = {"old": Path(folder), "new": ROOT}
        processes: dict[str, Version] = {}
        try:
            for name, case, dtype in chosen(names, stage):
                title = f"{name} {case} {dtype}"
                if not stage.begins(title, UNIT_SECONDS):
                    continue
                for version, place in folders.items():
                    if version not in processes:
                        processes[version] = Version(place, stage)
                with stage.attempt(title):
                    compare(stage, processes, {"op": name, "case": case, "dtype": dtype})
                    continue
                close(processes)  # reached after an error only, when they may be of no more use
        finally:
            close(processes)


def changed(old: Path) -> list[str]:
    """Operations of this checkout of which a file differs in `old`, or is not there."""
    from fastgen_kernels import OPS

    found = []
    for name in OPS:
        folder = ROOT / "fastgen_kernels" / name
        files = [path.name for path in folder.glob("*.py")]
        _, differ, missing = filecmp.cmpfiles(folder, old / "fastgen_kernels" / name, files, shallow=False)
        if differ or missing:
            found.append(name)
    return found


def chosen(names: list[str], stage: Stage) -> Iterator[tuple[str, str, str]]:
    """(operation, case, dtype): the last production cases, which are the largest; a small one each in a dry run."""
    from fastgen_kernels import OPS

    for name in names:
        cases = [case for case in OPS[name].cases if case.production != stage.dry]
        for case in cases[:1] if stage.dry else cases[: -MOST_CASES - 1 : -1]:
            yield name, case.name, "float32" if stage.dry else "bfloat16"


def compare(stage: Stage, processes: dict[str, Version], case: dict[str, str]) -> None:
    """Both versions check and prepare the case, then measure it in turns."""
    answers = {name: process.ask({"prepare": case}) for name, process in processes.items()}
    if answers["old"].get("missing"):
        stage.add("fact", " ".join(case.values()), reason="the old version has no such case")
        return
    errors = {name: answer["error"] for name, answer in answers.items()}
    times: dict[str, list[float]] = {name: [] for name in processes}
    for turn in range(3 if stage.dry else ROUNDS):
        for name in list(processes) if turn % 2 == 0 else list(processes)[::-1]:
            times[name].append(processes[name].ask({"measure": True})["seconds"])
    from fastgen.bench.timing import Timing

    found = {name: Timing.of(values) for name, values in times.items()}
    ratio = found["old"].over(found["new"])
    stage.add(
        "old_new",
        " ".join(case.values()),
        errors=errors,
        outcome="passed" if errors["new"] <= 1.0 else "failed",
        seconds={name: [timing.low, timing.median, timing.high] for name, timing in found.items()},
        old_over_new=[ratio.low, ratio.median, ratio.high],
        files={name: answer["file"] for name, answer in answers.items()},
    )


def close(processes: dict[str, Version]) -> None:
    """End all of them."""
    while processes:
        processes.popitem()[1].close()


class Version:
    """A process with one version of fastgen_kernels, which is found in `folder`."""

    def __init__(self, folder: Path, stage: Stage) -> None:
        command = [sys.executable, "-m", "bench.gpu_stages.old_new", str(folder), str(stage.device)]
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        """Its answer; RuntimeError with its words where it failed."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process ended with {self.process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        if "failed" in answer:
            raise RuntimeError(answer["failed"])
        return answer

    def close(self) -> None:
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended by itself
            self.process.stdin.close()
        try:
            self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.process.kill()


def serve(folder: str, device_name: str) -> None:
    """A version's process: answers a JSON line with a JSON line."""
    sys.path.insert(0, folder)
    import torch

    import fastgen_kernels
    from fastgen.bench.timing import interleaved
    from fastgen.runtime.cuda_graph import CudaGraphs
    from fastgen_kernels import OPS

    device = torch.device(device_name)
    call, repeats = (lambda: None), 1
    for line in sys.stdin:
        question = json.loads(line)
        try:
            if "prepare" in question:
                wanted = question["prepare"]
                op, dtype = OPS[wanted["op"]], getattr(torch, wanted["dtype"])
                if wanted["case"] not in {case.name for case in op.cases}:
                    print(json.dumps({"missing": True}), flush=True)
                    continue
                case = op.case(wanted["case"])
                if dtype not in case.dtypes:
                    dtype = case.dtypes[0]
                arguments = case.make(torch.Generator().manual_seed(0), device, dtype)
                error = max(op.errors(arguments).values())
                work = (
                    op.in_place(**arguments) if op.in_place else lambda a=arguments, op=op: op.function(**a)
                )

                def repeated(work: Any = work) -> None:
                    for _ in range(REPEATS):
                        work()

                call, repeats = (
                    (CudaGraphs(device)(repeated), REPEATS) if device.type == "cuda" else (work, 1)
                )
                answer = {"error": error, "file": fastgen_kernels.__file__}
            else:
                timing = interleaved({"call": call}, device, rounds=3, sample_seconds=0.01)["call"]
                answer = {"seconds": timing.median / repeats}
        except Exception as error:
            answer = {"failed": f"{type(error).__name__}: {error}"[:1000]}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve(*sys.argv[1:])
