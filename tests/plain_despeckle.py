"""The refined Lee filter and the boxcar as plain loops over pixels: what the vectorised filters are compared with."""

import numpy as np

HALVES = {
    "west": lambda dy, dx: dx <= 0,
    "east": lambda dy, dx: dx >= 0,
    "north": lambda dy, dx: dy <= 0,
    "south": lambda dy, dx: dy >= 0,
    "north_west": lambda dy, dx: dy + dx <= 0,
    "south_east": lambda dy, dx: dy + dx >= 0,
    "north_east": lambda dy, dx: dy <= dx,
    "south_west": lambda dy, dx: dy >= dx,
}


def around(image: np.ndarray, valid: np.ndarray, y: int, x: int, reach: int) -> dict[tuple[int, int], float]:
    """The valid pixels of the square around (y, x), by their offset."""
    near = range(-reach, reach + 1)
    inside = [(dy, dx) for dy in near for dx in near if 0 <= y + dy < len(image) and 0 <= x + dx < len(image[0])]
    return {(dy, dx): float(image[y + dy, x + dx]) for dy, dx in inside if valid[y + dy, x + dx]}


def mean_of(pixels: dict[tuple[int, int], float]) -> float:
    """The sum of each row, then of the rows: rounded like the filters' own, since a tie of two edges hangs on it."""
    rows: dict[int, float] = {}
    for (dy, _), value in pixels.items():
        rows[dy] = rows.get(dy, 0) + value
    return sum(rows.values()) / len(pixels)


def refined_lee(image: np.ndarray, valid: np.ndarray, looks: float) -> np.ndarray:
    out = np.zeros(image.shape)
    for y, x in zip(*np.nonzero(valid), strict=True):
        squares = {}
        for row in (-1, 0, 1):
            for column in (-1, 0, 1):
                pixels = around(image, valid, y + 2 * row, x + 2 * column, 1)
                squares[row, column] = mean_of(pixels) if pixels else None
        m = {place: squares[0, 0] if mean is None else mean for place, mean in squares.items()}
        edges = [
            (m[-1, -1] + m[0, -1] + m[1, -1] - (m[-1, 1] + m[0, 1] + m[1, 1]), ("west", (0, -1)), ("east", (0, 1))),
            (m[-1, -1] + m[-1, 0] + m[-1, 1] - (m[1, -1] + m[1, 0] + m[1, 1]), ("north", (-1, 0)), ("south", (1, 0))),
            (
                m[-1, 0] + m[-1, -1] + m[0, -1] - (m[0, 1] + m[1, 1] + m[1, 0]),
                ("north_west", (-1, -1)),
                ("south_east", (1, 1)),
            ),
            (
                m[-1, 0] + m[-1, 1] + m[0, 1] - (m[0, -1] + m[1, -1] + m[1, 0]),
                ("north_east", (-1, 1)),
                ("south_west", (1, -1)),
            ),
        ]
        _, first, second = max(edges, key=lambda edge: abs(edge[0]))
        half, _ = min((first, second), key=lambda side: abs(m[0, 0] - m[side[1]]))
        values = [value for offset, value in around(image, valid, y, x, 3).items() if HALVES[half](*offset)]
        mean = sum(values) / len(values)
        variance = sum((value - mean) ** 2 for value in values) / len(values)
        signal = max(0.0, variance - mean**2 / looks) / (1 + 1 / looks)
        out[y, x] = mean + (signal / variance if variance > 0 else 0) * (image[y, x] - mean)
    return out


def boxcar(image: np.ndarray, valid: np.ndarray, looks: float) -> np.ndarray:
    out = np.zeros(image.shape)
    for y, x in zip(*np.nonzero(valid), strict=True):
        out[y, x] = mean_of(around(image, valid, y, x, 3))
    return out
