"""No password in what a run writes or says: results, reports, messages."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import octavo
from octavo.core.errors import StoreError
from octavo.core.storage.history import StudyHistory, read_history
from octavo.core.system.redaction import redacted
from tests import tiny

SECRET = "s3cr3tpassw0rd"


@pytest.mark.parametrize(
    ("location", "shown"),
    [
        (
            f"postgresql+psycopg://me:{SECRET}@host:5432/db",
            "postgresql+psycopg://me:***@host:5432/db",
        ),
        (
            f"mysql://me:{SECRET}@host/db?charset=utf8",
            "mysql://me:***@host/db?charset=utf8",
        ),
        (f"postgresql://me:{SECRET}@x@host/db", "postgresql://me:***@host/db"),
        (f"postgresql://me:a/{SECRET}@host/db", "postgresql://me:***@host/db"),
        (f"postgresql://:{SECRET}@host/db", "postgresql://:***@host/db"),
        (
            f"postgresql://host/db?user=me&password={SECRET}",
            "postgresql://host/db?user=me&password=***",
        ),
        (
            f"postgresql://host/db?sslpassword={SECRET}&x=1",
            "postgresql://host/db?sslpassword=***&x=1",
        ),
    ],
)
def test_the_password_of_a_url_is_hidden_and_the_rest_is_shown(
    location: str, shown: str
) -> None:
    assert redacted(location) == shown
    assert (
        redacted(f"octavo tune m.onnx --storage {location} -q")
        == f"octavo tune m.onnx --storage {shown} -q"
    )


@pytest.mark.parametrize(
    "plain",
    [
        "/a/path:with@signs.db",
        "history.db",
        "sqlite:///a.db",
        "postgresql://host:5432/db",
        "x = f(token=1)",
        "a@b.c: it failed",
    ],
)
def test_what_holds_no_password_stays_as_it_is(plain: str) -> None:
    assert redacted(plain) == plain


def test_a_password_is_hidden_in_the_forms_in_which_drivers_repeat_it() -> None:
    url = f"postgresql://me:{SECRET}%40@host/db"
    assert SECRET not in redacted(f'cannot parse "host=x password={SECRET}@"', url)
    assert SECRET not in redacted(f"no such user or password: {SECRET}%40", url)


def test_a_store_that_cannot_be_opened_shows_no_password(tmp_path: Path) -> None:
    for location in (
        f"postgresql+psycopg://me:{SECRET}@127.0.0.1:1/db",
        f"nosuchdatabase://me:{SECRET}@host/db",
        f"postgresql+psycopg://127.0.0.1:1/db?password={SECRET}",
    ):
        with pytest.raises(StoreError) as caught:
            StudyHistory(location, fingerprint={})
        chain = [caught.value, caught.value.__cause__]
        assert not any(SECRET in str(e) for e in chain)
        with pytest.raises(StoreError) as caught:
            read_history(location)
        assert SECRET not in str(caught.value)


def test_results_and_reports_hold_no_password(postgres: str, tmp_path: Path) -> None:
    # The server trusts whoever comes, so that any password opens it.
    storage = postgres.replace("octavo@", f"octavo:{SECRET}@")
    result = octavo.autotune(
        tiny.chain(),
        tiny.accuracy,
        tiny.calibration(),
        strategy="basic",
        max_trials=1,
        minimise="size",
        storage=storage,
        study="redaction",
        host=tiny.host(),
    )
    assert "octavo:***@127.0.0.1" in result.storage
    folder = result.save(tmp_path / "out")
    pytest.importorskip("jinja2")
    pytest.importorskip("matplotlib")
    report = result.report(tmp_path / "report.html")
    for path in (report, *(p for p in folder.rglob("*") if p.is_file())):
        assert SECRET.encode() not in path.read_bytes(), path
    with pytest.raises(StoreError) as caught:
        octavo.autotune(
            tiny.chain(), tiny.accuracy, tiny.calibration(), tolerance=0.3, minimise="size",
            storage=storage, study="redaction", host=tiny.host(),
        )  # fmt: skip
    assert SECRET not in str(caught.value)
    with pytest.raises(StoreError) as caught:
        read_history(storage, "absent")
    assert SECRET not in str(caught.value)


def test_the_command_line_shows_no_password(postgres: str) -> None:
    storage = postgres.replace("octavo@", f"octavo:{SECRET}@")
    done = subprocess.run(
        [sys.executable, "-m", "octavo", "history", storage, "--study", "absent"],
        capture_output=True,
        text=True,
        env=os.environ,
        check=False,
    )
    assert done.returncode == 1
    assert "absent" in done.stderr
    assert SECRET not in done.stdout + done.stderr
