"""Pages of the site's console.

It sees what the commands `status`, `pending` and `audit` see, and decides as `approve` does. It sends nothing to any
other machine, and no page shows an image but the preflight's, which a person at the site has had written.
"""

from dataclasses import dataclass
from datetime import UTC, datetime

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from client.config import SiteConfig
from client.console import reading
from client.governance import approval, audit, status
from client.governance.decide import decide
from common.console.person import user_name
from common.web.access import Sessions
from common.web.console import Address, console, file_mark
from common.web.pages import Pages

_LINKS = {"/": "Now", "/studies": "Studies", "/sent": "What has left", "/preflight": "Preflight"}
_DONE = {"yes": "The study is approved; the server learns it within seconds.", "no": "The study is refused."}
_PREFLIGHT_POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; sandbox; frame-ancestors 'self'"
)


def application(site: SiteConfig, sessions: Sessions, address: Address) -> Starlette:
    """The console of this site, as an ASGI application."""
    views = _Views(site, Pages("client.console", title=f"Consilium at {site.name}", links=_LINKS))
    routes = [
        Route("/", views.now, methods=["GET"]),
        Route("/studies", views.studies, methods=["GET"]),
        Route("/studies/{label}", views.study, methods=["GET", "POST"]),
        Route("/sent", views.sent, methods=["GET"]),
        Route("/verify", views.verify, methods=["GET"]),
        Route("/preflight", views.preflight, methods=["GET"]),
        Route("/preflight/page", views.preflight_page, methods=["GET"]),
    ]
    folder = site.state_dir / "approvals"
    watched = [folder / kind for kind in ("pending", "approved", "refused")]

    def mark() -> str:
        return file_mark(*watched, site.state_dir / audit.FILE)

    return console(views.pages, routes, sessions=sessions, address=address, mark=mark)


@dataclass(frozen=True)
class _Views:
    site: SiteConfig
    pages: Pages

    def now(self, request: Request) -> Response:
        state_dir = self.site.state_dir
        work = status.follow(audit.events(state_dir / audit.FILE))
        return self.pages.page(
            request,
            "now",
            trainer=status.trainer(self.site.socket),
            doing=status.doing(work, datetime.now(UTC)),
            lines=[status.describe_study(name, left).strip() for name, left in work.by_study.items()],
            waiting=approval.pending(state_dir),
        )

    def studies(self, request: Request) -> Response:
        return self.pages.page(
            request,
            "studies",
            studies=reading.studies(self.site),
            done=_DONE.get(request.query_params.get("done", "")),
        )

    def study(self, request: Request) -> Response:
        label = request.path_params["label"]
        one = reading.studies(self.site).get(label)
        if one is None:
            raise HTTPException(404)
        if request.method == "GET":
            return self.pages.page(request, "study", one=one, label=label, site=self.site.name)
        form = request.state.form
        answer = form.get("answer")
        if answer not in _DONE:
            raise HTTPException(400)
        decide(
            self.site.state_dir,
            label,
            by=user_name(),
            refuse=answer == "no",
            reason=form.get("reason", "").strip() if answer == "no" else "",
            fingerprint=form.get("fingerprint", ""),
        )
        return RedirectResponse(f"/studies?done={answer}", 303)

    def sent(self, request: Request) -> Response:
        asked = request.query_params
        study, all_lines, number = asked.get("study", ""), asked.get("lines") == "all", asked.get("page", "1")
        page = reading.messages(
            self.site.state_dir,
            study=study,
            all_lines=all_lines,
            page=int(number[:9]) if number.isdecimal() else 1,
        )
        return self.pages.page(request, "sent", page=page, study=study, all_lines=all_lines)

    def verify(self, request: Request) -> Response:
        path = self.site.state_dir / audit.FILE
        verdict = audit.verify(path) if path.exists() else None
        return self.pages.page(request, "verify", verdict=verdict)

    def preflight(self, request: Request) -> Response:
        path = reading.preflight(self.site.state_dir)
        written = None if path is None else datetime.fromtimestamp(path.stat().st_mtime, UTC)
        return self.pages.page(request, "preflight", written=written, file=reading.PREFLIGHT)

    def preflight_page(self, _request: Request) -> Response:
        path = reading.preflight(self.site.state_dir)
        if path is None:
            raise HTTPException(404)
        return HTMLResponse(path.read_bytes(), headers={"Content-Security-Policy": _PREFLIGHT_POLICY})
