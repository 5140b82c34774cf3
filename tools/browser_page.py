"""An exported model in a browser: two pictures in, one person or two out, and nothing leaves the machine.

    facemetric export faces-96 --out runs/export
    python tools/browser_page.py runs/export/model.onnx --out runs/browser --serve

A folder is made with the page (`tools/browser/`), the model, and ONNX Runtime for WebAssembly, 14 MB that npm brings
once from its registry and ~/.cache/facemetric keeps. The folder may be served by any server; `--serve` opens
one on loopback. With `--serve` the page may use several threads, as it sends the two headers that browsers ask for.
"""

from __future__ import annotations

import argparse
import functools
import os
import shutil
import subprocess
import tarfile
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from facemetric.errors import ConfigError, FacemetricError

VERSION = "1.30.0"  # of onnxruntime-web; the tests ran with it
RUNTIME = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
PAGE = Path(__file__).with_name("browser")
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "facemetric"


def has_runtime(cache: Path = CACHE) -> bool:
    """Whether ONNX Runtime's files are there already."""
    return all((cache / f"onnxruntime-web-{VERSION}" / name).is_file() for name in RUNTIME)


def runtime(cache: Path = CACHE) -> Path:
    """The folder of ONNX Runtime's files, brought by npm where it is not there. Raises ConfigError where that fails."""
    folder = cache / f"onnxruntime-web-{VERSION}"
    if has_runtime(cache):
        return folder
    if shutil.which("npm") is None:
        raise ConfigError(
            f"npm is missing, which brings onnxruntime-web; install it, or put {RUNTIME} into {folder}"
        )
    with tempfile.TemporaryDirectory() as work:
        line = ["npm", "pack", f"onnxruntime-web@{VERSION}", "--silent"]
        try:
            done = subprocess.run(line, cwd=work, capture_output=True, text=True, timeout=300)
        except subprocess.TimeoutExpired as error:
            raise ConfigError(
                f"npm did not bring onnxruntime-web {VERSION} in 5 minutes; is there a network?"
            ) from error
        found = list(Path(work).glob("*.tgz"))
        if done.returncode or not found:
            reason = (done.stderr.strip().splitlines() or ["it gave no reason"])[-1]
            raise ConfigError(
                f"npm could not bring onnxruntime-web {VERSION} ({reason}); is there a network?"
            )
        folder.mkdir(parents=True, exist_ok=True)
        with tarfile.open(found[0]) as package:
            for name in RUNTIME:
                member = package.extractfile(f"package/dist/{name}")
                assert member is not None
                (folder / name).write_bytes(member.read())
    return folder


def make_page(model: Path, out: Path, *, cache: Path = CACHE) -> Path:
    """A folder with the page, the model as model.onnx, and the runtime. Raises ConfigError where one is missing."""
    if not model.is_file():
        raise ConfigError(f"{model}: no such file; make it with facemetric export WEIGHTS")
    kept = runtime(cache)
    (out / "runtime").mkdir(parents=True, exist_ok=True)
    for file in PAGE.iterdir():
        shutil.copyfile(file, out / file.name)
    for name in RUNTIME:
        shutil.copyfile(kept / name, out / "runtime" / name)
    if model.resolve() != (out / "model.onnx").resolve():
        shutil.copyfile(model, out / "model.onnx")
    return out


class Handler(SimpleHTTPRequestHandler):
    """Files of a folder, with the two headers that give a page threads. `asked`: (method, path) of each request."""

    extensions_map = SimpleHTTPRequestHandler.extensions_map | {
        ".mjs": "text/javascript",
        ".js": "text/javascript",
        ".wasm": "application/wasm",
    }
    asked: list[tuple[str, str]] = []  # noqa: RUF012 (a server binds its own)

    def end_headers(self) -> None:
        """The page is alone in its process, so that it may share memory between threads."""
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        self.send_header("Cache-Control", "no-store")
        super().end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing on stderr; the request is noted."""
        self.asked.append((self.command or "", self.path or ""))


@contextmanager
def served(folder: Path, port: int = 0) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """(address, requests so far) of a server on loopback that lives as long as the block."""
    asked: list[tuple[str, str]] = []
    handler = functools.partial(type("Bound", (Handler,), {"asked": asked}), directory=str(folder))
    server = ThreadingHTTPServer(("127.0.0.1", port), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("model", type=Path, help="an ONNX file of facemetric export")
    parser.add_argument("--out", type=Path, default=Path("runs/browser"))
    parser.add_argument("--serve", action="store_true", help="open the folder on loopback until Ctrl-C")
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args()
    try:
        out = make_page(options.model, options.out)
    except FacemetricError as error:
        raise SystemExit(f"browser_page: {error}") from None
    print(f"the page is in {out}")
    if options.serve:
        with served(out, options.port) as (address, _):
            print(f"open {address}; Ctrl-C ends it")
            try:
                threading.Event().wait()
            except KeyboardInterrupt:
                print()


if __name__ == "__main__":
    main()
