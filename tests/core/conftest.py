"""Stores that tests share: SQLite files, and a PostgreSQL server of their own where its programs
are installed."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """A PostgreSQL server of our own, on a free port of the loopback, for as long as
    the tests run."""
    initdb = shutil.which("initdb") or next(
        (str(p) for p in sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))), None
    )
    pytest.importorskip("psycopg")
    if initdb is None:
        pytest.skip("PostgreSQL's server programs are not installed")
    binaries = Path(initdb).resolve().parent
    # Not pytest's folder, which every other run of pytest closes to other users as it starts.
    folder = Path(tempfile.mkdtemp(prefix="octavo-postgres-"))
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    user = None
    if os.geteuid() == 0:
        # The server refuses to run as root.
        user = "postgres"
        try:
            subprocess.run(["id", user], check=True, capture_output=True)
        except subprocess.CalledProcessError:
            pytest.skip(
                "running as root, and there is no user postgres to run the server as"
            )
        shutil.chown(folder, user)
    subprocess.run(
        [binaries / "initdb", "-D", folder / "db", "-U", "octavo", "-A", "trust"],
        check=True,
        capture_output=True,
        user=user,
        cwd="/",
    )
    server = subprocess.Popen(
        [
            binaries / "postgres",
            "-D",
            folder / "db",
            "-p",
            str(port),
            "-c",
            "listen_addresses=127.0.0.1",
            "-k",
            folder,
            "-c",
            "fsync=off",
        ],
        stderr=subprocess.DEVNULL,
        user=user,
        cwd="/",
    )
    try:
        ready = [binaries / "pg_isready", "-h", "127.0.0.1", "-p", str(port)]
        end = time.monotonic() + 120
        while subprocess.run(ready, capture_output=True, check=False).returncode:
            assert server.poll() is None, f"the server ended with {server.returncode}"
            assert time.monotonic() < end, "the server does not take connections"
            time.sleep(0.1)
        yield f"postgresql+psycopg://octavo@127.0.0.1:{port}/postgres"
    finally:
        server.terminate()
        server.wait(20)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(params=["sqlite", "postgres"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return (
        str(tmp_path / "ünï code.db")
        if request.param == "sqlite"
        else request.getfixturevalue("postgres")
    )
