"""The documentation as a site, built once and served from this machine; needs MkDocs."""

import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

ROOT = Path(__file__).parents[2]
_folder = tempfile.TemporaryDirectory()  # goes with the process


@cache
def build_site() -> Path:
    """Return the folder of the built site; fail if MkDocs warns of anything."""
    site = Path(_folder.name) / "site"
    mkdocs = (sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-f", "docs/mkdocs.yml", "-d", site)
    done = subprocess.run(mkdocs, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return site


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve the files of a folder, at the address that is yielded."""
    handler = type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
