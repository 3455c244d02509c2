"""The dashboard: one module a page, each a function that adds its routes.

Rendered by the server (service/web/templates), so that it works without scripts; HTMX loads parts
anew where that is nicer. `build_dashboard` makes the router that service/web/app.py includes.
"""

from service.web.pages.build import build_dashboard

__all__ = ["build_dashboard"]
