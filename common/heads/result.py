"""How one head did at one site, as the site says it and as the report keeps it."""

from common.config.heads import HeadProblem
from common.metrics import Score
from common.metrics.paired import Paired
from common.settings import Frozen


class HeadResult(Frozen):
    """How one head did on a site's test images."""

    title: str
    """`softmax`, or a head of the study."""
    score: Score | None = None
    """None if the head could not be had here; `problem` says why."""
    problem: HeadProblem | None = None
    paired: Paired | None = None
    """Beside the softmax, on the same images; None for the softmax itself."""
    interval: tuple[float, float] | None = None
    """Of the gain in balanced accuracy over the softmax: 95 %, from groups drawn again 1,000 times."""
