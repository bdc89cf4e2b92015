"""The table of faults: rows, their cases, and the rule by which a case passes.

A case is a function that does one fault to real runs. It returns what the system did, or raises :class:`Lost`. The rule: the
system survives the fault (the final weights equal those of the undisturbed run, where that applies), or names it in one
sentence with an exit code that is not 0, without a traceback; and nothing that was good is lost.
"""

import dataclasses
import subprocess
from collections.abc import Callable


class Lost(AssertionError):
    """The rule is broken; the message says how."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One fault.

    Attributes:
        row: number of its row.
        name: what is done.
        run: function of a :class:`faults.lab.Lab` that returns "survived" or "named: SENTENCE".
        stock: whether the fault has a meaning for stock detectron2.
        fast: whether ``make test`` runs it.
    """

    row: int
    name: str
    run: Callable[..., str]
    stock: bool
    fast: bool

    def __str__(self) -> str:
        return f"{self.row}-{self.name}"


ROWS: dict[int, tuple[str, str]] = {}  # number -> (fault, what gn_det does)
CASES: list[Case] = []


def row(number: int, fault: str, promise: str) -> None:
    """Add a row to the table.

    Args:
        fault: what happens, as the table shows it.
        promise: what gn_det does, as the table shows it.
    """
    assert number not in ROWS
    ROWS[number] = fault, promise


def case(row: int, name: str, *values: object, stock: bool = True, fast: bool = False) -> Callable:
    """Return a decorator that adds a case to a row.

    Args:
        values: arguments of the function after the Lab.
        stock, fast: see :class:`Case`.
    """

    def add(function: Callable[..., str]) -> Callable[..., str]:
        CASES.append(Case(row, name, lambda lab: function(lab, *values), stock, fast))
        return function

    return add


def check(condition: object, otherwise: str) -> None:
    """Raise Lost with this text if the condition is false."""
    if not condition:
        raise Lost(otherwise)


def named(done: subprocess.CompletedProcess, *things: object) -> str:
    """Check that a command failed with one sentence.

    Args:
        things: texts of which the sentence must contain one; any sentence will do if there are none.
    """
    check(done.returncode is not None, "still running at the time limit")
    check(done.returncode != 0, f"exit code 0: {last_line(done)}")
    no_traceback(done)
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    check(lines, f"exit code {done.returncode}, no sentence: {last_line(done)}")
    check(len(set(lines)) == 1, f"several sentences: {lines}")
    check(not things or any(str(thing) in lines[0] for thing in things), f"does not name the cause: {lines[0]}")
    return f"named: {lines[0].removeprefix('error: ')}"


def finished(done: subprocess.CompletedProcess) -> str:
    """Check that a command succeeded."""
    check(done.returncode is not None, "still running at the time limit")
    no_traceback(done)
    check(done.returncode == 0, f"exit code {done.returncode}: {last_line(done)}")
    return "survived"


def no_traceback(done: subprocess.CompletedProcess) -> None:
    """Check that a command printed no traceback."""
    text = done.stdout + done.stderr
    if "Traceback (most recent call last)" in text:
        after = text.rsplit("Traceback (most recent call last)", 1)[1].splitlines()
        error = [line for line in after[1:] if line.strip("^~") and not line.startswith((" ", "\t"))]
        raise Lost(f"traceback: {error[0] if error else 'cut off'}")


def last_line(done: subprocess.CompletedProcess) -> str:
    """The error sentence of a command, or else the last line that it printed."""
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    lines = [line.strip() for line in (done.stderr + "\n" + done.stdout).splitlines() if line.strip()]
    return (errors or lines or ["nothing printed"])[-1]
