"""Errors that are messages."""


class UserError(Exception):
    """What a user can put right. A program that meets one says it in one line and ends with status 1 (`command.py`)."""


class NonFinite(UserError):
    """A number that is infinite or NaN where none may be. The message names it, and the step or file it is of."""
