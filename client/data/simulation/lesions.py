"""Drawing of one skin lesion as a dermoscope shows it, from random numbers alone.

Each class is drawn from the signs by which dermatologists recognise it (Kittler et al. 2016,
doi:10.1016/j.jaad.2015.12.038): pigment network and symmetry for naevi, several colours and a
ragged border for melanoma, branching vessels for basal cell carcinoma, lagoons for vascular
lesions. No sign is always there, and some lesions look like another class, as real ones do;
so the classes can be learned, but not perfectly.

It is a drawing for demonstrations and tests. Nothing about real patients can be learned from it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

# H, W pixels of a picture, P pixels a side of a lesion's own square, C colour channels.

Floats = npt.NDArray[np.float32]
Rgb = tuple[float, float, float]

CLASSES = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")
"""The names of HAM10000 (Tschandl et al. 2018, doi:10.1038/sdata.2018.161)."""

MISTAKEN: dict[str, tuple[str, ...]] = {
    "akiec": ("bcc", "bkl"),
    "bcc": ("akiec", "nv"),
    "bkl": ("nv", "mel", "akiec"),
    "df": ("nv", "bcc"),
    "mel": ("nv", "bkl"),
    "nv": ("mel", "bkl", "df"),
    "vasc": ("mel", "bcc"),
}
"""Class with which a lesion of each class is confused."""

ATYPICAL = 0.1
"""Share of lesions that look like another class."""

TAN, BROWN, DARK, BLACK = (0.74, 0.53, 0.38), (0.53, 0.34, 0.22), (0.33, 0.20, 0.13), (0.13, 0.09, 0.09)
PINK, RED, PURPLE, MAROON = (0.90, 0.58, 0.55), (0.76, 0.24, 0.20), (0.45, 0.13, 0.24), (0.33, 0.06, 0.09)
WHITE, CREAM, VEIL, SLATE = (0.95, 0.88, 0.85), (0.90, 0.78, 0.58), (0.54, 0.58, 0.68), (0.34, 0.37, 0.45)


@dataclass(frozen=True)
class Lesion:
    """A lesion by itself, larger than it will be seen, to be turned and placed on skin."""

    colour_PPC: Floats
    """RGB in [0, 1], also outside the lesion, so that its edge can be resampled."""
    cover_PP: Floats
    """How much of the skin it hides, 0 to 1."""


def draw_lesion(label: str, side: int, rng: np.random.Generator) -> Lesion:
    """One lesion of a class; `side` is the number of pixels of its square."""
    looks_like = label if rng.random() >= ATYPICAL else str(rng.choice(MISTAKEN[label]))
    return _DRAW[looks_like](_Canvas(side, rng))


# --- the classes ---------------------------------------------------------------------------


def _akiec(on: "_Canvas") -> Lesion:
    """Actinic keratosis: red with pale follicles, yellowish scales, a border that fades."""
    on.shape(irregular=0.16, stretch=0.25, soft=on.between(0.16, 0.3))
    on.fill(PINK)
    on.paint(RED, 0.5 * on.patches(4))
    on.paint(WHITE, on.between(0.35, 0.7) * on.dots(on.count(14, 30), 0.03, 0.055))
    if on.chance(0.75):
        on.paint(CREAM, on.between(0.7, 1.0) * on.dots(on.count(3, 9), 0.06, 0.16, ragged=True))
    if on.chance(0.3):
        on.paint(BROWN, 0.5 * on.patches(5))
    return on.done(0.85)


def _bcc(on: "_Canvas") -> Lesion:
    """Basal cell carcinoma: pearly pink, branching vessels, blue-grey nests, sometimes an ulcer."""
    on.shape(irregular=0.10, stretch=0.2, soft=on.between(0.10, 0.22))
    on.fill(PINK)
    on.paint(WHITE, 0.6 * on.patches(3))
    if on.chance(0.9):
        on.paint(RED, on.between(0.65, 0.9) * on.vessels(on.count(3, 6)))
    if on.chance(0.65):
        on.paint(SLATE, on.between(0.7, 0.95) * on.dots(on.count(3, 9), 0.05, 0.13))
    if on.chance(0.4):
        on.paint((0.62, 0.22, 0.10), 0.85 * on.dots(on.count(1, 2), 0.12, 0.2, ragged=True))
    return on.done(0.8)


def _bkl(on: "_Canvas") -> Lesion:
    """Seborrhoeic keratosis: stuck on, sharp and scalloped, pale cysts, dark openings, ridges."""
    on.shape(irregular=0.09, stretch=0.3, soft=on.between(0.02, 0.05), scallops=0.05)
    on.fill(on.mix(TAN, BROWN))
    on.paint(on.mix(BROWN, (0.45, 0.41, 0.38)), 0.6 * on.patches(5))
    if on.chance(0.7):
        on.paint(DARK, on.between(0.35, 0.6) * on.ridges())
    if on.chance(0.8):
        on.paint(WHITE, 0.85 * on.dots(on.count(5, 16), 0.02, 0.045))
    if on.chance(0.7):
        on.paint(DARK, 0.9 * on.dots(on.count(4, 12), 0.025, 0.06))
    return on.done(0.96)


def _df(on: "_Canvas") -> Lesion:
    """Dermatofibroma: a pale scar in the middle, a fine ring of brown network around it."""
    on.shape(irregular=0.05, stretch=0.1, soft=on.between(0.16, 0.28))
    on.fill(on.mix(TAN, PINK))
    on.paint(BROWN, on.between(0.5, 0.8) * on.network(0.09) * on.ring(0.75, 0.3))
    on.paint(BROWN, 0.35 * on.ring(0.75, 0.25))
    on.paint(WHITE, on.between(0.75, 1.0) * on.ring(0.0, on.between(0.3, 0.45)))
    if on.chance(0.4):
        on.paint(PINK, 0.5 * on.ring(0.3, 0.2))
    return on.done(0.8)


def _mel(on: "_Canvas") -> Lesion:
    """Melanoma: lopsided and ragged, three or more colours, a blue-white veil, odd dots, streaks."""
    on.shape(irregular=on.between(0.12, 0.19), stretch=0.35, soft=on.between(0.03, 0.10), notches=0.05)
    on.fill(on.mix(BROWN, DARK))
    on.paint(BLACK, on.between(0.6, 0.95) * on.patches(3))
    on.paint(on.mix(TAN, RED), 0.6 * on.patches(3))
    if on.chance(0.6):
        on.paint(DARK, 0.7 * on.network(on.between(0.10, 0.16)) * on.one_side())
    if on.chance(0.7):
        on.paint(VEIL, on.between(0.6, 0.9) * on.veil())
    if on.chance(0.6):
        on.paint(BLACK, 0.9 * on.dots(on.count(5, 14), 0.02, 0.06) * on.one_side())
    if on.chance(0.35):
        on.paint(WHITE, 0.6 * on.veil())
    return on.done(0.97)


def _nv(on: "_Canvas") -> Lesion:
    """Naevus: round, even, one or two browns, a regular network that thins out to the border."""
    on.shape(irregular=on.between(0.03, 0.09), stretch=0.3, soft=on.between(0.06, 0.2))
    base = on.mix(TAN, BROWN) if on.chance(0.65) else on.mix(BROWN, DARK)
    on.fill(base)
    on.paint(on.mix(BROWN, DARK), on.between(0.3, 0.7) * on.ring(0.0, on.between(0.5, 0.8)))
    if on.chance(0.75):
        on.paint(DARK, on.between(0.4, 0.7) * on.network(on.between(0.08, 0.13)) * on.ring(0.3, 0.6))
    elif on.chance(0.6):
        on.paint(DARK, on.between(0.5, 0.7) * on.dots(on.count(18, 40), 0.025, 0.04))
    if on.chance(0.25):
        on.paint(PINK, 0.4 * on.patches(3))
    return on.done(on.between(0.75, 0.95))


def _vasc(on: "_Canvas") -> Lesion:
    """Angioma: red to purple lagoons that lie close together, sharply bounded."""
    on.shape(irregular=0.08, stretch=0.25, soft=on.between(0.03, 0.09))
    on.fill(on.mix(RED, PURPLE))
    on.paint(WHITE, 0.3 * on.patches(6))
    tone = on.mix(RED, PURPLE) if on.chance(0.6) else on.mix(PURPLE, MAROON)
    on.paint(tone, 0.9 * on.dots(on.count(9, 22), 0.09, 0.18))
    if on.chance(0.5):
        on.paint(MAROON, 0.85 * on.dots(on.count(2, 6), 0.06, 0.14))
    if on.chance(0.3):
        on.paint(BLACK, 0.6 * on.patches(3))
    return on.done(0.93)


_DRAW: dict[str, Callable[["_Canvas"], Lesion]] = {
    "akiec": _akiec,
    "bcc": _bcc,
    "bkl": _bkl,
    "df": _df,
    "mel": _mel,
    "nv": _nv,
    "vasc": _vasc,
}


# --- the strokes ---------------------------------------------------------------------------


class _Canvas:
    """A square from -1 to 1 with a lesion of radius about one half in its middle.

    Strokes return how strongly they colour each pixel (0 to 1); `paint` applies them.
    """

    def __init__(self, side: int, rng: np.random.Generator) -> None:
        self._side, self._rng = side, rng
        axis = np.linspace(-1, 1, side, dtype=np.float32)
        self._x_PP, self._y_PP = np.meshgrid(axis, axis)
        self._angle_PP = np.arctan2(self._y_PP, self._x_PP)

    # chance

    def chance(self, share: float) -> bool:
        return bool(self._rng.random() < share)

    def between(self, low: float, high: float) -> float:
        return float(self._rng.uniform(low, high))

    def count(self, low: int, high: int) -> int:
        return int(self._rng.integers(low, high + 1))

    def mix(self, one: Rgb, other: Rgb) -> Rgb:
        part = self.between(0, 1)
        red, green, blue = (a + part * (b - a) for a, b in zip(one, other, strict=True))
        return red, green, blue

    # the outline

    def shape(
        self, irregular: float, stretch: float, soft: float, scallops: float = 0.0, notches: float = 0.0
    ) -> None:
        """An ellipse whose radius is disturbed by waves around it: few broad ones, many fine ones."""
        rng, angle_PP = self._rng, self._angle_PP
        radius_PP = np.full_like(angle_PP, self.between(0.42, 0.58))
        radius_PP *= 1 + self.between(0, stretch) * np.cos(2 * (angle_PP - self.between(0, np.pi)))
        for waves in range(2, 7):
            height, turn = irregular * rng.normal() / waves**0.7, self.between(0, 2 * np.pi)
            radius_PP *= 1 + np.clip(height, -0.3, 0.3) * np.cos(waves * angle_PP + turn)
        for height, waves in ((scallops, self.count(9, 14)), (notches, self.count(15, 24))):
            radius_PP *= 1 + height * np.abs(np.sin(waves * angle_PP / 2 + self.between(0, np.pi)))
        distance_PP = np.hypot(self._x_PP, self._y_PP) / np.maximum(radius_PP, 0.1)
        # 0 in the middle, 1 at the border; a little noise, because no border is a line.
        self._depth_PP = distance_PP + (0.03 + 0.3 * soft) * self._noise(14)
        self._cover_PP = _sigmoid((1 - self._depth_PP) / max(soft / 2, 0.01))

    def fill(self, colour: Rgb) -> None:
        """One colour with fine mottling."""
        flat_PPC = np.broadcast_to(np.asarray(colour, np.float32), (self._side, self._side, 3))
        mottled_PP = 1 + 0.05 * self._noise(10) + 0.035 * self._noise(30)
        self._colour_PPC = flat_PPC * mottled_PP[:, :, None]

    def paint(self, colour: Rgb, amount_PP: Floats) -> None:
        amount_PP1 = np.clip(amount_PP, 0, 1)[:, :, None]
        self._colour_PPC = self._colour_PPC + amount_PP1 * (np.asarray(colour, np.float32) - self._colour_PPC)

    def done(self, cover: float) -> Lesion:
        return Lesion(np.clip(self._colour_PPC, 0, 1), cover * self._cover_PP)

    # what is in it

    def patches(self, cells: int) -> Floats:
        """Large regions with soft borders."""
        return _sigmoid(4 * (self._noise(cells) - self.between(0.2, 0.8)))

    def ring(self, depth: float, width: float) -> Floats:
        """Around the middle at `depth` (0 middle, 1 border)."""
        return np.asarray(np.exp(-(((self._depth_PP - depth) / width) ** 2)), np.float32)

    def one_side(self) -> Floats:
        """Strong on one side, weak on the other."""
        angle = self.between(0, 2 * np.pi)
        return _sigmoid(5 * (np.cos(angle) * self._x_PP + np.sin(angle) * self._y_PP))

    def veil(self) -> Floats:
        """One hazy region away from the middle."""
        angle, away = self.between(0, 2 * np.pi), self.between(0.1, 0.3)
        x_PP, y_PP = self._x_PP - away * np.cos(angle), self._y_PP - away * np.sin(angle)
        near_PP = (x_PP**2 + y_PP**2) / self.between(0.03, 0.09) + 0.5 * self._noise(7)
        return 0.9 * _sigmoid(4 * (1 - near_PP)) + 0.1 * self._noise(20)

    def network(self, mesh: float) -> Floats:
        """Pigment network: a honeycomb of dark lines, bent as skin is."""
        x_PP = self._x_PP + 0.35 * mesh * self._noise(9)
        y_PP = self._y_PP + 0.35 * mesh * self._noise(9)
        turn = self.between(0, np.pi)
        waves_PP = np.zeros_like(x_PP)
        for way in (turn, turn + np.pi / 3, turn + 2 * np.pi / 3):
            waves_PP += np.cos(2 * np.pi / mesh * (np.cos(way) * x_PP + np.sin(way) * y_PP))
        # Three waves at 60 degrees add up to -1.5 ... 3, with one peak per mesh: the hole.
        return _sigmoid(3 * (0.1 - waves_PP))

    def ridges(self) -> Floats:
        """Furrows between ridges, as on a brain."""
        return np.asarray(np.exp(-((self._noise(self.count(7, 11)) / 0.3) ** 2)), np.float32)

    def dots(self, number: int, smallest: float, largest: float, ragged: bool = False) -> Floats:
        """Round (or ragged) spots at random places well inside the border."""
        image = Image.new("L", (self._side, self._side))
        pen = ImageDraw.Draw(image)
        for _ in range(number):
            angle, away = self.between(0, 2 * np.pi), 0.47 * np.sqrt(self.between(0, 1))
            x, y = away * np.cos(angle), away * np.sin(angle)
            for _ in range(5 if ragged else 1):
                radius, flat = self.between(smallest, largest), self.between(0.75, 1.0)
                if ragged:
                    x, y, radius = x + self.between(-0.08, 0.08), y + self.between(-0.08, 0.08), 0.7 * radius
                box = (x - radius, y - radius * flat, x + radius, y + radius * flat)
                pen.ellipse([(edge + 1) / 2 * self._side for edge in box], fill=self.count(190, 255))
        return self._soft(image, 0.008)

    def vessels(self, number: int) -> Floats:
        """Lines that wander in from the border, branch, and get thinner."""
        image = Image.new("L", (2 * self._side, 2 * self._side))
        pen = ImageDraw.Draw(image)
        for _ in range(number):
            angle = self.between(0, 2 * np.pi)
            start = (0.55 * np.cos(angle), 0.55 * np.sin(angle))
            self._branch(pen, start, angle + np.pi + self.between(-0.6, 0.6), 0.036, self.count(7, 11))
        return self._soft(image.resize((self._side, self._side), Image.Resampling.BOX), 0.004)

    def _branch(
        self, pen: ImageDraw.ImageDraw, at: tuple[float, float], angle: float, width: float, steps: int
    ) -> None:
        for left in range(steps, 0, -1):
            angle += self._rng.normal() * 0.35
            to = (at[0] + 0.08 * np.cos(angle), at[1] + 0.08 * np.sin(angle))
            line = [((x + 1) * self._side, (y + 1) * self._side) for x, y in (at, to)]
            pen.line(line, fill=255, width=max(1, round(width * self._side)))
            at, width = to, width * 0.92
            if left > 2 and self.chance(0.3):
                turn = self.between(0.5, 1.0) * (1 if self.chance(0.5) else -1)
                self._branch(pen, at, angle + turn, width * 0.7, left // 2)

    def _soft(self, image: Image.Image, blur: float) -> Floats:
        blurred = image.filter(ImageFilter.GaussianBlur(blur * self._side))
        return np.asarray(blurred, np.float32) * np.float32(1 / 255)

    def _noise(self, cells: int) -> Floats:
        return noise(self._rng, self._side, self._side, cells)


def noise(rng: np.random.Generator, height: int, width: int, cells: int) -> Floats:
    """A smooth random field, about standard normal, with `cells` bumps along the longer side."""
    rows, columns = (max(2, round(cells * side / max(height, width))) for side in (height, width))
    coarse = rng.standard_normal((rows + 2, columns + 2), dtype=np.float32)
    # Resized from inside the border, where bicubic interpolation still has neighbours.
    fine = Image.fromarray(coarse).resize(
        (width, height), Image.Resampling.BICUBIC, box=(1, 1, columns + 1, rows + 1)
    )
    return np.asarray(fine, np.float32)


def _sigmoid(values: npt.NDArray[np.floating]) -> Floats:
    return np.asarray(1 / (1 + np.exp(-np.clip(values, -30, 30))), np.float32)
