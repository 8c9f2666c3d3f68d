"""Numbers, lists and tables as Markdown text."""

import math
import re
from collections.abc import Iterable, Sequence

from common.text import one_line


def listed(names: Sequence[str]) -> str:
    """Names joined by commas and a last `and`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def counted(number: int, what: str) -> str:
    """A number with its noun, plural unless it is 1."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def no_counts(sites: Sequence[str]) -> str:
    """Which sites did not count their validation images at the end, and the reasons that there may be."""
    return f"No counts from {listed(sites)}: the site's policy, no validation images, or no answer."


def percent(share: float) -> str:
    """A share in percent with one decimal; a dash if it is not a number."""
    return "-" if math.isnan(share) else f"{100 * share:.1f}"


def decimal(value: float) -> str:
    """Three decimals; a dash if it is not finite."""
    return f"{value:.3f}" if math.isfinite(value) else "-"


_AS_ENTITY = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
_AS_WRITTEN = "\\`*_[]#|~!$"
"""Characters that Markdown, or what shows it, reads as more than themselves."""
_LINKS = re.compile(r"://|www\.|@", re.IGNORECASE)


def escaped(text: str) -> str:
    """Somebody else's text, in Markdown or HTML exactly as it was written: no markup, link, picture or further cell."""
    plain = one_line(" ".join(text.split()))
    plain = "".join(
        _AS_ENTITY.get(character, f"\\{character}" if character in _AS_WRITTEN else character)
        for character in plain
    )
    # A bare address becomes a link, too, unless it is broken up.
    return _LINKS.sub(lambda found: "".join(f"&#{ord(character)};" for character in found[0]), plain)


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]], right: int | None = None) -> str:
    """A Markdown table; the last `right` columns are to the right, all but the first by default."""
    num_right = len(head) - 1 if right is None else right

    def line(cells: Iterable[str]) -> str:
        return f"| {' | '.join(cells)} |"

    rule = [":---"] * (len(head) - num_right) + ["---:"] * num_right
    return "\n".join([line(head), line(rule), *map(line, rows)])
