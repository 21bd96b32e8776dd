"""The one exception that stands for bad input."""


class InputError(ValueError):
    """Input that cannot be used: a file, a folder, a field or an option.

    The message is one line that names the file or field, what was found and what was expected; whatever a
    name or a file brings into it shows as ``one_line``. The command line prints it and exits with code 2;
    nothing else is caught there.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(one_line(str(message)))


def one_line(text: str) -> str:
    """``text`` with line ends, control characters and the like as escapes: no terminal obeys them."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def shown(value: object, most: int = 80) -> str:
    """``repr`` of a value from a file, cut short; numbers and nestings of any size are named, not printed."""
    if isinstance(value, int) and value.bit_length() > 64:
        return f"a number of {value.bit_length()} bits"
    if isinstance(value, (list, tuple, set, frozenset, dict)):
        return f"{type(value).__name__} of {len(value)}"
    text = repr(value)
    return text if len(text) <= most else f"{text[: most - 1]}…"
