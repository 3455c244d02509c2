"""What Plex's XML says, as records. Pure."""

from __future__ import annotations

from xml.etree.ElementTree import Element

from reclass_plex.plex.records import FIELDS, KINDS, MusicLibrary, PlexItem, PlexTrack


def read_library(element: Element) -> MusicLibrary:
    """Read a Directory of /library/sections."""
    return MusicLibrary(
        key=int(element.get("key", 0)),
        title=element.get("title", ""),
        agent=element.get("agent", ""),
        scanner=element.get("scanner", ""),
        folders=tuple(folder.get("path", "") for folder in element.iter("Location")),
    )


def read_track(element: Element) -> PlexTrack:
    """Read a Track of any listing."""
    files = (part.get("file", "") for part in element.iter("Part"))
    return PlexTrack(
        rating_key=int(element.get("ratingKey", 0)),
        album_key=int(element.get("parentRatingKey", 0)),
        artist_key=int(element.get("grandparentRatingKey", 0)),
        library_key=int(element.get("librarySectionID", 0)),
        title=element.get("title", ""),
        paths=tuple(dict.fromkeys(file for file in files if file)),
        added_at=int(element.get("addedAt", 0)),
    )


def read_item(element: Element) -> PlexItem | None:
    """Read an item of /library/metadata; None if it is no music."""
    kind = KINDS.get(element.get("type", ""))
    if kind is None:
        return None
    locks = {one.get("name", "") for one in element.iter("Field") if one.get("locked") == "1"}
    return PlexItem(
        rating_key=int(element.get("ratingKey", 0)),
        kind=kind,
        library_key=int(element.get("librarySectionID", 0)),
        genres=_tags(element, "Genre"),
        locked="genre" in locks,
        title=element.get("title", ""),
        moods=_tags(element, "Mood"),
        styles=_tags(element, "Style"),
        label_locks=frozenset(locks.intersection(FIELDS[1:])),
    )


def _tags(element: Element, name: str) -> tuple[str, ...]:
    return tuple(one.get("tag", "") for one in element.iter(name))


def read_setting(element: Element) -> tuple[str, str]:
    """Return a Setting's name and its value in the words of the server.

    The choices of one that is not on or off are given as 0:None|1:Plex Music.
    """
    name = f"{element.get('label', '')} ({element.get('id', '')})"
    value = element.get("value", "")
    if element.get("type") == "bool":
        return name, "on" if value.lower() in ("1", "true") else "off"
    choices = (choice.partition(":") for choice in element.get("enumValues", "").split("|"))
    text = next((text for key, _, text in choices if key == value and text), value)
    return name, repr(text)
