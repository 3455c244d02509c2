"""What can be listened to, told apart by its address alone: nothing is opened or imported."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Literal

from reclass_plex.errors import StreamError, visible

DEVICES = ("alsa", "pulse", "avfoundation", "oss", "jack", "sndio", "dshow")  # FFmpeg's inputs

Kind = Literal["http", "file", "stdin", "device"]


@dataclass(frozen=True)
class Source:
    """What is to be listened to. `address` is a URL, a path or a device's name."""

    kind: Kind
    address: str
    device: str = ""

    @property
    def is_live(self) -> bool:
        """Tell whether it may come back when it breaks off."""
        return self.kind == "http"


def read_source(text: str) -> Source:
    """Tell URL, device, file and "-" (standard input) apart. Raises StreamError for the rest."""
    if text == "-":
        return Source("stdin", "-")
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*):", text)
    name = scheme[1].lower() if scheme else ""
    if name in {"http", "https"}:
        return Source("http", text)
    if name in DEVICES and not os.path.exists(text):  # noqa: PTH110 - any text may be asked for
        return Source("device", text.partition(":")[2] or "default", name)
    if name == "file":
        text = re.sub(r"^file:(//)?", "", text)
    elif "://" in text:
        raise StreamError(
            f"{visible(name) or 'this'}: only http, https, files and devices"
            f" ({', '.join(DEVICES)}) can be listened to"  # the rest may hold a password
        )
    return Source("file", text)
