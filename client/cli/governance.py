"""Commands by which a site decides about studies and reviews what has left."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from client.cli.options import GOVERNANCE, SiteFile
from common.console import terminal
from common.console.command_line import command
from common.console.person import user_name
from common.errors import ConfigError

if TYPE_CHECKING:
    from client.governance.approval import Pending


def add_commands(app: typer.Typer) -> None:
    """Add the commands of this file to `consilium-site`."""
    command(app, "pending", GOVERNANCE, examples=["consilium-site pending site.yaml"])(_pending)
    command(
        app,
        "approve",
        GOVERNANCE,
        examples=[
            "consilium-site approve site.yaml demo",
            'consilium-site approve site.yaml demo --refuse --reason "the ethics vote is missing"',
        ],
    )(_approve)
    command(app, "mask-key", GOVERNANCE, examples=["consilium-site mask-key site.yaml >> roster.yaml"])(
        _mask_key
    )
    command(
        app,
        "audit",
        GOVERNANCE,
        examples=[
            "consilium-site audit site.yaml",
            "consilium-site audit site.yaml --verify",
            "consilium-site audit site.yaml --verify --expect HASH",
            "consilium-site audit site.yaml --verify --signed audit-heads.jsonl",
        ],
    )(_audit)


def _mask_key(settings: SiteFile) -> int:
    """Print this site's line of a roster: its name and its public key for secure aggregation.

    The key is made at the first call, and its private half stays in `state_dir`. People put the lines of all sites into
    one YAML file under `sites:`, give it to every site as `roster`, and compare its fingerprint, which this prints if
    site.yaml names a roster.
    """
    from client.answers.masks import identity_file
    from client.config import load_site
    from common.masking import roster

    site = load_site(settings)
    key = roster.public_key(roster.load_identity(identity_file(site)))
    print(f'{site.name}: "{key}"')
    if site.roster is not None and site.roster.exists():
        print(
            f"fingerprint of {site.roster.name}: {roster.load_roster(site.roster).fingerprint}",
            file=sys.stderr,
        )
    return 0


def _described(study: "Pending") -> str:
    """What a person should know before approving, with what it would cost his patients."""
    from client.governance import approval

    text = approval.describe(study)
    if study.study.privacy is None:
        return text
    from client.privacy import budget  # only here: it needs Opacus, which takes seconds to import

    spent, delta = budget.cost(study.study), study.study.privacy.delta
    return (
        f"{text}\n  costs each patient of a training site epsilon {spent:.3g} at delta {delta:g}, once over"
    )


def _pending(settings: SiteFile) -> int:
    """List the studies that wait for this site's approval.

    Nothing is computed for them before `approve`, because the policy says `ask: true`.
    """
    from client.config import load_site
    from client.governance import approval

    waiting = approval.pending(load_site(settings).state_dir)
    if waiting and terminal.is_terminal():
        rows = []
        for one in waiting:
            _, *about = (line.strip() for line in _described(one).splitlines())
            rows.append((one.label, one.asked, "\n".join(about)))
        terminal.print_table(("study", "asked", "about"), rows)
    else:
        print("\n".join(map(_described, waiting)) or "no study waits")
    return 0


def _approve(
    settings: SiteFile,
    study: Annotated[str, typer.Argument(metavar="STUDY", help="Its name, or its label from `pending`.")],
    refuse: Annotated[
        bool, typer.Option("--refuse", help="Refuse it instead, or take an approval back.")
    ] = False,
    reason: Annotated[
        str, typer.Option("--reason", metavar="TEXT", help="With --refuse: tell the study operator why.")
    ] = "",
) -> int:
    """Approve a study, or refuse it.

    From then on the trainer takes the plans of exactly this study, or of none. The server learns it within
    seconds. A changed study has to be approved again. A decision can be changed by the same command.
    """
    from client.config import load_site
    from client.governance.decide import decide

    state_dir = load_site(settings).state_dir
    meant = decide(state_dir, study, by=user_name(), refuse=refuse, reason=reason)
    print(f"{'refused' if refuse else 'approved'}: {_described(meant)}")
    return 0


def _audit(
    settings: SiteFile,
    verify: Annotated[
        bool, typer.Option("--verify", help="Check the log; exit code 1 if it was edited.")
    ] = False,
    expect: Annotated[
        str | None,
        typer.Option("--expect", metavar="HASH", help="With --verify: the log must contain this hash."),
    ] = None,
    signed: Annotated[
        Path | None,
        typer.Option(
            "--signed",
            metavar="FILE",
            help="With --verify: heads of this log that this site's key signed, from the study operator.",
        ),
    ] = None,
) -> int:
    """Show or check the log of what came and what left.

    Without --verify, shows the log. With --verify, checks that no line was changed, removed or inserted, and
    prints the last line's hash. The server has these hashes, signed with this site's key: ask the study operator for
    the run's audit-heads.jsonl and give it as --signed.
    """
    from client.config import load_site
    from client.governance import audit, audit_heads

    if (expect is not None or signed is not None) and not verify:
        raise ConfigError("--expect and --signed are for checking; add --verify")
    site = load_site(settings)
    path = site.state_dir / audit.FILE
    if not verify and not path.exists():
        print(f"there is no log at {path}: no plan has come to this site, and nothing has left it")
        return 0
    if not verify:
        for line in audit.show(path):
            print(line)
        return 0
    verdict = audit.verify(path, expect)
    torn = f", {verdict.num_torn} of them torn by a power cut or a full disk" if verdict.num_torn else ""
    print(f"{verdict.num_lines} lines as they were written{torn}; the last hash is {verdict.head}")
    if verdict.problem is not None:
        print(f"EDITED OR CUT: {verdict.problem}", file=sys.stderr)
        return 1
    if signed is not None:
        compared = audit_heads.compare(path, site.name, signed)
        print(f"{compared.num_heads} signed heads, by {', '.join(compared.keys) or 'no key'}")
        if compared.problem is not None:
            print(f"EDITED OR CUT: {compared.problem}", file=sys.stderr)
            return 1
    return 0
