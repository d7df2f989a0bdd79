"""Settings that hold for every test."""

from hypothesis import HealthCheck, settings

# Property tests measure no time: on a busy machine a deadline is a failure drawn at random.
settings.register_profile(
    "octavo", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("octavo")
