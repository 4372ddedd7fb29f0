"""How a command begins and ends: its memory, the errors that a user can fix, and the exit codes.

In: a command's `main`. Out: its run, with each error as one line and an exit code. `CommandParser`
parses the options of a command. This module imports nothing of the package, so that every module
may raise its errors.
"""

import argparse
import contextlib
import difflib
import os
import select
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn

USER_ERROR = 2
LOST_PEER = 3
"""Exit code of a process that lost another process, or whose training step did not end."""
STOPPED = 75
"""Exit code of a run that was asked to stop and has saved its state. Starting it again resumes it.
The number is EX_TEMPFAIL of sysexits.h."""
INTERRUPTED = 130
"""Exit code of a command that Ctrl-C ended at once: 128 + the signal's number, as in shells."""
NOT_READ = 141
"""Exit code of a command whose output is not read to its end: 128 + SIGPIPE."""

HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
HUGE_PAGES_SETTING = "glibc.malloc.hugetlb"


class UserError(Exception):
    """A mistake that the user can fix. Its text names the file, line or field and the remedy."""


def find_nearest(name: str, choices: Iterable[str]) -> list[str]:
    """The choices that a wrong name was probably meant to be: at most three, the nearest first."""
    return difflib.get_close_matches(name, list(choices), n=3, cutoff=0.5)


class CommandParser(argparse.ArgumentParser):
    """A parser of options that raises UserError for a wrong option and does not print the usage."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; {self.prog} --help lists the options")


class MissingField(UserError):
    """Data lack a field or column of texts that the user named, or that has a default name."""


class Stopped(BaseException):
    """Raised when a run was asked to stop and has saved its state. The text says where it stopped.

    It is not an Exception, like KeyboardInterrupt, so that `except Exception` does not catch it.
    """


def run_command(
    main: Callable[[Sequence[str] | None], None], argv: Sequence[str] | None = None
) -> None:
    """Runs a command's `main(argv)`. A UserError becomes one line on stderr and exit code 2.

    An error of the machine, such as a full disk or a folder without permission, is shown in the
    same way. Ctrl-C prints one line with exit code 130, and a stopped run one with exit code 75.
    A command whose output is not read to its end, as by `head`, stops without a word and with
    exit code 141. Without `argv`, the process is the command, and may be started again for huge
    pages.
    """
    if argv is None:
        use_huge_pages()
    try:
        try:
            main(argv)
        except SystemExit:  # after --help
            sys.stdout.flush()
            raise
        sys.stdout.flush()
    except (UserError, OSError) as error:
        if isinstance(error, BrokenPipeError) and not _is_read():
            sys.exit(NOT_READ)
        print("jaxcpt:", " ".join(str(error).split()), file=sys.stderr)
        sys.exit(USER_ERROR)
    except Stopped as stop:
        print(f"jaxcpt: {stop}", file=sys.stderr)
        sys.exit(STOPPED)
    except KeyboardInterrupt:
        print("jaxcpt: interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)


def _is_read() -> bool:
    """Whether standard output still has a reader. If not, what is left of it goes nowhere."""
    watch = select.poll()
    watch.register(1, 0)
    if not any(event & select.POLLERR for _, event in watch.poll(0)):
        return True
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return False


def use_huge_pages() -> None:
    """Starts this process again with memory in huge pages, where Linux gives them on request.

    A training step on a CPU asks for gigabytes and gives them back. Linux fills them faster in
    pages of 2 MiB than in pages of 4 KiB (docs/performance-log.md). The C library reads this
    setting only when a process starts. Nothing happens if the user has made it, or if the program
    is read from standard input.
    """
    given, from_input = os.environ.get("GLIBC_TUNABLES", ""), sys.argv[0] in ("", "-")
    if HUGE_PAGES_SETTING in given or from_input:
        return
    if HUGE_PAGES.exists() and "[madvise]" in HUGE_PAGES.read_text():
        os.environ["GLIBC_TUNABLES"] = ":".join(filter(None, [given, f"{HUGE_PAGES_SETTING}=1"]))
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def leave(code: int, line: str) -> NoReturn:
    """Ends the process at once, with one line on stderr. Any thread or signal handler may call it.

    No clean-up runs, because a clean-up could wait for another process or for a disk.
    """
    with contextlib.suppress(Exception):  # a handler may have interrupted a print
        sys.stdout.flush()
    say(line)
    os._exit(code)


def say(line: str) -> None:
    """Writes a line to stderr. Any thread or signal handler may call it."""
    below_a_bar = "\n" if os.isatty(2) else ""
    os.write(2, f"{below_a_bar}jaxcpt: {line}\n".encode())


@contextlib.contextmanager
def ending_at_once() -> Iterator[None]:
    """A context for imports and preparations, in which Ctrl-C ends the process with one line.

    Without it, a library can turn the KeyboardInterrupt into another error, print a traceback, or
    lose it.
    """
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:
        signal.signal(signal.SIGINT, lambda *_: leave(INTERRUPTED, "interrupted"))
    try:
        yield
    finally:
        if before is signal.default_int_handler:
            signal.signal(signal.SIGINT, before)
