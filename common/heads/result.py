"""Result of one head at one site, as it travels and as the report keeps it."""

from typing import Annotated

from pydantic import StringConstraints

from common.config.heads import HeadProblem
from common.metrics import Score
from common.metrics.paired import Paired
from common.settings import Frozen


class HeadResult(Frozen):
    """Result of one head on a site's test images."""

    title: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.@-]{0,199}$")]
    """`softmax`, or a head of the study; `local.NAME@SITE` if it travelled here from its owner."""
    score: Score | None = None
    """None if the head could not be fitted here; `problem` names the reason."""
    problem: HeadProblem | None = None
    paired: Paired | None = None
    """Comparison with the softmax on the same images; None for the softmax itself."""
    interval: tuple[float, float] | None = None
    """95 % interval of the gain in balanced accuracy over the softmax, from 1,000 bootstrap samples of groups."""
