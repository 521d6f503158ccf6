"""onnxruntime sessions of an exported folder, on the device that was asked for or not at all."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, ConfigError
from .manifest import check_digest

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
DEVICES = ("auto", "cpu", "cuda")
ERRORS_ONLY = 3  # onnxruntime's log level: what it would warn of is raised here


def import_onnxruntime() -> Any:
    """The package, with its telemetry off unless the environment says otherwise. Raises ConfigError."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read when it is imported
    try:
        import onnxruntime  # type: ignore[import-untyped]
    except ImportError as error:
        raise ConfigError(
            f"cannot be imported: {error}; pip install onnxruntime, or onnxruntime-gpu for CUDA",
            argument="onnxruntime",
        ) from error
    return onnxruntime


class Sessions:
    """Opens a folder's models when they are first needed. Raises ConfigError where `device` cannot be had."""

    def __init__(
        self,
        folder: Path,
        manifest: Mapping[str, Any],
        device: str,
        *,
        threads: int | None = None,
        cuda_graph: bool = False,
    ) -> None:
        if device not in DEVICES:
            raise ConfigError(f"expected one of {', '.join(DEVICES)}, got {device!r}", argument="device")
        if threads is not None and (type(threads) is not int or threads < 1):
            raise ConfigError(f"expected an int of at least 1, got {threads!r}", argument="threads")
        self.folder, self.files = folder, manifest["files"]
        self.threads, self.cuda_graph = threads, cuda_graph
        self.runtime = import_onnxruntime()
        self._open: dict[str, Any] = {}
        obstacle = None if device == "cpu" else self._no_cuda()
        if device == "cuda" and obstacle:
            raise ConfigError(f"cuda was asked for, and {obstacle}", argument="device")
        self.provider = CPU if device == "cpu" or obstacle else CUDA
        if cuda_graph and self.provider != CUDA:
            raise ConfigError(f"needs CUDA, and {obstacle or 'device is cpu'}", argument="cuda_graph")

    def __contains__(self, name: str) -> bool:
        return f"{name}.onnx" in self.files

    def get(self, name: str) -> Any:
        """The session of ``NAME.onnx``.

        Raises ConfigError where the export has none, CheckpointError where the file is damaged.
        """
        if name not in self._open:
            if name not in self:
                there = ", ".join(sorted(n for n in self.files if n.endswith(".onnx"))) or "none"
                raise ConfigError(
                    f"there is no {name}.onnx; this export has {there}. fastgen export writes more",
                    argument=self.folder,
                )
            self._open[name] = self._session(name, self.provider)
        return self._open[name]

    def _session(self, name: str, provider: str) -> Any:
        runtime, path = self.runtime, self.folder / f"{name}.onnx"
        for part in (path.name, f"{path.name}.data"):  # the second: large tensors that lie outside
            if part in self.files:
                check_digest(self.folder, self.files, part)
        options = runtime.SessionOptions()
        options.log_severity_level = ERRORS_ONLY
        if self.threads is not None:
            options.intra_op_num_threads = self.threads
        providers: list[Any] = [CPU]
        if provider == CUDA:
            # TF32 has 10 bits where the engine's float32 has 23.
            capture = "1" if self.cuda_graph and name == "step" else "0"
            providers = [(CUDA, {"use_tf32": "0", "enable_cuda_graph": capture}), CPU]
        try:
            session = runtime.InferenceSession(os.fspath(path), options, providers=providers)
        except Exception as error:  # onnxruntime raises kinds of its own, none of them documented
            raise CheckpointError(f"onnxruntime cannot load it: {error}", argument=path) from error
        if session.get_providers()[0] != provider:  # it falls back without a word
            raise ConfigError(
                f"{provider} was asked for, onnxruntime runs {session.get_providers()[0]}", argument="device"
            )
        return session

    def _no_cuda(self) -> str | None:
        """Why nothing can run on CUDA; None where it can."""
        runtime = self.runtime
        if CUDA not in runtime.get_available_providers():
            return (
                f"this onnxruntime ({runtime.__version__}) has no CUDA provider: pip install onnxruntime-gpu"
            )
        with contextlib.suppress(Exception):  # of other versions: the libraries that PyTorch's packages bring
            runtime.preload_dlls()
        # It is among the available ones wherever onnxruntime-gpu is installed.
        library = Path(runtime.__file__).parent / "capi" / "libonnxruntime_providers_cuda.so"
        for needed in ("libcuda.so.1", os.fspath(library)):
            problem = _missing(needed, library.parent)
            if problem is not None:
                return f"a library is missing: {problem}"
        return None


def _missing(library: str, folder: Path) -> str | None:
    """What the system says of a library that it cannot load."""
    with contextlib.suppress(OSError):  # the provider's library takes symbols from it
        ctypes.CDLL(os.fspath(folder / "libonnxruntime_providers_shared.so"), mode=ctypes.RTLD_GLOBAL)
    try:
        ctypes.CDLL(library)
    except OSError as error:
        text = str(error)
        return None if "undefined symbol" in text else text  # found, and so is what it needs
    return None
