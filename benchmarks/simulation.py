"""Simulations: the engines beside each other, and many sites in one process.

Each run is a process of its own, whose memory (with that of its children) is looked at every half second. Needs the
images of HAM10000 and a folder with mobilenetv2_100's weights:

    HAM10000=DIR WEIGHTS=DIR python -m benchmarks simulation RESULTS.json [demo] [sources] [many]

`demo` and `sources` run a study with each engine; `many` runs 200 sites, 20 of them a round. What is measured goes to
RESULTS.json, and the page is written from all that is there.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks._page import RESULTS, ROOT, write_page
from common.formats import yaml_text
from common.weights import digest, load_file
from server.report.text import markdown_table

PAGE = RESULTS / "simulation.md"
MOBILENET: dict[str, Any] = {
    "classes": ["akiec", "bcc", "bkl", "df", "mel", "nv", "vasc"],
    "model": {
        "encoder": "mobilenetv2_100",
        "image_size": 64,
        "weights": {
            "kind": "file",
            "name": "mobilenetv2_100.timm.safetensors",
            "sha256": "a3ecb9791104a396ba30131ec1394534364be0c499ab598712ac5187e115084c",
        },
    },
    "local": {"epochs": 1, "batch_size": 16, "optimizer": {"kind": "adamw", "lr": 0.001}},
}
SMALL: dict[str, Any] = {
    **MOBILENET,
    "model": {"encoder": "test_efficientnet", "image_size": 64, "weights": {"kind": "seed"}},
    # Many sites have one class only. By their own prior they would have nothing to learn, and next to their updates of
    # nearly 0 those of the others would be refused as far too large.
    "local": {**MOBILENET["local"], "prior": "study"},
}
SOURCES = ["rosendahl", "vidir_molemax", "vidir_modern", "vienna_dias"]
NUM_MANY, NUM_DRAWN = 200, 20


def command(program: str, *arguments: object) -> None:
    subprocess.run([sys.executable, "-m", program, *map(str, arguments)], cwd=ROOT, check=True)


def make_sites(kind: str, out: Path) -> None:
    """The sites' settings, as their commands write them."""
    if kind == "demo":
        command("client.cli", "simulate", "--out", out, "--threads", 1)
        return
    labels, weights = Path(os.environ["HAM10000"]) / "labels.csv", os.environ["WEIGHTS"]
    how = ["dirichlet", "--sites", NUM_MANY, "--alpha", 0.3] if kind == "many" else ["acquisition"]
    command(
        "client.cli", "partition", labels, "--out", out, "--by", *how, "--weights", weights, "--threads", 1
    )

    if kind == "many":
        for path in out.glob("site-*.yaml"):
            _own_table(path)


def _own_table(path: Path) -> None:
    """Let a site read a table of its own rows: of one that 200 sites share, each would look every file up."""
    site = yaml_text.load(path.read_text(encoding="utf-8"))
    columns = {name: name for name in ("image", "label", "lesion", "acquisition", "split")}
    site["data"] = {"kind": "csv", "labels": site["data"]["image_list"], "columns": columns}
    path.write_text(yaml_text.dump(site), encoding="utf-8")


def make_study(kind: str, path: Path, sites: list[str]) -> None:
    """The study's YAML for these sites."""
    if kind == "demo":
        text = (ROOT / "configs/study/demo.yaml").read_text(encoding="utf-8")
        path.write_text(text.replace("[north, south, east]", f"[{', '.join(sites)}]"), encoding="utf-8")
        return
    drawn = {"per_round": NUM_DRAWN} if kind == "many" else {}
    study = {
        **(SMALL if kind == "many" else MOBILENET),
        "name": kind,
        "sites": {"train": sites, **drawn},
        "rounds": 10 if kind == "many" else 3,
    }
    path.write_text(yaml_text.dump(study), encoding="utf-8")


def run(kind: str, engine: str, folder: Path) -> dict[str, Any]:
    """One study with one engine, from new sites: seconds, memory and digest of the weights."""
    make_sites(kind, folder / "sites")
    about = yaml_text.load((folder / "sites" / "federation.yaml").read_text(encoding="utf-8"))
    make_study(kind, folder / "study.yaml", list(about["sites"]))
    before, started, load = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic(), os.getloadavg()[0]
    log = folder / "simulation.log"
    arguments = ["simulate", folder / "study.yaml", "--sites", folder / "sites", "--runs", folder / "runs"]
    with log.open("w") as output:
        simulation = subprocess.Popen(
            [sys.executable, "-m", "server.cli", *map(str, arguments), "--engine", engine],
            cwd=ROOT,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    memory: list[tuple[float, float]] = []
    at_rounds: list[tuple[float, float]] = []
    while simulation.poll() is None:
        memory.append((time.monotonic() - started, tree_mib(simulation.pid)))
        at_rounds += memory[-1:] * (_num_rounds(folder / "runs") - len(at_rounds))
        time.sleep(0.5)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if simulation.returncode != 0:
        sys.exit(f"the study did not finish ({simulation.returncode}):\n{log.read_text()[-4000:]}")
    (run_dir,) = (path for path in (folder / "runs").iterdir() if path.is_dir())  # beside it: its lock
    rounds = [json.loads(line) for line in (run_dir / "rounds.jsonl").read_text().splitlines()]
    return {
        "kind": kind,
        "engine": engine,
        "exit": simulation.returncode,
        "sites": len(about["sites"]),
        "images": sum(about["sites"].values()),
        "total_s": memory[-1][0] if memory else 0.0,
        "cpu_s": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "rounds_s": [line["seconds"] for line in rounds],
        "memory": memory[:: max(1, len(memory) // 40)],
        "at_rounds": at_rounds,
        "most_mib": max((mib for _, mib in memory), default=0.0),
        "weights": digest(load_file(run_dir / "weights.safetensors")[0])[:16],
        "load": load,
        "date": time.strftime("%Y-%m-%d"),
    }


def _num_rounds(runs: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in runs.glob("*/rounds.jsonl"))


def tree_mib(root: int) -> float:
    """MiB that a process and its descendants hold in memory; what they share is divided among them (PSS)."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    family = {root}
    while more := {process for process, parent in parents.items() if parent in family} - family:
        family |= more
    total = 0
    for process in family:
        try:
            lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024


def table(results: list[dict[str, Any]]) -> str:
    """A line a run."""
    head = [
        "study", "sites", "engine", "whole study, s", "CPU, s", "a round, s (median)", "MiB after a third",
        "MiB at most", "weights", "load", "date",
    ]  # fmt: skip
    rows = [
        [
            one["kind"], str(one["sites"]), one["engine"], f"{one['total_s']:.0f}", f"{one['cpu_s']:.0f}",
            f"{statistics.median(one['rounds_s'][:-1]):.2f}", f"{one['memory'][len(one['memory']) // 3][1]:.0f}",
            f"{one['most_mib']:.0f}", f"`{one['weights']}`", f"{one['load']:.1f}", one["date"],
        ]
        for one in results
    ]  # fmt: skip
    return markdown_table(head, rows)


def main() -> None:
    """Measure what is asked for, keep it, and write the page."""
    kept = Path(sys.argv[2]) if len(sys.argv) > 2 else None
    if kept is None:
        sys.exit(__doc__)
    results: list[dict[str, Any]] = json.loads(kept.read_text()) if kept.exists() else []
    for kind in sys.argv[3:]:
        for engine in ["inline"] if kind == "many" else ["inline", "processes"]:
            with tempfile.TemporaryDirectory() as folder:
                results.append(run(kind, engine, Path(folder)))
            print(json.dumps({**results[-1], "memory": None}), flush=True)
            kept.write_text(json.dumps(results))
    write_page(
        PAGE,
        "Simulations of many sites",
        [table(results)],
        "HAM10000=DIR WEIGHTS=DIR python -m benchmarks simulation RESULTS.json demo sources many",
        f"{os.cpu_count()} cores, one run each, seed 0, one thread a site; the load is that when the run began",
    )


if __name__ == "__main__":
    main()
