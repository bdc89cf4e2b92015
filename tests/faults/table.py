"""Do all faults to gn_det and to stock detectron2, and print one table.

python -m faults.table [ROW ...] [--page docs/faults.md]
"""

import argparse
import dataclasses
import re
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tabulate import tabulate

from gn_det.files import save_text
from helpers.signals import heed_signals

from .cases import CASES, ROWS
from .frame import Case, Lost
from .lab import Shared, lab_in

BEGIN, END = "<!-- table: make faults -->", "<!-- end of table -->"
HEADERS = ["#", "fault", "what gn_det does", "gn_det passes", "stock detectron2 passes"]
REASONS = 2  # reasons per row and system that the table shows
REASON_LENGTH = 90


@dataclasses.dataclass(frozen=True)
class Result:
    """What a system did in a case.

    Attributes:
        text: "survived", "named: SENTENCE", or how the rule was broken.
        kills: number of processes that the case killed with SIGKILL.
    """

    case: Case
    stock: bool
    passed: bool
    text: str
    kills: int
    seconds: float

    def line(self) -> str:
        """The result in one line."""
        system, verdict = "stock " if self.stock else "gn_det", "pass" if self.passed else "FAIL"
        return f"{verdict}  {system}  {self.case.row:>2} {self.case.name} ({self.seconds:.0f} s): {self.text}"


def attempt(case: Case, shared: Shared, stock: bool) -> Result:
    """Run a case on one system."""
    begin = time.monotonic()
    with lab_in(shared, stock) as lab:
        try:
            passed, text = True, case.run(lab)
        except Lost as error:
            passed, text = False, str(error)
        except Exception as error:  # the system did not write a file that the case needs, for example
            passed, text = False, f"{type(error).__name__}: {error}"
        kills = lab.kills
    return Result(case, stock, passed, _short(text, shared.folder), kills, time.monotonic() - begin)


def _short(text: str, folder: Path) -> str:
    """Return a text in one line, without the temporary folder."""
    text = re.sub(rf"{re.escape(str(folder))}/(\w+/case/)?", "", text)
    return " ".join(text.split())


def table(results: list[Result]) -> list[list]:
    """Return one line per row of the table of faults."""
    lines = []
    for number, (fault, promise) in sorted(ROWS.items()):
        own, stock = ([r for r in results if r.case.row == number and r.stock == s] for s in (False, True))
        if own:
            lines.append([number, fault, promise, _cell(own), _cell(stock)])
    return lines


def _cell(results: list[Result]) -> str:
    """Return how many cases passed, and why others did not."""
    if not results:
        return "-"
    reasons = list(dict.fromkeys(_reason(r.text) for r in results if not r.passed))
    more = ", ..." if len(reasons) > REASONS else ""
    passed = f"{sum(r.passed for r in results)} of {len(results)}"
    return f"{passed}: {'; '.join(reasons[:REASONS])}{more}" if reasons else passed


def _reason(text: str) -> str:
    """Return a reason as the table shows it: the kind of a traceback, or the first words."""
    if match := re.match(r"traceback: ([\w.]+)", text):
        return f"traceback ({match[1].rsplit('.', 1)[-1]})"
    if match := re.match(r"exit code 0\b", text):
        return match[0]
    text = re.sub(r"[\[{:(].*", "", text).strip()
    return text[:REASON_LENGTH].replace("|", "/")


def write_page(page: Path, lines: list[list]) -> None:
    """Replace the lines of these rows in the table of a page of the docs."""
    head, rest = page.read_text().split(BEGIN)
    old, foot = rest.split(END)
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in old.strip().splitlines()[2:]]
    rows = {int(row[0]): row for row in cells} | {row[0]: row for row in lines}
    text = tabulate([rows[number] for number in sorted(rows)], HEADERS, tablefmt="github", disable_numparse=True)
    save_text(page, f"{head}{BEGIN}\n{text}\n{END}{foot}")


def main() -> None:
    """Run the command with the arguments of the process. The exit code is 1 if a case of gn_det fails."""
    heed_signals()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="*", type=int, help="numbers of the rows to run (default: all)")
    parser.add_argument("--case", default="", help="run only cases whose name contains this text")
    parser.add_argument("--no-stock", action="store_true", help="leave out stock detectron2")
    parser.add_argument("--jobs", type=int, default=1, help="cases at once")
    parser.add_argument("--page", type=Path, help="page of the docs in whose table the rows are replaced")
    parser.add_argument("--folder", help="folder for temporary files")
    args = parser.parse_args()
    if args.page and (args.case or args.no_stock):
        parser.error("--page needs all cases of a row, on both systems")
    chosen = [case for case in CASES if (not args.rows or case.row in args.rows) and args.case in case.name]
    systems = [False] if args.no_stock else [False, True]
    todo = [(case, stock) for case in chosen for stock in systems if case.stock or not stock]
    results = []
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder, ThreadPoolExecutor(args.jobs) as pool:
        shared = Shared(Path(folder))
        for result in pool.map(lambda job: attempt(job[0], shared, job[1]), todo):
            results.append(result)
            print(result.line(), flush=True)
    own = [r for r in results if not r.stock]
    kills = sum(r.kills for r in own)
    lines = table(results)
    print(
        "\n" + tabulate(lines, HEADERS, tablefmt="github", disable_numparse=True, maxcolwidths=[None, 30, 40, 50, 50])
    )
    failed = sum(not r.passed for r in own)
    print(f"\ngn_det: {len(own) - failed} of {len(own)} cases pass; {kills} kills; {time.monotonic() - begin:.0f} s")
    if args.page:
        write_page(args.page, lines)
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
