"""``edgeprune emulator``: install, look at and remove the Arm board that is none."""

from __future__ import annotations

import click

from edgeprune.cli_options import DONE, NAMED_ERROR, as_json, show


@click.group()
def emulator() -> None:
    """The Arm board without a board.

    QEMU, an arm64 Python and the TFLite runtimes, in the user's cache.
    """


@emulator.command()
@click.option("--force", is_flag=True, help="Build it anew even if it is there.")
def install(force: bool) -> None:
    """Fetch and check the emulator; needs no root.

    What is installed already and whole is kept.
    """
    from edgeprune import progress, registry

    shown = progress.choose()
    try:
        click.echo(
            f"The Arm emulator is installed in {registry.module('backends', 'qemu').install(shown, force).folder}"
        )
    finally:
        shown.close()


@emulator.command()
@click.option("--verify", is_flag=True, help="Compare the checksum of every file.")
@as_json
def status(verify: bool, as_json: bool) -> int:
    """Say what of the emulator is installed, and where.

    Exits with 1 when it is missing or damaged.
    """
    from edgeprune import registry, tables

    found = registry.module("backends", "qemu").status(verify)
    show(found, as_json, tables.facts)
    return DONE if found["installed"] and not found.get("damaged") else NAMED_ERROR


@emulator.command()
def remove() -> None:
    """Delete the emulator from the cache."""
    from edgeprune import registry

    removed = registry.module("backends", "qemu").remove()
    click.echo("The Arm emulator was removed." if removed else "The Arm emulator was not installed.")
