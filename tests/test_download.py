"""Fetching from a server that misbehaves; `test_models` and `test_datasets_fetch` have the rest."""

from __future__ import annotations

import socket
import threading

import pytest

from reclass_plex.download import Patience, Transfer, Wording
from reclass_plex.errors import ModelError


def test_a_redirect_to_what_is_no_address_is_an_error_with_a_name() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 302 Found\r\nLocation: http://[::1\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        transfer = Transfer("the mirror", Wording(ModelError, "", {}), Patience(failures=1))
        url = f"http://127.0.0.1:{server.getsockname()[1]}/weights"
        with pytest.raises(ModelError, match="the mirror: redirects to what is no address"):
            transfer.ask(url)
        transfer.close()
        thread.join()
