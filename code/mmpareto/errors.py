"""User errors: commands print their message in place of a traceback."""


class UserError(Exception):
    """Base of all user errors: the message says what was found, what was expected and what to do."""


class DatasetError(UserError):
    """A dataset cannot be used as requested."""


class ModelError(UserError, ValueError):
    """A model cannot be built as requested."""


class UsageError(UserError):
    """A command line or a configuration that cannot be run."""
