"""``python -m tigerfg.cli``: the ``tigerfg`` command, as torchrun starts it."""

from tigerfg.cli import main

main()
