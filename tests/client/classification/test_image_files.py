"""Which files that a person names are images."""

import os
from pathlib import Path

from client.classification.image_files import Unreadable, references


def test_a_pipe_that_is_named_is_not_waited_for(tmp_path: Path) -> None:
    """To open one without a writer takes forever."""
    os.mkfifo(tmp_path / "pipe.png")
    expected = [Unreadable(tmp_path / "pipe.png", "is one of the pipes, sockets and devices")]
    assert list(references([tmp_path / "pipe.png"])) == expected
    assert expected[0] in list(references([tmp_path]))
