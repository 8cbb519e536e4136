"""The one exception that means: the input is wrong, not the program."""


class InputError(ValueError):
    """Something the user gave cannot be used; the message names it and the way out.

    `python -m tljax` prints it as one line, without a traceback, and exits with status 2.
    """
