"""Looks the packages of the service's two locks up among known vulnerabilities, by pip-audit.

Where the index does not answer for a version, as mirrors often do not, pip-audit leaves the package
out and calls the rest well. Here that is said aloud, and is no success: "not done" is printed, with
status 0, so that a check without the network goes on. A vulnerability ends it with status 1, unless
pyproject.toml says why it does not matter here ([tool.audit] ignore).

    python checks/audit.py [options of pip-audit, such as -s osv]
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import tomli

ROOT = Path(__file__).parent.parent
LOCKS = [ROOT / "systemd" / name for name in ("requirements.txt", "requirements-torch.txt")]
SECONDS = 100.0  # for all questions; two seconds where the service answers quickly
SHOWN = 5  # names of what could not be looked up


def main(options: list[str]) -> int:
    """Audit; return the exit status."""
    project = tomli.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    ignored = {one["id"]: one["why"] for one in project["tool"]["audit"]["ignore"]}
    with tempfile.TemporaryDirectory() as folder:
        wanted = Path(folder, "requirements.txt")
        locked = "".join(lock.read_text(encoding="utf-8") for lock in LOCKS)
        wanted.write_text(packages(locked), encoding="utf-8")
        report = Path(folder, "report.json")
        command = [sys.executable, "-m", "pip_audit", "-r", str(wanted), "--no-deps"]
        command += ["--disable-pip", "--progress-spinner", "off", "-f", "json", "-o", str(report)]
        try:
            done = subprocess.run(
                [*command, *options], capture_output=True, text=True, check=False, timeout=SECONDS
            )
        except subprocess.TimeoutExpired:
            return not_done(f"no answer within {SECONDS:.0f} s")
        if not report.exists():
            said = done.stderr.strip().splitlines() or ["pip-audit gave no report"]
            return not_done(said[-1][:300])
        found = json.loads(report.read_text(encoding="utf-8"))["dependencies"]
    return judge(found, ignored)


def packages(lock: str) -> str:
    """Return the packages of a lock without their digests."""
    lines = [line.removesuffix(" \\") for line in re.findall(r"^[a-z0-9].*$", lock, re.MULTILINE)]
    return "\n".join(lines) + "\n"


def judge(found: list[dict[str, Any]], ignored: dict[str, str]) -> int:
    """Say what pip-audit found of each package; return the exit status."""
    skipped = [one["name"] for one in found if "skip_reason" in one]
    bad = 0
    for one in found:
        for known in one.get("vulns", ()):
            names = {known["id"], *known.get("aliases", ())}
            if reasons := [ignored[name] for name in names if name in ignored]:
                print(f"audit: {one['name']} {one['version']}: {known['id']}: {reasons[0]}")
                continue
            bad += 1
            better = ", ".join(known.get("fix_versions", ())) or "none yet"
            print(f"audit: {one['name']} {one['version']}: {known['id']}, mended in: {better}")
    if bad:
        print(f"audit: {bad} known vulnerabilities: make lock UPGRADE=--upgrade, or say in")
        print("       pyproject.toml ([tool.audit] ignore) why one does not matter here")
        return 1
    if len(skipped) == len(found):
        return not_done("the service knows none of the versions that are asked about")
    if skipped:
        some = ", ".join(skipped[:SHOWN])
        return not_done(f"{len(skipped)} of {len(found)} packages are not known there: {some}, ...")
    print(f"audit: {len(found)} packages, none with a known vulnerability")
    return 0


def not_done(why: str) -> int:
    """Say loudly that nothing is known."""
    print("*" * 78)
    print("THE AUDIT FOR KNOWN VULNERABILITIES WAS NOT DONE, or not for all packages:")
    print(why)
    print("Do it where the service can be reached: make audit")
    print("*" * 78)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
