"""What a package index and a stranger get: the wheel, the sdist and their metadata."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest

import octavo

from .conftest import Reader
from .pages import ROOT


@pytest.fixture(scope="module")
def metadata(reader: Reader) -> Message:
    with zipfile.ZipFile(reader.wheel) as wheel:
        (name,) = [n for n in wheel.namelist() if n.endswith("dist-info/METADATA")]
        return Parser().parsestr(wheel.read(name).decode())


def test_the_projects_addresses_are_told(metadata: Message) -> None:
    addresses = dict(line.split(", ") for line in metadata.get_all("Project-URL", []))
    assert {"Homepage", "Documentation", "Source", "Issues", "Changelog"} <= set(
        addresses
    )
    assert all(address.startswith("https://") for address in addresses.values())


def test_the_description_has_no_link_that_needs_the_checkout(metadata: Message) -> None:
    description = str(metadata.get_payload())
    targets = re.findall(r"\]\(([^)\s]+)\)", description)
    assert len(targets) > 10
    for target in targets:
        assert target.startswith(("https://", "#")), target
        _, _, path = target.partition("/main/")
        assert not path or (ROOT / path.partition("#")[0]).exists(), target


def test_the_wheel_runs_where_no_checkout_is(reader: Reader, tmp_path: Path) -> None:
    where = reader.python(tmp_path, "-c", "import octavo; print(octavo.__file__)")
    assert Path(where.strip()).is_relative_to(reader.site)
    assert octavo.__version__ in reader.run(tmp_path, "octavo", "--version")


def test_the_wheel_holds_the_package_and_nothing_else(reader: Reader) -> None:
    with zipfile.ZipFile(reader.wheel) as wheel:
        tops = {name.partition("/")[0] for name in wheel.namelist()}
    assert tops == {"octavo", f"octavo-{octavo.__version__}.dist-info"}


def test_the_sdist_holds_what_the_wheel_is_cut_from(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", tmp_path]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (path,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(path) as sdist:
        names = {name.split("/", 1)[1] for name in sdist.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "plugins.toml"} <= names
    assert not any(name.startswith(("tests/", "src/octavo/core")) for name in names)
