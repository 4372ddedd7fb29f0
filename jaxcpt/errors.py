"""How a command ends: errors that a user can cause, a stop on request, and their exit codes.

`CommandParser` parses the options of a command. This module imports nothing of the package, so that
every module may raise the errors.
"""

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

USER_ERROR = 2
LOST_PEER = 3
"""Of a process that lost another one, or whose step does not end."""
STOPPED = 75
"""Of a run that was asked to stop and has saved its state: start it again to go on. The number is
EX_TEMPFAIL of sysexits.h."""
INTERRUPTED = 130
"""Of a command that Ctrl-C ended at once: 128 + the signal's number, as shells have it."""


class UserError(Exception):
    """A mistake that the user can fix. Its text names the file, line or field and the remedy."""


class CommandParser(argparse.ArgumentParser):
    """Raises UserError for a wrong option, instead of printing the usage as well."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; {self.prog} --help lists the options")


class Stopped(BaseException):
    """A run was asked to stop, and nothing of it is lost. Its text says where it stopped.

    Like KeyboardInterrupt it is no Exception, so that nothing takes it for an error of its own.
    """


def run_command(
    main: Callable[[Sequence[str] | None], None], argv: Sequence[str] | None = None
) -> None:
    """Runs a command's `main(argv)`. A UserError becomes one line on stderr and exit code 2.

    An error of the machine, such as a full disk or a folder without permission, is shown in the
    same way. Ctrl-C is shown in one line with exit code 130, a stopped run with exit code 75.
    """
    try:
        main(argv)
    except (UserError, OSError) as error:
        print("jaxcpt:", " ".join(str(error).split()), file=sys.stderr)
        sys.exit(USER_ERROR)
    except Stopped as stop:
        print(f"jaxcpt: {stop}", file=sys.stderr)
        sys.exit(STOPPED)
    except KeyboardInterrupt:
        print("jaxcpt: interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)


def leave(code: int, line: str) -> NoReturn:
    """Ends the process as it stands, with one line on stderr, from any thread or signal handler.

    No clean-up runs, because it could wait for another process or for a disk.
    """
    with contextlib.suppress(Exception):  # a handler may have interrupted a print
        sys.stdout.flush()
    os.write(2, f"jaxcpt: {line}\n".encode())
    os._exit(code)
