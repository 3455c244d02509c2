"""Plex's webhook: a POST for each event of an account, of which those of new music count.

multipart/form-data with the field `payload`, JSON, and perhaps a file `thumb`. Plex signs nothing,
so the key in the address is the only proof; the server's id tells other servers of the same account
apart. `parse` is pure. `receive` only reads, within bounds, and never waits for anything else.
"""

from __future__ import annotations

import email.message
import json
import logging
import re
from collections.abc import AsyncGenerator

from starlette.datastructures import Headers
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from service.hints import KINDS, Hint, rating_key_of

log = logging.getLogger(__name__)

MAX_BODY = 4 << 20  # bytes, with the thumb; Plex's are some 100 kB
MAX_PAYLOAD = 256 << 10  # bytes of JSON; Plex's have some 3 kB
_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,./:=? -]{1,70}")  # RFC 2046, section 5.1.1


class Malformed(ValueError):
    """Not what Plex sends."""


class TooLarge(ValueError):
    """More than Plex would send."""


def parse(payload: bytes | str, server_uuid: str | None) -> Hint | None:
    """Return what an event says of new music; None if it is about anything else.

    `server_uuid` is the machineIdentifier of our server; None accepts any. Raises Malformed.
    """
    try:
        event = json.loads(payload.decode() if isinstance(payload, bytes) else payload)
    except (ValueError, RecursionError):
        raise Malformed("the payload is not JSON in UTF-8") from None
    if not isinstance(event, dict):
        raise Malformed("the payload is not a JSON object")
    if event.get("event") != "library.new":
        return None
    server, metadata = event.get("Server"), event.get("Metadata")
    if not isinstance(metadata, dict):
        raise Malformed("library.new without Metadata")
    if server_uuid is not None and (
        not isinstance(server, dict) or server.get("uuid") != server_uuid
    ):
        return None
    kind = next((kind for kind in KINDS if kind == metadata.get("type")), None)
    if metadata.get("librarySectionType") != "artist" or kind is None:
        return None
    rating_key = rating_key_of(metadata.get("ratingKey"))
    if rating_key is None:
        raise Malformed("ratingKey is not a number")
    added_at = metadata.get("addedAt")
    return Hint(rating_key, kind, added_at if type(added_at) is int else None)


async def receive(request: Request, server_uuid: str | None) -> Hint | None:
    """Read a webhook's request and return its hint. Raises Malformed and TooLarge."""
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > MAX_BODY:
        raise TooLarge(f"more than {MAX_BODY} bytes")
    hint = parse(await _read_payload(request), server_uuid)
    log.debug("webhook: %s", hint or "nothing new")
    return hint


async def _read_payload(request: Request) -> bytes:
    content_type = email.message.Message()
    content_type["content-type"] = request.headers.get("content-type", "")
    boundary = content_type.get_boundary() or ""
    if content_type.get_content_type() != "multipart/form-data" or not _BOUNDARY.fullmatch(
        boundary
    ):
        raise Malformed("not multipart/form-data with a boundary")
    # Latin-1 gives every byte back as it was: what is not UTF-8 is refused and not guessed at,
    # and nobody else chooses the codec.
    headers = Headers(
        {"content-type": f'multipart/form-data; boundary="{boundary}"; charset=latin-1'}
    )
    parser = MultiPartParser(
        headers, _bounded(request), max_files=2, max_fields=8, max_part_size=MAX_BODY
    )
    parser.spool_max_size = MAX_BODY + 1  # the thumb never goes to disk, which would take a thread
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise Malformed(error.message) from None
    except ClientDisconnect:
        raise Malformed("the sender went away") from None
    try:
        payload = form.get("payload")
    finally:
        await form.close()
    if not isinstance(payload, str):
        raise Malformed("no field named payload")
    if len(payload) > MAX_PAYLOAD:
        raise TooLarge(f"a payload of more than {MAX_PAYLOAD} bytes")
    return payload.encode("latin-1")


async def _bounded(request: Request) -> AsyncGenerator[bytes, None]:
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > MAX_BODY:
            raise TooLarge(f"more than {MAX_BODY} bytes")
        yield chunk
