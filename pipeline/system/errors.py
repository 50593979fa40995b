"""The exceptions that mean: the user can put this right."""


class DtkdError(Exception):
    """A mistake in the input or an environment problem, told in one line that says what is wrong and what to do.

    The command line prints the message and exits with 1, without a traceback.
    """


class UsageError(DtkdError):
    """Wrong usage: exit code 2."""
