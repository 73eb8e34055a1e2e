"""A small simulator of scenes with their truth, seen by a radar and by an optical camera.

A scene is a land-cover map, a height map and targets of the six SARDet-100K classes with boxes. The radar looks from
the left: surfaces return their sigma0 with gamma speckle, walls that face the sensor return a bright double bounce and
lie over towards it, and everything tall throws a shadow to the right. The optical rendering shows the same ground in
colour. It is a teaching aid and a test bed, no substitute for measured data.
"""

import math
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter

from sarlang_sft.imagery import to_bytes
from sarlang_sft.records import Box

CLASSES = ("ship", "aircraft", "car", "tank", "bridge", "harbor")
FREQUENCIES = (0.32, 0.22, 0.20, 0.10, 0.08, 0.08)  # uneven, as in real sets, where ships lead
BACKGROUNDS = ("forest", "fields", "buildings", "open water")


@dataclass(frozen=True)
class Surface:
    """How one kind of ground looks: sigma0 in dB, colour 0-255, roughness of its texture (dB and grey levels)."""

    sigma0: float
    colour: tuple[int, int, int]
    texture: float


SURFACES = {
    "water": Surface(-24.0, (24, 62, 120), 0.6),
    "soil": Surface(-13.0, (150, 118, 82), 1.0),
    "crop": Surface(-11.0, (126, 168, 84), 1.0),
    "forest": Surface(-7.5, (30, 84, 40), 2.0),
    "town": Surface(-12.5, (136, 132, 124), 1.0),
    "roof": Surface(-6.0, (176, 84, 66), 1.0),
    "road": Surface(-20.0, (84, 84, 88), 0.4),
    "apron": Surface(-18.0, (188, 188, 182), 0.4),
    "ship": Surface(1.0, (226, 226, 230), 0.8),
    "aircraft": Surface(0.0, (246, 246, 250), 0.6),
    "car": Surface(0.0, (206, 48, 44), 0.6),
    "tank": Surface(3.0, (58, 66, 40), 0.8),
    "bridge": Surface(-3.0, (150, 146, 140), 0.8),
    "harbor": Surface(-4.0, (122, 104, 88), 0.8),
}
SURFACE_CODES = {name: code for code, name in enumerate(SURFACES)}
_SIGMA0 = np.array([surface.sigma0 for surface in SURFACES.values()])
_COLOUR = np.array([surface.colour for surface in SURFACES.values()], dtype=np.float64)
_TEXTURE = np.array([surface.texture for surface in SURFACES.values()])
_RECTANGLE = [(-1, -1), (1, -1), (1, 1), (-1, 1)]


@dataclass
class Scene:
    """The truth of one scene.

    Attributes:
        ground: (S, S) uint8 codes of `SURFACES`.
        height: (S, S) float64, heights in pixels.
        boxes: Targets as axis-aligned `x y w h` boxes in pixels.
        background: One of `BACKGROUNDS`.
        road: Direction of the main road (`Horizontal Vertical Diagonal`), or None where none is to be seen.
        field_shape: `Rectangular` or `Circular` where there are fields, else None.
        building_pattern: `Grid pattern` or `Rows` where there are buildings, else None.
    """

    ground: np.ndarray
    height: np.ndarray
    background: str
    boxes: list[Box] = field(default_factory=list)
    road: str | None = None
    field_shape: str | None = None
    building_pattern: str | None = None

    @property
    def size(self) -> int:
        """Side in pixels."""
        return self.ground.shape[0]


def make_scene(rng: np.random.Generator, size: int = 96) -> Scene:
    """Draw a scene of `size` x `size` pixels: a background, perhaps a road, and one to three groups of targets."""
    scene = Scene(np.zeros((size, size), np.uint8), np.zeros((size, size)), str(rng.choice(BACKGROUNDS)))
    _lay_background(scene, rng)
    road = np.zeros_like(scene.ground, dtype=bool)
    if scene.background != "open water" and rng.random() < 0.6:
        road = _lay_road(scene, rng)
    upright = rng.random() < 0.5  # groups stand side by side, or lie one above the other
    slots = ("left", "center", "right") if upright else ("top", "center", "bottom")
    chosen = rng.permutation(3)[: int(rng.integers(1, 4))]
    labels = rng.choice(CLASSES, len(chosen), replace=False, p=FREQUENCIES)
    for slot, label in zip(chosen, labels, strict=True):
        road &= ~_lay_group(scene, str(label), slots[slot], upright, rng)
    if road.sum() < size:
        scene.road = None
    return scene


def _paint(scene: Scene, polygon: np.ndarray, surface: str, height: float = 0.0) -> np.ndarray:
    """Fill a polygon, (N, 2) x y pixels; returns its (S, S) mask."""
    canvas = Image.new("L", (scene.size, scene.size))
    ImageDraw.Draw(canvas).polygon([(float(x), float(y)) for x, y in polygon], fill=1)
    mask = np.asarray(canvas, dtype=bool)
    scene.ground[mask] = SURFACE_CODES[surface]
    scene.height[mask] = height
    return mask


def _rectangle(x: float, y: float, length: float, width: float, angle: float = 0.0) -> np.ndarray:
    """Corners of a rectangle centred on (x, y), its length along `angle` in radians."""
    return _shape(_RECTANGLE, x, y, length, width, angle)


def _shape(
    outline: list[tuple[float, float]], x: float, y: float, length: float, width: float, angle: float
) -> np.ndarray:
    """An outline in [-1, 1]^2, scaled to length x width, turned by `angle` and moved to (x, y)."""
    points = np.array(outline) * (length / 2, width / 2)
    cos, sin = math.cos(angle), math.sin(angle)
    return points @ np.array([[cos, sin], [-sin, cos]]) + (x, y)


def _lay_background(scene: Scene, rng: np.random.Generator) -> None:
    size = scene.size
    everything = _rectangle(size / 2, size / 2, 3 * size, 3 * size)
    if scene.background == "open water":
        _paint(scene, everything, "water")
    elif scene.background == "forest":
        _paint(scene, everything, "forest", height=1.0)
        scene.height += rng.random((size, size))
    elif scene.background == "fields":
        scene.field_shape = str(rng.choice(["Rectangular", "Circular"]))
        _paint(scene, everything, "soil")
        step = size / 4
        for row in range(4):
            for column in range(4):
                x, y = (column + 0.5) * step, (row + 0.5) * step
                if scene.field_shape == "Circular":
                    turn = np.linspace(0, 2 * np.pi, 24, endpoint=False)
                    _paint(
                        scene, np.stack([x + 0.45 * step * np.cos(turn), y + 0.45 * step * np.sin(turn)], 1), "crop"
                    )
                elif (row + column) % 2:
                    _paint(scene, _rectangle(x, y, step, step), "crop")
    else:
        scene.building_pattern = str(rng.choice(["Grid pattern", "Rows"]))
        _paint(scene, everything, "town")
        step = size / 6
        for row in range(6):
            y = (row + 0.5) * step
            if scene.building_pattern == "Rows":
                _paint(scene, _rectangle(size / 2, y, 0.96 * size, 0.45 * step), "roof", height=4.0)
                continue
            for column in range(6):
                _paint(scene, _rectangle((column + 0.5) * step, y, 0.5 * step, 0.5 * step), "roof", height=4.0)


def _lay_road(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    scene.road = str(rng.choice(["Horizontal", "Vertical", "Diagonal"]))
    angle = {"Horizontal": 0.0, "Vertical": np.pi / 2, "Diagonal": np.pi / 4}[scene.road]
    offset = rng.uniform(-0.1, 0.1, 2) * scene.size
    centre = scene.size / 2 + offset
    return _paint(scene, _rectangle(centre[0], centre[1], 3 * scene.size, 0.06 * scene.size, angle), "road")


# By class: the ground it stands on, how many there may be, and length, width and height as fractions of the scene.
_GROUP = {
    "ship": ("water", 4, 0.15, 0.05, 0.03),
    "aircraft": ("apron", 4, 0.15, 0.15, 0.02),
    "car": ("road", 4, 0.07, 0.04, 0.01),
    "tank": ("soil", 4, 0.10, 0.06, 0.02),
    "bridge": ("water", 2, 0.26, 0.06, 0.03),
    "harbor": ("water", 2, 0.22, 0.16, 0.02),
}
_SHIP = [(-1, -1), (0.5, -1), (1, 0), (0.5, 1), (-1, 1)]
_AIRCRAFT = [
    (-1, -0.3), (-0.7, -0.1), (-0.1, -0.12), (-0.4, -1), (-0.05, -1), (0.35, -0.12), (1, 0),
    (0.35, 0.12), (-0.05, 1), (-0.4, 1), (-0.1, 0.12), (-0.7, 0.1), (-1, 0.3),
]  # fmt: skip
_HARBOR = [
    (-1, -1), (1, -1), (1, -0.6), (-0.4, -0.6), (-0.4, -0.2), (1, -0.2), (1, 0.2),
    (-0.4, 0.2), (-0.4, 0.6), (1, 0.6), (1, 1), (-1, 1),
]  # fmt: skip
_OUTLINE = {"ship": _SHIP, "aircraft": _AIRCRAFT, "harbor": _HARBOR}


def _lay_group(scene: Scene, label: str, region: str, upright: bool, rng: np.random.Generator) -> np.ndarray:
    """Lay a patch of ground in one third of the scene, one to four targets of one class on it; returns its mask."""
    size = scene.size
    third = {
        "left": (1 / 6, 0.5),
        "right": (5 / 6, 0.5),
        "top": (0.5, 1 / 6),
        "bottom": (0.5, 5 / 6),
        "center": (0.5, 0.5),
    }
    x, y = np.array(third[region]) * size
    long_side, short_side = 0.66 * size, 0.31 * size
    ground, most, length, width, height = _GROUP[label]
    patch = _paint(scene, _rectangle(x, y, long_side, short_side, np.pi / 2 if upright else 0.0), ground)
    count = int(rng.integers(1, most + 1))
    places = rng.permutation(most)[:count]
    for place in places:
        along = ((place + 0.5) / most - 0.5) * 0.92 * long_side + rng.uniform(-0.012, 0.012) * size
        across = rng.uniform(-0.03, 0.03) * size if label not in ("bridge", "harbor") else 0.0
        cx, cy = (x + across, y + along) if upright else (x + along, y + across)
        if label == "bridge":
            angle = 0.0 if upright else np.pi / 2
        elif label == "harbor":
            angle = float(rng.choice([0.0, np.pi]))
        else:
            angle = rng.uniform(0, 2 * np.pi)
        outline = _OUTLINE.get(label, _RECTANGLE)
        mask = _paint(scene, _shape(outline, cx, cy, length * size, width * size, angle), label, height * size)
        rows, columns = np.nonzero(mask)
        box = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
        scene.boxes.append(Box(label, [float(value) for value in box]))
    return patch


def render_sar(scene: Scene, rng: np.random.Generator, looks: float = 4.0) -> np.ndarray:
    """The scene as an 8-bit radar picture, (S, S) uint8: -28 to +8 dB mapped to 0-255.

    Speckle is multiplicative: intensity times a gamma variate of mean 1 and variance 1/`looks` (Goodman's model of
    multi-look intensity).
    """
    decibel = (
        _SIGMA0[scene.ground]
        + _TEXTURE[scene.ground] * gaussian_filter(rng.standard_normal(scene.ground.shape), 1) * 3
    )
    height = scene.height
    intensity = 10 ** (decibel / 10)
    facing = height - np.pad(height, ((0, 0), (1, 0)), mode="edge")[:, :-1]
    intensity = np.where(facing > 0.7, intensity + 10 ** (0.6 + 0.05 * facing), intensity)
    targets = scene.ground >= SURFACE_CODES["ship"]
    scatterers = targets & (rng.random(targets.shape) < 0.15)
    intensity = np.where(scatterers, intensity + 10 ** rng.uniform(0.5, 1.3, targets.shape), intensity)
    shadow = np.zeros_like(targets)
    layover = intensity.copy()
    for distance in range(1, math.ceil(height.max()) + 1):
        taller = np.pad(height, ((0, 0), (distance, 0)))[:, :-distance]
        shadow |= taller - distance >= height
        reach = np.pad(np.where(height >= 2 * distance, intensity, 0), ((0, 0), (0, distance)))[:, distance:]
        layover = np.maximum(layover, 0.5 * reach)
    intensity = np.where(shadow & ~targets, 10**-2.6, layover)
    speckled = intensity * rng.gamma(looks, 1 / looks, intensity.shape)
    return to_bytes((10 * np.log10(np.maximum(speckled, 1e-4)) + 28) / 36 * 255)


def render_optical(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """The same scene as a colour picture, (S, S, 3) uint8, lit from the left."""
    texture = gaussian_filter(rng.standard_normal(scene.ground.shape), 0.7) * 14 * _TEXTURE[scene.ground]
    shaded = np.zeros_like(scene.ground, dtype=bool)
    for distance in range(1, math.ceil(scene.height.max() / 2) + 1):
        taller = np.pad(scene.height, ((0, 0), (distance, 0)))[:, :-distance]
        shaded |= taller - 2 * distance >= scene.height
    colour = _COLOUR[scene.ground] + texture[..., None]
    return to_bytes(np.where(shaded[..., None], 0.5 * colour, colour))
