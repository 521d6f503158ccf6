"""Everything that is to be known from a GPU in nine minutes at most: `make gpu`, `make gpu-again`.

python -m bench.gpu_run --out FOLDER          # smoke, tests, kernels, networks, probes, torch.compile
python -m bench.gpu_run --out FOLDER --dry    # the same on a CPU with the smallest cases, to try the plumbing
python -m bench.gpu_run --out FOLDER --again FAILED.txt [--old FOLDER]

It needs a checkout and PyTorch, Triton and pytest; nothing is installed. Every stage is a process with a deadline; one
that fails or runs out of time says so, and the next one starts. Every item is appended to FOLDER/results.jsonl as soon
as it is known, so that a run may be killed at any time. `python -m bench.report FOLDER/results.jsonl` makes
bench/results/DEVICE.json and the page of it.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import IO

from .gpu_stages.stage import BROKEN, RESULTS, append, read

ROOT = Path(__file__).resolve().parents[1]
# Seconds of each stage. What one leaves, the next one may use; at its deadline a stage is ended.
STAGES = {
    "machine": 30.0,  # the first import of PyTorch on a machine that has just started
    "smoke": 40.0,
    "tests": 100.0,
    "kernels": 110.0,
    "networks": 105.0,
    "probes": 30.0,
    "onnx": 25.0,
    "compiled": 100.0,  # the last, because it uses all that is left
}
AGAIN = {"machine": 20.0, "smoke": 20.0, "tests": 45.0, "old_new": 50.0, "sanitizer": 35.0}
GRACE = 2.0  # seconds between asking a process to end and ending it
RESTART_SECONDS = 8.0  # that must be left to a stage for another process


def main(arguments: list[str] | None = None) -> int:
    """Run the stages; returns 1 where a stage or an item of one failed."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu_run",
        description="Run every stage on the first GPU, in nine minutes at most.",
    )
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder of the results (default out)")
    parser.add_argument(
        "--dry", action="store_true", help="on a CPU, with the smallest cases: tries the plumbing"
    )
    parser.add_argument(
        "--again", metavar="FAILED", help="the second run: a file of test names, one a line; `none` for none"
    )
    parser.add_argument(
        "--old",
        type=Path,
        help="with --again: a folder with the fastgen_kernels that the present one is timed against",
    )
    parser.add_argument("--only", help="stages, comma-separated")
    args = parser.parse_args(arguments)
    stages = dict(STAGES if args.again is None else AGAIN)
    if args.only:
        wanted = args.only.split(",")
        if unknown := sorted(set(wanted) - set(stages)):
            parser.error(f"--only: unknown {', '.join(unknown)}; there is {', '.join(stages)}")
        stages = {name: seconds for name, seconds in stages.items() if name in wanted}
    if args.old is not None and not (args.old / "fastgen_kernels").is_dir():
        parser.error(f"--old: no fastgen_kernels in {args.old}")
    if args.again not in (None, "none") and not Path(args.again).is_file():
        parser.error(f"--again: no file {args.again}")
    if not args.dry and not has_gpu():
        print(
            "bench.gpu_run: error: PyTorch sees no CUDA device here; --dry tries the plumbing",
            file=sys.stderr,
        )
        probe = [sys.executable, "-c", "import torch; print(torch.__version__); torch.cuda.init()"]
        for command in (probe, ["nvidia-smi"]) if shutil.which("nvidia-smi") else (probe,):
            with suppress(subprocess.TimeoutExpired):
                subprocess.run(command, check=False, timeout=60)  # what may be wrong
        return 2
    options = {"again": "" if args.again is None else "1"}
    options["old"] = "" if args.old is None else str(args.old.resolve())
    for sent in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(sent, _interrupt)
    with linked(), tempfile.TemporaryDirectory() as scratch:
        if args.again not in (None, "none"):  # a copy: the run's own failed.txt may take its place
            options["failed"] = str(shutil.copy(args.again, Path(scratch) / "failed.txt"))
        return run(stages, args.out.resolve(), args.dry, options, Path(scratch))


def run(stages: Mapping[str, float], out: Path, dry: bool, options: Mapping[str, str], scratch: Path) -> int:
    """The stages in turn, each with a deadline. scratch: for compiled kernels and the like, which are not results."""
    out.mkdir(parents=True, exist_ok=True)
    results = out / RESULTS
    results.unlink(missing_ok=True)
    (out / "failed.txt").unlink(missing_ok=True)
    deadline = time.time()
    failed = False
    with (out / "log.txt").open("w", encoding="utf-8") as log:
        for name, seconds in stages.items():
            deadline += seconds
            began = time.time()
            print(f"{name}: {deadline - began:.0f} s", flush=True)
            outcome = one(name, out, deadline, dry, options, scratch, log)
            while outcome == "broken" and time.time() + RESTART_SECONDS < deadline:
                print(f"{name}: an error broke its process; another one goes on", flush=True)
                outcome = one(name, out, deadline, dry, options, scratch, log)
            took = round(time.time() - began, 1)
            append(
                results, {"stage": name, "kind": "stage", "name": name, "outcome": outcome, "seconds": took}
            )
            print(f"{name}: {outcome} after {took:g} s", flush=True)
            failed |= outcome != "done"
            write_failed(out)
    items = read(results)
    wrong = [
        item for item in items if item["kind"] == "failure" or item.get("outcome") in ("failed", "error")
    ]
    for item in wrong:
        print(f"failed: {item['stage']}: {item['name']}: {str(item.get('error', '')).partition(chr(10))[0]}")
    print(f"{len(items)} items in {results}, {len(wrong)} failures")
    return 1 if failed or wrong else 0


def one(
    name: str,
    out: Path,
    deadline: float,
    dry: bool,
    options: Mapping[str, str],
    scratch: Path,
    log: IO[str],
) -> str:
    """Run one stage's process until it ends or its deadline: "done", "failed", "broken" or "out of time"."""
    command = [sys.executable, "-m", "bench.gpu_stages", name, "--out", str(out), "--until", str(deadline)]
    command += ["--dry"] if dry else []
    command += [f"--option={key}={value}" for key, value in options.items() if value]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "PYTHONUNBUFFERED": "1",
        "PYTHONFAULTHANDLER": "1",
        "TRITON_CACHE_DIR": str(scratch / "triton"),  # shared: what one worker compiled serves all
        "TORCHINDUCTOR_CACHE_DIR": str(scratch / "inductor"),
    }
    if dry:
        environment |= {"CUDA_VISIBLE_DEVICES": "", "TRITON_INTERPRET": "1"}
    log.write(f"\n===== {name}\n")
    log.flush()
    # A group of its own, so that the stage's children can be ended with it.
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, process_group=0
    )
    try:
        code = process.wait(timeout=max(0.0, deadline - time.time()))
    except subprocess.TimeoutExpired:
        return "out of time"
    finally:
        end(process)
    return {0: "done", BROKEN: "broken"}.get(code, "failed")


def end(process: subprocess.Popen[bytes]) -> None:
    """End the process's group: asked first, so that its log says where it was."""
    for sent in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, sent)
        except ProcessLookupError:
            break
        try:
            process.wait(timeout=GRACE)
        except subprocess.TimeoutExpired:
            continue
    try:
        process.wait(timeout=5 * GRACE)
    except subprocess.TimeoutExpired:  # the GPU's driver holds it; the next stage is tried all the same
        print(f"process {process.pid} does not end", flush=True)


def write_failed(out: Path) -> None:
    """failed.txt: the names of tests that failed, one a line, for --again."""
    names = [
        item["name"]
        for item in read(out / RESULTS)
        if item["kind"] == "test" and item["outcome"] in ("failed", "error")
    ]
    (out / "failed.txt").write_text("".join(f"{name}\n" for name in dict.fromkeys(names)), encoding="utf-8")


@contextmanager
def linked() -> Iterator[None]:
    """`fastgen.converters` can be imported, also from a checkout that is not installed: a link while this runs."""
    link = ROOT / "fastgen" / "converters"
    needed = importlib.util.find_spec("fastgen.converters") is None
    if needed:
        link.unlink(missing_ok=True)  # one that leads nowhere
        link.symlink_to(Path("..") / "converters", target_is_directory=True)
        importlib.invalidate_caches()
    try:
        yield
    finally:
        if needed:
            link.unlink(missing_ok=True)


def has_gpu() -> bool:
    """Whether PyTorch sees a CUDA device; asked in another process, for a context would keep memory of it."""
    code = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    return subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + signum)  # so that stages are ended and the link is removed


if __name__ == "__main__":
    sys.exit(main())
