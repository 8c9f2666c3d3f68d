"""The report as one page for a browser: the Markdown's text, with figures that a browser draws."""

from server.report.html.page import page

__all__ = ["page"]
