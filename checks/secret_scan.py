"""Looks for secrets in all files that git has: detect-secrets, with pyproject.toml's exceptions.

Each exception ([tool.secret-scan] allow) names files, what is found there, and why that is none;
one that is not needed any more is an error, too. Digests are no secrets, so lines with hexadecimal
ones and the files of package managers are passed over.

    python checks/secret_scan.py [FILE ...]
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from fnmatch import fnmatch
from multiprocessing import Pool
from pathlib import Path

import tomli
from detect_secrets.core.scan import scan_file
from detect_secrets.settings import transient_settings

ROOT = Path(__file__).parent.parent
_KINDS = """
    AWSKeyDetector BasicAuthDetector DiscordBotTokenDetector GitHubTokenDetector JwtTokenDetector
    KeywordDetector NpmDetector OpenAIDetector PrivateKeyDetector PypiTokenDetector SlackDetector
    TelegramBotTokenDetector
"""
SETTINGS = {
    "plugins_used": [
        *({"name": name} for name in _KINDS.split()),
        {"name": "Base64HighEntropyString", "limit": 4.5},
        {"name": "HexHighEntropyString", "limit": 3.0},
    ],
    "filters_used": [
        {"path": "detect_secrets.filters.heuristic.is_indirect_reference"},
        {"path": "detect_secrets.filters.heuristic.is_templated_secret"},
        {"path": "detect_secrets.filters.heuristic.is_sequential_string"},
        {
            "path": "detect_secrets.filters.regex.should_exclude_line",
            "pattern": [
                r"\b([0-9a-f]{16}|[0-9a-f]{32}|[0-9a-f]{40}|[0-9a-f]{64})\b|sha(256|384|512)[-:]"
            ],
        },
    ],
}
_PASSED = (
    *(
        ".png",
        ".jpg",
        ".svg",
        ".npz",
        ".npy",
        ".safetensors",
        ".gz",
        ".woff2",
        ".min.js",
        ".min.css",
    ),
    *(".mp3", ".ogg", ".opus", ".flac", ".m4a", ".wav"),
)
_LOCKS = (
    "systemd/requirements.txt",
    "systemd/requirements-torch.txt",
    "frontend/package-lock.json",
    "frontend/vendored.json",
)
# 20 characters, too short for the measures of entropy: of each kind one at least.
_PLEX_TOKEN = re.compile(
    r"(?<![\w-])(?=[\w-]*\d)(?=[\w-]*[a-z])(?=[\w-]*[A-Z])[A-Za-z0-9_-]{20}(?![\w-])"
)
_LARGEST = 1 << 20  # bytes of a file; beyond are tables


def main(given: list[str]) -> int:
    """Scan; return the exit status."""
    project = tomli.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    allowed = [(one["files"], one["kind"]) for one in project["tool"]["secret-scan"]["allow"]]
    files = given or [name for name in tracked() if is_text(name)]
    with Pool(min(2, os.cpu_count() or 1)) as pool:
        found = [hit for hits in pool.map(scan, files, chunksize=16) for hit in hits]
    wrong, used = [], set()
    for name, kind, line in found:
        reasons = {one for one in allowed if fnmatch(name, one[0]) and kind == one[1]}
        used |= reasons
        if not reasons:
            wrong.append(name)
            print(f"{name}:{line}: {kind}: a secret? If it is none, say so in pyproject.toml")
    stale = [] if given else [one for one in allowed if one not in used]
    for name, kind in stale:
        print(f"pyproject.toml: [tool.secret-scan] allow: {name} has no {kind!r} any more")
    if not wrong and not stale:
        print(f"secret scan: {len(files)} files, none with a secret; {len(found)} known examples")
    return 1 if wrong or stale else 0


def tracked() -> list[str]:
    """Return the files that git has."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z"]
    said = subprocess.run(command, capture_output=True, check=True).stdout
    return [os.fsdecode(name) for name in said.split(b"\0") if name]


def is_text(name: str) -> bool:
    """Tell whether a file is one in which a person may have left a secret."""
    path = ROOT / name
    if name in _LOCKS or name.endswith(_PASSED) or not path.is_file():
        return False
    return path.stat().st_size <= _LARGEST


def scan(name: str) -> list[tuple[str, str, int]]:
    """Return what looks like a secret in a file: its name, the kind, the line."""
    with transient_settings(SETTINGS):
        found = {(name, hit.type, hit.line_number) for hit in scan_file(str(ROOT / name))}
    text = (ROOT / name).read_text(encoding="utf-8", errors="replace")
    for number, line in enumerate(text.splitlines(), 1):
        if _PLEX_TOKEN.search(line):
            found.add((name, "Plex token", number))
    return sorted(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
