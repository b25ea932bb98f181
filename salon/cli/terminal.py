"""What the `salon` command prints, on whatever it is given: a terminal, a pipe, nothing at all."""

import codecs
import io
import json
import os
import sys
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, TextIO

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from salon.numbers import finite

EXIT_ERROR, EXIT_INTERRUPTED = 1, 130
EXIT_BROKEN_PIPE = 141  # what a shell shows of a program that SIGPIPE ended

_SIGNS = str.maketrans(
    {
        **dict(zip("▁▂▃▄▅▆▇█", "_.-=+*%#", strict=True)),
        **dict.fromkeys("−–—‐‑", "-"),
        **dict.fromkeys("‘’", "'"),
        **dict.fromkeys("“”", '"'),
        **{chr(braille): "*" for braille in range(0x2800, 0x2900)},  # of which spinners are made
        "…": "...",
        "±": "+/-",
        "×": "x",
        "·": ".",
        "→": "->",
        "≤": "<=",
        "≥": ">=",
    }
)
"""How what we print ourselves is written where the output is not UTF-8."""

_ANY_WIDTH = 100_000  # characters; more than any line has
_PROSE_WIDTH = 20  # characters; where there is no room for so many, wrapping helps nobody


class _PlainOutput(io.TextIOWrapper):
    """Text in another encoding than UTF-8: our signs in ASCII, whatever else it lacks as `?`.

    Ours in ASCII even where the encoding has some of them, as Latin-1 has ±: beside a minus that it
    lacks they would look odd, and what reads the output is likely to expect ASCII.
    """

    def write(self, text: str) -> int:
        """Write `text`, and return its length."""
        super().write(text.translate(_SIGNS))
        return len(text)


class _Terminal(Console):
    def on_broken_pipe(self) -> NoReturn:
        """End as other programs do when nobody reads on (`| head`): without a word."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        raise SystemExit(EXIT_BROKEN_PIPE)


# Much of what is printed is the user's, as paths and names: no markup, and no code of an emoji.
console = _Terminal(markup=False, emoji=False, highlight=False)
notices = _Terminal(markup=False, emoji=False, highlight=False, stderr=True)
"""For what is no answer: errors, warnings, and all words where the answer is JSON."""


def prepare() -> None:
    """Make stdout and stderr take whatever is printed: call it once, before anything is."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:  # closed; what is opened next, a log or a socket, would be taken for it
            os.open(os.devnull, os.O_RDWR)
    codecs.register_error("salon.plain", _plain)
    sys.stdout, sys.stderr = _tolerant(sys.stdout), _tolerant(sys.stderr)


def hang_up() -> None:
    """Write to nothing where the terminal was: it is closed, and writing to it is an error."""
    for stream in (sys.stdout, sys.stderr):
        if stream.isatty():
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def print_json(document: Mapping[str, Any] | Sequence[Any]) -> None:
    """The one document of a command with --json; what JSON has no number for is null."""
    console.out(json.dumps(finite(document), indent=2), highlight=False)


def print_table(table: Table, on: Console = console, *, spare_last: bool = False) -> None:
    """Cut nothing: in a pipe a row is a line, however long; in a terminal prose wraps at spaces.

    Columns that are names or paths must not wrap at all (`no_wrap`). Where a terminal has no room
    for that, the last column is left out if it can be spared; if that does not help, each row is a
    few lines, its first cell above the others.
    """
    options = on.options.update(max_width=_ANY_WIDTH)
    for column in table.columns:
        measures = [Measurement.get(on, options, cell) for cell in [column.header, *column.cells]]
        longest, word = max(m.maximum for m in measures), max(m.minimum for m in measures)
        column.min_width = longest if column.no_wrap else max(word, min(longest, _PROSE_WIDTH))
    needed = Measurement.get(on, options, table)
    if on.is_terminal and needed.minimum > on.width:
        if spare_last:
            table.columns.pop()
            print_table(table, on)
        else:
            _print_rows(table, on)
        return
    table.width = min(needed.maximum, on.width) if on.is_terminal else needed.maximum
    if on.is_terminal:
        on.print(table, crop=False)
        return
    with on.capture() as rendered:
        on.print(table, crop=False)
    for line in (
        rendered.get().removesuffix("\n").split("\n")
    ):  # without the blanks behind the last column
        on.out(line.rstrip(), highlight=False)


def _print_rows(table: Table, on: Console) -> None:
    first, *others = table.columns
    for name, *cells in zip(first.cells, *(column.cells for column in others), strict=True):
        on.print(name, style="bold", soft_wrap=True)
        line = Text()
        for column, cell in zip(others, cells, strict=True):
            said = Text.assemble((f"{column.header} ", "dim"), cell) if str(cell) else Text()
            gap = "  "
            for part in [said] if column.no_wrap else said.split(" "):
                if line and len(gap) + line.cell_len + part.cell_len > on.width - 2:
                    on.print(Text("  ").append(line), soft_wrap=True)
                    line = part
                else:
                    line = Text(gap).join([line, part]) if line and part else line or part
                gap = " "
        if line:
            on.print(Text("  ").append(line), soft_wrap=True)


def print_error(error: object) -> None:
    """One line on stderr, whatever stdout is."""
    line = Text("error: ", style="red").append(str(error), style="default")
    notices.print(line, soft_wrap=True)


def _tolerant(stream: TextIO | None) -> TextIO:
    """`stream`, but it takes every character; where there is none, what goes to nothing."""
    if stream is None:
        return open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123 - for good
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    if codecs.lookup(stream.encoding).name != "utf-8":
        buffering, encoding = stream.line_buffering, stream.encoding
        stream = _PlainOutput(stream.detach(), encoding, line_buffering=buffering)
    stream.reconfigure(errors="salon.plain")
    return stream


def _plain(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    part = error.object[error.start : error.end]
    return "".join(_ascii(character) for character in part), error.end


def _ascii(character: str) -> str:
    """E.g. e for é; what has no such form, as half of a surrogate pair, is a question mark."""
    simple = unicodedata.normalize("NFKD", character).translate(_SIGNS)
    return "".join(part for part in simple if part.isascii()) or "?"
