"""What a drawn face is made of: traits that stay with an identity, nuisance that changes with every picture.

Lengths are in face units: the origin lies in the middle of the face, x to the right, y down, and the face is
about two units high. Angles are in radians. Every number is drawn uniformly from the range beside its name;
where zero means "none", a range that starts below zero leaves that share of the faces without it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

import numpy as np

_T = TypeVar("_T")


def between(low: float, high: float) -> Any:
    """A float field drawn uniformly from [low, high)."""
    return field(metadata={"low": low, "high": high})


def a_seed() -> Any:
    """An integer field: the seed of a scattered pattern (freckles, background, noise)."""
    return field(metadata={"low": 0, "high": 2**31, "whole": True})


@dataclass(frozen=True)
class Identity:
    """The traits of one identity: all continuous, so two identities are practically never the same."""

    # head: widths below head_width are fractions of it
    head_width: float = between(0.62, 0.88)
    forehead_width: float = between(0.72, 0.98)
    cheek_width: float = between(0.86, 1.02)
    jaw_width: float = between(0.58, 0.96)
    chin_width: float = between(0.16, 0.54)
    chin_drop: float = between(0.88, 1.16)
    # skin
    skin_tone: float = between(0, 1)  # light to dark
    skin_red: float = between(-1, 1)
    blush: float = between(-0.5, 1)
    folds: float = between(-0.4, 1)  # lines from nose to mouth
    # eyes
    eye_apart: float = between(0.26, 0.43)
    eye_height: float = between(-0.27, 0.0)
    eye_width: float = between(0.115, 0.215)
    eye_opening: float = between(0.28, 0.6)  # fraction of the width
    eye_tilt: float = between(-0.26, 0.2)
    eye_peak: float = between(-0.45, 0.45)  # where the upper lid is highest: inner to outer
    iris_size: float = between(0.38, 0.58)  # fraction of the width
    iris_tone: float = between(0, 1)  # brown, hazel, green, blue, grey; the last on light skin only
    crease: float = between(-0.4, 1)  # fold of the upper lid
    lashes: float = between(0.2, 1)
    sockets: float = between(0, 1)  # shade around the eyes
    # brows
    brow_gap: float = between(0.14, 0.29)
    brow_length: float = between(0.14, 0.27)
    brow_thick: float = between(0.015, 0.08)
    brow_arch: float = between(-0.01, 0.1)
    brow_tilt: float = between(-0.25, 0.25)
    brow_dark: float = between(0.3, 1)
    # nose
    nose_length: float = between(0.25, 0.53)  # from the eyes down
    nose_width: float = between(0.085, 0.25)
    nose_tip: float = between(0.05, 0.12)
    nose_bridge: float = between(0.02, 0.07)
    nostrils: float = between(0.2, 1)
    # mouth
    mouth_gap: float = between(0.15, 0.33)  # from the nose down
    mouth_width: float = between(0.16, 0.4)
    lip_upper: float = between(0.02, 0.1)
    lip_lower: float = between(0.03, 0.14)
    lip_bow: float = between(0, 0.055)
    lip_red: float = between(0, 1)
    mouth_turn: float = between(-0.04, 0.03)  # corners down or up at rest
    # ears
    ear_size: float = between(0.11, 0.29)
    ear_height: float = between(-0.16, 0.1)
    ear_out: float = between(0, 0.15)
    # hair
    hair_tone: float = between(0, 1)  # black, browns, red, blond, grey; the last on light skin only
    hairline: float = between(0.5, 1.0)  # height above the middle of the face
    hair_parting: float = between(-0.9, 0.9)
    hair_sweep: float = between(-0.12, 0.3)  # how far the fringe falls away from the parting
    hair_volume: float = between(0.0, 0.34)
    hair_sides: float = between(-0.3, 0.3)  # lower end beside the face
    hair_length: float = between(-0.5, 1.4)  # lower end behind the face
    hair_wave: float = between(0, 0.08)
    hair_curls: float = between(4, 13)
    hair_shine: float = between(0, 1)
    # marks
    beard: float = between(-1.8, 1)
    beard_low: float = between(0, 1)  # chin only, to full
    moustache: float = between(-1.2, 1)
    freckles: float = between(-1.2, 1)
    moles: float = between(0, 3.99)
    pattern: int = a_seed()


@dataclass(frozen=True)
class Nuisance:
    """What changes from picture to picture of one identity: pose, expression, light, camera, background."""

    # pose
    yaw: float = between(-0.3, 0.3)
    pitch: float = between(-0.18, 0.18)
    roll: float = between(-0.16, 0.16)
    scale: float = between(0.37, 0.45)  # one face unit, as a share of the picture's side
    shift_x: float = between(-0.05, 0.05)  # share of the picture's side
    shift_y: float = between(-0.05, 0.05)
    # expression
    smile: float = between(-0.4, 0.9)
    mouth_open: float = between(-0.6, 1)
    brow_raise: float = between(-0.03, 0.05)
    eye_squint: float = between(0.7, 1.15)
    gaze_x: float = between(-0.35, 0.35)
    gaze_y: float = between(-0.12, 0.12)
    # light
    gain: float = between(0.7, 1.3)
    contrast: float = between(-0.35, 0.45)
    slope: float = between(0, 0.6)  # how much the light falls off across the picture
    slope_angle: float = between(-np.pi, np.pi)
    warmth: float = between(-0.16, 0.16)
    tint: float = between(-0.08, 0.08)
    saturation: float = between(0.5, 1.15)
    # camera
    blur: float = between(-0.4, 0.85)  # pixels at a side of 96
    noise: float = between(0, 0.04)  # standard deviation, of the white level
    jpeg_quality: float = between(50, 95)
    # things
    glasses: float = between(-3, 1)  # worn above zero; the value is how round they are
    glasses_tone: float = between(0, 1)
    clothes_hue: float = between(0, 1)
    clothes_tone: float = between(0.1, 0.95)
    pattern: int = a_seed()


def draw_traits(kind: type[_T], key: list[int]) -> _T:
    """An `Identity` or a `Nuisance` drawn from the random stream that `key` names."""
    rng = np.random.default_rng(key)
    values: dict[str, Any] = {}
    for trait in fields(kind):  # type: ignore[arg-type]
        value = rng.uniform(trait.metadata["low"], trait.metadata["high"])
        values[trait.name] = int(value) if "whole" in trait.metadata else value
    return kind(**values)
