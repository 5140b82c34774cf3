"""The pen of the drawn faces: colours and curves in face units, laid onto a picture under one pose.

The head is half an ellipsoid: inner features lie on it and shift when it turns, the outline does not.
Shapes: P points of a curve, columns x and y in face units (see `drawn_traits`).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from facemetric.data.drawn.traits import Identity, Nuisance

Colour = tuple[int, ...]
Soft = tuple[np.ndarray, float]  # pixels of a shape, strength 0..1

_HEAD_DEPTH, _HEAD_HEIGHT = 0.62, 1.12  # of the ellipsoid: a turn by 0.3 rad moves the nose by 0.2
_SOFT = 3  # soft shade is drawn this many times smaller: the blur hides it
_SKIN = np.array(
    [(253, 226, 208), (242, 203, 172), (224, 176, 138), (190, 137, 99), (146, 98, 68), (98, 64, 48)]
)
_HAIR = np.array([(24, 20, 22), (58, 38, 28), (104, 66, 40), (150, 72, 38), (206, 166, 100), (176, 172, 168)])
_IRIS = np.array([(62, 38, 24), (112, 74, 40), (98, 112, 62), (70, 120, 160), (130, 150, 166)])


def ramp(stops: np.ndarray, at: float) -> np.ndarray:
    """The colour at `at` (0..1) of an evenly spaced colour ramp: float (3,) in 0..255."""
    step = min(int(at * (len(stops) - 1)), len(stops) - 2)
    part = at * (len(stops) - 1) - step
    return stops[step] * (1 - part) + stops[step + 1] * part


def skin_colour(face: Identity) -> np.ndarray:
    """Float (3,) in 0..255."""
    return ramp(_SKIN, face.skin_tone) * (1 + 0.05 * face.skin_red, 1.0, 1 - 0.05 * face.skin_red)


def hair_colour(face: Identity) -> np.ndarray:
    """Float (3,) in 0..255."""
    return ramp(_HAIR, face.hair_tone * (1 - 0.75 * face.skin_tone))


def iris_colour(face: Identity) -> np.ndarray:
    """Float (3,) in 0..255."""
    return ramp(_IRIS, face.iris_tone * (1 - 0.7 * face.skin_tone))


def paint(colour: np.ndarray, factor: float = 1.0, alpha: float = 1.0) -> Colour:
    """A colour made lighter or darker by `factor`, as the RGBA whole numbers that Pillow wants."""
    red, green, blue = colour.tolist()  # plain floats: quicker than numpy's one by one
    return (
        min(255, int(red * factor)),
        min(255, int(green * factor)),
        min(255, int(blue * factor)),
        min(255, int(alpha * 255)),
    )


@lru_cache(maxsize=32)
def _spline_basis(n: int, closed: bool, steps: int) -> np.ndarray:
    """Catmull-Rom as a matrix (P, n): smooth curve = basis @ control points."""
    t = np.arange(steps) / steps
    weights = 0.5 * np.stack(
        [-t + 2 * t**2 - t**3, 2 - 5 * t**2 + 3 * t**3, t + 4 * t**2 - 3 * t**3, -(t**2) + t**3]
    )
    spans = n if closed else n - 1
    basis = np.zeros((spans * steps + (not closed), n))
    for span in range(spans):
        for k in range(4):
            at = (span + k - 1) % n if closed else min(max(span + k - 1, 0), n - 1)
            basis[span * steps : (span + 1) * steps, at] += weights[k]
    if not closed:
        basis[-1, n - 1] = 1
    return basis


def smooth(control: list[tuple[float, float]], *, closed: bool = True, steps: int = 5) -> np.ndarray:
    """A smooth curve (P, 2) through the control points."""
    return _spline_basis(len(control), closed, steps) @ np.array(control)


def mirrored(half: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Control points of a symmetric shape from its right half: that half, then the left one back."""
    return half + [(-x, y) for x, y in reversed(half) if x != 0]


@lru_cache(maxsize=8)
def _circle(n: int) -> np.ndarray:
    angle = np.arange(n) * (2 * np.pi / n)
    return np.stack([np.cos(angle), np.sin(angle)], 1)


def oval(x: float, y: float, rx: float, ry: float, n: int = 20) -> np.ndarray:
    """An ellipse as points (n, 2)."""
    return _circle(n) * (rx, ry) + (x, y)


def ribbon(curve: np.ndarray, thick: np.ndarray | float, *, upright: bool = False) -> np.ndarray:
    """A closed band around a curve, `thick` high (or wide, where the curve runs upright)."""
    half = np.zeros_like(curve)
    half[:, 0 if upright else 1] = np.asarray(thick) / 2
    return np.concatenate([curve - half, (curve + half)[::-1]])


class Pen:
    """Draws face-unit curves onto a picture under one pose."""

    def __init__(self, face: Identity, scene: Nuisance, side: int) -> None:
        self.side = side
        self.image = Image.new("RGB", (side, side))
        self.draw = ImageDraw.Draw(self.image, "RGBA")
        self._unit = scene.scale * side  # pixels
        cos, sin = np.cos(scene.roll), np.sin(scene.roll)
        self._spin = np.array([[cos, sin], [-sin, cos]]) * self._unit
        self._centre = np.array([0.5 + scene.shift_x, 0.5 + scene.shift_y]) * side
        self._turned = np.diag(np.cos([scene.yaw, scene.pitch])) @ self._spin
        self._forward = np.sin([scene.yaw, scene.pitch]) @ self._spin  # pixels per unit in front of the ears
        self._radii = np.array([face.head_width, _HEAD_HEIGHT]) ** -2.0

    def flat(self, curve: np.ndarray, forward: np.ndarray | float = 0.0) -> np.ndarray:
        """Pixels of points of the head's outline, `forward` units in front of the ears."""
        return curve @ self._spin + self._centre + np.multiply.outer(forward, self._forward)

    def on_face(self, curve: np.ndarray, lift: float = 0.0) -> np.ndarray:
        """Pixels of points on the face, `lift` units in front of its surface."""
        depth = _HEAD_DEPTH * np.sqrt(np.maximum(1 - (curve * curve) @ self._radii, 0)) + lift
        return curve @ self._turned + self._centre + depth[:, None] * self._forward

    def fill(self, pixels: np.ndarray, colour: Colour) -> None:
        self.draw.polygon(pixels.ravel().tolist(), fill=colour)

    def shape(self, curve: np.ndarray, colour: Colour, lift: float = 0.0) -> None:
        self.fill(self.on_face(curve, lift), colour)

    def line(self, pixels: np.ndarray, colour: Colour, width: float) -> None:
        """`width` is a share of the picture's side."""
        self.draw.line(pixels.ravel().tolist(), fill=colour, width=max(1, round(width * self.side)))

    def soft(self, shapes: list[Soft], colour: Colour, blur: float, within: np.ndarray) -> None:
        """Shapes laid on with soft edges, kept inside the polygon `within`."""
        small = self.side // _SOFT
        mask, inside = Image.new("L", (small, small)), Image.new("L", (small, small))
        draw = ImageDraw.Draw(mask)
        for pixels, strength in shapes:
            draw.polygon((pixels / _SOFT).ravel().tolist(), fill=int(255 * strength))
        mask = mask.filter(ImageFilter.BoxBlur(float(blur * self._unit / _SOFT)))
        ImageDraw.Draw(inside).polygon((within / _SOFT).ravel().tolist(), fill=255)
        mask = ImageChops.multiply(mask, inside).resize((self.side, self.side), Image.Resampling.BILINEAR)
        self.image.paste(colour[:3], (0, 0), mask)
