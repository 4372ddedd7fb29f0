"""`UserError`, the one error that a user can cause, and `run_command`, which shows it as one line.

`CommandParser` parses the options of a command. This module imports nothing of the package, so that
every module may raise the error.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn


class UserError(Exception):
    """A mistake that the user can fix. Its text names the file, line or field and the remedy."""


class CommandParser(argparse.ArgumentParser):
    """Raises UserError for a wrong option, instead of printing the usage as well."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; {self.prog} --help lists the options")


def run_command(
    main: Callable[[Sequence[str] | None], None], argv: Sequence[str] | None = None
) -> None:
    """Runs a command's `main(argv)`. A UserError becomes one line on stderr and exit code 2.

    An error of the machine, such as a full disk or a folder without permission, is shown in the
    same way. Ctrl-C is shown in one line with exit code 130.
    """
    try:
        main(argv)
    except (UserError, OSError) as error:
        print("jaxcpt:", " ".join(str(error).split()), file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("jaxcpt: interrupted", file=sys.stderr)
        sys.exit(130)
