"""Scenes of Motion: the states of shapes over time, and their rendering.

Short clips: five shapes share one motion. Every attribute of a shape (horizontal and vertical position, distance,
angle) is a phase on a cycle, uniform at every time for every class, so that a single frame says nothing about the
class. The class's attribute runs through its cycle, the others stay constant. Shapes that leave on one side come back
on the other, and one that passes the camera fades out while it reappears far away.

Long clips: three colours flash up, one in each third of the clip, and the class is their order; grey shapes drift by.
"""

import itertools
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]

X, Y, NEARNESS, ANGLE = range(4)
# class: template as Something-Something-V2 writes it; the attribute that moves and the sign of its movement
SHORT_CLASSES = {
    "approach": "Moving [something] closer to the camera",
    "recede": "Moving [something] away from the camera",
    "rotate_clockwise": "Turning [something] clockwise",
    "rotate_counterclockwise": "Turning [something] counterclockwise",
    "translate_down": "Moving [something] down",
    "translate_left": "Moving [something] to the left",
    "translate_right": "Moving [something] to the right",
    "translate_up": "Moving [something] up",
}
MOTIONS = ((NEARNESS, 1), (NEARNESS, -1), (ANGLE, 1), (ANGLE, -1), (Y, 1), (X, -1), (X, 1), (Y, -1))

COLOURS = {"red": (0.95, 0.2, 0.15), "green": (0.2, 0.9, 0.25), "blue": (0.25, 0.35, 1.0)}
ORDERS = list(itertools.permutations(COLOURS))
LONG_CLASSES = {"_".join(order): "Showing " + " then ".join(f"[{c}]" for c in order) for order in ORDERS}

NUM_SHAPES = 5
SPEED = (0.03, 0.05)  # cycles per frame: frame widths, frame heights, ranges of nearness, or turns
RADII = (0.13, 0.32)  # of a shape far away and close by, in units of the frame's short side
OUTLINES = ("square", "disc", "triangle", "cross")
TEXTURES = ("striped", "checkered", "dotted")


def short_phases(label: int, num_frames: int, rng: np.random.Generator) -> Floats:
    """Return phases [4, T] in [0, 1) of a shape's x, y, nearness and angle."""
    attribute, direction = MOTIONS[label]
    phases = np.repeat(rng.random((4, 1)), num_frames, axis=1)
    phases[attribute] += direction * rng.uniform(*SPEED) * np.arange(num_frames)
    return (phases % 1.0).astype(np.float32)


def render_short(label: int, num_frames: int, height: int, width: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return a clip [T, H, W, 3] of the class's motion before a drifting background."""
    frames = background(num_frames, height, width, rng)
    for _ in range(NUM_SHAPES):
        phases = short_phases(label, num_frames, rng)
        colour = rng.uniform(0.55, 1.0, 3)
        colour[rng.integers(3)] *= rng.uniform(0.4, 1.0)
        fade = np.clip(np.minimum(phases[NEARNESS], 1 - phases[NEARNESS]) * 10, 0, 1)
        paint(frames, phases, colour, fade, rng)
    return finish(frames, rng)


def render_long(label: int, num_frames: int, height: int, width: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return a clip [T, H, W, 3] in which three colours flash in the class's order, with long gaps between them."""
    frames = background(num_frames, height, width, rng)
    third = num_frames // 3
    for _ in range(2):
        phases = short_phases(int(rng.integers(len(MOTIONS))), num_frames, rng)
        paint(frames, phases, np.full(3, rng.uniform(0.4, 0.7)), np.ones(num_frames, np.float32), rng)
    for position, colour in enumerate(ORDERS[label]):
        length = max(2, third // 4)
        start = position * third + int(rng.integers(third // 4 + 1))
        shown = np.zeros(num_frames, np.float32)
        shown[start : start + length] = 1
        phases = np.repeat(rng.random((4, 1)), num_frames, axis=1).astype(np.float32)
        phases[NEARNESS] = rng.uniform(0.7, 1.0)
        paint(frames, phases, np.array(COLOURS[colour]), shown, rng)
    return finish(frames, rng)


def background(num_frames: int, height: int, width: int, rng: np.random.Generator) -> Floats:
    """Return a dim random texture [T, H, W, 3] of a few waves, which drifts in a random direction."""
    waves, short = 12, min(height, width)
    frequency = rng.normal(0, 2 * np.pi * 2.0 / short, (2, waves))
    velocity = rng.uniform(0.002, 0.012) * short * np.array([np.cos(turn := rng.uniform(0, 2 * np.pi)), np.sin(turn)])
    time = np.exp(-1j * np.arange(num_frames)[:, None] * (velocity @ frequency))
    down = np.exp(1j * np.arange(height)[:, None] * frequency[0])
    across = np.exp(1j * np.arange(width)[:, None] * frequency[1])
    amplitude = rng.normal(size=(3, waves)) + 1j * rng.normal(size=(3, waves))
    texture = np.einsum("tk,ck,hk,wk->thwc", time, amplitude, down, across, optimize=True).real / np.sqrt(waves)
    return (rng.uniform(0.15, 0.3, 3) + 0.06 * texture).astype(np.float32)


def paint(frames: Floats, phases: Floats, colour: Floats, opacity: Floats, rng: np.random.Generator) -> None:
    """Draw a random shape at `phases` [4, T] into `frames` [T, H, W, 3], in place."""
    _, height, width, _ = frames.shape
    x, y, nearness, angle = phases[:, :, None, None]
    radius = (min(height, width) * RADII[0] * (RADII[1] / RADII[0]) ** nearness).astype(np.float32)
    across = (np.arange(width, dtype=np.float32) + 0.5 - x * width + width / 2) % width - width / 2
    down = (np.arange(height, dtype=np.float32)[:, None] + 0.5 - y * height + height / 2) % height - height / 2
    cos, sin = np.cos(2 * np.pi * angle) / radius, np.sin(2 * np.pi * angle) / radius
    u, v = cos * across + sin * down, cos * down - sin * across  # in the shape's own frame, in radii
    cover = np.clip(0.5 - outline(str(rng.choice(OUTLINES)), u, v) * radius, 0, 1) * opacity[:, None, None]
    texture = np.clip(3 * surface(str(rng.choice(TEXTURES)), u, v), -1, 1)
    front = np.clip(6 * u, -1, 1)  # one half is lit, which tells the angle
    light = (0.6 + 0.08 * texture) * (1 + 0.75 * front)
    frames += cover[..., None] * (light[..., None] * colour.astype(np.float32) - frames)


def outline(name: str, u: Floats, v: Floats) -> Floats:
    """Return the signed distance to a shape's edge, negative inside, in radii."""
    if name == "square":
        return np.maximum(np.abs(u), np.abs(v)) - 0.82
    if name == "disc":
        return np.sqrt(u * u + v * v) - 0.92
    if name == "triangle":
        return np.maximum(0.866 * np.abs(v) + 0.5 * u, -u) - 0.55
    return np.maximum(np.minimum(np.abs(u), np.abs(v)) - 0.38, np.maximum(np.abs(u), np.abs(v)) - 0.97)


def surface(name: str, u: Floats, v: Floats) -> Floats:
    if name == "striped":
        return np.sin(7 * v)
    if name == "checkered":
        return np.sin(7 * u) * np.sin(7 * v)
    return np.cos(9 * u) + np.cos(9 * v) - 0.6


def finish(frames: Floats, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return a clip as bytes, with flicker and grain."""
    frames *= 1 + 0.03 * rng.standard_normal((len(frames), 1, 1, 1), dtype=np.float32)
    frames += 0.01 * rng.standard_normal(frames.shape, dtype=np.float32)
    return (np.clip(frames, 0, 1) * 255).astype(np.uint8)
