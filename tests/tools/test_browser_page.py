"""The page of an exported model in a real Chromium, through loopback: the same cosine as in Python, and no leak.

It needs chromium, chromium-driver and onnxruntime-web (tools/browser_page.py brings it once), and skips where they are
not.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from browser_page import has_runtime, make_page, runtime, served
from browsers import browser
from PIL import Image
from untrained_weights import untrained

from facemetric.commands.export import describe, drawn_crops
from facemetric.config import ExportConfig
from facemetric.errors import ConfigError
from facemetric.model.onnx.export import OnnxEmbedder, export_onnx
from facemetric.model.weights.folder import amend_config
from facemetric.model.weights.save_load import load_embedder

__all__ = ["browser", "untrained"]
METADATA = "facemetric"
PATIENCE = 100  # seconds: a busy machine is no failure


@pytest.fixture(scope="module")
def model(untrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights that expect faces and hold four thresholds, exported."""
    folder = tmp_path_factory.mktemp("model")
    shutil.copytree(untrained, folder / "weights")
    rest = {"tar": 0.7, "images": 90, "identities": 15, "chosen_on": "drawn faces", "flip": False}
    stored = {
        f"{far:g}": {
            "wanted_far": far,
            "threshold": t,
            "threshold_interval_95": [t - 0.01, t + 0.01],
            "far": far,
            **rest,
        }
        for far, t in ((0.1, 0.9), (0.01, 0.99), (0.001, 0.999), (0.0001, 0.99999))
    }
    amend_config(folder / "weights", pictures="faces", thresholds=stored)
    metadata = describe(folder / "weights", ExportConfig(side=112))
    return export_onnx(folder / "model.onnx", load_embedder(folder / "weights"), metadata=metadata)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three drawn faces without a loss, one as a JPEG of twice the size, a photograph's shape, and no picture."""
    folder = tmp_path_factory.mktemp("pictures")
    for i, crop in enumerate(drawn_crops(3, 112)):
        Image.fromarray(crop).save(folder / f"{i}.png")
    Image.open(folder / "0.png").resize((224, 224), Image.Resampling.BICUBIC).save(
        folder / "3.jpg", quality=95
    )
    Image.new("RGB", (640, 480), "grey").save(folder / "4.jpg")
    (folder / "5.jpg").write_bytes(b"no picture")
    return sorted(folder.iterdir())


def needs_runtime() -> None:
    """Skips where onnxruntime-web is not in the cache: a test asks no network for it."""
    if not has_runtime():
        pytest.skip("onnxruntime-web is not in the cache; tools/browser_page.py brings it there")


@pytest.fixture(scope="module")
def site(
    model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """(address, requests so far) of the page."""
    needs_runtime()
    with served(make_page(model, tmp_path_factory.mktemp("site"))) as (address, asked):
        yield address, asked


def opened(browser: Any, address: str) -> Any:
    """The page, ready."""
    from selenium.webdriver.support.ui import WebDriverWait

    browser.get(address)
    ready = "return document.body.dataset.ready || document.getElementById('answer').dataset.state == 'error'"
    WebDriverWait(browser, PATIENCE).until(lambda page: page.execute_script(ready))
    return browser


def answer(page: Any, **files: Path) -> str:
    """What the page says once it has these files."""
    from selenium.webdriver.support.ui import WebDriverWait

    page.execute_script("document.getElementById('answer').dataset.state = ''")
    for name, file in files.items():
        page.find_element("id", name).send_keys(str(file))
    WebDriverWait(page, PATIENCE).until(
        lambda page: page.execute_script("return document.getElementById('answer').dataset.state")
    )
    return str(page.find_element("id", "answer").get_attribute("textContent"))


def test_two_pictures_in_and_the_cosine_of_python_out(
    browser: Any, site: tuple[str, list[tuple[str, str]]], model: Path, pictures: list[Path]
) -> None:
    address, asked = site
    page = opened(browser, address)
    about = page.find_element("id", "about").get_attribute("textContent")
    assert "face crops of 112 x 112 pixels, cut to the template" in about
    crops = np.stack([np.asarray(Image.open(picture).convert("RGB")) for picture in pictures[:3]])
    embedder = OnnxEmbedder(model)
    emb = embedder.embed(crops)
    stored = embedder.metadata["thresholds"]["0.001"]
    text = answer(page, first=pictures[0], second=pictures[0])
    assert text.startswith("Same person\ncosine 1.0000 >= threshold")
    for other in (1, 2):
        text = answer(page, second=pictures[other])
        wanted = float(emb[0] @ emb[other])
        score = float(page.find_element("id", "answer").get_attribute("data-score"))
        assert score == pytest.approx(wanted, abs=1e-4)
        assert text.startswith("Same person" if wanted >= stored["threshold"] else "Different people")
        assert f"threshold {stored['threshold']:.4f} [{stored['threshold_interval_95'][0]:.4f}" in text
        assert stored["chosen_on"] in text
    answer(page, second=pictures[3])  # a JPEG of another size of the same crop
    assert float(page.find_element("id", "answer").get_attribute("data-score")) > 0.95
    # Nothing was sent: the page asked for its own files, and may ask nobody else.
    assert {method for method, _ in asked} == {"GET"}
    sources = page.execute_script(
        "return performance.getEntriesByType('resource').map((entry) => entry.name)"
    )
    assert sources
    assert all(source.startswith((address, "blob:")) for source in sources)
    refused = page.execute_async_script(
        "const done = arguments[0]; fetch('http://127.0.0.2:1/x').then(() => done('sent'), () => done('refused'))"
    )
    assert refused == "refused"
    assert any("Content Security Policy" in line["message"] for line in page.get_log("browser"))
    assert page.execute_script("return crossOriginIsolated")  # so that it may use threads


def test_the_threshold_follows_the_wanted_far(
    browser: Any, site: tuple[str, list[tuple[str, str]]], model: Path, pictures: list[Path]
) -> None:
    page = opened(browser, site[0])
    answer(page, first=pictures[0], second=pictures[1])
    choices = page.execute_script(
        "return [...document.querySelectorAll('#far option')].map((one) => one.textContent)"
    )
    assert choices == ["one in 10", "one in 100", "one in 1,000", "one in 10,000"]
    for number, far in enumerate(("0.1", "0.01", "0.001", "0.0001")):
        page.execute_script(
            "const far = document.getElementById('far'); far.value = arguments[0];"
            "far.dispatchEvent(new Event('change'))",
            str(number),
        )
        text = page.find_element("id", "answer").get_attribute("textContent")
        assert f"threshold {OnnxEmbedder(model).metadata['thresholds'][far]['threshold']:.4f}" in text


def test_what_is_no_crop_is_refused(
    browser: Any, site: tuple[str, list[tuple[str, str]]], pictures: list[Path]
) -> None:
    page = opened(browser, site[0])
    text = answer(page, first=pictures[4])
    assert (
        "4.jpg is 640 x 480 pixels, no square crop. This page finds no faces: cut it first, with facemetric align"
        in text
    )
    assert "5.jpg is no picture that the browser can read" in answer(page, first=pictures[5])


@pytest.mark.parametrize("change", ["elsewhere", "text", "cut", "no thresholds", "no metadata"])
def test_another_model_is_refused(
    browser: Any, site: tuple[str, list[tuple[str, str]]], model: Path, tmp_path: Path, change: str
) -> None:
    file, message = tmp_path / "other.onnx", "The file is no model that facemetric exported"
    proto = onnx.load(model)
    entry = next(entry for entry in proto.metadata_props if entry.key == METADATA)
    if change == "elsewhere":  # other metadata
        entry.value = json.dumps({"crop": [112, 96], "thresholds": {}})
    if change == "no metadata":
        del proto.metadata_props[:]
    if change == "no thresholds":
        entry.value = json.dumps(json.loads(entry.value) | {"thresholds": {}})
        message = "The model holds no threshold"
    onnx.save(proto, file)
    if change == "text":
        file.write_text("no model at all")
    if change == "cut":
        file.write_bytes(file.read_bytes()[:100_000])
    if change in ("text", "cut"):
        message = "The file is no ONNX model"
    assert message in answer(opened(browser, site[0]), model=file)


def test_a_browser_without_simd_is_told(browser: Any, site: tuple[str, list[tuple[str, str]]]) -> None:
    script = {"source": "WebAssembly.validate = () => false;"}
    added = browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", script)
    try:
        page = opened(browser, site[0])
        text = page.find_element("id", "answer").get_attribute("textContent")
    finally:
        browser.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", added)
    assert "This browser has no WebAssembly with SIMD" in text


def test_a_page_without_a_model_or_runtime_says_so(
    browser: Any, site: tuple[str, list[tuple[str, str]]], model: Path, tmp_path: Path
) -> None:
    folder = make_page(model, tmp_path / "site")
    shutil.rmtree(folder / "runtime")
    with served(folder) as (address, _):
        text = opened(browser, address).find_element("id", "answer").get_attribute("textContent")
        assert "ONNX Runtime is not beside this page: python tools/browser_page.py brings it" in text
        (folder / "model.onnx").unlink()
        text = opened(browser, address).find_element("id", "answer").get_attribute("textContent")
        assert "There is no model.onnx beside this page" in text


def in_node(folder: Path, script: str) -> Any:
    """What a script prints as JSON, with the page's own module as `page`, by node: the same WebAssembly, no browser."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("no node on the PATH")
    shutil.copyfile(folder / "page.js", folder / "page.mjs")
    head = 'import fs from "node:fs"; import * as page from "./page.mjs";\n'
    (folder / "script.mjs").write_text(f"{head}{script}\nprocess.exit(0);\n")
    done = subprocess.run([node, "script.mjs"], cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def page_folder(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page in a folder."""
    needs_runtime()
    return make_page(model, tmp_path_factory.mktemp("page"))


def test_webassembly_gives_the_vectors_of_onnx_runtime(page_folder: Path, model: Path) -> None:
    """The preprocessing in the graph too: crops go in as they are."""
    crops = np.random.default_rng(0).integers(0, 256, (3, 112, 112, 3)).astype(np.uint8)
    crops[:2] = drawn_crops(2, 112)
    (page_folder / "crops.bin").write_bytes(crops.tobytes())
    found = in_node(
        page_folder,
        """const model = await page.openModel(fs.readFileSync("model.onnx"), { threads: 1 });
        const vectors = await model.embed(new Uint8Array(fs.readFileSync("crops.bin")), 3);
        const size = vectors.length / 3;
        const score = page.cosine(vectors.slice(0, size), vectors.slice(size, 2 * size));
        const { metadata } = model;
        console.log(JSON.stringify({ vectors: Array.from(vectors), score, metadata, side: model.side,
                                     answer: page.answer(score, metadata.thresholds["0.1"]) }));""",
    )
    embedder = OnnxEmbedder(model)
    emb = embedder.embed(crops)
    np.testing.assert_allclose(np.reshape(found["vectors"], emb.shape), emb, atol=1e-5)
    assert found["score"] == pytest.approx(float(emb[0] @ emb[1]), abs=1e-5)
    assert (found["metadata"], found["side"]) == (embedder.metadata, 112)
    assert found["answer"]["same"] == (found["score"] >= 0.9)
    assert "threshold 0.9000 [0.8900, 0.9100]" in found["answer"]["text"]
    assert "measured on 90 images of 15 people: drawn faces" in found["answer"]["text"]


def test_files_that_are_no_model_of_ours_are_told_apart(page_folder: Path, model: Path) -> None:
    proto = onnx.load(model)
    entry = next(entry for entry in proto.metadata_props if entry.key == METADATA)
    entry.value = json.dumps({"crop": [112, 96], "thresholds": {}})
    onnx.save(proto, page_folder / "other.onnx")
    del proto.metadata_props[:]
    onnx.save(proto, page_folder / "elsewhere.onnx")
    (page_folder / "text.onnx").write_text("no model at all")
    (page_folder / "cut.onnx").write_bytes(model.read_bytes()[:100_000])
    found = in_node(
        page_folder,
        """const found = {};
        for (const name of ["other", "elsewhere", "text", "cut"]) {
          await page.openModel(fs.readFileSync(`${name}.onnx`)).catch((error) => { found[name] = error.message; });
        }
        WebAssembly.validate = () => false;
        await page.openModel(fs.readFileSync("model.onnx")).catch((error) => { found.simd = error.message; });
        console.log(JSON.stringify(found));""",
    )
    for name in ("other", "elsewhere"):
        assert found[name].startswith("The file is no model that facemetric exported")
    for name in ("text", "cut"):
        assert found[name].startswith("The file is no ONNX model")
    assert found["simd"].startswith("This browser has no WebAssembly with SIMD")


def test_the_folder_needs_a_model_and_npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"gone\.onnx: no such file; make it with facemetric export"):
        make_page(tmp_path / "gone.onnx", tmp_path / "out")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ConfigError, match="npm is missing, which brings onnxruntime-web"):
        runtime(tmp_path)
