"""Where models are fetched from: the hub that publishes them, or a mirror with its layout.

huggingface_hub 2 starts every file anew in a new process, wants headers that no plain web server
sends, and only warns of a full disk; so we ask for the addresses that it asks for
(`BASE/REPOSITORY/resolve/REVISION/FILE`), but transfer them ourselves (`reclass_plex.download`).
Any server of static files with that layout is a mirror.
"""

from __future__ import annotations

from urllib.parse import quote, urlsplit

import requests
from requests.auth import AuthBase

from reclass_plex.download import Patience, Remote, Transfer, Wording, without_login
from reclass_plex.errors import ConfigError, ModelError, visible

__all__ = ["Patience", "Remote", "Source"]

_WORDING = Wording(
    ModelError,
    "Another address: --mirror URL. Without a network: reclass-plex models import FOLDER",
    {
        401: "it asks for a login: set HF_TOKEN, or put the login into the mirror's address",
        403: "it forbids the access: its terms may have to be accepted there with a login;"
        " set HF_TOKEN then",
        407: "the proxy asks for a login: put it into $https_proxy",
        404: "it does not have this file; a mirror must have REPOSITORY/resolve/REVISION/FILE",
    },
)


class _Token(AuthBase):
    """A login as a header. As requests' auth, it stays behind when another host is redirected to,
    and goes before ~/.netrc."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._token}"
        return request


class Source(Transfer):
    """The hub, or a mirror."""

    def __init__(self, mirror: str | None, patience: Patience | None = None) -> None:
        """Open it. Raises ConfigError for a bad address, ModelError if the hub is not known."""
        token = None
        if mirror is None:
            mirror, token = _hub()
        parts = urlsplit(mirror)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(
                f"mirror {visible(without_login(mirror))}: must begin with http:// or https://;"
                " a folder is taken with: reclass-plex models import FOLDER"
            )
        self._base = mirror.rstrip("/")
        name = visible(without_login(self._base))
        super().__init__(name, _WORDING, patience, _Token(token) if token else None)

    def look_up(self, repository: str, revision: str, file: str) -> Remote:
        """Ask for a file's size and digest. Raises ModelError if it cannot be had."""
        return self.ask(
            f"{self._base}/{repository}/resolve/{quote(revision, safe='')}/{quote(file)}"
        )


def _hub() -> tuple[str, str | None]:
    """Return the address of the hub that the models are published on, and our login to it."""
    try:
        from huggingface_hub import constants, get_token
    except ImportError as error:
        raise ModelError(
            "where models are published is known to the package huggingface_hub, which is not"
            " installed (pip install huggingface_hub). A mirror needs no such package:"
            " --mirror URL. Without a network: reclass-plex models import FOLDER"
        ) from error
    if constants.HF_HUB_OFFLINE:
        raise ModelError(
            "HF_HUB_OFFLINE forbids the network. Without it: reclass-plex models import FOLDER"
        )
    token = None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token()
    return constants.ENDPOINT, token
