"""Options of a command line: one table of rows, which two parsers use.

`read` parses plain options, as scripts and units write them. It leaves every other line (combined
short options, a wrong word, --help) to `parse`, which uses argparse. argparse imports re, gettext
and shutil: 47 million instructions (5 ms of a start), and 1 MB as long as the supervisor lives.
Neither parser has defaults: the class of the request has them.
"""

from __future__ import annotations

from workers.common.records import dataclass

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence
    from typing import Any


@dataclass(frozen=True, slots=True)
class Option:
    """A row: an option of a command, or an operand, which is required.

    Attributes:
        field: The field of the request that it sets.
        names: As typed, `-t` and `--terminal`; empty for an operand.
        help: The line of --help.
        metavar: The name of its value in --help; empty for a flag.
        read: Converts the text to the value. Raises ValueError.
        error: The message for a text that `read` rejects: "not a signal".
        choices: The only texts that it accepts; empty for any.
        is_repeatable: It may occur several times; the value is a tuple.
    """

    field: str
    names: tuple[str, ...]
    help: str
    metavar: str = ""
    read: Callable[[str], Any] = str
    error: str = ""
    choices: tuple[str, ...] = ()
    is_repeatable: bool = False

    @property
    def is_flag(self) -> bool:
        """Whether it takes no value, and means True."""
        return not self.metavar and not self.choices


@dataclass(frozen=True, slots=True)
class Command:
    """A command: its table, and the class of its request.

    Attributes:
        name: The first word of the command line.
        request: Called with the fields that the line has set.
        options: The rows.
        help: Its line in the program's --help.
        epilog: The end of the command's own --help.
    """

    name: str
    request: Callable[..., Any]
    options: tuple[Option, ...]
    help: str
    epilog: str = ""


def read(commands: Sequence[Command], arguments: Sequence[str]) -> Any | None:  # noqa: ANN401 -- a request of one of the commands
    """Return the request of a plain line; None if `parse` must read it."""
    for command in commands:
        if arguments and arguments[0] == command.name and all(map(str.isprintable, arguments)):
            fields = _fields(command, arguments[1:])
            return None if fields is None else command.request(**fields)
    return None


def _fields(command: Command, arguments: Sequence[str]) -> dict[str, Any] | None:
    rows = {name: option for option in command.options for name in option.names}
    operands = [option for option in command.options if not option.names]
    fields: dict[str, Any] = {}
    words = iter(arguments)
    for word in words:
        if not word.startswith("-"):
            if not word or not operands:
                return None
            option, text = operands.pop(0), word
        else:
            name, equals, text = word.partition("=")
            if name not in rows or (equals and (rows[name].is_flag or not name.startswith("--"))):
                return None
            option = rows[name]
            if option.is_flag:
                fields[option.field] = True
                continue
            if not equals and (text := next(words, "-")).startswith("-"):
                return None
        try:
            value = option.read(text)
        except ValueError:
            return None
        if option.choices and value not in option.choices:
            return None
        if option.is_repeatable:
            value = (*fields.get(option.field, ()), value)
        fields[option.field] = value
    return None if operands else fields


def parse(
    program: str,
    version: str,
    description: str,
    commands: Sequence[Command],
    arguments: Sequence[str],
) -> Any:  # noqa: ANN401 -- as `read`
    """Return the request of any line. A wrong line ends the process with status 2 and a usage."""
    import argparse  # 5 ms, see above

    parser = argparse.ArgumentParser(prog=program, description=description, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"{program} {version}")
    subparsers = parser.add_subparsers(required=True, dest="command", metavar="COMMAND")
    for command in commands:
        subparser = subparsers.add_parser(
            command.name,
            help=command.help,
            epilog=command.epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            argument_default=argparse.SUPPRESS,
        )
        for option in command.options:
            _add(subparser, option)
    for word in arguments:
        if not word.isprintable() and "\udc80" <= max(word) <= "\udcff":
            parser.error(f"not UTF-8: {word!r}")
    fields = vars(parser.parse_args(arguments))
    name = fields.pop("command")
    chosen = next(command for command in commands if command.name == name)
    for option in chosen.options:
        if option.is_repeatable and option.field in fields:
            fields[option.field] = tuple(fields[option.field])
    return chosen.request(**fields)


def _add(parser: argparse.ArgumentParser, option: Option) -> None:
    """Add a row to argparse."""
    import argparse

    def read_text(text: str) -> object:
        try:
            return option.read(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{option.error}: {text!r}") from None

    if option.is_flag:
        parser.add_argument(
            *option.names, dest=option.field, action="store_true",
            default=argparse.SUPPRESS, help=option.help,
        )  # fmt: skip
        return
    named: dict[str, Any] = {"dest": option.field} if option.names else {}
    parser.add_argument(
        *(option.names or (option.field,)),
        **named,
        action="append" if option.is_repeatable else "store",
        type=read_text,
        choices=option.choices or None,
        metavar=option.metavar or None,
        help=option.help,
    )
