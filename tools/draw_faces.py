"""Draws a folder of faces, and with --sheet one picture of some of them side by side.

    python tools/draw_faces.py faces --identities 300 --images 12 --size 96 --seed 0 --sheet faces.png

Each row of the sheet is one identity, each column one of its pictures.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from PIL import Image

from facemetric.data.drawn.draw import draw_faces
from facemetric.errors import FacemetricError


def contact_sheet(folder: Path, *, rows: int = 8, columns: int = 12, size: int = 96) -> Image.Image:
    """The first pictures of the first identities in `folder`, as drawn by `draw_faces`."""
    identities = sorted(folder.glob("drawn_*"))[:rows]
    files = [sorted(identity.glob("*.jpg"))[:columns] for identity in identities]
    sheet = Image.new("RGB", (max(map(len, files)) * size, len(files) * size))
    for row, row_files in enumerate(files):
        for column, file in enumerate(row_files):
            with Image.open(file) as picture:
                sheet.paste(picture.resize((size, size)), (column * size, row * size))
    return sheet


def main() -> int:
    parser = argparse.ArgumentParser(description="Draw faces: OUT/drawn_0001/0001.jpg and so on.")
    parser.add_argument("out", type=Path, help="folder to write to")
    parser.add_argument("--identities", type=int, default=300)
    parser.add_argument("--images", type=int, default=12, help="pictures of each identity")
    parser.add_argument("--size", type=int, default=96, help="side of a picture in pixels")
    parser.add_argument("--seed", type=int, default=0, help="another seed, another population")
    parser.add_argument("--workers", type=int, default=2, help="processes; the pictures do not depend on it")
    parser.add_argument("--sheet", type=Path, help="write a contact sheet here (png or jpg)")
    args = parser.parse_args()
    numbers = {key: getattr(args, key) for key in ("identities", "images", "size", "seed", "workers")}
    try:
        draw_faces(args.out, **numbers)
        if args.sheet:
            contact_sheet(args.out, columns=args.images, size=args.size).save(args.sheet)
    except (FacemetricError, OSError) as error:
        print(f"draw_faces: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
