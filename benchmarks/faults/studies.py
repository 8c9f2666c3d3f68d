"""The studies in which things go wrong, and what was seen each time.

Every function runs real processes, looks at what the server said and how the study ended, and
returns one row a fault. `as_expected` is false where the server did not say what it should.
"""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.faults.answers import BAD
from benchmarks.faults.bad_trainer import MEMORY, NONSENSE, REPLAY
from benchmarks.faults.held import Gate
from benchmarks.faults.launch import Link, Plan
from benchmarks.faults.world import Launch, World, soon
from common.formats import yaml_text

THREE = {"train": ["east", "north", "south"], "required": 2}
NOT_KEPT = "the round in flight"


@dataclass(frozen=True)
class Seen:
    """One fault, as it was seen from outside."""

    fault: str
    done: str
    said: str
    after_s: float | None
    """From the fault to the line; None where the line names no moment of its own."""
    ended: str
    lost: str
    as_expected: bool = True


# --- what a site says ------------------------------------------------------------------------

BAD_ANSWERS: dict[str, tuple[str, str, str]] = {
    NONSENSE: ("bytes that are no message", "not a Consilium message|could not pass on a message", "failed"),
    REPLAY: (
        "its answer to the round before, once more",
        "repeats an answer of round|it answers plan",
        "refused",
    ),
    MEMORY: ("torch.OutOfMemoryError in the middle of training", r"\(memory, case", "failed"),
}


def bad_answers(world: World) -> list[Seen]:
    """One study, one bad site of three, another fault in every round."""
    rounds = dict(enumerate([*BAD, NONSENSE, REPLAY, MEMORY], start=2))
    launch = world.launch(
        "answers",
        Plan(trainers={"south": world.script("answers", rounds)}),
        sites=THREE,
        rounds=max(rounds),
        admission={"max_norm_ratio": 20},
    )
    code = launch.end()
    seen = []
    for number, fault in rounds.items():
        if fault in BAD:
            done, expected, outcome = BAD[fault].done, BAD[fault].expected, BAD[fault].outcome
        else:
            done, expected, outcome = BAD_ANSWERS[fault]
        line = _line(launch, rf"round {number}  south: {outcome}.*")
        seen.append(
            Seen(
                fault, done, _without_time(line), _answered_after(line),
                _how_it_ended(launch, code), "the site's vote in that round",
                bool(re.search(expected, line)),
            )
        )  # fmt: skip
    return seen


def late_answers(world: World) -> list[Seen]:
    """One site of three answers when its round is closed, and two rounds later not at all.

    The next round cannot end before the late answer is in: the quorum is two, and another site is held.
    """
    south, east = world.gate("late-south", 1), world.gate("late-east", 2)
    launch = world.launch(
        "late", Plan(gates={"south": south.folder, "east": east.folder}), sites=THREE, rounds=4,
        deadlines={"enrol_s": 200, "round_s": 200, "grace": {"kind": "cut_off", "after_quorum_s": 1}},
    )  # fmt: skip
    launch.wait_for("round 2  south: missing")
    launch.wait_until_held(east, 3)
    south.let(3)
    launch.wait_for("south: late answer")
    east.open()
    code = launch.end()
    ended = _how_it_ended(launch, code)
    missing = _line(launch, "round 2  south: missing.*")
    dropped = _line(launch, "south: late answer.*")
    silent = _line(launch, "round 4  south: missing.*")
    vote = "the site's vote in that round"
    return [
        Seen(
            "late", "answers when its round is closed", _without_time(missing), _answered_after(missing), ended,
            vote, code == 0 and "no answer within" in missing,
        ),
        Seen(
            "late, seen later", "the answer of the round before arrives in the next one", _without_time(dropped),
            None, ended, "nothing more", "dropped" in dropped,
        ),
        Seen(
            "silent", "never answers", _without_time(silent), _answered_after(silent), ended, vote,
            "no answer within" in silent,
        ),
    ]  # fmt: skip


def all_sites_fail(world: World) -> list[Seen]:
    """No site can compute in round 2, however often it is asked."""
    scripts = {site: world.script(f"fail-{site}", {2: MEMORY}) for site in ("east", "north")}
    launch = world.launch("allfail", Plan(trainers=scripts))
    code = launch.end()
    line = _line(launch, r"the study failed: .*")
    return [
        Seen(
            "all sites fail", "every site is out of memory in round 2", _without_time(line), None,
            _how_it_ended(launch, code), "nothing: the weights after round 1 are kept",
            code == 1 and bool(re.search(r"round 2 has 0 usable .*east since round 2.*after 2 attempts", line)),
        )
    ]  # fmt: skip


# --- what dies -------------------------------------------------------------------------------


def kills(world: World) -> list[Seen]:
    """One process after the other is killed while a round is under way; the weights stay the same.

    Those that travel are quantised, so what server and sites remember of former rounds must survive as well.
    """
    transport = {"up": "int8", "down": "int8"}
    calm, gate = world.calm_weights(6, transport=transport), world.gate("kills", 1)
    launch = world.launch("kills", Plan(gates={"north": gate.folder}), rounds=6, transport=transport)
    seen = [
        kill_in_round(launch, gate, 2, "trainer killed with a plan in hand", "north-trainer"),
        kill_in_round(launch, gate, 3, "ServerApp killed", None),
        kill_in_round(launch, gate, 4, "SuperLink killed", "superlink"),
        kill_in_round(
            launch, gate, 5, "SuperLink killed, its database gone", "superlink", without_database=True
        ),
        kill_in_round(launch, gate, 6, "gateway killed while its site is at work", "north-gateway"),
    ]
    gate.open()
    code = launch.end()
    same = code == 0 and launch.weights() == calm
    ended = (
        f"{_how_it_ended(launch, code)}, weights {'equal to' if same else 'NOT those of'} the calm study's"
    )
    return [
        Seen(row.fault, row.done, row.said, row.after_s, ended, row.lost, row.as_expected and same)
        for row in seen
    ]


def kill_in_round(
    launch: Launch, gate: Gate, number: int, fault: str, name: str | None, *, without_database: bool = False
) -> Seen:
    """Kill a process, None for the ServerApp, while round `number` is held at north's gate.

    The row tells how long it took until that round was done after all.
    """
    launch.wait_until_held(gate, number)
    if without_database:
        for file in (launch.run_dir / "federation").glob("superlink.db*"):
            file.unlink()
    launch.kill(*([launch.server()] if name is None else launch.processes(name)[:1]))
    killed = time.monotonic()
    gate.let(number)
    launch.wait_for(rf"round {number} of \d+ of kills took")
    after_s = time.monotonic() - killed
    what = "the server crashed" if name is None else f"{name} was ended by SIGKILL"
    line = _line(launch, rf"{what}.*")
    lost = "nothing" if name and name != "superlink" else NOT_KEPT
    return Seen(fault, f"SIGKILL in round {number}", _without_time(line), after_s, "", lost, bool(line))


def power_cut(world: World) -> list[Seen]:
    """Everything is killed at once, and the last checkpoint is cut short as well."""
    calm, gate = world.calm_weights(3), world.gate("power", 2)
    launch = world.launch("power", Plan(gates={"north": gate.folder}))
    launch.wait_until_held(gate, 3)
    launch.kill(launch.process.pid)  # its watchdog ends the rest, by force, within seconds
    launch.process.wait()
    soon(lambda: not launch.processes(".*"), "the end of every process", 60)
    last = launch.run_dir / "checkpoints" / "round-0002.safetensors"
    whole = last.read_bytes()
    last.write_bytes(whole[: len(whole) // 2])
    refused = world.resume(launch)
    refused_code = refused.end()
    refusal = _line(refused, r"the study failed: .*")
    last.unlink()
    resumed = world.resume(launch)
    code = resumed.end()
    same = code == 0 and resumed.weights() == calm
    ended = (
        f"{_how_it_ended(resumed, code)}, weights {'equal to' if same else 'NOT those of'} the calm study's"
    )
    return [
        Seen(
            "half-written checkpoint", "the last checkpoint cut to half its length, then `resume`",
            _without_time(refusal), None, f"exit code {refused_code}", "nothing: the one before is whole",
            refused_code == 1 and "round-0002.safetensors" in refusal,
        ),
        Seen(
            "power cut", "SIGKILL to the launcher and all it started in round 3; then `resume`",
            _without_time(_line(resumed, "resuming after round 1 of 3")), None, ended, NOT_KEPT, same,
        ),
    ]  # fmt: skip


def disk_full(world: World) -> list[Seen]:
    """The disk of the run fills up before a checkpoint; room is made, the study is resumed."""
    calm, gate = world.calm_weights(3), world.gate("disk", 1)
    with _small_disk(world.folder / "small", mib=64) as disk:
        launch = world.launch("disk", Plan(gates={"north": gate.folder}), runs=disk)
        launch.wait_until_held(gate, 2)
        filler = disk / "filler"
        with contextlib.suppress(OSError), filler.open("wb") as file:
            while True:
                file.write(bytes(2**16))
                file.flush()
        gate.open()
        code = launch.end()
        line = next(iter(re.findall(r".*could not be written.*", launch.said())), "")
        filler.unlink()
        resumed = world.resume(launch)
        resumed_code = resumed.end()
        same = resumed_code == 0 and resumed.weights() == calm
    return [
        Seen(
            "disk full at the checkpoint", "a 64 MiB disk filled up after round 1; later freed, then `resume`",
            _without_time(line), None,
            f"exit code {code}; after `resume` exit code {resumed_code}, "
            f"weights {'equal to' if same else 'NOT those of'} the calm study's",
            NOT_KEPT, code == 1 and "No space left" in line and same,
        )
    ]  # fmt: skip


@contextmanager
def _small_disk(folder: Path, mib: int) -> Iterator[Path]:
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
        shutil.rmtree(folder, ignore_errors=True)


# --- who is who, and what is on the disk -----------------------------------------------------


def strangers(world: World) -> list[Seen]:
    """A clock that is wrong, a policy that says no, an image that is none; the others go on."""
    world.add_site("refusing", "north", policy={"encoders": ["convnext_*"]})
    spoilt = world.folder / "spoilt"
    shutil.copytree(world.sites / "synthetic-images", spoilt)
    rows = (spoilt / "labels.csv").read_text().splitlines()
    image = spoilt / next(row for row in rows[1:] if "north" in row.split(",")).split(",")[0]
    image.write_bytes(image.read_bytes()[:200])
    data = yaml_text.load((world.sites / "north.yaml").read_text())["data"]
    world.add_site("spoilt", "north", data=data | {"labels": str(spoilt / "labels.csv")})
    sites = ["east", "north", "refusing", "spoilt", "south"]
    launch = world.launch(
        "strangers", Plan(clocks={"south": 600.0}),
        sites={"train": sites, "required": 2}, rounds=1, deadlines={"enrol_s": 60},
    )  # fmt: skip
    code = launch.end()
    rows = {
        "clock 10 minutes ahead": ("south", "its gateway's clock is 600 s ahead", "south.*did not connect"),
        "plan outside the policy": (
            "refusing",
            "its policy allows other encoders only",
            r"encoder.*\(policy\)",
        ),
        "corrupt image": (
            "spoilt",
            "one image file cut to 200 bytes; all are decoded before round 1",
            r"\(data, case",
        ),
    }
    seen = []
    for fault, (site, done, expected) in rows.items():
        line = _line(launch, rf"{site}.*(did not connect|cannot take part).*")
        seen.append(
            Seen(
                fault, f"site {site}: {done}", _without_time(line), None, _how_it_ended(launch, code),
                "that site's part", code == 0 and bool(re.search(expected, line)),
            )
        )  # fmt: skip
    return seen


def expired_certificate(world: World) -> list[Seen]:
    """No site trusts the server, so no study begins."""
    launch = world.launch("expired", Plan(expired=True), deadlines={"enrol_s": 15})
    code = launch.end()
    line = _line(launch, r"LaunchError: .*")
    return [
        Seen(
            "expired certificate", "the server's certificate ended 3 minutes ago", line, None,
            f"exit code {code}", "nothing was begun: a site that checks certificates does not connect",
            code == 1 and ".pem ended on" in line,
        )
    ]  # fmt: skip


# --- the line --------------------------------------------------------------------------------


def cut_line(world: World, seconds: float = 60.0) -> list[Seen]:
    """The line of one of two sites is cut in the middle of a round and repaired."""
    gate = world.gate("cut", 1)
    launch = world.launch("cut", Plan(links={"north": Link()}, gates={"north": gate.folder}))
    launch.wait_until_held(gate, 2)
    (line,) = launch.processes("north-link")
    os.kill(line, signal.SIGUSR1)
    cut = time.monotonic()
    gate.open()
    time.sleep(seconds)  # the fault itself is that time passes
    os.kill(line, signal.SIGUSR2)
    launch.wait_for("round 2 of 3 of cut took")
    after_s = time.monotonic() - cut
    code = launch.end()
    logged = _line(launch, r"north is not connected.*|round 2  north: failed.*") or _line(
        launch, r"round 2  north: .*"
    )
    return [
        Seen(
            f"link cut for {seconds:.0f} s", "no byte passes in round 2, then all do", _without_time(logged), after_s,
            _how_it_ended(launch, code), "nothing", code == 0,
        )
    ]  # fmt: skip


def slow_line(world: World, mbit: float = 4.0) -> list[Seen]:
    """A model of 16 MB over few Mbit/s with 100 ms each way, for one of two sites."""
    launch = world.launch(
        "slow", Plan(links={"north": Link(mbit=mbit, delay_ms=100)}), rounds=1,
        model={"encoder": "efficientnet_b0", "image_size": 32}, local={"steps": 1, "batch_size": 4},
        deadlines={"enrol_s": 400, "round_s": 400, "evaluate_s": 400},
    )  # fmt: skip
    code = launch.end()
    line = _line(launch, r"round 1  north: trained.*")
    return [
        Seen(
            f"{mbit:g} Mbit/s, 100 ms", "16 MB each way to one of two sites", _without_time(line),
            _answered_after(line), _how_it_ended(launch, code), "nothing", code == 0,
        )
    ]  # fmt: skip


ALL = (
    bad_answers, late_answers, all_sites_fail, kills, power_cut, disk_full, strangers, expired_certificate, cut_line,
    slow_line,
)  # fmt: skip


# --- reading a log ---------------------------------------------------------------------------


def _line(launch: Launch, pattern: str) -> str:
    found = re.search(rf"^.*?(?:{pattern})$", launch.said(), re.MULTILINE)
    return found.group(0) if found else ""


def _without_time(line: str) -> str:
    return re.sub(r"^\S+\s+(WARNING: |ERROR: )?", "", line)


def _answered_after(line: str) -> float | None:
    found = re.search(r"after (\d+\.\d) s", line)
    return float(found.group(1)) if found else None


def _how_it_ended(launch: Launch, code: int) -> str:
    return f"{launch.status()}, exit code {code}"
