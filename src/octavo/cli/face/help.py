"""Help in two columns that fits under a screen: options in groups, then examples.

Typer's own page gives each option six columns, and most of them are empty at 80.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from typing import Any

from rich.padding import Padding
from rich.table import Table
from rich.text import Text
from typer.core import TyperCommand, TyperGroup

from ..console import help_page
from .failures import Interrupted
from .options import GROUPS

NAMES = 25
"""Columns of the names: longer ones have a line of their own."""

OPTIONS = "Options"
COMMANDS = "Commands"


class Command(TyperCommand):
    """A command whose help is brief."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the help."""
        _print_head(self, ctx, _arguments(self, ctx))
        _print_groups(self, ctx)
        _print_examples(self)


class Commands(TyperGroup):
    """The commands, whose help lists them."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the help."""
        _print_head(self, ctx, "COMMAND ...")
        _print_commands(self, ctx)
        _print_groups(self, ctx)
        _print_examples(self)

    def invoke(self, ctx: Any) -> Any:
        """Run the command.

        Raises:
            Interrupted: On Ctrl-C.
        """
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise Interrupted("interrupted") from error


def _arguments(command: TyperCommand, ctx: Any) -> str:
    """Return what a command is called with: its arguments, and the options it cannot do without."""
    arguments, options = [], []
    for parameter in command.params:
        name = _metavar(parameter)
        if _is_argument(parameter):
            arguments.append(name if parameter.required else f"[{name}]")
        elif parameter.required:
            options.append(f"{parameter.opts[0]} {name}")
    return " ".join([*arguments, *options, "[OPTIONS]"])


def _print_head(command: Any, ctx: Any, arguments: str) -> None:
    console = help_page()
    console.print(
        Text("usage: ", style="bold") + Text(f"{ctx.command_path} {arguments}")
    )
    console.print()
    for paragraph in inspect.cleandoc(command.help or "").split("\n\n"):
        console.print(Text(" ".join(paragraph.split())))
        console.print()


def _print_commands(group: TyperGroup, ctx: Any) -> None:
    panels: dict[str, list[tuple[str, str]]] = {}
    for name in group.list_commands(ctx):
        command: Any = group.get_command(ctx, name)
        panel = getattr(command, "rich_help_panel", None)
        title = panel if isinstance(panel, str) else COMMANDS
        row = (name, command.get_short_help_str(limit=200))
        panels.setdefault(title, []).append(row)
    for title, rows in panels.items():
        _print_rows(title, rows)


def _print_groups(command: Any, ctx: Any) -> None:
    panels: dict[str, list[tuple[str, str]]] = {}
    for parameter in command.get_params(ctx):
        if getattr(parameter, "hidden", False):
            continue
        panel = getattr(parameter, "rich_help_panel", None)
        title = panel if isinstance(panel, str) else OPTIONS
        panels.setdefault(title, []).append((_names(parameter), _text(parameter)))
    # What every command has comes last.
    order = [*GROUPS, *(title for title in panels if title not in GROUPS)]
    for title in order:
        if title in panels:
            _print_rows(title if len(panels) > 1 else "", panels[title])


def _print_rows(title: str, rows: Iterable[tuple[str, str]]) -> None:
    """Print names and what they mean, in two columns under a heading."""
    console = help_page()
    if title:
        console.print(Text(title, style="bold"))
    for names, text in rows:
        if len(names) > NAMES:
            console.print(Text(f"  {names}", style="cyan"))
            names = ""
        grid = Table.grid(padding=(0, 1, 0, 0))
        grid.add_column(width=NAMES, no_wrap=True)
        grid.add_column(ratio=1)
        grid.add_row(Text(names, style="cyan"), Text(text))
        console.print(Padding(grid, (0, 0, 0, 2)))
    console.print()


def _print_examples(command: Any) -> None:
    """Print the lines of a command's epilogue as they are."""
    lines = inspect.cleandoc(command.epilog or "").splitlines()
    if not lines:
        return
    console = help_page()
    console.print(Text("Examples", style="bold"))
    for line in lines:
        console.print(Text(f"  {line}"), soft_wrap=True)


def _names(parameter: Any) -> str:
    """Return how an option is written: ``-o, --output FOLDER``, ``--report/--no-report``."""
    if _is_argument(parameter):
        return _metavar(parameter)
    short_first = sorted(parameter.opts, key=lambda name: name.startswith("--"))
    names = ", ".join(short_first)
    if parameter.secondary_opts:
        names = f"{names}/{parameter.secondary_opts[0]}"
    takes_value = not (parameter.is_flag or parameter.count)
    return f"{names} {_metavar(parameter)}" if takes_value else names


def _metavar(parameter: Any) -> str:
    return str(parameter.metavar or parameter.name.upper().replace("_", "-"))


def _is_argument(parameter: Any) -> bool:
    return bool(parameter.param_type_name == "argument")


def _text(parameter: Any) -> str:
    return " ".join(_sentences(parameter))


def _sentences(parameter: Any) -> Iterator[str]:
    """Yield what an option does, and its default where it has one that says something."""
    yield " ".join((parameter.help or "").split())
    default = parameter.default
    is_told = parameter.show_default and isinstance(default, (str, int, float))
    if is_told and not isinstance(default, bool):
        yield f"[default: {default}]"
