"""The one exception for input that cannot be used."""


class InputError(ValueError):
    """Something the user gave cannot be used.

    The message is one sentence with the name, the value and the rule. Command-line programs print it
    without a traceback and exit with status 2.
    """
