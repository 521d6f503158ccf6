"""Digits drawn in the browser: put the page's folder together, and serve it on this machine.

    python docs/browser/serve.py [--out out/browser] [--port 8000] [--prepare]

The folder holds the page, onnxruntime-web and the model's sampler with its tables. Any server of static files can serve
it.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

HERE = Path(__file__).resolve().parent
PAGE = ("index.html", "page.css", "page.js", "worker.js")
RUNTIME = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
MODEL = "zoo:ddpm-mnist"


def prepare(folder: Path, force: bool = False) -> None:
    """Fill `folder`. A model that is there already stays, unless `force` says to write it anew.

    Raises SystemExit with a message where npm is missing or fails, FastgenError where the export fails.
    """
    runtime = HERE / "node_modules" / "onnxruntime-web" / "dist"
    if not runtime.exists():
        if shutil.which("npm") is None:
            raise SystemExit("npm is needed to install onnxruntime-web: install Node.js, version 18 or later")
        done = subprocess.run(["npm", "ci", "--omit=dev", "--ignore-scripts", "--silent"], cwd=HERE)
        if done.returncode:
            raise SystemExit(f"npm ci failed in {HERE}")
    (folder / "ort").mkdir(parents=True, exist_ok=True)
    for name in PAGE:
        shutil.copyfile(HERE / name, folder / name)
    for name in RUNTIME:
        shutil.copyfile(runtime / name, folder / "ort" / name)
    if force or not (folder / "model" / "model.json").exists():
        import fastgen

        print(f"exporting {MODEL}, about a minute", flush=True)
        fastgen.export(MODEL, folder / "model", what="sampler", force=force)


class Handler(SimpleHTTPRequestHandler):
    """Files, with the types that browsers insist on, whatever this machine thinks that they are."""

    extensions_map = {  # noqa: RUF012 - as the class that it extends has it
        **SimpleHTTPRequestHandler.extensions_map,
        ".js": "text/javascript",
        ".mjs": "text/javascript",
        ".wasm": "application/wasm",
    }

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the terminal shows the address alone."""


def server(folder: Path, port: int) -> ThreadingHTTPServer:
    """A server of `folder` on this machine alone. port 0: any that is free."""
    return ThreadingHTTPServer(("127.0.0.1", port), partial(Handler, directory=str(folder)))


def main() -> None:
    parser = argparse.ArgumentParser(description="Digits drawn in the browser.")
    parser.add_argument("--out", type=Path, default=Path("out/browser"), help="folder of the page")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--force", action="store_true", help="write the model anew")
    parser.add_argument("--prepare", action="store_true", help="fill the folder and do not serve it")
    args = parser.parse_args()
    prepare(args.out, args.force)
    if args.prepare:
        return
    with server(args.out, args.port) as running:
        print(f"http://localhost:{running.server_port}/ (stop with Ctrl-C)", flush=True)
        try:
            running.serve_forever()
        except KeyboardInterrupt:
            sys.exit(0)


if __name__ == "__main__":
    main()
