"""Faces beside their best matches, as a page or a picture."""

from __future__ import annotations

import contextlib
import html
import io
from collections.abc import Sequence
from pathlib import Path

from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont, ImageOps

from facemetric.files import write_text_whole, write_whole
from facemetric.gallery.answers import FaceAnswer, PhotoAnswer
from facemetric.gallery.parts import known_quality
from facemetric.report.pictures import PAD, fitting, jpeg_uri

CELL, GAP, TEXT = 112, 8, 420  # pixels: of a face, between, and of the text beside
QUALITY = 88
STYLE = (
    ":root{color-scheme:light dark}"
    "body{font:15px/1.4 system-ui,sans-serif;margin:2em auto;max-width:60em;padding:0 1em;color:#222;background:#fff}"
    "figure{display:flex;flex-wrap:wrap;gap:1em;align-items:center;margin:0 0 1em;padding:1em;border:1px solid #8886;"
    "border-radius:6px}figcaption{flex:1 1 16em}"
    "figure img{width:112px;height:112px;object-fit:cover;border-radius:4px;background:#888}"
    "b{font-size:1.15em}small{color:#555;overflow-wrap:anywhere}"
    "@media (prefers-color-scheme:dark){body{color:#e8e8e5;background:#131416}small{color:#a0a4ac}}"
)


def draw_answers(file: Path, answers: Sequence[PhotoAnswer]) -> Path:
    """Write an .html page or a .png: for each face its crop, the best match's, the answer. The file appears whole."""
    if file.suffix.lower() == ".png":
        return write_whole(file, lambda staged: sheet(answers).save(staged, "PNG"))
    return write_text_whole(file, page(answers))


def page(answers: Sequence[PhotoAnswer]) -> str:
    """The page, with its pictures in it."""
    figures = []
    for answer in answers:
        for face in answer.faces:
            probe, match = (jpeg_uri(picture, QUALITY) for picture in pictures(face))
            first, rest = words(answer, face)
            lines = "<br>".join(f"<small>{html.escape(line)}</small>" for line in rest)
            figures.append(
                f'<figure><img src="{probe}" alt="face of {html.escape(answer.photo)}"><img src="{match}" '
                f'alt="enrolled face of {html.escape(face.matches[0].name)}">'
                f"<figcaption><b>{html.escape(first)}</b><br>{lines}</figcaption></figure>"
            )
        if answer.missing:
            figures.append(f"<p>{html.escape(answer.photo)}: {html.escape(answer.missing)}</p>")
    below = html.escape(answers[0].threshold.text()) if answers else ""
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>Who is it</title><style>{STYLE}</style><body><h1>Who is it</h1><p>Left the photograph's face, right "
        f"the most similar enrolled one.</p>{''.join(figures)}<p><small>{below}</small></p></body></html>\n"
    )


def sheet(answers: Sequence[PhotoAnswer]) -> Image.Image:
    """The picture: a line for each face."""
    rows = [(answer, face) for answer in answers for face in answer.faces]
    step = CELL + GAP
    drawn = Image.new("RGB", (2 * step + TEXT + GAP, max(len(rows), 1) * step + GAP), "white")
    draw = ImageDraw.Draw(drawn)
    large, small = (ImageFont.truetype(findfont("DejaVu Sans"), size) for size in (16, 11))
    for number, (answer, face) in enumerate(rows):
        top = GAP + number * step
        for at, picture in enumerate(pictures(face)):
            drawn.paste(picture, (GAP + at * step, top))
        first, rest = words(answer, face)
        left = GAP + 2 * step
        draw.text((left, top + 8), fitting(first, large, TEXT - GAP), fill="black", font=large)
        for line, text in enumerate(rest):
            place = (left, top + 36 + 18 * line)
            draw.text(place, fitting(text, small, TEXT - GAP), fill=(80, 80, 80), font=small)
    return drawn


def pictures(face: FaceAnswer) -> tuple[Image.Image, Image.Image]:
    """The face and the best match's, squares of CELL pixels; grey where the gallery keeps no pictures."""
    match = Image.new("RGB", (CELL, CELL), PAD)
    with contextlib.suppress(OSError, SyntaxError, ValueError):  # damaged: `gallery check` says so
        if face.crop:
            match = Image.open(io.BytesIO(face.crop), formats=("JPEG",)).convert("RGB")
    return squared(face.face.crop), squared(match)


def squared(picture: Image.Image) -> Image.Image:
    """A picture in a square of CELL pixels."""
    return ImageOps.pad(picture.convert("RGB"), (CELL, CELL), color=PAD)


def words(answer: PhotoAnswer, face: FaceAnswer) -> tuple[str, list[str]]:
    """The answer, and the lines below it."""
    best = face.matches[0]
    first = f"{face.name}, score {best.score:.4f}" if face.name else "Nobody known"
    left, top, right, bottom = face.face.box
    quality = known_quality(face.face.quality)
    rest = [
        f"{answer.photo}, {right - left:.0f} x {bottom - top:.0f} pixels at {left:.0f},{top:.0f}"
        + ("" if quality is None else f", quality {quality:.2f}"),
        f"most similar: {best.name} {best.score:.4f}, threshold {answer.threshold.cosine:.4f}",
        f"enrolled from {face.photos[0]}" if face.photos and face.photos[0] else "",
    ]
    return first, [line for line in rest if line]
