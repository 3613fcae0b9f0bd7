"""The ``tigerfg`` command: one module per command, imported only when it is needed."""

from __future__ import annotations


def main() -> None:
    """Entry point of ``tigerfg``."""
    from tigerfg.cli.app import app

    app(prog_name="tigerfg")
