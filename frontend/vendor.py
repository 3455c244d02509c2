"""Copy what npm fetched to where it is served from, and note in `vendored.json` what it was.

`make frontend` runs `npm ci` and then this. The copies are committed, because who installs
reclass-plex has no npm; tests/test_frontend.py compares them with the lock. axe-core goes to the
browser tests alone.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent
SERVED = ROOT / "service/web/static/vendor"
TESTED_WITH = ROOT / "tests/browser/vendor"
# package -> {file in it: where its copy goes}
COPIES = {
    "htmx.org": {
        "dist/htmx.min.js": SERVED / "htmx.min.js",
        "LICENSE": SERVED / "htmx.LICENSE",
    },
    "htmx-ext-sse": {
        "dist/sse.min.js": SERVED / "htmx-ext-sse.min.js",
        "LICENSE": SERVED / "htmx-ext-sse.LICENSE",
    },
    "axe-core": {
        "axe.min.js": TESTED_WITH / "axe.min.js",
        "LICENSE": TESTED_WITH / "axe.LICENSE",
    },
}


def main() -> None:
    """Copy everything, and write down version and digests."""
    lock = json.loads((HERE / "package-lock.json").read_text(encoding="utf-8"))["packages"]
    noted = {}
    for package, files in COPIES.items():
        locked = lock[f"node_modules/{package}"]
        digests = {}
        for name, target in files.items():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(HERE / "node_modules" / package / name, target)
            digest = hashlib.sha256(target.read_bytes()).hexdigest()
            digests[target.relative_to(ROOT).as_posix()] = digest
        noted[package] = {
            "version": locked["version"],
            "integrity": locked["integrity"],
            "sha256": digests,
        }
    text = json.dumps(noted, indent=2, sort_keys=True) + "\n"
    (HERE / "vendored.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
