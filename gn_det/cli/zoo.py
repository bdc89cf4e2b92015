"""List the pretrained weights of the model zoo, download them, or write MODEL_ZOO.md."""

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
    for name in [zoo.get_entry(name).name for name in args.names]:  # check all names before the first download
        print(zoo.get_weights(name))


def _table(args: argparse.Namespace) -> None:
    save_text(args.out, zoo_page(records_in(args.results)))


def cli() -> None:
    """Run the command with the arguments of the process."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    commands.add_parser("list", help="list names and published AP").set_defaults(run=_list)
    fetch = commands.add_parser("fetch", help="download weights into the cache, and print their path")
    fetch.add_argument("names", nargs="+", metavar="NAME", help="name in the model zoo")
    fetch.set_defaults(run=_fetch)
    table = commands.add_parser("table", help="write MODEL_ZOO.md")
    table.add_argument(
        "--results", default="results", metavar="DIR", help="folder of result records (default: %(default)s)"
    )
    table.add_argument("--out", default="MODEL_ZOO.md", metavar="FILE", help="file to write (default: %(default)s)")
    table.set_defaults(run=_table)
    args = parser.parse_args()
    args.run(args)
