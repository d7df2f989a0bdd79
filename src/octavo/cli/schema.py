"""``octavo schema``: the configuration as a JSON schema, for editors and for people."""

from __future__ import annotations

import typer

from octavo.core.contract.plugins import PluginHost
from octavo.core.opening.config_schema import config_schema

from .console import show_json
from .face.options import Autoload

EXAMPLES = """
octavo schema > octavo.schema.json
"""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("schema", epilog=EXAMPLES)(schema)


def schema(
    autoload: Autoload = True,
) -> None:
    """Print the JSON schema of a tuning configuration, with the settings of every loaded part."""
    show_json(config_schema(PluginHost(third_party=autoload)))
