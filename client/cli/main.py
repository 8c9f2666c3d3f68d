"""`consilium-site`: what a hospital's data manager types.

Commands import what they need when they run, so `--help` answers at once and commands that
need no torch work without it.
"""

import argparse
import getpass
import io
import logging
import math
import os
import signal
import sys
import threading
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from client.config import load_site
from client.findings import HEADINGS, Finding, may_take_part, ranked
from common import log
from common.config import ClipConfig, StudyConfig
from common.errors import ConfigError, ConsiliumError
from common.settings import load_settings
from common.weights import write_atomically

if TYPE_CHECKING:
    from client.data.partition import Partition

GROUP_HELP = "column that must not be torn apart, e.g. lesion_id or patient_id"

_LOOK_S = 1.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 0 done, 1 could not, 2 wrong usage."""
    options = _parser().parse_args(arguments)
    log.start("json" if options.json else "readable")
    try:
        code: int = options.run(options)
    except ConsiliumError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="consilium-site",
        description="One hospital of a federation: its images stay here, only what was learned leaves.",
    )
    parser.add_argument("--json", action="store_true", help="log JSON lines instead of readable ones")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    trainer = commands.add_parser(
        "trainer",
        help="run this site's trainer until it is stopped",
        description="Listens on a Unix socket for plans from this site's gateway and answers them.",
    )
    trainer.add_argument("settings", type=Path, metavar="SITE.yaml")
    trainer.add_argument("--socket", type=Path, help="Unix socket to listen on, instead of the YAML's")
    trainer.add_argument("--until", type=Path, metavar="FILE", help="end when this file appears")
    trainer.set_defaults(run=_trainer)

    key = commands.add_parser(
        "key",
        help="make this site's key pair, here, where it stays",
        description="Writes site.key and site.pub to the folder of gateway.yaml. Only site.pub goes to the study "
        "operator; the fingerprint is there to be read out over the phone. A key that is there stays.",
    )
    key.add_argument("folder", type=Path, metavar="DIR", help="the unpacked start-up kit")
    key.add_argument("--renew", action="store_true", help="replace the key, as after it was revoked")
    key.set_defaults(run=_key)

    gateway = commands.add_parser(
        "gateway",
        help="run this site's gateway until it is stopped",
        description="Connects out to the server and passes plans on to the trainer's socket; started again when "
        "it dies. Sees no image, needs no torch.",
    )
    gateway.add_argument("settings", type=Path, metavar="DIR", help="of gateway.yaml, or the file itself")
    gateway.add_argument("--socket", type=Path, help="the trainer's, instead of the YAML's")
    gateway.add_argument("--until", type=Path, metavar="FILE", help="end when this file appears")
    gateway.set_defaults(run=_gateway)

    check = commands.add_parser(
        "check",
        help="read everything once and say what is wrong with it",
        description="Reads every image, trains nothing, sends nothing. Findings come in three ranks; exit code 1 if "
        "one of them keeps this site out of a study.",
    )
    check.add_argument("settings", type=Path, metavar="SITE.yaml")
    check.add_argument(
        "--study",
        type=Path,
        metavar="STUDY.yaml",
        help="take its classes and image size, not those of the data",
    )
    check.add_argument(
        "--html",
        type=Path,
        metavar="PAGE",
        help="write a page with counts and samples, which only you can read",
    )
    check.set_defaults(run=_check)

    connection = commands.add_parser(
        "check-connection",
        help="try the way to the server: name, port, certificate, clock, key, line",
        description="Changes nothing at the server, and may be run while the gateway is connected. Findings come in "
        "three ranks; exit code 1 if one of them keeps this site out.",
    )
    connection.add_argument("settings", type=Path, metavar="DIR", help="of gateway.yaml, or the file itself")
    connection.set_defaults(run=_check_connection)

    status = commands.add_parser(
        "status",
        help="say what this site is doing, since when, and what has left it",
        description="From the audit log and the trainer's socket; asks nobody else.",
    )
    status.add_argument("settings", type=Path, metavar="SITE.yaml")
    status.add_argument("--socket", type=Path, help="the trainer's, instead of the YAML's")
    status.set_defaults(run=_status)

    pending = commands.add_parser(
        "pending",
        help="list studies that wait for a yes of this site",
        description="Studies whose plans were refused because the policy says `ask: true`.",
    )
    pending.add_argument("settings", type=Path, metavar="SITE.yaml")
    pending.set_defaults(run=_pending)

    approve = commands.add_parser(
        "approve",
        help="say yes to a study",
        description="From then on the trainer takes the plans of exactly this study; a changed one asks anew.",
    )
    approve.add_argument("settings", type=Path, metavar="SITE.yaml")
    approve.add_argument("study", metavar="STUDY", help="its name, or its label from `pending`")
    approve.set_defaults(run=_approve)

    audit = commands.add_parser(
        "audit",
        help="show or check the log of what came and left",
        description="Without --verify, shows the log. With it, checks that no line was changed, removed or "
        "put in, and prints the last line's hash, which is worth noting down somewhere else.",
    )
    audit.add_argument("settings", type=Path, metavar="SITE.yaml")
    audit.add_argument("--verify", action="store_true", help="check the log; exit code 1 if it was edited")
    audit.add_argument("--expect", metavar="HASH", help="with --verify: a hash noted earlier must be in it")
    audit.set_defaults(run=_audit)

    sites = commands.add_parser(
        "simulate",
        help="make the settings of a simulated federation's sites",
        description="Writes one YAML per site and federation.yaml to OUT, for `consilium-server simulate`. "
        "Without --data, synthetic images are drawn first.",
    )
    sites.add_argument(
        "--data", type=Path, metavar="DIR", help="labels.csv with a site column, or SITE/CLASS/ folders"
    )
    sites.add_argument("--out", type=Path, required=True, metavar="OUT")
    sites.add_argument(
        "--images", type=int, default=300, help="synthetic images per site (default %(default)s)"
    )
    sites.add_argument("--seed", type=int, default=0, help="of the synthetic images and the split")
    _add_simulated(sites)
    sites.add_argument(
        "--containers",
        type=int,
        metavar="N",
        help="write 1.yaml to N.yaml with the paths that containers have; for docker-compose.yml",
    )
    sites.set_defaults(run=_simulate)

    partition = commands.add_parser(
        "partition",
        help="share out one data set among simulated sites",
        description="Patients and lesions stay whole. Writes one YAML per site, federation.yaml, the list of each "
        "site's images and a picture of the classes to OUT, for `consilium-server simulate`.",
    )
    partition.add_argument(
        "data", type=Path, metavar="SITE.yaml", help="settings that read the whole data set, or a labels.csv"
    )
    partition.add_argument("--out", type=Path, required=True, metavar="OUT")
    partition.add_argument(
        "--by",
        choices=("acquisition", "iid", "dirichlet", "quantity", "class"),
        default="acquisition",
        help="acquisition: where images were made; iid: alike; dirichlet: other proportions of classes; quantity: "
        "other sizes; class: one class per site (default %(default)s)",
    )
    partition.add_argument("--column", metavar="COLUMN", help="of a csv, for --by acquisition")
    partition.add_argument("--sites", type=int, metavar="N", help="for iid, dirichlet and quantity")
    partition.add_argument(
        "--alpha", type=float, metavar="A", help="for dirichlet and quantity; small is uneven"
    )
    partition.add_argument("--study", type=Path, metavar="STUDY.yaml", help="take its classes")
    partition.add_argument("--seed", type=int, default=0)
    _add_simulated(partition)
    partition.set_defaults(run=_partition)

    merge = commands.add_parser(
        "merge",
        help="write a finished run's whole model, with LoRA's products merged into its layers",
        description="The encoder's own layers and names, for use outside of Consilium.",
    )
    merge.add_argument("run_dir", type=Path, metavar="RUN")
    merge.add_argument("--out", type=Path, required=True, metavar="FILE.safetensors")
    merge.add_argument(
        "--weights", type=Path, metavar="DIR", help="folder with the file that the study started from"
    )
    merge.set_defaults(run=_merge)

    embed = commands.add_parser(
        "embed-prompts",
        help="ask a study's text tower once, and write its answer into the study",
        description="For studies with model.kind: clip. Writes the study, or the grid, with one vector per class; with "
        "that file no site needs the text tower.",
    )
    embed.add_argument("study", type=Path, metavar="STUDY.yaml")
    embed.add_argument("--out", type=Path, required=True, metavar="NEW.yaml")
    embed.add_argument(
        "--weights", type=Path, metavar="DIR", help="folder with the tower that the study names"
    )
    embed.set_defaults(run=_embed_prompts)

    split = commands.add_parser(
        "split",
        help="add a train/test column to a labels.csv",
        description="Draws a stratified test set in which no group is torn apart, so that every "
        "study on these images is tested on the same ones.",
    )
    split.add_argument("labels", type=Path, metavar="LABELS.csv")
    split.add_argument("--out", type=Path, required=True, metavar="NEW.csv")
    split.add_argument("--label", default="label", help="column with the class (default %(default)s)")
    split.add_argument("--group", metavar="COLUMN", help=GROUP_HELP)
    split.add_argument(
        "--strata", nargs="*", default=[], metavar="COLUMN", help="further columns to stratify by"
    )
    split.add_argument("--test", type=float, default=0.2, metavar="SHARE", help="default %(default)s")
    split.add_argument("--seed", type=int, default=0)
    split.set_defaults(run=_split)

    predict = commands.add_parser(
        "predict",
        help="class probabilities for images, by a finished study",
        description="Writes CSV: file, frame, the likeliest class, a probability per class. For research; not a "
        "medical device. What is no image is named and the rest goes on; exit code 1 then.",
    )
    predict.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="files, folders, DICOM")
    predict.add_argument(
        "--study",
        type=Path,
        required=True,
        metavar="DIR",
        help="a run's folder, or this site's own folder of a study under state_dir",
    )
    predict.add_argument(
        "--head",
        default="softmax",
        metavar="NAME",
        help="e.g. federated.lda or local.svm_rbf, as under DIR/heads (default %(default)s: the network's own)",
    )
    predict.add_argument(
        "--weights", type=Path, metavar="DIR", help="folder with the weights file that the study started from"
    )
    predict.add_argument("--out", type=Path, metavar="FILE.csv", help="instead of the terminal")
    predict.add_argument("--device", default="auto", help="auto, cpu, cuda (default %(default)s)")
    predict.set_defaults(run=_predict)
    return parser


def _add_simulated(parser: argparse.ArgumentParser) -> None:
    """What can be said of every simulated site."""
    parser.add_argument(
        "--weights", type=Path, metavar="DIR", help="folder with weights files that studies start from"
    )
    parser.add_argument("--threads", type=int, help="CPU threads per site")
    parser.add_argument(
        "--pooled", action="store_true", help="also a site `pooled` that holds all training images"
    )


def _trainer(options: argparse.Namespace) -> int:
    from client import link
    from client.trainer import Trainer

    site = load_site(options.settings)
    socket = options.socket or site.socket
    if socket is None:
        raise ConfigError(
            f"{options.settings} names no socket; add `socket: PATH`, or give one with --socket"
        )
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    server = link.serve(Trainer(site).answer, socket)
    log.event(f"{site.name}: ready, listening on a Unix socket")
    while not stopped.wait(_LOOK_S):
        if options.until is not None and options.until.exists():
            log.event(f"{site.name}: the federation is over")
            break
    server.stop(grace=1.0).wait()
    socket.unlink(missing_ok=True)
    # Not `return`: Python would wait for a plan that is being worked on, and nobody asks for it any more.
    logging.shutdown()
    os._exit(0)


def _key(options: argparse.Namespace) -> int:
    from common import keys

    private = options.folder / "site.key"
    if options.renew or not private.exists():
        options.folder.mkdir(parents=True, exist_ok=True)
        keys.make_site_key(options.folder, "site")
    print(
        f"{options.folder / 'site.pub'}  goes to the study operator\n{private}  stays here, and goes nowhere else"
    )
    print(f"Read out over the phone:\n  {keys.fingerprint_of_private(private)}")
    return 0


def _gateway(options: argparse.Namespace) -> int:
    from client import gateway
    from common.processes import Interrupted, interruptible

    config = gateway.load_gateway(options.settings)
    if options.socket is not None:
        config = config.model_copy(update={"socket": options.socket.absolute()})
    try:
        with interruptible():
            gateway.run(config, options.until)
    except Interrupted:
        pass
    log.event(f"{config.site}: the gateway has ended")
    return 0


def _check(options: argparse.Namespace) -> int:
    from client import check, machine

    site = load_site(options.settings)
    study = _study(options.study)
    found = check.check(
        site,
        None if study is None else study.classes,
        check.USUAL_SIDE if study is None else _stored_side(study),
    )
    report = replace(found, findings=ranked([*machine.check(site), *found.findings]))
    code = _print_findings(report.findings, site.name)
    if options.html is not None:
        from client import check_page

        check_page.write(report, options.html, datetime.now().astimezone())
        print(f"{options.html} shows images of this site: it is for you alone, and stays here")
    return code


def _stored_side(study: StudyConfig) -> int:
    """Pixels a side that are kept of an image."""
    from client.check import USUAL_SIDE
    from client.model.backbones import preprocessing

    match study.model:
        case ClipConfig(library="open_clip"):
            # Only the built model knows; what it does not crop it does not keep.
            return study.model.image_size or USUAL_SIDE
        case _:
            return preprocessing(study.model).stored_size


def _print_findings(findings: Iterable[Finding], name: str) -> int:
    """Show each as it is found; the exit code says whether any stops the site."""
    found = []
    for finding in findings:
        print(f"[{HEADINGS[finding.rank]}] {finding.text}\n", flush=True)
        found.append(finding)
    may = may_take_part(found)
    print(f"{name} {'may take part' if may else 'may NOT take part until what stops it is mended'}")
    return 0 if may else 1


def _check_connection(options: argparse.Namespace) -> int:
    from client import connection, gateway

    config = gateway.load_gateway(options.settings)
    return _print_findings(connection.check(config), config.site)


def _status(options: argparse.Namespace) -> int:
    from client import site_status

    site = load_site(options.settings)
    print(site_status.tell(site.name, site.state_dir, options.socket or site.socket))
    return 0


def _pending(options: argparse.Namespace) -> int:
    from client import approval

    waiting = approval.pending(load_site(options.settings).state_dir)
    print("\n".join(map(approval.describe, waiting)) or "no study waits")
    return 0


def _approve(options: argparse.Namespace) -> int:
    from client import approval
    from client.audit import Audit

    state_dir, by = load_site(options.settings).state_dir, _user()
    meant = approval.find(state_dir, options.study)
    said = {"study": meant.study.name, "fingerprint": meant.study.fingerprint, "by": by}
    Audit(state_dir).append("approval", said)  # first: a yes that is not in the log does not count
    approval.approve(state_dir, meant, by=by, now=datetime.now(UTC))
    print(f"approved: {approval.describe(meant)}")
    return 0


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return f"uid {os.getuid()}"


def _audit(options: argparse.Namespace) -> int:
    from client import audit

    if options.expect is not None and not options.verify:
        raise ConfigError("--expect is for checking; add --verify")
    path = load_site(options.settings).state_dir / audit.FILE
    if not options.verify:
        for line in audit.show(path):
            print(line)
        return 0
    verdict = audit.verify(path, options.expect)
    torn = f", {verdict.num_torn} of them torn by a power cut or a full disk" if verdict.num_torn else ""
    print(f"{verdict.num_lines} lines as they were written{torn}; the last hash is {verdict.head}")
    if verdict.problem is not None:
        print(f"EDITED OR CUT: {verdict.problem}", file=sys.stderr)
        return 1
    return 0


def _simulate(options: argparse.Namespace) -> int:
    from client.data import discover, simulated

    out: Path = options.out
    synthetic = options.data is None
    data = options.data
    if synthetic:
        from client.data.synthetic import SITES, generate, site_names

        data = out / "synthetic-images"
        names = SITES if options.containers is None else site_names(options.containers)
        generate(data, sites=names, images_per_site=options.images, seed=options.seed)
        log.event(f"drew SYNTHETIC images, {options.images} per site on average, to {data}")
    found = discover.discover(data)
    simulated.write_sites(
        found,
        out,
        synthetic=synthetic,
        weights=options.weights,
        threads=options.threads,
        seed=options.seed,
        pooled=simulated.pooled_site(found) if options.pooled else None,
        containers=options.containers,
    )
    return 0


def _partition(options: argparse.Namespace) -> int:
    from client.data import partitioned, simulated, site_counts

    how, title = _how(options)
    whole = partitioned.source(options.data, options.seed, options.column)
    study = _study(options.study)
    sites = partitioned.partition(whole, how, options.seed, None if study is None else study.classes)
    found, pooled = partitioned.write(sites, whole, options.out, title)
    simulated.write_sites(
        found,
        options.out,
        synthetic=False,
        weights=options.weights,
        threads=options.threads,
        pooled=pooled if options.pooled else None,
    )
    print(site_counts.table(sites))
    return 0


def _how(options: argparse.Namespace) -> tuple["Partition", str]:
    """How images are shared out, and what a picture of it is called. Raises ConfigError."""
    from client.data import partition

    by, num_sites, alpha = options.by, options.sites, options.alpha
    wanted = {"iid": ("--sites",), "dirichlet": ("--sites", "--alpha"), "quantity": ("--sites", "--alpha")}
    given = {"--sites": num_sites, "--alpha": alpha, "--column": options.column}
    allowed = (*wanted.get(by, ()), *(("--column",) if by == "acquisition" else ()))
    problems = [f"--by {by} needs {name}" for name in wanted.get(by, ()) if given[name] is None]
    problems += [f"--by {by} has no {name}" for name in given if given[name] and name not in allowed]
    if num_sites is not None and not 2 <= num_sites <= 1000:
        problems.append(f"--sites {num_sites}: expected 2 to 1000")
    if alpha is not None and not 0 < alpha < math.inf:
        problems.append(f"--alpha {alpha:g}: expected a number above 0")
    if problems:
        raise ConfigError("; ".join(problems))
    match by:
        case "iid":
            return partition.Alike(num_sites), f"{num_sites} sites alike"
        case "dirichlet":
            return partition.LabelSkew(num_sites, alpha), f"Classes by Dirichlet, alpha {alpha:g}"
        case "quantity":
            return partition.QuantitySkew(num_sites, alpha), f"Sizes by Dirichlet, alpha {alpha:g}"
        case "class":
            return partition.ClassPerSite(), "One class per site"
        case _:
            return partition.ByAcquisition(), "Sites by where images were made"


def _study(path: Path | None) -> StudyConfig | None:
    return None if path is None else load_settings(path, StudyConfig, "study")


def _merge(options: argparse.Namespace) -> int:
    from client.merge import merge_run

    log.event(f"wrote {merge_run(options.run_dir, options.out, options.weights)} tensors to {options.out}")
    return 0


def _embed_prompts(options: argparse.Namespace) -> int:
    from client.prompts import embed_file

    for embedded in embed_file(options.study, options.out, options.weights):
        print(embedded.describe())
    log.event(f"wrote {options.out}")
    return 0


def _split(options: argparse.Namespace) -> int:
    from client.data.split import write_split

    write_split(
        options.labels,
        options.out,
        label=options.label,
        group=options.group,
        strata=options.strata,
        test_share=options.test,
        seed=options.seed,
    )
    log.event(f"wrote {options.out} with a column `split`")
    return 0


def _predict(options: argparse.Namespace) -> int:
    from client import predict
    from client.trainer import choose_device

    predictor = predict.load(options.study, options.head, options.weights, choose_device(options.device))
    if options.out is None:
        problems = predict.write(predictor, options.images, sys.stdout)
    else:
        text = io.StringIO()
        problems = predict.write(predictor, options.images, text)
        write_atomically(options.out, text.getvalue().encode())
    for problem in problems:
        print(f"left out: {problem.path} {problem.reason}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
