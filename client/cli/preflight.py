"""Commands that check a site before a study: its images, its machine, its connection."""

from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from client.cli.options import SETTING_UP, GatewayFile, SiteFile, Through, load_study, through_proxy
from common.console import terminal
from common.console.command_line import command

if TYPE_CHECKING:
    from client.preflight.findings import Finding, Rank
    from common.config import StudyConfig

_STYLES: dict["Rank", str] = {"stops": "bold red", "look": "yellow", "fine": "green"}


def add_commands(app: typer.Typer) -> None:
    """Add the checks before a study to `consilium-site`."""
    command(
        app,
        "check",
        SETTING_UP,
        examples=[
            "consilium-site check site.yaml",
            "consilium-site check site.yaml --study study.yaml --html page.html",
        ],
    )(_check)
    command(app, "check-connection", SETTING_UP, examples=["consilium-site check-connection ."])(
        _check_connection
    )


def _check(
    settings: SiteFile,
    study: Annotated[
        Path | None,
        typer.Option(
            "--study",
            metavar="STUDY.yaml",
            help="Take classes, image size and this site's role from this study.",
        ),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(
            "--html", metavar="PAGE", help="Write a page with counts and samples that only you can read."
        ),
    ] = None,
) -> int:
    """Read all images once and report what is wrong with them.

    Reads every image, trains nothing, sends nothing. Each finding has a rank: it stops the study, is worth a
    look, or is fine. Exit code 1 if one of them keeps this site out of a study.
    """
    from client.config import load_site
    from client.preflight import agreement, machine, role
    from client.preflight import data as check
    from client.preflight.findings import ranked

    site = load_site(settings)
    chosen = load_study(study)
    data = check.check(
        site,
        None if chosen is None else chosen.classes,
        check.USUAL_SIDE if chosen is None else _stored_side(chosen),
    )
    used = data.used or data.manifest
    in_study = (
        []
        if chosen is None
        else [*role.findings(chosen, site, used), *agreement.findings(chosen, site, used)]
    )
    report = replace(data, findings=ranked([*machine.check(site), *data.findings, *in_study]))
    code = _print_findings(report.findings, f"by its images and its machine, {site.name}")
    if html is not None:
        from client.preflight import html_page

        html_page.write(report, html, datetime.now().astimezone())
        print(f"{html} shows images of this site: it is for you alone, and stays here")
    return code


def _stored_side(study: "StudyConfig") -> int:
    """Pixels a side that are kept of an image."""
    from client.model.encoders import preprocessing
    from client.preflight.data import USUAL_SIDE
    from common.config import ClipConfig

    match study.model:
        case ClipConfig(library="open_clip"):
            # Only the built model knows; what it does not crop it does not keep.
            return study.model.image_size or USUAL_SIDE
        case _:
            return preprocessing(study.model).stored_size


def _check_connection(settings: GatewayFile, through: Through = None) -> int:
    """Test the connection to the server: name, port, certificate, clock, key, speed.

    Changes nothing at the server, and may run while the gateway is connected. Each finding has a rank: it stops
    the study, is worth a look, or is fine. Exit code 1 if one of them keeps this site out.
    """
    from client.gateway import settings as gateway
    from client.preflight import connection

    config = gateway.load_gateway(settings)
    if through is not None:
        config = config.model_copy(update={"proxy": through_proxy(through)})
    return _print_findings(connection.check(config), f"by its connection, {config.site}")


def _print_findings(findings: Iterable["Finding"], who: str) -> int:
    """Print each finding as it comes; the exit code says whether any stops the site.

    A start-up kit runs two such checks, one after the other. So the last line says what was checked: `who`.
    """
    from client.preflight.findings import HEADINGS, may_take_part

    seen = []
    for finding in findings:
        if terminal.is_terminal():
            heading = f"[{HEADINGS[finding.rank]}]"
            terminal.print_styled(f"{heading} {finding.text}\n", _STYLES[finding.rank])
        else:
            print(f"[{HEADINGS[finding.rank]}] {finding.text}\n", flush=True)
        seen.append(finding)
    may = may_take_part(seen)
    terminal.print_styled(
        f"{who} {'may take part' if may else 'may NOT take part until what stops it is fixed'}",
        "bold green" if may else "bold red",
    )
    return 0 if may else 1
