"""The checks of `make security` find what they are for, and say when they could not look."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

ROOT = Path(__file__).parent.parent


def check(name: str, *arguments: str | Path) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, str(ROOT / "checks" / name), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    return done.returncode, done.stdout + done.stderr


def test_a_secret_in_a_file_is_found(tmp_path: Path) -> None:
    files = {
        "github.py": "TOKEN = 'ghp_" + "g1H2j3K4m5N6" * 3 + "'\n",
        "key.txt": "-----BEGIN RSA " + "PRIVATE KEY-----\nabc\n",
        "plex.py": "plex(url, '" + "xK9-zQ2vB7nM" + "4pL8wT1s')\n",
        "config.yaml": "password: 'hunter2" + "hunter3'\n",
        "harmless.py": f"digest = {hashlib.sha256(b'x').hexdigest()!r}\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    status, said = check("secret_scan.py", *(tmp_path / name for name in files))
    assert status == 1
    for name in files:
        assert (name in said) == (name != "harmless.py"), said


@contextmanager
def vulnerability_service(affected: str) -> Iterator[str]:
    """Answer as OSV does: one vulnerability of one package, none of any other."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            name = asked["package"]["name"]
            events = [{"introduced": "0"}, {"fixed": "999"}]
            known = {
                "id": "PYSEC-2026-1",
                "summary": "bad",
                "affected": [
                    {
                        "package": {"name": name, "ecosystem": "PyPI"},
                        "ranges": [{"type": "ECOSYSTEM", "events": events}],
                    }
                ],
            }
            body = json.dumps({"vulns": [known]} if name == affected else {}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            return

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/v1/query"
        server.shutdown()
        thread.join()


def test_a_vulnerable_package_is_named() -> None:
    with vulnerability_service("idna") as url:
        status, said = check("audit.py", "-s", "osv", "--osv-url", url)
    assert status == 1
    assert "audit: idna" in said
    assert "PYSEC-2026-1, mended in: 999" in said
    with vulnerability_service("no-such-package") as url:
        status, said = check("audit.py", "-s", "osv", "--osv-url", url)
    assert status == 0
    assert "packages, none with a known vulnerability" in said
    assert "NOT DONE" not in said


def test_an_audit_that_was_not_done_is_no_success() -> None:
    status, said = check("audit.py", "-s", "osv", "--osv-url", "http://127.0.0.1:1/v1/query")
    assert status == 0
    assert "WAS NOT DONE" in said
    assert "none with a known" not in said
