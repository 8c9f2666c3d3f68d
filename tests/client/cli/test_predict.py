"""The command that predicts; what it does is tested beside its modules."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_a_reader_that_goes_away_ends_predict_quietly() -> None:
    """Predictions here are lines without a model, more of them than a pipe holds."""
    code = (
        "import sys\n"
        "from client import predict\n"
        "from client.classification import PLAIN\n"
        "from client.cli.main import main\n"
        "class Model:\n"
        "    calibrated = staticmethod(lambda **_: PLAIN)\n"
        "    about_outliers = ''\n"
        "predict.load = lambda *_, **__: Model()\n"
        "predict.write = lambda _model, _paths, out, *_: [] if out.write('a.png,1,mel\\n' * 100_000) else []\n"
        "sys.exit(main(['predict', '--study', 'run', 'a.png']))"
    )
    read, write = os.pipe()
    os.close(read)  # as `| head -1` when it has its line
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT, stdout=write, stderr=subprocess.PIPE, timeout=120, check=False,
        )  # fmt: skip
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")  # 128 + SIGPIPE
