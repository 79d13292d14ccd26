"""What can go wrong at the user's door, split by who must act.

ProducerError                exit code
├── UsageProblem             2  the user gave something that cannot be used: said in one sentence, with the next step
│   ├── ArchiveProblem       2  the folder cannot be an archive
│   └── TableProblem         2  the metadata table cannot be read as a whole
└── ServiceProblem           3  a server, the archive's disk or a child process does not answer: try again later
"""

# ruff: noqa: N818 - the names say what happened, as the whole project speaks of it.

from typing import ClassVar

#: Exit codes of every command.
EXIT_DONE, EXIT_SOME_FAILED, EXIT_USAGE, EXIT_UNAVAILABLE, EXIT_INTERRUPTED = 0, 1, 2, 3, 130
#: A bug, as sysexits.h has it (EX_SOFTWARE): no script may take it for images that failed.
EXIT_BUG = 70


class ProducerError(Exception):
    """Root of this package's errors; its text is a plain sentence that names no patient and no path."""

    #: What the command ends with.
    exit_code: ClassVar[int] = EXIT_USAGE


class UsageProblem(ProducerError):
    """The user gave something that cannot be used."""


class ArchiveProblem(UsageProblem):
    """The folder cannot be screened."""


class TableProblem(UsageProblem):
    """The metadata table cannot be read as a whole."""


class ServiceProblem(ProducerError):
    """Something that the command needs does not answer."""

    exit_code: ClassVar[int] = EXIT_UNAVAILABLE
