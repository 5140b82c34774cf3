"""Finding and aligning faces: ours against facenet-pytorch with the same second look, interleaved.

    python tools/bench_faces.py CROPS.tar [--photographs 96] [--rounds 5] [--side 250]

Photographs are made of the crops (tools/measure_faces.py). The peer looks at one photograph after the other with
facenet-pytorch's MTCNN, then twice at five views of the face turned upright, and cuts it out; ours does the same for
all at once. CPU time on one core, medians over rounds. Good: at least 3 times as fast, and landmarks that differ by at
most 1.5 pixels in the median.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from facenet_pytorch import MTCNN
from measure_faces import crops_of, error, photograph, turned
from PIL import Image

from facemetric.faces.crops import Face, Options, find_faces
from facemetric.faces.mtcnn import NEAR, SEEN
from facemetric.faces.quality import quality_of
from facemetric.faces.template import SIDE, apply_map, chain, cut_out, invert, to_crop

MARGIN = 56  # around the upright face of the peer's second look, template pixels
VIEWS = np.array([[6 + x, 14 + y, 106 + x, 114 + y] for x, y in ((0, 0), (5, 5), (-5, -5), (-5, 5), (5, -5))])
OURS = Options(given="photographs")


class Peer:
    """facenet-pytorch, one photograph after the other, and two rounds of five views of the upright face."""

    def __init__(self) -> None:
        self.net = MTCNN(keep_all=True, min_face_size=24)

    def align(self, image: Image.Image) -> Face | None:
        """The largest face of the photograph."""
        boxes, scores, landmarks = self.net.detect(image, landmarks=True)
        good = [] if boxes is None else [i for i, score in enumerate(scores) if score >= 0.9]
        if not good:
            return None
        points = self._look_again(image, np.asarray(landmarks[good[0]], np.float64))
        crop = cut_out(image, to_crop(points), SIDE)
        return Face(crop, boxes[good[0]], points, float(scores[good[0]]), quality_of(crop, points, 1.0))

    @torch.inference_mode()
    def _look_again(self, image: Image.Image, landmarks: np.ndarray) -> np.ndarray:
        shift = np.array([[1, 0, MARGIN], [0, 1, MARGIN]], float)
        for _ in range(2):
            upright = chain(to_crop(landmarks), shift)
            shown = cut_out(image, upright, SIDE + 2 * MARGIN)
            boxes = (VIEWS + MARGIN).tolist()
            views = [shown.resize((48, 48), Image.Resampling.BILINEAR, box=tuple(box)) for box in boxes]
            pixels = torch.from_numpy(np.stack([np.asarray(view, np.float32) for view in views]))
            _, places, scores = self.net.onet((pixels.permute(0, 3, 1, 2) - 127.5) / 128)
            seen = places.numpy().astype(float).reshape(-1, 2, 5).transpose(0, 2, 1) * 100
            points = np.median(seen + (VIEWS + MARGIN)[:, None, :2], 0)
            moved = np.linalg.norm(points - apply_map(upright, landmarks), axis=1).mean()
            if float(scores[:, 1].mean()) < SEEN or moved > NEAR:
                return landmarks
            landmarks = apply_map(invert(upright), points)
        return landmarks


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("crops", type=Path)
    parser.add_argument("--photographs", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--side", type=int, default=250)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    faces = crops_of(args.crops.parent, args.crops.stem, args.photographs)
    scales = args.side / 250 * rng.uniform(0.6, 1.4, len(faces))
    maps = [turned(rng.uniform(-20, 20), scale, rng.uniform(0.35, 0.65, 2) * args.side) for scale in scales]
    photos = [photograph(f, there, rng, args.side) for f, there in zip(faces, maps, strict=True)]
    peer = Peer()
    peer.align(photos[0])
    find_faces(photos[:8], options=OURS)
    times: dict[str, list[float]] = {"peer": [], "ours": [], "ours, one after the other": []}
    for _ in range(args.rounds):
        start = time.process_time()
        theirs = [peer.align(photo) for photo in photos]
        times["peer"].append(time.process_time() - start)
        start = time.process_time()
        ours = find_faces(photos, options=OURS)
        times["ours"].append(time.process_time() - start)
        start = time.process_time()
        for photo in photos:
            find_faces([photo], options=OURS)
        times["ours, one after the other"].append(time.process_time() - start)
    base = statistics.median(times["peer"])
    for name, seconds in times.items():
        middle = statistics.median(seconds)
        ratios = [a / b for a, b in zip(times["peer"], seconds, strict=True)]
        print(
            f"{name:26} {1e3 * middle / len(photos):6.1f} ms a photograph, {len(photos) / middle:5.1f} a second; "
            f"{base / middle:.2f} times as fast as the peer ({min(ratios):.2f}..{max(ratios):.2f})"
        )
    both = [(a, b.faces[0], there) for a, b, there in zip(theirs, ours, maps, strict=True) if a and b.faces]
    apart = [float(np.linalg.norm(a.landmarks - b.landmarks, axis=1).mean()) for a, b, _ in both]
    print(
        f"found by the peer in {sum(a is not None for a in theirs)}, by ours in {sum(bool(b.faces) for b in ours)} "
        f"of {len(photos)}; landmarks apart by {np.median(apart):.2f} px in the median, "
        f"{np.quantile(apart, 0.95):.2f} at 95 %; off the template, px of 112: "
        f"peer {np.median([error(a, t) for a, _, t in both]):.2f}, "
        f"ours {np.median([error(b, t) for _, b, t in both]):.2f}"
    )


if __name__ == "__main__":
    main()
