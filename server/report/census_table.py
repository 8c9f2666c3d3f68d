"""The census of classes as a table."""

from common.config import StudyConfig
from common.wire import ImageSummary
from server.enrolment.census import Census
from server.report.terminal import aligned

NOTES = (
    "training / test images; `-`: none, or fewer than the site's policy lets be counted (sites marked ~, whose "
    "pixels are those that enough patients share); *: only scores; means and deviations of red, green, blue in 0-1"
)


def table(study: StudyConfig, census: Census) -> str:
    """For the terminal: a row a site, a column a class."""
    head, body, foot = cells(study, census)
    return f"what the sites hold\n{aligned(head, body, foot)}\n{NOTES}"


def cells(study: StudyConfig, census: Census) -> tuple[list[str], list[list[str]], list[list[str]]]:
    """Head, a row a site, and the row of all sites."""
    head = ["site", *census.classes, "all", "pixels", "mean", "deviation"]
    body = [
        [
            name + "~" * site.withheld + " *" * (name in study.sites.evaluate),
            *map(_pair, site.train_counts, site.test_counts),
            _pair(sum(site.train_counts), sum(site.test_counts)),
            *_looks(site.images),
        ]
        for name, site in census.sites.items()
    ]
    train = [sum(counts) for counts in zip(*(s.train_counts for s in census.sites.values()), strict=True)]
    test = [sum(counts) for counts in zip(*(s.test_counts for s in census.sites.values()), strict=True)]
    foot = ["all", *map(_pair, train, test), _pair(sum(train), sum(test)), "", "", ""]
    return head, body, [foot]


def _pair(train: int, test: int) -> str:
    return f"{train or '-'} / {test or '-'}"


def _looks(images: ImageSummary | None) -> list[str]:
    if images is None:
        return ["-", "-", "-"]
    shares = [" ".join(f"{value:.2f}" for value in values) for values in (images.mean, images.std)]
    if images.sizes is None:
        return ["-", *shares]
    (width, wider), (height, higher) = images.sizes.width, images.sizes.height
    smallest, largest = f"{width} x {height}", f"{wider} x {higher}"
    return [smallest if smallest == largest else f"{smallest} to {largest}", *shares]
