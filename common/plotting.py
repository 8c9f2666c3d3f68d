"""Drawing with matplotlib, without a display and without files in the user's home folder.

matplotlib is imported only when a picture is drawn, because the import takes a second,
which no round and no command should wait for.
"""

import io
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@contextmanager
def matplotlib_in(scratch: Path) -> Iterator[None]:
    """Let matplotlib keep its caches below `scratch` while it draws, never in the user's home folder.

    It reads the place from the environment when it is first imported; the folder is removed
    afterwards and the environment is as it was.
    """
    before = os.environ.get("MPLCONFIGDIR")
    with tempfile.TemporaryDirectory(dir=scratch, prefix=".matplotlib-") as folder:
        os.environ["MPLCONFIGDIR"] = folder
        try:
            # No pyplot: a Figure of one's own needs no display and no global state.
            yield
        finally:
            if before is None:
                del os.environ["MPLCONFIGDIR"]
            else:
                os.environ["MPLCONFIGDIR"] = before


def png(picture: "Figure") -> bytes:
    """The picture as the bytes of a PNG file."""
    buffer = io.BytesIO()
    picture.savefig(buffer, format="png")
    return buffer.getvalue()
