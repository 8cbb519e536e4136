"""The one exception that means that the input is wrong, not the program; and the message of any other."""


class InputError(ValueError):
    """Something the user gave cannot be used; the message names it and the way out.

    The command line prints it as one line, without a traceback, and exits with status 2.
    """


def message_of(error: BaseException, most: int = 300) -> str:
    """Returns an exception's message as one line of at most `most` characters; its class's name where it has none."""
    return " ".join(str(error).split())[:most] or type(error).__name__
