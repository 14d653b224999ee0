"""Errors that a person reads: one line that says what was wrong, where, and what to do."""


class QwqError(Exception):
    """The request was understood and could not be done. The command line prints it as one line and exits with 1."""


class UsageError(QwqError):
    """The request itself was wrong: an unknown name, a value out of range. Exit code 2."""
