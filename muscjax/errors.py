"""The one exception that stands for bad input."""


class InputError(ValueError):
    """Input that cannot be used: a file, a folder, a field or an option.

    The message is one line that names the file or field, what was found and what was expected.
    The command line prints it and exits with code 2; nothing else is caught there.
    """
