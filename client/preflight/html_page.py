"""The preflight as one page: what was found, what there is, and what it looks like.

For the data manager and the doctors of one site. It shows images and names of files, so it is written
for its owner's eyes only, holds everything it needs, and forbids the browser to fetch anything.
"""

import base64
import hashlib
import io
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from html import escape
from pathlib import Path

from PIL import Image

from client.data.decoding import decode
from client.data.manifest import ImageRow, Manifest
from client.data.references import BadImage
from client.preflight.data import Report
from client.preflight.findings import Finding, Rank
from common.files import write_atomically

_SAMPLES, _MOST_SAMPLES = 16, 640
"""Per class, and in all."""
_SHOWN, _LISTED, _OPEN, _SIZES = 8, 200, 8, 8
"""Images and lines under a finding, of which so many stand open; rows in the table of sizes."""
_THUMB = 116
"""Pixels a side."""

_TITLES: dict[Rank, str] = {"stops": "Stops the study", "look": "Worth a look", "fine": "Fine"}

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2733; --dim: #5b6b7b; --page: #f4f6f8; --card: #ffffff;
  --line: #dde3ea; --stops: #b3261e; --look: #9a6700; --fine: #1a7f4b; --train: #0072b2; --test: #e69f00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --dim: #9fb0c0; --page: #10161d; --card: #1a222c;
  --line: #2c3947; --stops: #ff8a80; --look: #f0b849; --fine: #5fd39a; --train: #56b4e9; --test: #e69f00; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 28px 24px 64px; }
h1 { font-size: 26px; margin: 0 0 2px; }
h2 { font-size: 18px; margin: 36px 0 12px; }
.dim { color: var(--dim); font-weight: 400; }
.small { font-size: 13px; }
.verdict { display: inline-block; margin: 14px 0 4px; padding: 8px 16px; border-radius: 8px; color: #fff;
  font-weight: 600; background: #1a7f4b; }
.verdict.no { background: #b3261e; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 14px 18px;
  margin: 10px 0; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; margin-top: 18px; }
.tiles .card { margin: 0; }
.tiles b { display: block; font-size: 20px; white-space: nowrap; }
.finding { border-left: 5px solid var(--rank); }
.finding h3 { margin: 0; font-size: 15px; font-weight: 600; }
.fine h3 { font-weight: 400; }
.badge { color: var(--rank); font-size: 12px; font-weight: 700; text-transform: uppercase; letter-spacing: .04em; }
.stops { --rank: var(--stops); }
.look { --rank: var(--look); }
.fine { --rank: var(--fine); }
details summary { cursor: pointer; color: var(--dim); margin-top: 6px; }
ul { margin: 6px 0 0; padding-left: 20px; overflow-wrap: anywhere; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: 0; font: inherit; }
table { border-collapse: collapse; width: 100%; }
th { text-align: left; color: var(--dim); font-weight: 500; font-size: 13px; }
th, td { padding: 5px 16px 5px 0; border-bottom: 1px solid var(--line); white-space: nowrap; }
tr:last-child td { border-bottom: 0; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
td.bar { width: 60%; padding-right: 0; }
.bar div { display: flex; height: 15px; }
.bar i { display: block; height: 100%; }
.train { background: var(--train); }
.test { background: var(--test); }
.plain { background: var(--dim); }
.key { display: inline-block; width: 11px; height: 11px; border-radius: 2px; margin: 0 5px 0 14px; }
.thumbs { display: flex; flex-wrap: wrap; gap: 8px; margin-top: 10px; }
figure { margin: 0; width: 116px; }
figure img { width: 116px; height: 116px; border-radius: 6px; display: block; }
figcaption { font-size: 11px; color: var(--dim); overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.empty { width: 116px; height: 116px; border-radius: 6px; border: 1px dashed var(--line); display: grid;
  place-items: center; }
"""


def write(report: Report, path: Path, now: datetime) -> None:
    """Write the page for its owner alone. Raises StorageError."""
    write_atomically(path, page(report, now).encode(), private=True)


def page(report: Report, now: datetime) -> str:
    """The whole page as HTML."""
    samples = _samples(report)
    shown = [row for finding in report.findings for row in finding.rows[:_SHOWN]]
    pictures = _Pictures([*shown, *(row for rows in samples.values() for row in rows)])
    name, may = escape(report.site), report.may_take_part
    body = "\n".join(
        [
            f"<h1>Preflight of {name}</h1>",
            f'<div class="dim">{now:%d %B %Y, %H:%M}. Shows images and file names of this site: it stays here.</div>',
            f'<div class="verdict{"" if may else " no"}">{name} '
            f"{'may take part' if may else 'may not take part until what stops it is mended'}</div>",
            *_tiles(report),
            "<h2>What was found</h2>",
            *(_finding(finding, pictures) for finding in report.findings),
            *_classes(report.manifest),
            *_sizes(report),
            *_sheet(samples, pictures),
        ]
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width"><meta name="robots" content="noindex">'
        f"<title>Preflight of {name}</title><style>{_STYLE}</style></head>\n"
        f"<body><main>\n{body}\n</main></body></html>\n"
    )


# --- the parts ---------------------------------------------------------------------------------


def _tiles(report: Report) -> Iterator[str]:
    ranks = Counter(finding.rank for finding in report.findings)
    rows = report.manifest.rows
    told = [
        (f"{len(rows):,}", "images"),
        (f"{len({row.group or row.image.key for row in rows}):,}", "patients or lesions"),
        (f"{sum(count > 0 for count in report.manifest.class_counts())}", "classes with images"),
        (f"{len(report.manifest.on('train')):,} / {len(report.manifest.on('test')):,}", "train / test"),
        (f"{ranks['stops']} / {ranks['look']}", "stop the study / worth a look"),
    ]
    tiles = "".join(f'<div class="card"><b>{n}</b><span class="dim">{what}</span></div>' for n, what in told)
    yield f'<div class="tiles">{tiles}</div>'


def _finding(finding: Finding, pictures: "_Pictures") -> str:
    listed = "".join(f"<li>{escape(item)}</li>" for item in finding.items[:_LISTED])
    if (more := len(finding.items) - _LISTED) > 0:
        listed += f"<li>... and {more:,} more</li>"
    lines = f"<ul>{listed}</ul>" if listed else ""
    if len(finding.items) > _OPEN:
        lines = f"<details><summary>{len(finding.items):,} lines</summary>{lines}</details>"
    thumbs = "".join(pictures.figure(row, row.label) for row in finding.rows[:_SHOWN])
    return (
        f'<div class="card finding {finding.rank}"><span class="badge">{_TITLES[finding.rank]}</span>'
        f"<h3><pre>{escape(finding.what[:1].upper() + finding.what[1:])}</pre></h3>{lines}"
        + (f'<div class="thumbs">{thumbs}</div>' if thumbs else "")
        + "</div>"
    )


def _classes(manifest: Manifest) -> Iterator[str]:
    if not manifest.rows:
        return
    sides = ("train", "test") if any(row.split for row in manifest.rows) else (None,)
    most = max(manifest.class_counts())
    groups = Counter(label for label, _ in {(row.label, row.group or row.image.key) for row in manifest.rows})
    keys = "".join(f'<span class="key {side}"></span>{side}' for side in sides if side)
    yield f'<h2>Classes <span class="dim small">{keys}</span></h2><div class="card"><table>'
    heads = "".join(f'<th class="n">{side or "images"}</th>' for side in sides)
    yield f'<tr><th>class</th>{heads}<th class="n">patients or lesions</th><th></th></tr>'
    counts = [manifest.class_counts(side) for side in sides]  # type: ignore[arg-type]
    for place, name in enumerate(manifest.classes):
        of_class = [count[place] for count in counts]
        cells = "".join(f'<td class="n">{count:,}</td>' for count in of_class)
        bars = "".join(
            f'<i class="{side or "plain"}" style="width:{100 * count / max(most, 1):.2f}%"></i>'
            for side, count in zip(sides, of_class, strict=True)
        )
        yield (
            f'<tr><td>{escape(name)}</td>{cells}<td class="n">{groups[name]:,}</td>'
            f'<td class="bar"><div>{bars}</div></td></tr>'
        )
    yield "</table></div>"


def _sizes(report: Report) -> Iterator[str]:
    whole = report.whole
    if not whole:
        return
    sizes = Counter((image.size, image.kind) for image in whole)
    most = max(sizes.values())
    yield '<h2>Sizes</h2><div class="card"><table>'
    yield '<tr><th>pixels</th><th>channels</th><th class="n">images</th><th></th></tr>'
    for ((width, height), kind), count in sizes.most_common(_SIZES):
        yield (
            f'<tr><td>{width:,} x {height:,}</td><td>{escape(kind)}</td><td class="n">{count:,}</td>'
            f'<td class="bar"><div><i class="plain" style="width:{100 * count / most:.2f}%"></i></div></td></tr>'
        )
    if len(sizes) > _SIZES:
        rest = sum(sizes.values()) - sum(count for _, count in sizes.most_common(_SIZES))
        others = f"{len(sizes) - _SIZES:,} others"
        yield f'<tr><td class="dim">{others}</td><td></td><td class="n">{rest:,}</td><td></td></tr>'
    yield "</table></div>"


def _sheet(samples: dict[str, list[ImageRow]], pictures: "_Pictures") -> Iterator[str]:
    if any(samples.values()):
        yield '<h2>Samples <span class="dim small">as training sees them: the middle square</span></h2>'
    for name, rows in samples.items():
        if rows:
            figures = "".join(pictures.figure(row, row.split or "") for row in rows)
            yield f'<div class="card"><b>{escape(name)}</b><div class="thumbs">{figures}</div></div>'


def _samples(report: Report) -> dict[str, list[ImageRow]]:
    """Some images of each class, chosen by a hash of their names, so that a second page shows the same."""
    classes = report.manifest.classes
    bad = {image.row.image.key for image in report.seen if image.problem}
    each = max(1, min(_SAMPLES, _MOST_SAMPLES // max(len(classes), 1)))
    rows = sorted(
        (row for row in report.manifest.rows if row.image.key not in bad),
        key=lambda row: hashlib.sha256(row.image.name.encode()).digest(),
    )
    return {name: [row for row in rows if row.label == name][:each] for name in classes}


# --- pictures ----------------------------------------------------------------------------------


class _Pictures:
    """Small pictures of some images, each made once."""

    def __init__(self, rows: Iterable[ImageRow]) -> None:
        # In the manifest's kind of order: frames and slices of one file are read one after another.
        wanted = sorted({row.image.key: row for row in rows}.values(), key=lambda row: row.image.key)
        with ThreadPoolExecutor(2, "page") as pool:
            made = list(pool.map(_thumb, wanted))
        self._made = {row.image.key: url for row, url in zip(wanted, made, strict=True)}

    def figure(self, row: ImageRow, caption: str) -> str:
        url = self._made[row.image.key]
        name = escape(row.image.name, quote=True)
        shown = f'<img src="{url}" alt="{name}" title="{name}">' if url else '<div class="empty">?</div>'
        below = f"<br>{escape(caption)}" if caption else ""
        return f'<figure>{shown}<figcaption title="{name}">{name}{below}</figcaption></figure>'


def _thumb(row: ImageRow) -> str:
    """A data URL, or nothing for what cannot be shown."""
    try:
        square = decode.decode(row.image, _THUMB, "bilinear")
    except (BadImage, OSError):
        return ""
    buffer = io.BytesIO()
    Image.fromarray(square).save(buffer, "JPEG", quality=82)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
