"""How well faces are found: crops recognised and refused, pictures of other things, recall and landmark error.

    python tools/measure_faces.py DATA [--images 400] [--weights faces-112]

DATA holds lfw112.tar, fiw112.tar, pins112.tar and orl.tar, aligned or nearly (tests/README.md); mnist/ where there is
one. Photographs are made of LFW's crops, laid turned and scaled on a picture of smooth noise, so that the truth is
known; they have no bodies and no background of a room, which makes them easier than true ones in some ways (nothing
there looks like a face) and harder in others (a face with a sharp square edge). Landmark errors contain how far the
crops themselves lie off the template. With --weights, the error on LFW's pairs as the worst crops are left out.
"""

from __future__ import annotations

import argparse
import gzip
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import sklearn.datasets
import torch
from PIL import Image

from facemetric.data.images import decode
from facemetric.data.index import read_index
from facemetric.evaluation.embed import embed_index
from facemetric.faces.crop_look import crop_looks
from facemetric.faces.crops import Face, find_faces
from facemetric.faces.quality import quality_of
from facemetric.faces.template import SIDE, TEMPLATE, apply_map, invert, to_crop
from facemetric.model.weights.folder import find_weights
from facemetric.model.weights.save_load import load_embedder

CANVAS = 400  # side of the made photographs, pixels
GREY = (127, 127, 127)


def crops_of(data: Path, name: str, count: int) -> list[Image.Image]:
    """Crops of a tar, drawn with a fixed seed."""
    index = read_index(data / f"{name}.tar")
    rows = np.random.default_rng(1).choice(len(index), min(count, len(index)), replace=False)
    return [decode(index.read(row)) for row in sorted(rows.tolist())]


def turned(degrees: float, scale: float, to: Sequence[float] | np.ndarray) -> np.ndarray:
    """(2, 3): a crop, turned and scaled about its middle, that lies at a place of the photograph."""
    c, s = scale * np.cos(np.radians(degrees)), scale * np.sin(np.radians(degrees))
    turn = np.array([[c, -s], [s, c]])
    return np.column_stack([turn, np.array(to) - turn @ np.full(2, (SIDE - 1) / 2)])


def photograph(
    face: Image.Image, there: np.ndarray, rng: np.random.Generator, side: int = CANVAS
) -> Image.Image:
    """The crop laid on a picture of smooth noise. Small faces are averaged down, not sampled."""
    noise = Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8))
    canvas = noise.resize((side, side), Image.Resampling.BICUBIC)
    scale = float(np.sqrt(np.linalg.det(there[:, :2])))
    small = max(1, round(SIDE * min(1, scale)))
    data = invert(there) * (small / SIDE)
    data[:, 2] += (small / SIDE - 1) / 2  # middles of pixels
    data[:, 2] += 0.5 - data[:, :2] @ np.full(2, 0.5)
    layers = [
        layer.resize((small, small), Image.Resampling.BOX).transform(
            (side, side), Image.Transform.AFFINE, tuple(data.ravel().tolist()), Image.Resampling.BICUBIC
        )
        for layer in (face, Image.new("L", face.size, 255))
    ]
    canvas.paste(layers[0], mask=layers[1])
    return canvas


def other_pictures(data: Path, faces: list[Image.Image], count: int) -> dict[str, list[Image.Image]]:
    """Pictures of no face, of faces the wrong way, and of half of a face, 112 x 112."""
    rng = np.random.default_rng(2)
    side = (SIDE, SIDE)
    views = [Image.fromarray(picture) for picture in sklearn.datasets.load_sample_images().images]

    def noise(cells: int) -> Image.Image:
        return Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8)).resize(
            side, Image.Resampling.BICUBIC
        )

    def patch(view: Image.Image) -> Image.Image:
        wide = int(rng.integers(60, 400))
        x, y = int(rng.integers(view.width - wide)), int(rng.integers(view.height - wide))
        return view.crop((x, y, x + wide, y + wide)).resize(side, Image.Resampling.BICUBIC)

    def covered(face: Image.Image, box: tuple[int, int, int, int]) -> Image.Image:
        face = face.copy()
        face.paste(GREY, box)
        return face

    pictures = {
        "plain colours": [
            Image.new("RGB", side, tuple(rng.integers(0, 256, 3).tolist())) for _ in range(count)
        ],
        "noise": [noise(SIDE) for _ in range(count)],
        "smooth noise": [noise(int(rng.integers(3, 30))) for _ in range(count)],
        "a temple and a flower, patches": [patch(views[i % 2]) for i in range(count)],
        "faces upside down": [face.transpose(Image.Transpose.ROTATE_180) for face in faces],
        "faces on their side": [face.transpose(Image.Transpose.ROTATE_90) for face in faces],
        "faces, left half grey": [covered(face, (0, 0, 56, 112)) for face in faces],
        "faces, upper half grey": [covered(face, (0, 0, 112, 62)) for face in faces],
        "faces, lower half grey": [covered(face, (0, 62, 112, 112)) for face in faces],
        "lower half of a face, enlarged": [face.crop((0, 56, 112, 112)).resize(side) for face in faces],
        "an eye, enlarged": [face.crop((56, 20, 112, 76)).resize(side) for face in faces],
    }
    digits = data / "mnist" / "t10k-images-idx3-ubyte.gz"
    if digits.is_file():
        with gzip.open(digits) as file:
            pixels = np.frombuffer(file.read(), np.uint8)[16:].reshape(-1, 28, 28)[:count]
        pictures["MNIST digits, black and white"] = [
            Image.fromarray(255 - p if i % 2 else p).convert("RGB").resize(side) for i, p in enumerate(pixels)
        ]
    return pictures


def show_crops(data: Path, count: int) -> None:
    """Shares of real crops recognised and refused, their quality; then pictures of other things."""
    print(
        "| crops | images | recognised as aligned | refused as a crop | no face in auto | sharpness | quality |"
    )
    print("|---|---|---|---|---|---|---|")
    for name in ("lfw112", "fiw112", "pins112", "orl"):
        crops = crops_of(data, name, count)
        looks = crop_looks(crops)
        qualities = [
            quality_of(crop, look.landmarks, look.score) for crop, look in zip(crops, looks, strict=True)
        ]
        missing = np.mean([found.missing is not None for found in find_faces(crops)])
        sharp, figure = (
            " ".join(
                f"{v:.3g}" for v in np.quantile([getattr(q, part) for q in qualities], (0.05, 0.5, 0.95))
            )
            for part in ("sharpness", "figure")
        )
        refused = np.mean([look.fault != "" for look in looks])
        aligned = np.mean([look.aligned for look in looks])
        print(
            f"| {name} | {len(crops)} | {aligned:.2%} | {refused:.2%} | {missing:.2%} | {sharp} | {figure} |"
        )
    print("\n| pictures | images | taken for a crop | a face found in auto |\n|---|---|---|---|")
    for name, pictures in other_pictures(data, crops_of(data, "lfw112", count), count).items():
        taken = np.mean([look.fault == "" for look in crop_looks(pictures)])
        found = np.mean([found.missing is None for found in find_faces(pictures)])
        print(f"| {name} | {len(pictures)} | {taken:.2%} | {found:.2%} |", flush=True)


def show_photographs(data: Path, count: int) -> None:
    """Recall, landmark error and photographs taken for crops, by face size and by turn."""
    faces = crops_of(data, "lfw112", count)
    print(
        "\n| face width, px | turn, degrees | found | at the right place | error, px of 112 | taken for a crop |"
    )
    print("|---|---|---|---|---|---|")
    sizes = [(wide, (-15, 15)) for wide in (16, 24, 32, 48, 80, 160, 320)]
    turns = [(80, (low, low + 15)) for low in (15, 30, 45, 60, 75, 90, 165)]
    for wide, (low, high) in sizes + turns:
        rng = np.random.default_rng(3)
        scale = wide / 80  # a face is about 80 pixels of its crop wide
        middle = CANVAS / 2
        room = max(0, middle - 56 * scale)
        maps = [
            turned(rng.uniform(low, high), scale, middle + rng.uniform(-room, room, 2) / 2) for _ in faces
        ]
        photos = [photograph(face, there, rng) for face, there in zip(faces, maps, strict=True)]
        found = find_faces(photos)
        errors = [
            min((error(face, there) for face in each.faces), default=np.inf)
            for each, there in zip(found, maps, strict=True)
        ]
        right = np.array(errors) < 10
        taken = np.mean([face.was_crop for each in found for face in each.faces] or [False])
        any_face = np.mean([bool(each.faces) for each in found])
        median = f"{np.median(np.array(errors)[right]):.2f}" if right.any() else "-"
        turn = f"{low}..{high}"
        print(
            f"| {wide} | {turn} | {any_face:.1%} | {right.mean():.1%} | {median} | {taken:.2%} |", flush=True
        )


def error(face: Face, there: np.ndarray) -> float:
    """Mean distance of the template's points from where the face's crop would bring them, pixels of 112."""
    return float(
        np.linalg.norm(
            apply_map(to_crop(face.landmarks), apply_map(there, TEMPLATE)) - TEMPLATE, axis=1
        ).mean()
    )


def show_rejection(data: Path, weights: str) -> None:
    """Accuracy of LFW's View 1 test pairs at one threshold as pairs with the worst crop are left out."""
    lines = [line.split() for line in (data / "lfw" / "pairsDevTest.txt").read_text().splitlines()[1:]]
    pairs = [(f"{p[0]}/{p[0]}_{int(p[1]):04}", f"{p[0]}/{p[0]}_{int(p[2]):04}") for p in lines if len(p) == 3]
    genuine = len(pairs)
    pairs += [
        (f"{p[0]}/{p[0]}_{int(p[1]):04}", f"{p[2]}/{p[2]}_{int(p[3]):04}") for p in lines if len(p) == 4
    ]
    index = read_index(data / "lfw112.tar")
    stems = {Path(index.name(i)).with_suffix("").as_posix(): i for i in range(len(index))}
    rows = np.array([[stems[name] for name in pair] for pair in pairs])
    used, at = np.unique(rows, return_inverse=True)
    at = at.reshape(rows.shape)
    chosen = index.select(used)
    order = {chosen.name(i): i for i in range(len(chosen))}
    place = np.array([order[index.name(int(i))] for i in used])
    embedded = embed_index(load_embedder(find_weights(weights), torch.device("cpu")), chosen)
    table = embedded.table.embeddings[place]
    crops = [decode(chosen.read(int(i))) for i in place]
    figures = np.array(
        [
            quality_of(c, look.landmarks, look.score).figure
            for c, look in zip(crops, crop_looks(crops), strict=True)
        ]
    )
    scores = (table[at[:, 0]] * table[at[:, 1]]).sum(1)
    same = np.arange(len(pairs)) < genuine
    worst = figures[at].min(1)
    threshold = max(scores, key=lambda t: ((scores >= t) == same).mean())
    print(f"\n| left out of {len(pairs)} pairs | error at one threshold | by chance |\n|---|---|---|")
    wrong = (scores >= threshold) != same
    for share in (0, 0.05, 0.1, 0.2, 0.3, 0.5):
        keep = worst >= np.quantile(worst, share)
        print(f"| {share:.0%} | {wrong[keep].mean():.2%} of {keep.sum()} | {wrong.mean():.2%} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--weights", default="")
    parser.add_argument("--only", choices=["crops", "photographs", "rejection"], default="")
    args = parser.parse_args()
    if args.only in ("", "crops"):
        show_crops(args.data, args.images)
    if args.only in ("", "photographs"):
        show_photographs(args.data, args.images)
    if args.weights and args.only in ("", "rejection"):
        show_rejection(args.data, args.weights)


if __name__ == "__main__":
    main()
