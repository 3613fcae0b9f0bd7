"""Run the tests of the Searcher against a real Milvus server: `make test-milvus`.

The server is the package `milvus` (2.3.5, a standalone server in one process), in a virtual
environment of its own, with its data in a directory that is removed afterwards.

    python tests/run_with_milvus.py ENVIRONMENT [pytest arguments]
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

PACKAGES = ("milvus==2.3.5", "setuptools<81")
TESTS = tuple(
    f"tests/test_{name}.py"
    for name in ("searcher", "milvus", "update", "selection", "settings_changed", "refetch")
)
START = 180  # seconds until the server must be usable


def main(arguments: list[str]) -> int:
    environment, *options = arguments
    python = Path(environment) / "bin" / "python"
    program = python.with_name("milvus-server")
    if not program.exists():
        venv.create(environment, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *PACKAGES], check=True)
    with tempfile.TemporaryDirectory(prefix="tigerfg-milvus-", ignore_cleanup_errors=True) as data:
        port = free_port()
        command = [program, "--data", data, "--proxy-port", str(port)]
        with open(Path(data) / "server.log", "wb") as log:
            server = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            wait_until_usable(f"http://127.0.0.1:{port}")
            own = {**os.environ, "TIGERFG_TEST_MILVUS": f"127.0.0.1:{port}"}
            tests = [sys.executable, "-m", "pytest", *TESTS, "-k", "not lite and not disk"]
            return subprocess.run([*tests, *options], env=own).returncode
        finally:
            os.killpg(server.pid, signal.SIGKILL)  # its own way of stopping never ends
            server.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until_usable(uri: str) -> None:
    from pymilvus import MilvusClient
    from pymilvus.exceptions import MilvusException

    deadline = time.monotonic() + START
    while True:
        try:
            MilvusClient(uri=uri, timeout=5).list_collections()
            return
        except MilvusException as error:
            if time.monotonic() > deadline:
                raise SystemExit(
                    f"the Milvus server is not usable after {START} s: {error}"
                ) from error
            time.sleep(2)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
