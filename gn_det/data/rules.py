"""The form of the rules by which annotations of other programs are checked and repaired."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any


class Action(Enum):
    """What is done about a problem."""

    READ = "repaired whenever the file is read"  # there is only one meaning
    NOTE = "accepted as it is, and repaired by --fix"  # it may be intended
    FIX = "refused, and repaired by --fix"  # the repair is a decision
    HAND = "refused, and has to be corrected by hand"  # only you know what is right


@dataclass(frozen=True)
class Rule:
    """A kind of problem of a row of an annotation file, which is an image, a category or an annotation.

    Attributes:
        name: of the kind of problem.
        action: what is done about it.
        test: (row, context) -> whether the row has the problem.
        describe: (row, context) -> a clause that describes the row with the problem.
        repair: (row, context) -> False if the row is left out, None if it cannot be repaired; otherwise the row
            has been changed.
        remedy: what the repair does, or what the user can do; a clause.
    """

    name: str
    action: Action
    test: Callable[[dict, Any], bool]
    describe: Callable[[dict, Any], str]
    repair: Callable[[dict, Any], bool | None]
    remedy: str


@dataclass
class Problem:
    """The rows that have one kind of problem.

    Attributes:
        name: of the kind of problem.
        action: what is done about it.
        remedy: what the repair does, or what the user can do.
        example: a clause that describes the first of the rows.
        count: number of rows.
    """

    name: str
    action: Action
    remedy: str
    example: str
    count: int = 1

    @property
    def is_refused(self) -> bool:
        """Whether training and evaluation refuse the data."""
        return self.action in (Action.FIX, Action.HAND)

    def sentence(self) -> str:
        """Return the example and the number of other rows, as a clause."""
        return self.example + (f" (and {self.count - 1:,} more like this)" if self.count > 1 else "")


class Problems(dict[tuple[str, Action], Problem]):
    """The problems of a file by name and action, in the order in which they were found."""

    def add(self, name: str, action: Action, remedy: str, example: str) -> None:
        """Count one more row with a problem; the first one is the example."""
        if known := self.get((name, action)):
            known.count += 1
        else:
            self[name, action] = Problem(name, action, remedy, example)

    def refused(self) -> list[Problem]:
        """Return the problems because of which training and evaluation refuse the data."""
        return [problem for problem in self.values() if problem.is_refused]


def unrepairable(row: dict, context: Any) -> None:
    """Repair nothing: the repair of problems that have to be corrected by hand."""


def leave_out(row: dict, context: Any) -> bool:
    """Leave out the row: a repair."""
    return False


def apply_rules(rules: Iterable[Rule], rows: list[dict], context: Any, problems: Problems, fix: bool) -> list[dict]:
    """Check rows by each rule in turn, and repair them in place.

    A problem that is refused without ``fix`` is repaired nevertheless, so that all others are found too.

    Args:
        context: what the rules are called with.
        problems: gets the problems.
        fix: whether to repair problems that are accepted as they are.

    Returns:
        the rows that are not left out. Rows that cannot be repaired are left out too.
    """
    rules, kept = list(rules), []
    for row in rows:
        for rule in rules:
            if rule.test(row, context) and not _handle(rule, row, context, problems, fix):
                break
        else:
            kept.append(row)
    return kept


def _handle(rule: Rule, row: dict, context: Any, problems: Problems, fix: bool) -> bool:
    """Note a problem and repair it; return whether the row is kept."""
    example, action = rule.describe(row, context), rule.action
    if action is Action.NOTE and not fix:
        repaired: bool | None = True
    else:
        repaired = rule.repair(row, context)
    if repaired is None:
        action = Action.HAND
    problems.add(rule.name, action, rule.remedy, example)
    return repaired is not False and repaired is not None
