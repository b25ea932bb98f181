"""Output for any terminal, any pipe, and none: as processes see it."""

import io
import json
import subprocess
import sys

import pytest
from rich.console import Console
from rich.table import Table

from salon.cli.terminal import print_table

HEAD = "import sys; from salon.cli.terminal import console, prepare, print_json; prepare(); "


def printed(code, encoding="utf-8", **options):
    done = subprocess.run(
        [sys.executable, "-c", HEAD + code],
        env={"PYTHONIOENCODING": encoding, "PATH": ""},
        capture_output=True,
        check=True,
        **options,
    )
    return done.stdout


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "cp1252"])
def test_signs_are_ascii_where_the_output_is_not_utf_8(encoding):
    code = "console.print('−1.103 ± 0.078 ▁▄█ … 10⁻⁷')"
    assert printed(code, encoding) == b"-1.103 +/- 0.078 _=# ... 10-7\n"


def test_other_characters_stay_where_the_encoding_has_them():
    assert printed("console.print('é 日')", "latin-1") == "é ?\n".encode("latin-1")
    assert printed("console.print('é 日')", "ascii") == b"e ?\n"
    assert printed("console.print('é 日 − ±')") == "é 日 − ±\n".encode()


def test_a_file_name_that_is_no_text_can_be_printed():
    assert printed(r"console.print('a\udcff.png')") == b"a?.png\n"


def test_json_has_no_nan_and_survives_any_encoding():
    code = "print_json({'é': float('nan'), 'score': 0.1 + 0.2})"
    assert json.loads(printed(code, "ascii")) == {"é": None, "score": 0.1 + 0.2}


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_what_is_closed_is_not_taken_by_the_next_file_opened(closed, tmp_path):
    code = f"""
import os
file = open({str(tmp_path / "other")!r}, "w")
console.print("out"); print("err", file=sys.stderr); file.flush()
assert file.fileno() > 2, file.fileno()
"""
    script = tmp_path / "script.py"
    script.write_text(HEAD + code)
    done = subprocess.run(["bash", "-c", f"{sys.executable} {script} {closed}"], check=False)
    assert done.returncode == 0
    assert (tmp_path / "other").read_text() == ""


def test_a_reader_that_leaves_ends_the_command_without_a_word():
    code = "[console.print('line', n) for n in range(100_000)]"
    command = [sys.executable, "-c", HEAD + code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"line 0\n"
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def table(name, prose, *more):
    made = Table(box=None)
    made.add_column("name", no_wrap=True)
    made.add_column("prose", overflow="fold")
    for number, _ in enumerate(more):
        made.add_column(f"column {number}", no_wrap=True)
    made.add_row(name, prose, *more)
    return made


def shown(width, terminal, *cells, **options):
    file = io.StringIO()
    on = Console(file=file, width=width, force_terminal=terminal, color_system=None)
    print_table(table(*cells), on, **options)
    return file.getvalue().splitlines()


@pytest.mark.parametrize("width", [10, 80, 200])
@pytest.mark.parametrize("terminal", [True, False])
def test_no_name_is_cut(width, terminal):
    name = "a-job-of-a-name-that-is-quite-long-and-has-an-id-0123ab"
    assert any(name in line for line in shown(width, terminal, name, "a reason of words " * 6))


def test_in_a_pipe_a_row_is_a_line_and_in_a_terminal_prose_wraps():
    prose = "a reason of some words " * 10
    assert len(shown(80, False, "name", prose)) == 2
    lines = shown(80, True, "name", prose)
    assert len(lines) > 2
    assert max(map(len, lines)) <= 80


def test_in_a_pipe_nothing_is_padded_to_the_longest_of_the_last_column():
    made = Table("name", "reason", box=None)
    made.add_row("one", "")
    made.add_row("two", "a reason of some words " * 10)
    file = io.StringIO()
    print_table(made, Console(file=file, width=80, color_system=None))
    assert [line[:12] for line in file.getvalue().splitlines()] == [
        " name  reaso",
        " one",
        " two   a rea",
    ]


def test_the_last_column_goes_before_the_table_does():
    cells = ("a name", "a reason of words", "1.5", "1+a-version-of-very-many-characters")
    assert "column 1" in shown(80, True, *cells, spare_last=True)[0]
    assert [line.split() for line in shown(45, True, *cells, spare_last=True)] == [
        ["name", "prose", "column", "0"],
        ["a", "name", "a", "reason", "of", "words", "1.5"],
    ]
    assert "column 1" in shown(45, False, *cells, spare_last=True)[0]


WORD = "1+pillow-13.0.0+libjpeg-turbo-3.2.0"


@pytest.mark.parametrize("width", [20, 60, 80, 200])
def test_a_word_of_prose_is_not_cut_in_two(width):
    prose = f"as {WORD} says of itself"
    assert any(WORD in line for line in shown(width, True, "a name", prose))
    assert WORD in shown(width, False, "a name", prose)[1]


def test_where_there_is_no_room_for_a_table_each_row_is_a_few_lines():
    name, prose = "a-name-of-many-characters-0123ab", "a reason of some words " * 4
    assert shown(60, True, name, prose.strip(), "one", "", WORD) == [
        name,
        "  prose a reason of some words a reason of some words a",
        "  reason of some words a reason of some words  column 0 one",
        f"  column 2 {WORD}",
    ]
    assert len(shown(250, True, name, prose.strip(), "one", "", WORD)) == 2


def test_what_the_user_names_is_no_markup():
    named = "runs/[a]/[/x] :heart:"
    code = f"""
from rich.table import Table
from salon.cli.terminal import notices, print_error, print_table
console.print({named!r}); print_error({named!r}); notices.print({named!r})
table = Table("file", box=None); table.add_row({named!r}); print_table(table)
"""
    assert printed(code).decode().replace("file".ljust(len(named)), "file").split("\n") == [
        named,
        " file",
        f" {named}",
        "",
    ]
