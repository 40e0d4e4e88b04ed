"""The tables of all commands."""

from __future__ import annotations

from io import StringIO

from rich.table import Table

from masksam_deploy.base.tables import PIPE_WIDTH, add_row, figure, figures, marks, open_console, table, words


def printed(made: Table) -> list[str]:
    file = StringIO()
    open_console(file).print(made)
    return [line.rstrip() for line in file.getvalue().splitlines()]


def test_a_table_in_a_pipe_has_a_title_columns_and_rows() -> None:
    columns = (*words("name"), *figures("Dice"), *marks("note"))
    lines = printed(table("Cases", columns, [("a", "0.5000", "missed"), ("bc", "1.0000", "")], caption="What it is."))
    assert lines[0] == "Cases"
    assert [line.split() for line in lines[2:]] == [
        ["name", "Dice", "note"],
        ["─" * 24],
        ["a", "0.5000", "missed"],
        ["bc", "1.0000"],
        [],
        ["What", "it", "is."],
    ]


def test_columns_without_names_have_no_header() -> None:
    assert [line.split() for line in printed(table("Machine", words("", ""), [("cores", "2")]))] == [
        ["Machine"],
        [],
        ["cores", "2"],
        [],
    ]


def test_names_from_files_neither_steer_the_terminal_nor_are_markup() -> None:
    made = table("T", words("name"))
    add_row(made, ["[red]\x1b[31m\nname :smile:"])
    (line,) = (line for line in printed(made) if "name :" in line)
    assert line.strip() == "[red] [31m name :smile:"


def test_long_words_go_on_below() -> None:
    lines = printed(table("T", words("name"), [("x" * 300,)]))
    assert sum(line.count("x") for line in lines) == 300
    assert max(map(len, lines)) <= PIPE_WIDTH


def test_a_figure_that_does_not_exist_is_a_dash() -> None:
    assert (figure(None, 2), figure(0.125, 2), figure(1.5, 1, "+")) == ("–", "0.12", "+1.5")  # noqa: RUF001
