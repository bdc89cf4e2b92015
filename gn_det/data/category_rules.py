"""Rules for the categories of an annotation file."""

from collections import Counter
from dataclasses import dataclass, field

from .rules import Action, Rule, leave_out, unrepairable
from .values import as_id, as_whole, show


@dataclass
class Categories:
    """What the rules know of the categories.

    Attributes:
        used: number of annotations of each id.
        supercategories: {name of a supercategory: number of categories in it}.
        by_id: {id: the row with it}.
        by_name: {name: the first row with it that is kept}.
        names: {name: number of rows with it}.
        merged: {id in the file: id of the category into which it was merged}.
    """

    used: Counter
    supercategories: Counter
    by_id: dict[int, dict] = field(default_factory=dict)
    by_name: dict[str, dict] = field(default_factory=dict)
    names: Counter = field(default_factory=Counter)
    merged: dict[int, int] = field(default_factory=dict)

    @classmethod
    def of(cls, rows: list[dict], annotations: list[dict]) -> "Categories":
        """Return what is known before the rows are checked."""
        used = Counter(as_id(row.get("category_id")) for row in annotations)
        return cls(used, Counter(row["supercategory"] for row in rows if type(row.get("supercategory")) is str))


def _set_types(row: dict, categories: Categories) -> bool:
    row["id"] = as_whole(row["id"])
    if type(row.get("name")) in (int, float):
        row["name"] = str(row["name"])
    return True


def _is_repeated(row: dict, categories: Categories) -> bool:
    """Test whether an earlier row is of the same category; the first one is remembered."""
    first = categories.by_id.setdefault(row["id"], row)
    return first is not row and first["name"] == row["name"]


def _leave_out_namesake(row: dict, categories: Categories) -> bool:
    categories.names[row["name"]] -= 1
    return False


def _merge(row: dict, categories: Categories) -> bool:
    categories.merged[row["id"]] = categories.by_name[row["name"]]["id"]
    return False


def _is_root(row: dict, categories: Categories) -> bool:
    """Test for the root that Roboflow writes: a category without objects that is the supercategory of others."""
    unused = not categories.used[row["id"]] and row.get("supercategory") in (None, "", "none")
    return unused and categories.supercategories[row["name"]] > 0


CATEGORY_RULES = (
    Rule(
        "category: values of another type",
        Action.READ,
        lambda row, categories: (
            as_whole(row.get("id")) is not None
            and (type(row["id"]) is not int or type(row.get("name")) in (int, float))
        ),
        lambda row, categories: f"category {show(row)} has an id or a name of another type",
        _set_types,
        "the id is read as an integer, and the name as text",
    ),
    Rule(
        "category: no id or name",
        Action.HAND,
        lambda row, categories: type(row.get("id")) is not int or type(row.get("name")) is not str,
        lambda row, categories: (
            f"category {show(row)} has no " + ("name of type str" if type(row.get("id")) is int else "id of type int")
        ),
        unrepairable,
        "give each category an integer id and a name",
    ),
    Rule(
        "category: listed twice",
        Action.READ,
        _is_repeated,
        lambda row, categories: f"category {show(row['id'])}, {show(row['name'])}, is listed twice",
        leave_out,
        "it is read once",
    ),
    Rule(
        "category: same id",
        Action.HAND,
        lambda row, categories: categories.by_id[row["id"]] is not row,
        lambda row, categories: (
            f"two categories have the id {show(row['id'])}: "
            f"{show(categories.by_id[row['id']]['name'])} and {show(row['name'])}"
        ),
        unrepairable,
        "give each category an id of its own, and its annotations too",
    ),
)

#: For the rows that :data:`CATEGORY_RULES` have left, when all names are known.
NAME_RULES = (
    Rule(
        "category: same name, unused",
        Action.FIX,
        lambda row, categories: categories.names[row["name"]] > 1 and not categories.used[row["id"]],
        lambda row, categories: (
            f"two categories have the name {row['name']!r}, and the one with id {row['id']} has no objects"
        ),
        _leave_out_namesake,
        "the category without objects, which Roboflow writes, is left out",
    ),
    Rule(
        "category: same name",
        Action.FIX,
        lambda row, categories: categories.by_name.setdefault(row["name"], row) is not row,
        lambda row, categories: (
            f"two categories have the name {row['name']!r}, with the ids "
            f"{categories.by_name[row['name']]['id']} and {row['id']}"
        ),
        _merge,
        "the categories are merged into the first one",
    ),
    Rule(
        "category: unused root",
        Action.NOTE,
        _is_root,
        lambda row, categories: (
            f"category {row['id']}, {row['name']!r}, has no objects, and is the supercategory of others"
        ),
        leave_out,
        "the category, which Roboflow writes, is left out",
    ),
)
