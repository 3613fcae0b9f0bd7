"""The typer app, its lazily imported commands, and errors as one line on stderr."""

from __future__ import annotations

import importlib
import os
import select
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from tigerfg.cli.console import say

# command -> module; the order is the one of `tigerfg --help`
COMMANDS = {
    "demo": "tigerfg.cli.demo",
    "index": "tigerfg.cli.index",
    "search": "tigerfg.cli.search",
    "update": "tigerfg.cli.update",
    "delete": "tigerfg.cli.delete",
    "items": "tigerfg.cli.items",
    "encode": "tigerfg.cli.encode",
    "load": "tigerfg.cli.load",
    "optimize": "tigerfg.cli.optimize",
    "stats": "tigerfg.cli.stats",
    "snapshot": "tigerfg.cli.snapshot",
    "verify": "tigerfg.cli.verify",
    "eval": "tigerfg.cli.evaluate",
    "render": "tigerfg.cli.render",
    "suite": "tigerfg.cli.suite",
    "train": "tigerfg.cli.train",
    "average": "tigerfg.cli.average",
    "doctor": "tigerfg.cli.doctor",
}

# typer carries its own copy of click in new versions and the click package in old ones
UsageError = typer.BadParameter.__bases__[0]
DEBUG_VARIABLE = "TIGERFG_DEBUG"
STDOUT, STDERR = 1, 2  # file descriptors


def _fail(error: BaseException, program: str) -> int:
    """Report an exception of a program in one line; returns the exit code."""
    from tigerfg.errors import TigerfgError

    if isinstance(error, UsageError):
        where = f" (see '{error.ctx.command_path} --help')" if error.ctx else ""
        say(f"error: {error.format_message()}{where}")
        return 2
    if isinstance(error, (KeyboardInterrupt, typer.Abort)):
        say("interrupted")
        return 130
    if isinstance(error, TigerfgError):
        say(f"error: {error}")
    elif isinstance(error, OSError):
        name = f" {error.filename}:" if error.filename else ""
        say(f"error:{name} {error.strerror or error}")
    else:
        where = f"`{program} --debug ...` shows where"
        say(f"internal error: {type(error).__name__}: {error} ({where})")
    return 1


def _has_reader(descriptor: int) -> bool:
    poll = select.poll()
    poll.register(descriptor, 0)
    return not any(event & select.POLLERR for _, event in poll.poll(0))


def _end_without_reader() -> None:
    """Exit if the reader of what is printed (head, less) is gone: it has what it wanted."""
    if not _has_reader(STDOUT):
        os.dup2(os.open(os.devnull, os.O_WRONLY), STDOUT)  # the flush at exit must not fail too
        sys.exit(0)


def _rich_lost_stdout() -> bool:
    """Whether rich, which then exits with 1, found nobody to read stdout: it puts the null device
    there. Not where stderr has no reader: work may have been cut short."""
    replaced = os.path.samestat(os.fstat(STDOUT), os.stat(os.devnull))
    return replaced and _has_reader(STDERR)


def _replace_closed() -> None:
    """The null device in place of a stdout or stderr that was closed before the start."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115


class _OneLineErrors:
    """Mixin for click commands: every failure is one line and an exit code.

    Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted.
    """

    program = "tigerfg"
    debug = False  # set by the option --debug: let exceptions out

    def main(self, *args: Any, **kwargs: Any) -> Any:
        _replace_closed()
        kwargs["standalone_mode"] = False
        try:
            code = super().main(*args, **kwargs)  # type: ignore[misc]
            sys.stdout.flush()
        except SystemExit as ending:
            if isinstance(ending.__context__, BrokenPipeError) and _rich_lost_stdout():
                sys.exit(0)
            raise
        except (Exception, KeyboardInterrupt) as error:
            if isinstance(error, BrokenPipeError):
                _end_without_reader()
            if self.debug and not isinstance(error, UsageError):
                raise
            sys.exit(_fail(error, self.program))
        if code == 130:
            say("interrupted")
        sys.exit(code if isinstance(code, int) else 0)

    def invoke(self, *args: Any) -> Any:
        try:
            return super().invoke(*args)  # type: ignore[misc]
        except BrokenPipeError:  # click's `main` makes an exit code of 1 of it
            _end_without_reader()
            raise


class OneLineCommand(_OneLineErrors, TyperCommand):
    """A command that is a program of its own."""

    program = "tigerfg-export"


class LazyGroup(_OneLineErrors, TyperGroup):
    """A group whose commands are imported when they are asked for."""

    def main(self, args: list[str] | None = None, **kwargs: Any) -> Any:
        args = list(sys.argv[1:] if args is None else args)
        return super().main(args or ["--help"], **kwargs)

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        single = typer.Typer(add_completion=False)
        single.command(cmd_name)(importlib.import_module(COMMANDS[cmd_name]).command)
        return typer.main.get_command(single)


app = typer.Typer(name="tigerfg", cls=LazyGroup, pretty_exceptions_enable=False)


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"tigerfg {version('tigerfg')}")
        raise typer.Exit


@app.callback()
def _options(
    ctx: typer.Context,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show tracebacks.", envvar=DEBUG_VARIABLE)
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show version.")
    ] = False,
) -> None:
    """Product image search: a cropped photo in, the right catalogue items out."""
    ctx.command.debug = debug
