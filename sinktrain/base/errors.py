"""The one exception that a user is meant to read."""

from __future__ import annotations


class UserError(Exception):
    """A mistake in the input, told in one sentence that names the option or file and how to mend it.

    The command line prints it alone on stderr and exits with status 2; `--debug` adds the traceback.
    """


def at_least(option: str, value: float, least: float) -> None:
    """Refuses a number below `least`.

    Raises:
        UserError: `value` is below it.
    """
    if value < least:
        raise UserError(f"{option} {value}: is below {least}; give {least} or more.")
