"""Synthetic federation: dermoscopy-like images of several hospitals, for tests and demonstrations.

The difficulties of federated training are drawn in on purpose: each site has its own camera
(colour cast, sharpness, vignette, compression, image size), its own mix of classes (the second
one lacks a class) and its own number of images, and some lesions were photographed more than once.
The same seed gives the same files. Everything written says that it is synthetic.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from client.data.simulation.lesions import CLASSES, Floats, Lesion, draw_lesion, noise
from common.errors import ConfigError, SiteDataError
from common.seeds import derive

SITES = ("north", "south", "east")

README = """SYNTHETIC IMAGES. Drawn by a program from random numbers; no patient, no camera, no diagnosis.

They resemble dermoscopy so that federated training can be tried out without data, and they
are good for nothing else: no figure from them says anything about real images.

labels.csv: file, label, lesion_id, site. Images of one lesion share a lesion_id.
"""

_SHARES = {"nv": 0.34, "mel": 0.17, "bkl": 0.15, "bcc": 0.12, "akiec": 0.09, "vasc": 0.07, "df": 0.06}
"""HAM10000's order of frequency, less extreme, so that every class can be learned from few images."""

_SITE_SIZES = (1.3, 1.0, 0.7)
"""Images of the first, second, third site (and so on, in turn), as parts of `images_per_site`."""

_VIEWS = (0.7, 0.2, 0.1)
"""Share of lesions with one, two, three images."""


@dataclass(frozen=True)
class Camera:
    """How one site's pictures differ from another's."""

    size: float
    """Of the picture, as a part of `image_size`."""
    cast: tuple[float, float, float]
    """White balance: factors for red, green, blue."""
    gamma: float
    saturation: float
    vignette: float
    """How much darker the corners are."""
    blur: float
    """In thousandths of the picture's height."""
    grain: float
    quality: int
    """Of JPEG."""
    hairs: float
    """On average; the skin is not shaved everywhere."""
    round_view: bool
    """Black outside the circle of the dermoscope."""
    ruler: bool


_CAMERAS = (
    Camera(1.0, (1.03, 1.0, 0.97), 1.0, 1.05, 0.10, 2, 0.008, 92, 2.0, round_view=False, ruler=False),
    Camera(0.85, (0.94, 0.99, 1.10), 0.9, 0.85, 0.30, 7, 0.016, 72, 5.0, round_view=True, ruler=False),
    Camera(1.2, (1.08, 0.98, 0.90), 1.12, 1.1, 0.18, 4, 0.012, 84, 1.0, round_view=False, ruler=True),
)


def site_names(number: int) -> tuple[str, ...]:
    """Names of the synthetic sites."""
    return (*SITES, *(f"site-{place}" for place in range(len(SITES) + 1, number + 1)))[:number]


def generate(
    folder: Path,
    *,
    sites: Sequence[str] = SITES,
    images_per_site: int = 300,
    image_size: int = 128,
    seed: int = 0,
    classes: Sequence[str] = CLASSES,
) -> Path:
    """Write images/SITE/*.jpg, labels.csv and README.txt under `folder`; returns labels.csv.

    `image_size` is the height in pixels of the first site's pictures; the width is 4/3 of it.
    """
    unknown = [name for name in classes if name not in CLASSES]
    if unknown:
        raise ConfigError(
            f"no drawing of class {', '.join(unknown)}; there are {', '.join(CLASSES)}. Choose among these."
        )
    lines = []
    for number, site in enumerate(sites):
        (folder / "images" / site).mkdir(parents=True, exist_ok=True)
        camera = _camera(number, site, seed)
        total = round(images_per_site * _SITE_SIZES[number % len(_SITE_SIZES)])
        for label, lesion, view in _cases(classes, number, site, total, seed):
            name = f"images/{site}/{site}_{label}_{lesion:04d}_{view}.jpg"
            _picture(label, lesion, view, site, camera, image_size, seed).save(
                folder / name, "JPEG", quality=camera.quality, comment=b"SYNTHETIC: drawn by a program"
            )
            lines.append((name, label, f"SYNTHETIC_{site}_{lesion:04d}", site))
    (folder / "README.txt").write_text(README, encoding="utf-8")
    labels = folder / "labels.csv"
    with labels.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("file", "label", "lesion_id", "site"))
        writer.writerows(lines)
    return labels


def contact_sheet(folder: Path, path: Path, *, per_cell: int = 3, height: int = 96) -> None:
    """One picture with examples of each class (rows) from each site (columns), to be looked at."""
    labels = folder / "labels.csv"
    if not labels.is_file():
        raise SiteDataError(f"{labels} is not there; generate the images first")
    with labels.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    sites = list(dict.fromkeys(row["site"] for row in rows))
    classes = sorted({row["label"] for row in rows})
    width, gap, head = height * 4 // 3, 3, 24
    cell = per_cell * (width + gap) + 8
    sheet = Image.new("RGB", (60 + cell * len(sites), head + (height + gap) * len(classes)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    pen.text((4, 4), "SYNTHETIC", "red", ImageFont.load_default(10))
    for column, site in enumerate(sites):
        pen.text((64 + column * cell, 4), site, "black", font)
    for line, label in enumerate(classes):
        top = head + line * (height + gap)
        pen.text((4, top + height // 2 - 8), label, "black", font)
        for column, site in enumerate(sites):
            shown = [row for row in rows if row["site"] == site and row["label"] == label]
            for place, row in enumerate(shown[:: max(1, len(shown) // per_cell)][:per_cell]):
                with Image.open(folder / row["file"]) as image:
                    left = 60 + column * cell + place * (width + gap)
                    sheet.paste(image.resize((width, height)), (left, top))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)


# --- who has what --------------------------------------------------------------------------


def _cases(
    classes: Sequence[str], number: int, site: str, total: int, seed: int
) -> list[tuple[str, int, int]]:
    """(class, lesion, view) of each of `total` images of a site, fewest lesions with several views."""
    rng = np.random.default_rng(derive(seed, site, "mix"))
    present = list(classes)
    if number % len(_SITE_SIZES) == 1 and len(classes) > 2:
        present.remove(min(present, key=lambda name: _SHARES[name]))
    weights = np.array([_SHARES[name] * rng.uniform(0.5, 1.6) for name in present])
    # A few images of each class that is there, the rest by weight.
    least = max(1, total // (4 * len(present)))
    extra = weights / weights.sum() * max(0, total - least * len(present))
    counts = [least + int(share) for share in extra]
    counts[int(np.argmax(weights))] += max(0, total - sum(counts))
    cases = []
    lesion = 0
    for label, count in zip(present, counts, strict=True):
        left = count
        while left > 0:
            views = min(left, 1 + int(rng.choice(len(_VIEWS), p=_VIEWS)))
            cases += [(label, lesion, view) for view in range(views)]
            lesion, left = lesion + 1, left - views
    return cases[:total]


def _camera(number: int, site: str, seed: int) -> Camera:
    if number < len(_CAMERAS):
        return _CAMERAS[number]
    rng = np.random.default_rng(derive(seed, site, "camera"))
    red, blue = rng.uniform(0.88, 1.12, 2)
    return Camera(
        size=float(rng.uniform(0.8, 1.25)),
        cast=(float(red), 1.0, float(blue)),
        gamma=float(rng.uniform(0.85, 1.2)),
        saturation=float(rng.uniform(0.8, 1.2)),
        vignette=float(rng.uniform(0.05, 0.35)),
        blur=float(rng.uniform(1, 8)),
        grain=float(rng.uniform(0.005, 0.02)),
        quality=int(rng.integers(70, 95)),
        hairs=float(rng.uniform(0, 5)),
        round_view=bool(rng.random() < 0.4),
        ruler=bool(rng.random() < 0.3),
    )


# --- one picture ---------------------------------------------------------------------------


def _picture(
    label: str, lesion: int, view: int, site: str, camera: Camera, image_size: int, seed: int
) -> Image.Image:
    height = max(16, round(image_size * camera.size))
    width = height * 4 // 3
    # One stream for what belongs to the lesion and its skin, another for each photograph of it.
    body = np.random.default_rng(derive(seed, site, lesion, "body"))
    photo = np.random.default_rng(derive(seed, site, lesion, "photo", view))
    tone_C = _skin_tone(body)
    drawn = draw_lesion(label, width, body)
    scene_HWC = _skin(tone_C, height, width, photo)
    scene_HWC = _placed(drawn, scene_HWC, photo)
    scene_HWC = _with_hairs(scene_HWC, photo.poisson(camera.hairs), photo)
    return _taken(scene_HWC, camera, photo)


def _skin_tone(rng: np.random.Generator) -> Floats:
    pale, tan = np.array((0.93, 0.74, 0.68)), np.array((0.80, 0.60, 0.48))
    return np.asarray(pale + rng.uniform(0, 1) * (tan - pale) + rng.normal(0, 0.012, 3), np.float32)


def _skin(tone_C: Floats, height: int, width: int, rng: np.random.Generator) -> Floats:
    """Blotches, pores and fine crossing lines."""
    light_HW = (
        1
        + 0.025 * noise(rng, height, width, 4)
        + 0.018 * noise(rng, height, width, 16)
        + 0.02 * noise(rng, height, width, 48)
        - 0.035 * np.exp(-((noise(rng, height, width, 22) / 0.18) ** 2))
    )
    red_HW = 0.012 * noise(rng, height, width, 6)
    skin_HWC = tone_C * light_HW[:, :, None]
    skin_HWC[:, :, 0] += red_HW
    return np.asarray(skin_HWC, np.float32)


def _placed(lesion: Lesion, skin_HWC: Floats, rng: np.random.Generator) -> Floats:
    """The lesion on the skin, turned, scaled and off the middle; skin texture shows through."""
    height, width, _ = skin_HWC.shape
    side = lesion.cover_PP.shape[0]
    layers = np.dstack([lesion.colour_PPC, lesion.cover_PP])
    image = Image.fromarray(np.asarray(layers * 255, np.uint8), "RGBA")
    scale = rng.uniform(0.65, 1.15) * side / height
    angle = rng.uniform(0, 2 * np.pi)
    cos, sin = scale * np.cos(angle), scale * np.sin(angle)
    middle_x = width / 2 + rng.normal(0, 0.05) * width
    middle_y = height / 2 + rng.normal(0, 0.05) * height
    # Where each pixel of the picture lies in the lesion's own square.
    inverse = (
        cos, -sin, side / 2 - cos * middle_x + sin * middle_y,
        sin, cos, side / 2 - sin * middle_x - cos * middle_y,
    )  # fmt: skip
    seen = image.transform((width, height), Image.Transform.AFFINE, inverse, Image.Resampling.BICUBIC)
    seen_HW4 = np.asarray(seen, np.float32) / 255
    texture_HWC = skin_HWC / skin_HWC.mean(axis=(0, 1))
    cover_HW1 = seen_HW4[:, :, 3:]
    placed_HWC = skin_HWC + cover_HW1 * (seen_HW4[:, :, :3] * texture_HWC - skin_HWC)
    return np.asarray(placed_HWC, np.float32)


def _with_hairs(scene_HWC: Floats, number: int, rng: np.random.Generator) -> Floats:
    height, width, _ = scene_HWC.shape
    image = Image.new("L", (2 * width, 2 * height))
    pen = ImageDraw.Draw(image)
    steps = np.linspace(0, 1, 14)[:, None]
    for _ in range(number):
        start, bend, end = rng.uniform(-0.1, 1.1, (3, 2)) * (2 * width, 2 * height)
        bend = 0.7 * (start + end) / 2 + 0.3 * bend
        curve = (1 - steps) ** 2 * start + 2 * steps * (1 - steps) * bend + steps**2 * end
        thick = max(1, round(height * rng.uniform(0.008, 0.02)))
        pen.line([(float(x), float(y)) for x, y in curve], fill=int(rng.integers(140, 245)), width=thick)
    hair_HW1 = np.asarray(image.resize((width, height), Image.Resampling.BOX), np.float32)[:, :, None] / 255
    colour_C = np.array((0.22, 0.15, 0.12), np.float32) * rng.uniform(0.5, 1.6)
    return np.asarray(scene_HWC + hair_HW1 * (colour_C - scene_HWC), np.float32)


def _taken(scene_HWC: Floats, camera: Camera, rng: np.random.Generator) -> Image.Image:
    """What the site's camera makes of the scene."""
    height, width, _ = scene_HWC.shape
    y_HW, x_HW = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    far_HW = np.hypot(x_HW * width / height, y_HW)
    lit_HWC = scene_HWC * (1 - camera.vignette * far_HW**2 / 2)[:, :, None] * rng.uniform(0.93, 1.05)
    grey_HW1 = lit_HWC.mean(axis=2, keepdims=True)
    lit_HWC = grey_HW1 + camera.saturation * (lit_HWC - grey_HW1)
    lit_HWC = lit_HWC * np.array(camera.cast) * rng.normal(1, 0.012, 3)
    seen_HWC = np.clip(lit_HWC, 0, 1) ** camera.gamma
    if camera.ruler and rng.random() < 0.5:
        seen_HWC = _with_ruler(seen_HWC, rng)
    image = Image.fromarray(np.asarray(seen_HWC * 255, np.uint8))
    image = image.filter(ImageFilter.GaussianBlur(camera.blur / 1000 * height))
    grainy_HWC = np.asarray(image, np.float32) + rng.normal(0, 255 * camera.grain, (height, width, 1))
    if camera.round_view:
        grainy_HWC *= np.clip((rng.uniform(1.22, 1.4) - far_HW) * 15, 0.02, 1)[:, :, None]
    return Image.fromarray(np.asarray(np.clip(grainy_HWC, 0, 255), np.uint8))


def _with_ruler(seen_HWC: Floats, rng: np.random.Generator) -> Floats:
    """Millimetre marks along the lower edge."""
    height, width, _ = seen_HWC.shape
    marked_HWC = seen_HWC.copy()
    for tick in range(int(rng.integers(0, 8)), width, max(4, width // 18)):
        long = 0.09 if (tick // max(4, width // 18)) % 5 == 0 else 0.05
        marked_HWC[round(height * (1 - long)) :, tick : tick + max(1, width // 160)] *= 0.35
    return marked_HWC
