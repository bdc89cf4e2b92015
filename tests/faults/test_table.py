"""The rule, and the page of the docs that ``make faults`` writes."""

import re
import subprocess
from collections import Counter

import pytest

from helpers.paths import REPO

from .cases import CASES, ROWS
from .frame import Case, Lost, finished, named
from .table import BEGIN, END, Result, table, write_page


def done(code: int | None, stderr: str = "", stdout: str = "") -> subprocess.CompletedProcess:
    return subprocess.CompletedProcess("", code, stdout, stderr)


TRACEBACK = "Traceback (most recent call last):\n  File x\nValueError: bad\n"


@pytest.mark.parametrize(
    ("ended", "reason"),
    [
        (done(0, "error: /a/b is bad.\n"), "exit code 0"),
        (done(None), "still running"),
        (done(1, TRACEBACK), "traceback: ValueError: bad"),
        (done(1, "error: /a/b is bad.\n", TRACEBACK), "traceback: ValueError: bad"),
        (done(2, "/a/b is bad.\n"), "no sentence"),
        (done(2, "error: something is bad.\n"), "does not name the cause"),
        (done(2, "error: /a/b is bad.\nerror: /a/b is old.\n"), "several sentences"),
    ],
)
def test_what_is_not_named(ended, reason):
    with pytest.raises(Lost, match=re.escape(reason)):
        named(ended, "/a/b")


def test_what_is_named_or_finished():
    assert named(done(2, "error: /a/b is bad.\n"), "/a/b") == "named: /a/b is bad."
    assert finished(done(0)) == "survived"
    for ended in (done(2), done(None), done(0, TRACEBACK)):
        with pytest.raises(Lost):
            finished(ended)


def result(row: int, stock: bool, passed: bool, text: str = "survived") -> Result:
    return Result(Case(row, "x", lambda lab: "", True, False), stock, passed, text, 0, 1.0)


def test_table_counts_cases_and_gives_reasons(tmp_path):
    results = [
        result(1, False, True),
        result(1, False, True),
        result(1, True, False, "traceback: a.b.OddError: text"),
        result(1, True, True),
        result(8, False, False, "exit code 0: Done."),
    ]
    lines = table(results)
    assert [line[0] for line in lines] == [1, 8]
    assert lines[0][3:] == ["2 of 2", "1 of 2: traceback (OddError)"] and lines[1][3:] == ["0 of 1: exit code 0", "-"]
    page = tmp_path / "page.md"
    page.write_text(f"above\n{BEGIN}\n{END}\nbelow\n")
    write_page(page, lines)
    write_page(page, table([result(8, False, True)]))  # the other rows stay
    text = page.read_text()
    assert text.startswith("above\n") and text.endswith("\nbelow\n")
    assert "| 2 of 2 " in text and "| 1 of 1 " in text and "exit code 0" not in text


def test_page_has_all_rows_and_cases():
    page = (REPO / "docs/faults.md").read_text()
    found = re.findall(r"^\| *(\d+) *\| (.*?) *\| .*?\| \d+ of (\d+)", page, re.MULTILINE)
    counts = Counter(case.row for case in CASES)
    assert {int(n): (fault, int(count)) for n, fault, count in found} == {
        n: (fault, counts[n]) for n, (fault, _) in ROWS.items()
    }


def test_names_of_cases_are_unique():
    assert max(Counter(map(str, CASES)).values()) == 1 and {case.row for case in CASES} == ROWS.keys()
