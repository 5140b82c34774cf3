"""The features of a drawn face: eyes, brows, nose, mouth and beard.

Shapes: P points of a curve, columns x and y in face units (see `drawn_traits`).
"""

from __future__ import annotations

import numpy as np

from facemetric.data.drawn.pen import (
    Pen,
    Soft,
    hair_colour,
    iris_colour,
    mirrored,
    oval,
    paint,
    ribbon,
    skin_colour,
    smooth,
)
from facemetric.data.drawn.traits import Identity, Nuisance


def _on_side(side: int, right: list[tuple[float, float]]) -> np.ndarray:
    """A smooth open curve given for the right side, on the right (1) or mirrored to the left (-1)."""
    return smooth(right, closed=False) * np.array([side, 1])


def _eye_lids(face: Identity, scene: Nuisance, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Heights of both lids at u in [-1, 1] (nose to temple), as fractions of the eye's half width."""
    opening = face.eye_opening * scene.eye_squint
    round_off = 1 - np.abs(u) ** 2.2
    upper = -opening * 1.2 * round_off * (1 + face.eye_peak * u)
    lower = opening * 0.75 * (1 - u**2)
    return upper, lower


def draw_eyes(pen: Pen, face: Identity, scene: Nuisance) -> None:
    """Both eyes: white, iris cut off by the lids, lashes, and the crease of the upper lid."""
    skin, iris = skin_colour(face), iris_colour(face)
    half = face.eye_width
    cos, sin = np.cos(face.eye_tilt), np.sin(face.eye_tilt)
    u = np.linspace(-1, 1, 13)
    upper, lower = _eye_lids(face, scene, u)
    for side in (-1, 1):

        def at(x: np.ndarray, y: np.ndarray, side: int = side) -> np.ndarray:
            turned = np.stack([(cos * x - sin * y) * side * half, (sin * x + cos * y) * half], 1)
            return turned + np.array([side * face.eye_apart, face.eye_height])

        rim = np.concatenate([at(u, upper), at(u, lower)[::-1]])
        pen.shape(rim, paint(np.array([238, 234, 230]), 0.9 + 0.08 * (1 - face.skin_tone)))
        size = face.iris_size
        for radius, colour in ((size, iris * 0.6), (size * 0.84, iris), (0.2, iris * 0.1)):
            disc = oval(side * scene.gaze_x * 0.8, scene.gaze_y - 0.06, radius, radius, 16)
            lids = _eye_lids(face, scene, np.clip(disc[:, 0], -1, 1))
            pen.shape(at(disc[:, 0], np.clip(disc[:, 1], *lids)), paint(colour))
        glint = oval(side * scene.gaze_x * 0.8 + side * 0.13, -0.16, 0.09, 0.09, 8)
        pen.shape(at(glint[:, 0], glint[:, 1]), paint(np.array([255, 255, 255]), alpha=0.85))
        lash = (0.018 + 0.03 * face.lashes) * (0.5 + 0.5 * np.linspace(0.2, 1, 13))
        pen.shape(ribbon(at(u * 1.04, upper), lash), paint(np.array([34, 22, 20]), alpha=0.9))
        pen.shape(ribbon(at(u, lower), 0.011), paint(skin, 0.55, 0.7))
        if face.crease > 0:
            fold = at(u * 1.02, upper * 1.25 - 0.28 * (1 - 0.4 * u**2))
            pen.shape(ribbon(fold, 0.02), paint(skin, 0.55, 0.25 + 0.6 * face.crease))


def draw_brows(pen: Pen, face: Identity, scene: Nuisance) -> None:
    """Both brows, tapering towards the temples."""
    colour = hair_colour(face) * 0.75
    u = np.linspace(-1, 1, 11)
    thick = face.brow_thick * (1.15 - 0.75 * np.maximum(u, 0) ** 1.5) * (1 - 0.35 * np.maximum(-u, 0) ** 4)
    y = face.eye_height - face.brow_gap - scene.brow_raise + face.brow_tilt * face.brow_length * -u
    y = y - face.brow_arch * (1 - (u - 0.25) ** 2 / 1.5)
    for side in (-1, 1):
        curve = np.stack([side * (face.eye_apart + 0.01 + u * face.brow_length), y], 1)
        pen.shape(ribbon(curve, thick), paint(colour, alpha=face.brow_dark))
        pen.shape(ribbon(curve, thick * 0.5), paint(colour, 0.8, 0.5 * face.brow_dark))


def draw_nose(pen: Pen, face: Identity) -> None:
    """Bridge, tip, wings and nostrils; the tip is in front of the face, so it moves most when the head turns."""
    skin = skin_colour(face)
    top, bottom = face.eye_height + 0.02, face.eye_height + face.nose_length
    wide = face.nose_width
    for side in (-1, 1):
        slim = face.nose_bridge
        flank = [(slim + 0.03, top - 0.1), (slim, top + 0.08), (slim + 0.01, bottom - 0.14)]
        flank_curve = _on_side(side, [*flank, (wide * 0.8, bottom - 0.05)])
        pen.shape(ribbon(flank_curve, 0.02, upright=True), paint(skin, 0.74, 0.45), 0.1)
        wing = [(wide * 0.72, bottom - 0.09), (wide, bottom - 0.03), (wide * 0.92, bottom + 0.03)]
        wing_curve = _on_side(side, [*wing, (wide * 0.6, bottom + 0.035)])
        pen.shape(ribbon(wing_curve, 0.022, upright=True), paint(skin, 0.58, 0.75), 0.1)
        hole = oval(side * wide * 0.5, bottom + 0.022, wide * 0.24, 0.012 + 0.016 * face.nostrils, 12)
        pen.shape(hole, paint(skin, 0.28, 0.35 + 0.6 * face.nostrils), 0.12)
    ridge = np.stack([np.zeros(2), np.array([top, bottom - 0.1])], 1)
    pen.shape(ribbon(ridge, face.nose_bridge, upright=True), paint(skin * 0.7 + 76, alpha=0.3), 0.13)
    tip = face.nose_tip
    pen.shape(oval(0, bottom - 0.04, tip * 0.8, tip * 0.6), paint(skin * 0.7 + 76, alpha=0.4), 0.17)
    low = bottom + 0.015
    under = smooth([(-tip, low), (0, low + 0.005 + tip * 0.4), (tip, low)], closed=False)
    pen.shape(ribbon(under, 0.02), paint(skin, 0.6, 0.6), 0.15)


def draw_mouth(pen: Pen, face: Identity, scene: Nuisance) -> None:
    """Lips, teeth when open, and the folds that a smile deepens."""
    skin = skin_colour(face)
    lips = skin * (0.9 - 0.06 * face.lip_red, 0.72 - 0.36 * face.lip_red, 0.7 - 0.26 * face.lip_red)
    smile, gape = scene.smile, 0.13 * max(scene.mouth_open, 0)
    wide = face.mouth_width * (1 + 0.18 * smile)
    middle = face.eye_height + face.nose_length + face.mouth_gap - 0.02 * smile
    u = np.linspace(-1, 1, 17)
    line = middle - (face.mouth_turn + 0.06 * smile) * u**2
    bell = np.sqrt(np.maximum(1 - u**2, 0))
    bow = face.lip_bow * np.exp(-((u / 0.24) ** 2))
    thin = 1 - 0.25 * max(smile, 0)
    top = line - face.lip_upper * thin * bell * (0.75 + 0.25 * np.cos(4 * u)) + bow
    inner_top, inner_low = line - 0.25 * gape * bell, line + gape * bell
    low = inner_low + face.lip_lower * thin * bell**1.3

    def band(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.concatenate([np.stack([u * wide, a], 1), np.stack([u * wide, b], 1)[::-1]])

    pen.shape(band(inner_top, inner_low), paint(np.array([60, 22, 24])), 0.03)
    if gape > 0.015:
        teeth = np.minimum(inner_low, inner_top + 0.055 * bell)
        pen.shape(band(inner_top, teeth), paint(np.array([236, 230, 220])), 0.03)
    pen.shape(band(top, inner_top), paint(lips, 0.9), 0.03)
    pen.shape(band(inner_low, low), paint(lips), 0.03)
    shine = low - face.lip_lower * thin * bell * 0.6
    shine_curve = np.stack([u * wide * 0.45, shine], 1)
    pen.shape(ribbon(shine_curve, face.lip_lower * 0.2), paint(lips * 0.7 + 76, alpha=0.35), 0.03)
    parting = np.stack([u * wide, inner_top], 1)
    pen.shape(ribbon(parting, 0.016), paint(skin * (0.5, 0.3, 0.3), alpha=0.85), 0.03)
    depth = face.folds + 0.5 * smile
    if depth > 0:
        nose = face.eye_height + face.nose_length
        for side in (-1, 1):
            x = face.nose_width + 0.02
            fold = _on_side(side, [(x, nose - 0.04), (x + 0.1, nose + 0.08), (wide + 0.08, middle)])
            pen.shape(ribbon(fold, 0.02, upright=True), paint(skin, 0.62, min(0.7, 0.55 * depth)))


def draw_beard(pen: Pen, face: Identity, within: np.ndarray) -> None:
    """Beard (before the mouth is drawn) and moustache, as soft shade in the hair's colour."""
    nose = face.eye_height + face.nose_length
    mouth = nose + face.mouth_gap
    wide = face.head_width
    parts: list[Soft] = []
    if face.beard > 0:
        top = 0.12 + 0.5 * (1 - face.beard_low) * (mouth - 0.1)
        cheek = [(0.0, mouth + 0.02), (wide * 0.35, mouth + 0.02), (wide * 0.62, mouth - 0.1)]
        jaw = [(wide * 1.1, top), (wide * 1.1, 0.7), (wide * 0.6, 1.25), (0.0, 1.3)]
        edge = smooth(mirrored([*cheek, *jaw]))
        parts.append((0.5 * (pen.flat(edge) + pen.on_face(edge)), 0.35 + 0.55 * face.beard))
    if face.moustache > 0:
        lip = mouth - face.lip_upper - 0.05
        right = [(0.0, lip - 0.02), (wide * 0.2, lip), (wide * 0.4, mouth + 0.02)]
        curve = smooth([*[(-x, y) for x, y in reversed(right[1:])], *right], closed=False)
        parts.append((pen.on_face(ribbon(curve, 0.09)), 0.4 + 0.6 * face.moustache))
    if parts:
        pen.soft(parts, paint(hair_colour(face) * 0.8 + skin_colour(face) * 0.1), 0.035, within)
