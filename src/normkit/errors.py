"""The one error that a command line turns into one line and exit code 2.

Rule: raise `UsageError` only for what the person at the keyboard can set right (a name, a path, a missing extra);
say what was expected, what came and what to do. Everything else is a bug or a library error and keeps its traceback.
"""


class UsageError(ValueError):
    """A request that cannot be carried out as asked; its text is the whole message."""
