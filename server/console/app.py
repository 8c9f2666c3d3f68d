"""Pages of the operator's console.

A page that changes nothing is a GET. An order is first shown for confirmation and then given by a POST, through
`server/deployment/orders.py`, as the command line gives it.
"""

import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, RedirectResponse, Response
from starlette.routing import Route

from common import release
from common.config import StudyConfig
from common.errors import ConfigError, ConsiliumError
from common.settings import parse_settings
from common.web.access import Sessions
from common.web.console import Address, console, file_mark
from common.web.pages import Pages
from server.console import log_lines, reading
from server.deployment import orders, overview, queue, server_overview, site_keys
from server.deployment.folder import ServerFolder
from server.storage import history

_LINKS = {"/": "Studies", "/sites": "Sites", "/start": "Start a study", "/log": "Log", "/orders": "Orders"}
_DONE = {
    "start": "The study waits for its turn.",
    "resume": "The study is back in the queue.",
    "stop": "The study was asked to stop.",
    "readmit": "The site gets a plan again in the next round.",
    "enrol": "The key is enrolled; compare its fingerprint with what the site reads out.",
    "revoke": "The site is cut off; its key is never accepted again.",
}
_ORDERS_SHOWN = 500
_RUNNING_S = 5
"""Seconds after which a page of a running study is old, though no file has changed: sites grow later."""


def application(folder: ServerFolder, sessions: Sessions, address: Address) -> Starlette:
    """The operator's console for this folder, as an ASGI application."""
    views = _Views(
        folder,
        Pages("server.console", title=f"Consilium server {folder.config.name}", links=_LINKS),
    )
    routes = [
        Route("/", views.overview, methods=["GET"]),
        Route("/studies/{name}", views.study, methods=["GET"]),
        Route("/studies/{name}/files/{file}", views.file, methods=["GET"]),
        Route("/studies/{name}/{order}", views.order, methods=["GET", "POST"]),
        Route("/studies/{name}/readmit/{site}", views.readmit, methods=["GET", "POST"]),
        Route("/start", views.start, methods=["GET", "POST"]),
        Route("/sites", views.sites, methods=["GET"]),
        Route("/sites/{site}/enrol", views.enrol, methods=["GET", "POST"]),
        Route("/sites/{site}/revoke", views.revoke, methods=["GET", "POST"]),
        Route("/log", views.log, methods=["GET"]),
        Route("/orders", views.orders, methods=["GET"]),
    ]
    return console(views.pages, routes, sessions=sessions, address=address, mark=_Mark(folder))


class _Mark:
    """A text that changes when a page may have; computed at most once in half a second for all pages."""

    def __init__(self, folder: ServerFolder) -> None:
        self._folder, self._text, self._at = folder, "", -1.0

    def __call__(self) -> str:
        now = time.monotonic()
        if now - self._at > 0.5:
            self._text, self._at = self._read(now), now
        return self._text

    def _read(self, now: float) -> str:
        folder = self._folder
        try:
            runs = queue.latest(folder)
            online = [site.name for site in server_overview.read_sites(folder) if site.online]
        except (ConsiliumError, OSError) as error:
            return str(error)
        paths = [folder.root / name for name in ("queue", "running", "sites", orders.FILE, "logs/up.log")]
        if runs is not None:
            paths += [folder.runs / runs / name for name in ("status.json", "rounds.jsonl", "server.log")]
        beat = int(now / _RUNNING_S) if queue.running(folder) is not None else ""
        return f"{folder.is_up} {online} {runs} {file_mark(*paths, folder.refusals)} {beat}"


@dataclass(frozen=True)
class _Views:
    folder: ServerFolder
    pages: Pages

    # --- reading ---------------------------------------------------------------------------------

    def overview(self, request: Request) -> Response:
        server = server_overview.read_server(self.folder)
        current = queue.running(self.folder)
        shown = server.study if current is not None and server.up else None
        return self.pages.page(
            request,
            "overview",
            server=server,
            running=shown,
            heading=[] if shown is None else overview.heading(shown),
            describe_site=overview.describe_site,
            studies=reading.studies(self.folder),
            done=_DONE.get(request.query_params.get("done", "")),
        )

    def study(self, request: Request) -> Response:
        name = self._run(request).name
        return self.pages.page(
            request,
            "study",
            page=reading.study_page(self.folder, name),
            describe_site=overview.describe_site,
            done=_DONE.get(request.query_params.get("done", "")),
        )

    def file(self, request: Request) -> Response:
        run, wanted = self._run(request), request.path_params["file"]
        path = reading.file_of(run, wanted)
        if path is None:
            raise HTTPException(404)
        return FileResponse(path, media_type="application/octet-stream", filename=f"{run.name}-{path.name}")

    def sites(self, request: Request) -> Response:
        name = queue.latest(self.folder)
        rounds: tuple[history.RoundRecord, ...] = ()
        late: Mapping[str, overview.SiteNow] = {}
        problems = []
        if name is not None:
            try:
                rounds = history.read_rounds(self.folder.runs / name)
                late = overview.read_run(self.folder.runs / name, flwr_home=self.folder.flwr_home).sites
            except ConsiliumError as error:
                problems.append(str(error))
        refused: list[tuple[datetime, str]] = []
        try:
            refused = reading.refusals(self.folder)
        except ConsiliumError as error:
            problems.append(str(error))
        return self.pages.page(
            request,
            "sites",
            study=name,
            sites=server_overview.read_sites(self.folder),
            totals={row.site: row for row in reading.site_totals(rounds)},
            late=late,
            problems=problems,
            refusals=refused,
            version=release.version(),
            done=_DONE.get(request.query_params.get("done", "")),
        )

    def log(self, request: Request) -> Response:
        asked, files = request.query_params, log_lines.files(self.folder)
        name = asked.get("file", next(iter(files), ""))
        levels = (level for level in log_lines.LEVELS if level == asked.get("level"))
        least: log_lines.Level = next(levels, "info")
        words, number = asked.get("words", ""), asked.get("page", "1")
        page = None
        if name and name not in files:
            raise HTTPException(404)
        if files:
            page = log_lines.read(
                files[name], least=least, words=words, page=int(number[:9]) if number.isdecimal() else 1
            )
        return self.pages.page(
            request,
            "log",
            files=list(files),
            file=name,
            level=least,
            levels=log_lines.LEVELS,
            words=words,
            page=page,
        )

    def orders(self, request: Request) -> Response:
        given = list(orders.read(self.folder.root))
        return self.pages.page(
            request,
            "orders",
            orders=given[: -_ORDERS_SHOWN - 1 : -1],
            left_out=max(0, len(given) - _ORDERS_SHOWN),
        )

    # --- orders ----------------------------------------------------------------------------------

    def order(self, request: Request) -> Response:
        name, order = self._run(request).name, request.path_params["order"]
        if order not in ("stop", "resume"):
            raise HTTPException(404)
        if request.method == "GET":
            question = (
                f"Stop study {name}? What it has learned stays, and it can be resumed after its first round."
                if order == "stop"
                else f"Resume study {name} from its last round?"
            )
            return self._confirm(request, question, order.capitalize(), f"/studies/{name}")
        if order == "stop":
            orders.stop(self.folder, "console", name)
        else:
            orders.resume(self.folder, name, "console")
        return RedirectResponse(f"/studies/{name}?done={order}", 303)

    def readmit(self, request: Request) -> Response:
        run, site = self._run(request), request.path_params["site"]
        page = reading.study_page(self.folder, run.name)
        if page.study is None or site not in page.study.sites.all:
            raise HTTPException(404)
        if request.method == "GET":
            question = f"Readmit {site} to study {run.name}, from the next round on?"
            return self._confirm(request, question, "Readmit", f"/studies/{run.name}")
        orders.readmit(run, site, "console")
        return RedirectResponse(f"/studies/{run.name}?done=readmit", 303)

    def start(self, request: Request) -> Response:
        if request.method == "GET":
            text, again = "", request.query_params.get("again")
            if again is not None and (run := reading.run_dir(self.folder, again)) is not None:
                text = (run / "study.yaml").read_text(encoding="utf-8")
            return self.pages.page(request, "start", text=text)
        form = request.state.form
        text = form.get("study", "").replace("\r\n", "\n")
        try:
            study = parse_settings(text, StudyConfig, "study", "The text")
            if form.get("step") == "start":
                entry = orders.start(self.folder, study, "console")
                return RedirectResponse(f"/?done=start#{entry.name}", 303)
        except ConfigError as error:
            return self.pages.page(request, "start", 409, text=text, error=str(error))
        if form.get("step") == "change":
            return self.pages.page(request, "start", text=text)
        return self.pages.page(request, "start_confirm", text=text, study=study)

    def enrol(self, request: Request) -> Response:
        site = self._site(request)
        if request.method == "GET":
            return self.pages.page(request, "enrol", site=site)
        with tempfile.TemporaryDirectory() as scratch:
            file = Path(scratch) / f"{site}.pub"
            file.write_text(request.state.form.get("key", "").strip() + "\n", encoding="utf-8")
            try:
                orders.enrol(self.folder, site, file, "console")
            except ConfigError as error:
                message = str(error).replace(str(file), "The text")
                return self.pages.page(request, "enrol", 409, site=site, error=message)
        return RedirectResponse("/sites?done=enrol", 303)

    def revoke(self, request: Request) -> Response:
        site = self._site(request)
        if request.method == "GET":
            key = site_keys.read_key_files(self.folder).keys.get(site)
            shown = "" if key is None else f" ({key.fingerprint})"
            question = f"Cut {site} off, at once and for good? Its key{shown} is never accepted again."
            return self._confirm(
                request, question, "Revoke", "/sites", key="" if key is None else key.fingerprint
            )
        key = site_keys.read_key_files(self.folder).keys.get(site)
        if key is None or key.fingerprint != request.state.form.get("subject"):
            raise ConfigError(
                f"{site} does not have the key any more that the page showed; load the page again"
            )
        orders.revoke(self.folder, site, "console")
        return RedirectResponse("/sites?done=revoke", 303)

    def _confirm(self, request: Request, question: str, button: str, back: str, key: str = "") -> Response:
        return self.pages.page(request, "confirm", question=question, button=button, back=back, subject=key)

    def _run(self, request: Request) -> Path:
        run = reading.run_dir(self.folder, request.path_params["name"])
        if run is None:
            raise HTTPException(404)
        return run

    def _site(self, request: Request) -> str:
        site: str = request.path_params["site"]
        if site not in self.folder.config.sites and site not in site_keys.read_key_files(self.folder).keys:
            raise HTTPException(404)
        return site
