"""Everything of a drawn face but its features: background, body, head, shade, marks, hair and glasses.

Shapes: P points of a curve, columns x and y in face units (see `drawn_traits`).
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from facemetric.data.drawn.pen import Pen, Soft, hair_colour, mirrored, oval, paint, skin_colour, smooth
from facemetric.data.drawn.traits import Identity, Nuisance


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
    return smooth(mirrored([(0, -1.06), *right, (0, face.chin_drop)]))


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
    # a little inside the outline of the head, so that no gap shows at the temples
    inside = np.array([0.52 * face.forehead_width, 0.92 * face.forehead_width, 0.98])
    return np.stack([u * face.head_width * np.interp(y, [-0.98, -0.66, -0.2], inside), y], 1)


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
    shoulders = [(-2.2, 2.4), (-1.7, 1.4), (-0.7, 1.13), (0.7, 1.13), (1.7, 1.4), (2.2, 2.4)]
    pen.fill(pen.flat(smooth(shoulders, closed=False)), paint(clothes))
    if face.hair_length > 0.1:
        wide, low = face.head_width + 0.75 * face.hair_volume, face.hair_length + 0.2
        drop = [(wide * 1.05, 0.2), (wide * 1.08, low - 0.3 * face.hair_length), (wide * 0.75, low)]
        behind = np.concatenate([hair_cap(face), smooth(mirrored(drop), closed=False)])
        pen.fill(pen.flat(behind), paint(hair_colour(face), 0.72))
    skin = skin_colour(face)
    thick = face.head_width * (0.42 + 0.2 * face.jaw_width)
    neck = [(thick, 0.5), (thick, 1.05), (thick * 1.15, 1.2), (0.0, 1.42)]
    pen.fill(pen.flat(smooth(mirrored(neck))), paint(skin, 0.72))
    chin = face.chin_drop
    shadow = [(thick, 0.5), (thick, chin), (thick * 0.6, chin + 0.13), (0.0, chin + 0.19)]
    pen.fill(pen.flat(smooth(mirrored(shadow))), paint(skin, 0.5))


def draw_head(pen: Pen, face: Identity) -> np.ndarray:
    """Ears and the bare head. Returns an outline in pixels, a touch wider, that soft shade stays inside."""
    skin = skin_colour(face)
    for side in (-1, 1):
        x = side * (face.head_width + face.ear_out * 0.6 - 0.01)
        y, size = face.ear_height + 0.08, face.ear_size
        pen.fill(pen.flat(oval(x, y, size * 0.42 + face.ear_out * 0.4, size)), paint(skin, 0.88))
        pen.fill(pen.flat(oval(x, y, size * 0.2, size * 0.65)), paint(skin, 0.72))
    outline = head_outline(face)
    forward = 0.3 * np.maximum(outline[:, 1] - 0.3, 0)  # the chin is in front of the ears
    pen.fill(pen.flat(outline, forward), paint(skin))
    return pen.flat(outline * 1.02, forward)


def draw_shading(pen: Pen, face: Identity, within: np.ndarray) -> None:
    """Soft shade of sockets, cheeks and jaw, and the light on forehead and nose."""
    skin = skin_colour(face)
    y, nose = face.eye_height, face.eye_height + face.nose_length
    shade: list[Soft] = []
    for side in (-1, 1):
        x = side * face.eye_apart
        shade.append((pen.on_face(oval(x, y - 0.05, 0.23, 0.15)), 0.25 + 0.4 * face.sockets))
        wide = side * face.head_width
        edge = smooth([(side * 1.1, -0.5), (wide * 0.86, 0.1), (wide * 0.4, 0.9), (side, 1.2)])
        shade.append((pen.on_face(edge), 0.4))
    shade.append((pen.on_face(oval(0, nose + 0.07, face.nose_width * 1.1, 0.06)), 0.4))
    lower = nose + face.mouth_gap + face.lip_lower + 0.07
    shade.append((pen.on_face(oval(0, lower, face.mouth_width * 0.55, 0.04)), 0.45))
    pen.soft(shade, paint(skin * (0.72, 0.62, 0.58)), 0.09, within)
    bright = [(pen.on_face(oval(0, -0.55, 0.36, 0.16)), 0.3)]
    blush = []
    for side in (-1, 1):
        x = side * face.eye_apart
        bright.append((pen.on_face(oval(x * 1.1, 0.14, 0.14, 0.09)), 0.3))
        blush.append((pen.on_face(oval(x * 1.15, 0.24, 0.17, 0.12)), 0.45 * max(face.blush, 0)))
    pen.soft(bright, paint(skin * 0.6 + 110), 0.1, within)
    if face.blush > 0:
        pen.soft(blush, paint(skin * (0.98, 0.66, 0.62)), 0.1, within)


def draw_marks(pen: Pen, face: Identity) -> None:
    """Freckles over nose and cheeks, and moles anywhere: the same spots in every picture."""
    rng = np.random.default_rng(face.pattern)
    skin = skin_colour(face)
    spots = rng.normal(0, 1, (int(40 * max(face.freckles, 0)), 2)) * (0.3, 0.11) + (0, 0.13)
    for x, y in spots[abs(spots[:, 0]) < 0.8 * face.head_width]:
        pen.shape(oval(x, y, 0.016, 0.013, 6), paint(skin * (0.78, 0.6, 0.5), alpha=0.75))
    angle, reach = rng.uniform(0, 2 * np.pi, 4), rng.uniform(0.35, 0.85, 4)
    for a, r in list(zip(angle, reach, strict=True))[: int(face.moles)]:
        size = 0.022 + 0.026 * r
        x, y = r * face.head_width * np.cos(a), 0.15 + 0.6 * r * np.sin(a)
        pen.shape(oval(x, y, size, size, 10), paint(skin * (0.4, 0.3, 0.28)))


def draw_front_hair(pen: Pen, face: Identity) -> None:
    """The hair between cap and hairline, with a few strands that follow both."""
    colour = hair_colour(face)
    cap, line = pen.flat(hair_cap(face)), pen.on_face(hairline(face), 0.02)
    pen.fill(np.concatenate([cap, line[::-1]]), paint(colour))
    for share in (0.2, 0.4, 0.6, 0.8):
        strand = cap * (1 - share) + line * share
        tone = 1.0 + 0.3 * face.hair_shine * (1 if share in (0.4, 0.8) else -0.6)
        pen.line(strand[4:-4], paint(colour + 8, tone, 0.5), 0.012)


def draw_glasses(pen: Pen, face: Identity, scene: Nuisance) -> None:
    """Glasses, on the pictures that have them: two rims, a bridge and the arms."""
    if scene.glasses <= 0:
        return
    tone = paint(np.array([30, 28, 32]) + 150 * scene.glasses_tone * np.array([1, 0.8, 0.5]))
    wide, high, y = 0.21, 0.15 + 0.05 * scene.glasses, face.eye_height
    apart = max(face.eye_apart, wide + 0.04)
    power = 0.35 + 0.65 * scene.glasses  # of a superellipse: square to round
    rim = oval(0, 0, 1, 1, 28)
    rim = np.sign(rim) * np.abs(rim) ** power * (wide, high)
    for side in (-1, 1):
        ring = pen.on_face(rim + np.array([side * apart, y + 0.02]), 0.12)
        pen.fill(ring, (255, 255, 255, 26))
        pen.line(np.concatenate([ring, ring[:1]]), tone, 0.014)
        arm = np.array([(side * (apart + wide), y), (side * face.head_width, y)])
        pen.line(pen.on_face(arm, 0.1), tone, 0.014)
    bridge = np.array([(wide - apart, y), (0, y - 0.03), (apart - wide, y)])
    pen.line(pen.on_face(bridge, 0.14), tone, 0.014)
