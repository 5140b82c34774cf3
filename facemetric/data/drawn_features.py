"""The parts of a drawn face, from the background to the glasses, each drawn with the pen of `drawn_pen`.

Shapes: P points of a curve, columns x and y in face units (see `drawn_traits`).
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from facemetric.data.drawn_pen import Pen, oval, paint, ramp, ribbon, smooth
from facemetric.data.drawn_traits import Identity, Nuisance

_SKIN = np.array([(253, 226, 208), (242, 203, 172), (224, 176, 138), (190, 137, 99), (146, 98, 68), (98, 64, 48)])
_HAIR = np.array([(24, 20, 22), (58, 38, 28), (104, 66, 40), (150, 72, 38), (206, 166, 100), (176, 172, 168)])
_IRIS = np.array([(62, 38, 24), (112, 74, 40), (98, 112, 62), (70, 120, 160), (130, 150, 166)])


def skin_colour(face: Identity) -> np.ndarray:
    """Float (3,) in 0..255."""
    return ramp(_SKIN, face.skin_tone) * (1 + 0.05 * face.skin_red, 1.0, 1 - 0.05 * face.skin_red)


def hair_colour(face: Identity) -> np.ndarray:
    """Float (3,) in 0..255."""
    return ramp(_HAIR, face.hair_tone * (1 - 0.75 * face.skin_tone))


def head_outline(face: Identity) -> np.ndarray:
    """The outline of the head (P, 2), clockwise from the crown."""
    w = face.head_width
    right = [
        (w * face.forehead_width * 0.55, -0.98),
        (w * face.forehead_width * 0.95, -0.66),
        (w, -0.2),
        (w * face.cheek_width, 0.2),
        (w * (0.45 * face.cheek_width + 0.55 * face.jaw_width), 0.5),
        (w * face.jaw_width * 0.82, 0.74 * face.chin_drop),
        (w * face.chin_width, 0.96 * face.chin_drop),
    ]
    left = [(-x, y) for x, y in reversed(right)]
    return smooth([(0, -1.06), *right, (0, face.chin_drop), *left])


def hair_cap(face: Identity, n: int = 41) -> np.ndarray:
    """The upper edge of the hair (n, 2), from the left ear over the crown to the right ear."""
    angle = np.linspace(-1.5, 1.5, n)
    curl = 1 + face.hair_wave * np.sin(face.hair_curls * angle + face.hair_parting * 5)
    wide = face.head_width * 1.01 + 0.6 * face.hair_volume
    high = 1.0 + face.hair_volume
    return np.stack([wide * np.sin(angle) * curl, -0.15 - high * np.cos(angle) * curl], 1)


def hairline(face: Identity, n: int = 41) -> np.ndarray:
    """The lower edge of the hair on the face (n, 2), from left to right."""
    u = np.linspace(-1, 1, n)
    away = np.abs(u - face.hair_parting)
    y = -face.hairline + face.hair_sweep * away**1.5
    y = y + 0.8 * face.hair_wave * np.sin(face.hair_curls * 2.2 * u + face.hair_parting * 9)
    y = np.minimum(y, -0.38)  # keeps the fringe off the eyes
    y = y + (face.hair_sides - y) * np.abs(u) ** 9
    edge = np.interp(y, [-0.98, -0.66, -0.2], [0.52 * face.forehead_width, 0.92 * face.forehead_width, 0.98])
    return np.stack([u * face.head_width * edge, y], 1)  # inside the outline, so that no gap shows at the temples


def draw_background(pen: Pen, scene: Nuisance) -> None:
    """A blurred room: a few random colours spread smoothly, with some hard-edged things in it."""
    rng = np.random.default_rng(scene.pattern)
    cells = rng.uniform(0, 255, (rng.integers(2, 6), rng.integers(2, 6), 3))
    room = Image.fromarray((cells * 0.4 + cells.mean(2, keepdims=True) * 0.6).astype(np.uint8))
    small = room.resize((pen.side // 4, pen.side // 4), Image.Resampling.BICUBIC)
    pen.image.paste(small.resize(pen.image.size, Image.Resampling.BILINEAR))
    for _ in range(rng.integers(0, 5)):
        corners = rng.uniform(-0.2, 1.2, (4, 2)) * pen.side
        pen.fill(corners, paint(rng.uniform(0, 255) * rng.uniform(0.6, 1.1, 3), alpha=rng.uniform(0.3, 1)))


def draw_body(pen: Pen, face: Identity, scene: Nuisance) -> None:
    """Shoulders in the clothes of the day, the hair behind the head, and the neck."""
    hue = scene.clothes_hue * 2 * np.pi
    clothes = 255 * scene.clothes_tone * (0.75 + 0.25 * np.cos(hue + np.array([0, 2.1, 4.2])))
    shoulders = [(-2.2, 2.6), (-1.75, 1.72), (-0.75, 1.4), (0.75, 1.4), (1.75, 1.72), (2.2, 2.6)]
    pen.fill(pen.flat(smooth(shoulders, closed=False)), paint(clothes))
    cap = hair_cap(face)
    if face.hair_length > 0.1:
        wide = face.head_width + 0.75 * face.hair_volume
        drop = [(wide * 1.05, 0.2), (wide * 1.08, face.hair_length * 0.7 + 0.2), (wide * 0.75, face.hair_length + 0.2)]
        sides = smooth([*drop, *[(-x, y) for x, y in reversed(drop)]], closed=False)
        pen.fill(pen.flat(np.concatenate([cap, sides])), paint(hair_colour(face), 0.72))
    thick = face.head_width * (0.42 + 0.2 * face.jaw_width)
    neck = smooth(
        [(-thick, 0.5), (-thick, 1.1), (-thick * 1.35, 1.5), (0, 1.75), (thick * 1.35, 1.5), (thick, 1.1), (thick, 0.5)]
    )
    pen.fill(pen.flat(neck), paint(skin_colour(face), 0.72))
    chin = face.chin_drop
    half = [(-thick, 0.5), (-thick, chin), (-thick * 0.6, chin + 0.13), (0, chin + 0.19)]
    cast = smooth([*half, *[(-x, y) for x, y in reversed(half[:-1])]])
    pen.fill(pen.flat(cast), paint(skin_colour(face), 0.5))


def draw_head(pen: Pen, face: Identity) -> np.ndarray:
    """Ears and the bare head. Returns an outline in pixels, a touch wider, that soft shade stays inside."""
    skin = skin_colour(face)
    for side in (-1, 1):
        x = side * (face.head_width + face.ear_out * 0.6 - 0.01)
        size = face.ear_size
        pen.fill(pen.flat(oval(x, face.ear_height + 0.08, size * 0.42 + face.ear_out * 0.4, size)), paint(skin, 0.88))
        pen.fill(pen.flat(oval(x, face.ear_height + 0.08, size * 0.2, size * 0.65)), paint(skin, 0.72))
    outline = head_outline(face)
    forward = 0.3 * np.maximum(outline[:, 1] - 0.3, 0)  # the chin stands in front of the ears
    pen.fill(pen.flat(outline, forward), paint(skin))
    return pen.flat(outline * 1.02, forward)


def draw_shading(pen: Pen, face: Identity, within: np.ndarray) -> None:
    """Soft shade of sockets, cheeks and jaw, and the light on forehead and nose."""
    skin = skin_colour(face)
    y, nose = face.eye_height, face.eye_height + face.nose_length
    shade: list[tuple[np.ndarray, float]] = []
    for side in (-1, 1):
        x = side * face.eye_apart
        shade.append((pen.on_face(oval(x, y - 0.05, 0.23, 0.15)), 0.25 + 0.4 * face.sockets))
        edge = [(side * 1.1, -0.5), (side * face.head_width * 0.86, 0.1), (side * face.head_width * 0.4, 0.9), (side, 1.2)]
        shade.append((pen.on_face(smooth(edge)), 0.4))
    shade.append((pen.on_face(oval(0, nose + 0.07, face.nose_width * 1.1, 0.06)), 0.4))
    lower = nose + face.mouth_gap + face.lip_lower + 0.07
    shade.append((pen.on_face(oval(0, lower, face.mouth_width * 0.55, 0.04)), 0.45))
    pen.soft(shade, paint(skin * (0.72, 0.62, 0.58)), 0.09, within)
    light = [(pen.on_face(oval(0, -0.55, 0.36, 0.16)), 0.3)]
    light += [(pen.on_face(oval(side * face.eye_apart * 1.1, 0.14, 0.14, 0.09)), 0.3) for side in (-1, 1)]
    pen.soft(light, paint(skin * 0.6 + 110), 0.1, within)
    if face.blush > 0:
        cheeks = [pen.on_face(oval(side * face.eye_apart * 1.15, 0.24, 0.17, 0.12)) for side in (-1, 1)]
        pen.soft([(cheek, 0.45 * face.blush) for cheek in cheeks], paint(skin * (0.98, 0.66, 0.62)), 0.1, within)


def draw_marks(pen: Pen, face: Identity) -> None:
    """Freckles over nose and cheeks, and moles anywhere: the same spots in every picture."""
    rng = np.random.default_rng(face.pattern)
    skin = skin_colour(face)
    spots = rng.normal(0, 1, (int(40 * max(face.freckles, 0)), 2)) * (0.3, 0.11) + (0, 0.13)
    for x, y in spots:
        pen.shape(oval(x, y, 0.016, 0.013, 6), paint(skin * (0.78, 0.6, 0.5), alpha=0.75))
    angle, reach = rng.uniform(0, 2 * np.pi, 4), rng.uniform(0.35, 0.85, 4)
    for a, r in list(zip(angle, reach, strict=True))[: int(face.moles)]:
        size = 0.022 + 0.026 * r
        pen.shape(oval(r * face.head_width * np.cos(a), 0.15 + 0.6 * r * np.sin(a), size, size, 10), paint(skin * (0.4, 0.3, 0.28)))


def _eye_lids(face: Identity, scene: Nuisance, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Heights of the upper and lower lid at u in [-1, 1] (nose to temple), as fractions of the eye's half width."""
    opening = face.eye_opening * scene.eye_squint
    round_off = 1 - np.abs(u) ** 2.2
    upper = -opening * 1.2 * round_off * (1 + face.eye_peak * u)
    lower = opening * 0.75 * (1 - u**2)
    return upper, lower


def draw_eyes(pen: Pen, face: Identity, scene: Nuisance) -> None:
    """Both eyes: white, iris cut off by the lids, lashes, and the crease of the upper lid."""
    skin, iris = skin_colour(face), ramp(_IRIS, face.iris_tone * (1 - 0.7 * face.skin_tone))
    half = face.eye_width
    cos, sin = np.cos(face.eye_tilt), np.sin(face.eye_tilt)
    u = np.linspace(-1, 1, 13)
    upper, lower = _eye_lids(face, scene, u)
    for side in (-1, 1):

        def at(x: np.ndarray, y: np.ndarray, side: int = side) -> np.ndarray:
            turned = np.stack([(cos * x - sin * y) * side * half, (sin * x + cos * y) * half], 1)
            return turned + (side * face.eye_apart, face.eye_height)

        rim = np.concatenate([at(u, upper), at(u, lower)[::-1]])
        pen.shape(rim, paint(np.array([238, 234, 230]), 0.9 + 0.08 * (1 - face.skin_tone)))
        for radius, colour in ((face.iris_size, iris * 0.6), (face.iris_size * 0.84, iris), (0.2, iris * 0.1)):
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
    """Bridge, tip, wings and nostrils; the tip stands off the face, so it moves most when the head turns."""
    skin = skin_colour(face)
    top, bottom = face.eye_height + 0.02, face.eye_height + face.nose_length
    wide = face.nose_width
    for side in (-1, 1):
        flank = smooth(
            [(side * (face.nose_bridge + 0.03), top - 0.1), (side * face.nose_bridge, top + 0.08),
             (side * (face.nose_bridge + 0.01), bottom - 0.14), (side * wide * 0.8, bottom - 0.05)], closed=False
        )  # fmt: skip
        pen.shape(ribbon(flank, 0.02, upright=True), paint(skin, 0.74, 0.45), 0.1)
        wing = smooth(
            [(side * wide * 0.72, bottom - 0.09), (side * wide, bottom - 0.03),
             (side * wide * 0.92, bottom + 0.03), (side * wide * 0.6, bottom + 0.035)], closed=False
        )  # fmt: skip
        pen.shape(ribbon(wing, 0.022, upright=True), paint(skin, 0.58, 0.75), 0.1)
        hole = oval(side * wide * 0.5, bottom + 0.022, wide * 0.24, 0.012 + 0.016 * face.nostrils, 12)
        pen.shape(hole, paint(skin, 0.28, 0.35 + 0.6 * face.nostrils), 0.12)
    ridge = np.stack([np.zeros(2), np.array([top, bottom - 0.1])], 1)
    pen.shape(ribbon(ridge, face.nose_bridge, upright=True), paint(skin * 0.7 + 76, alpha=0.3), 0.13)
    tip = face.nose_tip
    pen.shape(oval(0, bottom - 0.04, tip * 0.8, tip * 0.6), paint(skin * 0.7 + 76, alpha=0.4), 0.17)
    under = smooth([(-tip, bottom + 0.015), (0, bottom + 0.02 + tip * 0.4), (tip, bottom + 0.015)], closed=False)
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
    bow = face.lip_bow * np.exp(-((u / 0.18) ** 2))
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
    pen.shape(ribbon(np.stack([u * wide * 0.45, shine], 1), face.lip_lower * 0.2), paint(lips * 0.7 + 76, alpha=0.35), 0.03)
    pen.shape(ribbon(np.stack([u * wide, inner_top], 1), 0.016), paint(skin * (0.5, 0.3, 0.3), alpha=0.85), 0.03)
    depth = face.folds + 0.5 * smile
    if depth > 0:
        nose = face.eye_height + face.nose_length
        for side in (-1, 1):
            x = side * (face.nose_width + 0.02)
            fold = smooth([(x, nose - 0.04), (x + side * 0.1, nose + 0.08), (side * (wide + 0.08), middle)], closed=False)
            pen.shape(ribbon(fold, 0.02, upright=True), paint(skin, 0.62, min(0.7, 0.55 * depth)))


def draw_beard(pen: Pen, face: Identity, within: np.ndarray) -> None:
    """Beard (before the mouth is drawn) and moustache, as soft shade in the hair's colour."""
    nose = face.eye_height + face.nose_length
    mouth = nose + face.mouth_gap
    wide = face.head_width
    parts = []
    if face.beard > 0:
        top = 0.12 + 0.5 * (1 - face.beard_low) * (mouth - 0.1)
        half = [(0.0, mouth + 0.02), (wide * 0.35, mouth + 0.02), (wide * 0.62, mouth - 0.1), (wide * 1.1, top),
                (wide * 1.1, 0.7), (wide * 0.6, 1.25)]  # fmt: skip
        edge = smooth([*half, (0, 1.3), *[(-x, y) for x, y in reversed(half[1:])]])
        parts.append((0.5 * (pen.flat(edge) + pen.on_face(edge)), 0.35 + 0.55 * face.beard))
    if face.moustache > 0:
        lip = mouth - face.lip_upper - 0.05
        curve = smooth([(-wide * 0.4, mouth + 0.02), (-wide * 0.2, lip), (0, lip - 0.02), (wide * 0.2, lip), (wide * 0.4, mouth + 0.02)], closed=False)
        parts.append((pen.on_face(ribbon(curve, 0.09)), 0.4 + 0.6 * face.moustache))
    if parts:
        pen.soft(parts, paint(hair_colour(face) * 0.8 + skin_colour(face) * 0.1), 0.035, within)


def draw_front_hair(pen: Pen, face: Identity) -> None:
    """The hair between cap and hairline, with a few strands that follow both."""
    colour = hair_colour(face)
    cap, line = pen.flat(hair_cap(face)), pen.on_face(hairline(face), 0.02)
    pen.fill(np.concatenate([cap, line[::-1]]), paint(colour))
    for share in (0.2, 0.4, 0.6, 0.8):
        strand = cap * (1 - share) + line * share
        width = max(1, round(pen.side * 0.012))
        tone = 1.0 + 0.3 * face.hair_shine * (1 if share in (0.4, 0.8) else -0.6)
        pen.draw.line(strand[4:-4].ravel().tolist(), fill=paint(colour + 8, tone, 0.5), width=width)


def draw_glasses(pen: Pen, face: Identity, scene: Nuisance) -> None:
    """Glasses, on the pictures that have them: two rims, a bridge and the arms."""
    if scene.glasses <= 0:
        return
    tone = paint(np.array([30, 28, 32]) + 150 * scene.glasses_tone * np.array([1, 0.8, 0.5]))
    width = max(1, round(pen.side * 0.014))
    wide, high = 0.21, 0.15 + 0.05 * scene.glasses
    for side in (-1, 1):
        rim = oval(0, 0, 1, 1, 28)
        power = 0.35 + 0.65 * scene.glasses  # square to round
        rim = np.sign(rim) * np.abs(rim) ** power * (wide, high)
        rim = rim + (side * max(face.eye_apart, wide + 0.04), face.eye_height + 0.02)
        ring = pen.on_face(rim, 0.12)
        pen.fill(ring, (255, 255, 255, 26))
        pen.draw.line([*ring.ravel().tolist(), *ring[0].tolist()], fill=tone, width=width)
        x = max(face.eye_apart, wide + 0.04)
        arm = pen.on_face(np.array([(side * (x + wide), face.eye_height), (side * face.head_width, face.eye_height)]), 0.1)
        pen.draw.line(arm.ravel().tolist(), fill=tone, width=width)
    bridge = pen.on_face(np.array([(-0.06, face.eye_height), (0, face.eye_height - 0.03), (0.06, face.eye_height)]), 0.14)
    pen.draw.line(bridge.ravel().tolist(), fill=tone, width=width)
