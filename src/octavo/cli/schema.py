"""``octavo schema``: the configuration as a JSON schema, for editors and for people."""

from __future__ import annotations

from typing import Annotated

import typer

from octavo.core.contract.plugins import PluginHost
from octavo.core.opening.config_schema import config_schema

from .console import show_json


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("schema")(schema)


def schema(
    autoload: Annotated[
        bool,
        typer.Option(
            "--autoload/--no-autoload", help="Include plugins of other distributions."
        ),
    ] = True,
) -> None:
    """Print the JSON schema of a tuning configuration, with the settings of every loaded part."""
    show_json(config_schema(PluginHost(third_party=autoload)))
