"""Errors that a user can mend; commands print their message in place of a traceback."""

from __future__ import annotations


class UserError(Exception):
    """Base of all errors that a user can mend: the message says what was found, what was expected and what to do."""


class UsageError(UserError):
    """A command line or a configuration that cannot be run."""
