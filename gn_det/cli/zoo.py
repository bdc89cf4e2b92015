"""The model zoo: list what there is, fetch weights, write MODEL_ZOO.md."""

import argparse

from tabulate import tabulate

from ..evaluation.records import records_in
from ..files import save_text
from ..zoo import index as zoo
from ..zoo.page import zoo_page


def _list(args: argparse.Namespace) -> None:
    entries = [zoo.get_entry(name) for name in zoo.names()]
    rows = [[e.name, e.origin, e.schedule, e.published.get("box"), e.published.get("mask")] for e in entries]
    print(tabulate(rows, ["name", "from", "schedule", "box AP", "mask AP"], tablefmt="github", floatfmt=".1f"))


def _fetch(args: argparse.Namespace) -> None:
    for name in [zoo.get_entry(name).name for name in args.names]:  # all looked up before the first is fetched
        print(zoo.get_weights(name))


def _table(args: argparse.Namespace) -> None:
    save_text(args.out, zoo_page(records_in(args.results)))


def cli() -> None:
    """Run the command with the arguments of the process."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    commands.add_parser("list", help="names, and the AP that was published").set_defaults(run=_list)
    fetch = commands.add_parser("fetch", help="fetch weights into the cache, and print where they lie")
    fetch.add_argument("names", nargs="+", metavar="NAME")
    fetch.set_defaults(run=_fetch)
    table = commands.add_parser("table", help="write MODEL_ZOO.md")
    table.add_argument("--results", default="results", metavar="DIR", help="the folder of records (default: results)")
    table.add_argument("--out", default="MODEL_ZOO.md", metavar="FILE", help="the page (default: MODEL_ZOO.md)")
    table.set_defaults(run=_table)
    args = parser.parse_args()
    args.run(args)
