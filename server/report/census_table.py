"""The census of classes as a table."""

from common.config import StudyConfig
from common.wire import ImageSummary
from server.enrolment.census import Census, SiteCensus
from server.report.terminal import aligned
from server.state import Totals

NOTES = (
    "Training / validation / test images; `-`: none, or fewer than the site's policy lets be counted (sites marked ~, "
    "whose pixels are those that enough patients share); *: only scores; means and "
    "deviations of red, green, blue in 0-1"
)


def table(study: StudyConfig, census: Census) -> str:
    """For the terminal: a row a site, a column a class."""
    head, body, foot = cells(study, census)
    lacking = without_validation(study, census)
    without = f"\nno validation images: {', '.join(lacking)}" if lacking else ""
    return f"what the sites hold\n{aligned(head, body, foot)}\n{notes(census)}{without}"


def notes(census: Census) -> str:
    """What the cells mean, as a sentence without its full stop."""
    if census.totals is None:
        return NOTES
    hiding = ", ".join(census.withholding)
    left_out = f"; {hiding} may have a few more, which the policy there leaves out" if hiding else ""
    return (
        "Training / validation / test images of all sites together; each site's own came under masks, and sizes and "
        f"colours did not leave{left_out}"
    )


def cells(study: StudyConfig, census: Census) -> tuple[list[str], list[list[str]], list[list[str]]]:
    """Head, a row a site, and the row of all sites."""
    head = ["site", *census.classes, "all", "pixels", "mean", "deviation"]
    body = [
        [
            name + "~" * site.withheld + " *" * (name in study.sites.evaluate),
            *map(_cell, *_sides(site)),
            _cell(*map(sum, _sides(site))),
            *_looks(site.images),
        ]
        for name, site in census.sites.items()
    ]
    if census.totals is not None:
        sums = _sides(census.totals)
        together = [", ".join(census.totals.sites), *map(_cell, *sums), _cell(*map(sum, sums)), "-", "-", "-"]
        return head, [together], []
    totals = [
        [sum(counts) for counts in zip(*by_site, strict=True)]
        for by_site in zip(*map(_sides, census.sites.values()), strict=True)
    ]
    foot = ["all", *map(_cell, *totals), _cell(*map(sum, totals)), "", "", ""]
    return head, body, [foot]


def without_validation(study: StudyConfig, census: Census) -> list[str]:
    """Training sites without validation images: they have no part in the curves, nor in what the study chooses."""
    return [
        site for site in study.sites.train if site in census.sites and not sum(_sides(census.sites[site])[1])
    ]


def _sides(site: SiteCensus | Totals) -> tuple[tuple[int, ...], ...]:
    """Images by class: for training, validation and test."""
    none = (0,) * len(site.train_counts)
    return site.train_counts, site.validation_counts or none, site.test_counts


def _cell(*counts: int) -> str:
    return " / ".join(str(count or "-") for count in counts)


def _looks(images: ImageSummary | None) -> list[str]:
    if images is None:
        return ["-", "-", "-"]
    shares = [" ".join(f"{value:.2f}" for value in values) for values in (images.mean, images.std)]
    if images.sizes is None:
        return ["-", *shares]
    (width, wider), (height, higher) = images.sizes.width, images.sizes.height
    smallest, largest = f"{width} x {height}", f"{wider} x {higher}"
    return [smallest if smallest == largest else f"{smallest} to {largest}", *shares]
