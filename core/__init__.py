"""The core: knows no framework."""

from .moved import keep_earlier_paths

keep_earlier_paths()
