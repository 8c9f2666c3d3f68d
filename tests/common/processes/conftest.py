"""A template of small programs, and what each of them does."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.processes import forked
from common.processes.forked import Template
from tests.places import ROOT

SLOW = """
import time
from pathlib import Path
while not (Path(__file__).parent / "go").exists():
    time.sleep(0.02)
"""
HEAVY = """
import os
import numpy
from pathlib import Path
with (Path(__file__).parent / "imported").open("a") as file:
    file.write(f"{os.getpid()}\\n")
os.environ["SET_BY_AN_IMPORT"] = "yes"
"""
SHOW = """
import heavy, numpy, os, sys
own = "/proc/self/"
print(sys.argv[1:], __name__, sys.stdin.read() == "", os.getsid(0) == os.getpid())
print(os.environ["FLWR_HOME"], "CONSILIUM_TEMPLATE_ROOM" in os.environ, os.environ["SET_BY_AN_IMPORT"])
print(open(own + "cmdline").read().rstrip("\\0").split("\\0")[1:])
print(sorted(e for e in open(own + "environ").read().split("\\0") if e.startswith("FLWR_HOME=/home/of")))
print(numpy.random.randint(2**31))
"""
WAIT = """
import signal, sys, time
from pathlib import Path
def end(*_):
    Path(sys.argv[1]).with_suffix(".ended").touch()
    raise SystemExit(7)
signal.signal(signal.SIGTERM, end)
Path(sys.argv[1]).touch()
time.sleep(600)
"""
HELD = """
import __main__, os, time
from pathlib import Path
folder, become = Path(__file__).parent, __main__._become
def held(*arguments):
    (folder / "new").write_text(f"{os.getpid()}\\n")
    while not (folder / "go").exists():
        time.sleep(0.02)
    become(*arguments)
__main__._become = held
"""
ENDS = """
import atexit, sys, threading
class Freed:
    def __del__(self):
        print("freed")
kept, asked = Freed(), threading.Event()
def wait():
    asked.wait()
    print("thread")
threading.Thread(target=wait).start()
atexit.register(print, "at exit")
class Asks:
    def __str__(self):
        asked.set()
        return "a sentence"
sys.exit(Asks())
"""
SAYS = """
import heavy, sys
print(sys.argv[1])
sys.stderr.write(f"beware of {sys.argv[1]}")
sys.exit(int(sys.argv[2]) if sys.argv[2:] else 0)
"""
PROGRAMS = {
    "slow": SLOW,
    "heavy": HEAVY,
    "show": SHOW,
    "wait": WAIT,
    "leave": "import sys; print('gone'); raise SystemExit(int(sys.argv[1]))",
    "says": SAYS,
    "ends": ENDS,
    "fail": "raise ValueError('three is no prime')",
    "held": HELD,
    "threads": "import threading, time; threading.Thread(target=time.sleep, args=(600,), daemon=True).start()",
}


@pytest.fixture
def env(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    for name, code in PROGRAMS.items():
        (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.delenv("CONSILIUM_TEMPLATES", raising=False)
    monkeypatch.setattr(forked, "_DEVICES", ())
    return {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}


@pytest.fixture
def template(tmp_path: Path, env: dict[str, str]) -> Iterator[Template]:
    made = forked.start(["heavy"], env, tmp_path / "template.log", tmp_path / "s")
    yield made
    made.end()
