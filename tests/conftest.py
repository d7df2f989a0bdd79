"""Settings that hold for every test."""

import logging
import os

import pytest
from hypothesis import HealthCheck, Phase, settings

# The workers that share the tests inherit the width of the terminal (or of none: 80 columns) that
# readline wrote into the environment of the process that started them.
os.environ.pop("COLUMNS", None)
os.environ.pop("LINES", None)

# Property tests measure no time: on a busy machine a deadline is a failure drawn at random.
settings.register_profile(
    "octavo", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
# A mutant needs no smallest example: that something fails is enough.
settings.register_profile(
    "mutants",
    settings.get_profile("octavo"),
    max_examples=15,
    phases=[Phase.explicit, Phase.generate],
    database=None,
)
settings.load_profile("octavo")


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """What octavo logs from INFO on."""
    caplog.set_level(logging.INFO, logger="octavo")
    return caplog
