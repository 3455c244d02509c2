"""Lists what the service is made of, as a CycloneDX 1.6 document: packages, weights, scripts.

The packages are those of systemd/requirements.txt for the Python that runs this, with the digests
of their releases' files; torch with its parts is listed as it is installed, as it may be another
than that of the lock. Weights and tables are those of the package, the scripts those that the
dashboard loads. Only the standard library: the installer runs it.

    python systemd/sbom.py [OUTPUT]
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
DATA = ROOT / "reclass_plex" / "data"
_PIN = re.compile(
    r"^([a-z0-9][\w.-]*)==(\S+)(?: ; (.*?))?(?: \\)?((?:\n    --hash=\S+(?: \\)?)+)", re.MULTILINE
)
_SCRIPT_LICENCES = {"htmx.org": "0BSD", "htmx-ext-sse": "0BSD"}


def main(arguments: list[str]) -> int:
    """Write the document; return the exit status."""
    version = _project_version()
    text = json.dumps(document(version), indent=1, ensure_ascii=False) + "\n"
    if arguments:
        Path(arguments[0]).write_text(text, encoding="utf-8")
    else:
        sys.stdout.write(text)
    return 0


def document(version: str) -> dict[str, Any]:
    """Return the whole document. It has no time and no random number: the same in, the same out."""
    components = [*packages(), *weights(version), *scripts()]
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "component": {
                "type": "application",
                "bom-ref": "reclass-plex",
                "name": "reclass-plex",
                "version": version,
                "licenses": [{"license": {"id": "MIT"}}],
            }
        },
        "components": components,
        "dependencies": [
            {"ref": "reclass-plex", "dependsOn": [one["bom-ref"] for one in components]}
        ],
    }


def packages() -> Iterator[dict[str, Any]]:
    """Yield the packages of the lock that this Python gets, and torch with its parts."""
    lock = (ROOT / "systemd" / "requirements.txt").read_text(encoding="utf-8")
    for name, version, marker, digests in _PIN.findall(lock):
        if _is_meant(marker):
            yield _package(name, version, re.findall(r"sha256:([0-9a-f]{64})", digests))
    lock = (ROOT / "systemd" / "requirements-torch.txt").read_text(encoding="utf-8")
    for name in sorted({name for name, *_ in _PIN.findall(lock)}):
        try:
            yield _package(name, importlib.metadata.version(name), [])
        except importlib.metadata.PackageNotFoundError:
            continue


def _is_meant(marker: str) -> bool:
    """Evaluate what uv writes behind a version: Pythons, and Linux."""
    here = sys.version_info[:2]
    for sign, other in re.findall(r"python_full_version (<|>=|==) '([\d.]+)", marker):
        there = tuple(int(part) for part in other.strip(".").split("."))[:2]
        right = {"<": here < there, ">=": here >= there, "==": here == there}[sign]
        if not right:
            return False
    return True


def _package(name: str, version: str, digests: list[str]) -> dict[str, Any]:
    purl = f"pkg:pypi/{name}@{version.replace('+', '%2B')}"
    found: dict[str, Any] = {
        "type": "library",
        "bom-ref": purl,
        "name": name,
        "version": version,
        "purl": purl,
    }
    if licence := _licence(name):
        found["licenses"] = [{"license": {"name": licence}}]
    if digests:
        found["hashes"] = [{"alg": "SHA-256", "content": one} for one in digests]
    return found


def _licence(name: str) -> str | None:
    """Return the licence that an installed package names, in a line."""
    try:
        said = importlib.metadata.metadata(name)
    except importlib.metadata.PackageNotFoundError:
        return None
    classified = [
        one.rpartition(" :: ")[2] for one in said.get_all("Classifier", []) if "License ::" in one
    ]
    given = [*said.get_all("License-Expression", []), *classified, *said.get_all("License", [])]
    named = given[0] if given else ""
    return named.strip().splitlines()[0][:100] if named.strip() else None


def weights(version: str) -> Iterator[dict[str, Any]]:
    """Yield the models and tables in the package, by their own list of digests."""
    for line in (DATA / "SHA256SUMS").read_text(encoding="utf-8").splitlines():
        digest, name = line.split(maxsplit=1)
        kind = "machine-learning-model" if name.endswith(".safetensors") else "data"
        yield _file(kind, f"reclass_plex/data/{name}", version, digest, _data_licence(name))


def _data_licence(name: str) -> str:
    return "ISC" if name.startswith("musicnn/") else "MIT"


def scripts() -> Iterator[dict[str, Any]]:
    """Yield what the dashboard loads and others wrote."""
    vendored = json.loads((ROOT / "frontend" / "vendored.json").read_text(encoding="utf-8"))
    for name, one in vendored.items():
        for path, digest in one["sha256"].items():
            if path.startswith("service/") and path.endswith(".js"):
                yield _file("library", path, one["version"], digest, _SCRIPT_LICENCES[name])


def _file(kind: str, path: str, version: str, digest: str, licence: str) -> dict[str, Any]:
    found = hashlib.sha256((ROOT / path).read_bytes()).hexdigest()
    if found != digest:
        raise SystemExit(f"{path}: is not the file that its list of digests names")
    return {
        "type": kind,
        "bom-ref": path,
        "name": path,
        "version": version,
        "licenses": [{"license": {"id": licence}}],
        "hashes": [{"alg": "SHA-256", "content": digest}],
    }


def _project_version() -> str:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    found = re.search(r'^version = "([^"]+)"', text, re.MULTILINE)
    return found[1] if found else "0"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
