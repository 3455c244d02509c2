"""The list of what the service is made of: valid, complete, the same each time."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from test_lock import TORCH_PINS, pins_for

ROOT = Path(__file__).parent.parent


def make_sbom(folder: Path) -> str:
    target = folder / "sbom.json"
    subprocess.run([sys.executable, ROOT / "systemd" / "sbom.py", target], check=True)
    return target.read_text(encoding="utf-8")


def test_the_list_is_valid_and_complete(tmp_path: Path) -> None:
    text = make_sbom(tmp_path)
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    assert make_sbom(tmp_path) == text
    components = {one["name"]: one for one in json.loads(text)["components"]}
    pins = pins_for(f"{sys.version_info[0]}.{sys.version_info[1]}", "x86_64")
    for name, pin in pins.items():
        assert components[name]["version"] == pin.version
        found = {f"sha256:{one['content']}" for one in components[name]["hashes"]}
        assert found == set(pin.digests)
    shipped = [*(ROOT / "reclass_plex" / "data").rglob("*.safetensors")]
    shipped += (ROOT / "service" / "web" / "static" / "vendor").glob("*.js")
    assert len(shipped) > 8
    for path in shipped:
        one = components[path.relative_to(ROOT).as_posix()]
        assert one["hashes"][0]["content"] == hashlib.sha256(path.read_bytes()).hexdigest()
        assert one["version"]
        assert one["licenses"][0]["license"]["id"] in {"MIT", "ISC", "0BSD"}
    parts = {pin.name for pin in TORCH_PINS} & set(components)
    assert {"torch", "sympy"} <= parts  # as they are installed: which differs with the machine
    assert set(components) == set(pins) | parts | {name for name in components if "/" in name}
    licensed = [one for one in components.values() if "licenses" in one]
    assert len(licensed) > 0.8 * len(components)
