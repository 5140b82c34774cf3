"""Speed and accuracy of weights by every way that runs them: torch, torch.compile, ONNX Runtime, OpenVINO, a browser.

    python tools/bench_export.py faces-96 --lfw data --calibration celeba112.tar

Every way gets the same uint8 crops and does the preprocessing itself. The ways take turns, `--rounds` times; the table
gives medians of images a second by the clock, and for each second of CPU time, which a busy machine changes less. The
accuracy is the folds' mean on LFW's View 2 (`--lfw`: a folder with lfw112.tar and lfw/pairs.txt; where they are not
there the reason is printed, and speeds alone are measured), or on any `--pairs` of `--data`. int8 takes its ranges from
crops of `--calibration`, which are no test images.
Good: ONNX Runtime above torch, float32 with torch's accuracy to four digits, int8 within its interval.
A way that this machine lacks is left out, and the reason is printed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from facemetric.commands.evaluating.inputs import list_pairs
from facemetric.commands.export import (
    accuracies,
    describe,
    drawn_crops,
    export_openvino,
    in_batches,
    sample_crops,
)
from facemetric.config import ExportConfig
from facemetric.data.index import read_index
from facemetric.data.pairs import read_pairs
from facemetric.errors import ConfigError, FacemetricError
from facemetric.files import write_text_whole
from facemetric.model.onnx.export import CropEmbedder, OnnxEmbedder, export_onnx, quantize_onnx
from facemetric.model.weights.folder import find_weights
from facemetric.model.weights.save_load import load_embedder

WAYS = ("torch", "torch.compile", "onnx", "onnx int8", "openvino", "browser")
MOST = 64  # images between two looks at the clock
TICKS = os.sysconf("SC_CLK_TCK")
Crops = npt.NDArray[np.uint8]
Embed = Callable[[Crops], npt.NDArray[np.float32]]


@dataclass
class Way:
    """A model at work: `embed` crops, the seconds of CPU time that were used so far, how to use so many threads.

    `again` embeds the crops of the last call so many times more, where the model is: of a browser, without the way
    there and back."""

    name: str
    embed: Embed
    cpu: Callable[[], float] = time.process_time
    use: Callable[[int], None] = lambda threads: None
    again: Callable[[int], None] | None = None


@dataclass(frozen=True)
class Speed:
    """Images a second of a way, by the clock and by CPU time: medians over the rounds."""

    way: str
    batch: int
    cores: int
    per_second: float
    per_cpu_second: float


def torch_way(weights: Path, side: int, *, compiled: bool) -> Way:
    """Our own network behind its preprocessing, eager or compiled."""
    module: Any = CropEmbedder(load_embedder(weights), side=side).eval()
    module = torch.compile(module) if compiled else module

    def embed(crops: Crops) -> npt.NDArray[np.float32]:
        with torch.inference_mode():
            return np.asarray(module(torch.from_numpy(crops)))

    return Way("torch.compile" if compiled else "torch", embed, use=torch.set_num_threads)


def onnx_way(name: str, file: Path) -> Way:
    """ONNX Runtime on the CPU."""
    sessions = {threads: OnnxEmbedder(file, threads=threads) for threads in (1, 2)}
    way = Way(name, lambda crops: crops)  # type: ignore[arg-type, return-value]

    def use(threads: int) -> None:
        model = sessions[threads]
        way.embed = lambda crops: model.session.run(None, {model.input.name: crops})[0]

    use(2)
    way.use = use
    return way


def openvino_way(onnx_file: Path, folder: Path) -> Way:
    """OpenVINO on the CPU, in float32."""
    file = export_openvino(onnx_file, folder / "model.xml")
    import openvino

    core = openvino.Core()
    options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32"}
    models = {n: core.compile_model(str(file), "CPU", options | {"INFERENCE_NUM_THREADS": n}) for n in (1, 2)}
    way = Way("openvino", lambda crops: crops)  # type: ignore[arg-type, return-value]

    def use(threads: int) -> None:
        way.embed = lambda crops: models[threads](crops)[0]

    use(2)
    way.use = use
    return way


@contextmanager
def browser_way(onnx_file: Path, folder: Path) -> Iterator[Way]:
    """A headless Chromium with the page of tools/browser_page.py, which embeds crops that it fetches by loopback."""
    import shutil

    from browser_page import make_page, served

    driver, chromium = shutil.which("chromedriver"), shutil.which("chromium")
    if driver is None or chromium is None:
        raise ConfigError("no chromium or chromedriver on the PATH")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    page = make_page(onnx_file, folder / "page")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in ("--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"):
        options.add_argument(flag)
    service = Service(driver)
    chrome = webdriver.Chrome(options=options, service=service)
    try:
        with served(page) as (address, _):
            chrome.set_script_timeout(600)
            chrome.get(address)
            way = Way("browser", lambda crops: crops, cpu=lambda: cpu_of(service.process.pid))  # type: ignore[arg-type, return-value]

            def use(threads: int) -> None:
                script = OPEN.replace("THREADS", str(threads))
                if failed := chrome.execute_async_script(script):
                    raise ConfigError(f"the page cannot open the model: {failed}")

            def embed(crops: Crops) -> npt.NDArray[np.float32]:
                (page / "crops.bin").write_bytes(crops.tobytes())
                found = chrome.execute_async_script(EMBED, len(crops))
                if isinstance(found, str):
                    raise ConfigError(f"the page cannot embed: {found}")
                return np.array(found, np.float32).reshape(len(crops), -1)

            def again(times: int) -> None:
                if failed := chrome.execute_async_script(AGAIN, times):
                    raise ConfigError(f"the page cannot embed: {failed}")

            use(2)
            way.embed, way.use, way.again = embed, use, again
            yield way
    finally:
        chrome.quit()


OPEN = """
const done = arguments[0];
(async () => {
  const { openModel } = await import("./page.js");
  window.bench = await openModel(await (await fetch("./model.onnx")).arrayBuffer(), { threads: THREADS });
})().then(() => done(""), (error) => done(String(error)));
"""
EMBED = """
const [count, done] = arguments;
(async () => {
  window.crops = new Uint8Array(await (await fetch("./crops.bin")).arrayBuffer());
  window.count = count;
  return Array.from(await window.bench.embed(window.crops, count));
})().then(done, (error) => done(String(error)));
"""
AGAIN = """
const [times, done] = arguments;
(async () => {
  for (let i = 0; i < times; i++) await window.bench.embed(window.crops, window.count);
})().then(() => done(""), (error) => done(String(error)));
"""


def cpu_of(pid: int) -> float:
    """Seconds of CPU time of a process and of all that came from it and live, by /proc."""
    parents, seconds = {}, {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                text = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents[int(folder.name)] = int(text[1])
            seconds[int(folder.name)] = (int(text[11]) + int(text[12])) / TICKS

    def below(one: int) -> bool:
        while one in parents and one != pid:
            one = parents[one]
        return one == pid

    return sum(value for one, value in seconds.items() if below(one))


def open_ways(
    weights: Path, names: list[str], folder: Path, side: int, calibration: Crops | None, stack: ExitStack
) -> list[Way]:
    """The ways that this machine has; why another is left out is printed."""
    onnx_file = folder / "model.onnx"
    export_onnx(
        onnx_file, load_embedder(weights), side=side, metadata=describe(weights, ExportConfig(side=side))
    )

    def int8() -> Way:
        if calibration is None:
            raise ConfigError("give --calibration, crops that are no test images")
        return onnx_way(
            "onnx int8", quantize_onnx(onnx_file, folder / "model_int8.onnx", in_batches(calibration))
        )

    makers: dict[str, Callable[[], Way]] = {
        "torch": lambda: torch_way(weights, side, compiled=False),
        "torch.compile": lambda: torch_way(weights, side, compiled=True),
        "onnx": lambda: onnx_way("onnx", onnx_file),
        "onnx int8": int8,
        "openvino": lambda: openvino_way(onnx_file, folder),
        "browser": lambda: stack.enter_context(browser_way(onnx_file, folder)),
    }
    found = []
    for name in names:
        try:
            way = makers[name]()
            way.embed(drawn_crops(2, side))
        except Exception as error:  # a package, a compiler, a browser: each has errors of its own
            print(
                f"{name} is left out: {(str(error).strip().splitlines() or [type(error).__name__])[0][:160]}"
            )
        else:
            found.append(way)
    return found


def measure(
    ways: list[Way], crops: Crops, *, batches: list[int], cores: list[int], rounds: int, seconds: float
) -> list[Speed]:
    """Speeds of all ways, which take turns."""
    seen: dict[tuple[str, int, int], list[tuple[float, float]]] = {}
    for _ in range(rounds):
        for threads in cores:
            for way in ways:
                way.use(threads)
                for batch in batches:
                    images = np.ascontiguousarray(np.resize(crops, (batch, *crops.shape[1:])))
                    way.embed(images)  # the first call of a shape compiles, or takes memory
                    seen.setdefault((way.name, batch, threads), []).append(paced(way, images, seconds))
    return [
        Speed(*key, *(statistics.median(one) for one in zip(*found, strict=True)))
        for key, found in sorted(seen.items(), key=lambda one: (WAYS.index(one[0][0]), one[0][2], one[0][1]))
    ]


def paced(way: Way, images: Crops, seconds: float) -> tuple[float, float]:
    """(images a second, images a second of CPU time) of one way, over `seconds` of CPU time."""
    times = max(1, MOST // len(images))
    clock, cpu, count = time.perf_counter(), way.cpu(), 0
    while count == 0 or way.cpu() - cpu < seconds:
        if way.again is not None:
            way.again(times)
        else:
            for _ in range(times):
                way.embed(images)
        count += times * len(images)
    return count / (time.perf_counter() - clock), count / max(way.cpu() - cpu, 1 / TICKS)


def table(speeds: list[Speed], accuracy: dict[str, float]) -> str:
    """The figures as a table of Markdown."""
    lines = ["| way | cores | batch | images/s | images/s of CPU | accuracy |", "|---|---|---|---|---|---|"]
    for one in speeds:
        measured = f"{accuracy[one.way]:.4f}" if one.way in accuracy else "not measured"
        lines.append(
            f"| {one.way} | {one.cores} | {one.batch} | {one.per_second:.0f} | {one.per_cpu_second:.0f} | {measured} |"
        )
    return "\n".join(lines)


def bench(options: argparse.Namespace) -> tuple[list[Speed], dict[str, float]]:
    """Open the ways, measure them, and score the pairs where there are some."""
    folder: Path = options.out
    folder.mkdir(parents=True, exist_ok=True)
    data, pairs = options.data, options.pairs
    if options.lfw:
        data, pairs = lfw_in(options.lfw) or (data, pairs)
    index = read_index([data]) if data else None
    crops = drawn_crops(64, options.side) if index is None else sample_crops(index, 64, options.side)
    calibration = (
        sample_crops(read_index([options.calibration]), 256, options.side) if options.calibration else None
    )
    with ExitStack() as stack:
        ways = open_ways(
            find_weights(options.weights), options.ways, folder, options.side, calibration, stack
        )
        speeds = measure(
            ways,
            crops,
            batches=options.batches,
            cores=options.cores,
            rounds=options.rounds,
            seconds=options.seconds,
        )
        print(table(speeds, {}), flush=True)  # the accuracy may take an hour
        accuracy: dict[str, float] = {}
        if pairs and index is not None:
            listed = list_pairs(read_pairs(Path(pairs)), index, folder)
            for way in ways:
                way.use(max(options.cores))
            embeds: list[Embed] = [in_pieces(way) for way in ways]
            found = accuracies(listed, index, options.side, embeds)
            accuracy = dict(zip((way.name for way in ways), found, strict=True))
    return speeds, accuracy


def lfw_in(folder: Path) -> tuple[str, str] | None:
    """LFW's crops and the pairs of View 2 in a folder; None, and a printed reason, where one of them is not there."""
    files = folder / "lfw112.tar", folder / "lfw" / "pairs.txt"
    missing = [str(file) for file in files if not file.is_file()]
    if missing:
        print(f"no accuracy on LFW: {' and '.join(missing)} not there")
        return None
    return str(files[0]), str(files[1])


def in_pieces(way: Way) -> Embed:
    """A way over many crops, 32 at a time."""
    return lambda crops: np.concatenate([way.embed(np.ascontiguousarray(part)) for part in in_batches(crops)])


def parse(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("weights")
    parser.add_argument("--data", default="", help="aligned crops; drawn faces where none are named")
    parser.add_argument("--pairs", default="", help="pairs of images of --data: accuracy is measured on them")
    parser.add_argument(
        "--lfw", type=Path, help="folder of lfw112.tar and lfw/pairs.txt, for --data and --pairs"
    )
    parser.add_argument("--calibration", default="", help="other crops, which give the ranges of int8")
    parser.add_argument("--side", type=int, default=112)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 64])
    parser.add_argument("--cores", nargs="+", type=int, choices=(1, 2), default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="CPU time of one measurement")
    parser.add_argument("--out", type=Path, default=Path("runs/bench_export"))
    return parser.parse_args(words)


def main() -> None:
    options = parse()
    try:
        speeds, accuracy = bench(options)
    except FacemetricError as error:
        raise SystemExit(f"bench_export: {error}") from None
    record = {"speeds": [asdict(one) for one in speeds], "accuracy": accuracy}
    write_text_whole(options.out / "bench_export.json", json.dumps(record, indent=2) + "\n")
    print(table(speeds, accuracy))


if __name__ == "__main__":
    main()
