"""A terminal that remembers what it shows."""

import io


class Terminal(io.StringIO):
    """A terminal of so many columns that remembers what it was sent."""

    def isatty(self) -> bool:
        return True

    def screen(self) -> list[str]:
        """What a person sees: each line with its carriage returns done."""
        lines = []
        for text in self.getvalue().split("\n"):
            line = ""
            for part in text.split("\r"):
                line = part + line[len(part) :]
            lines.append(line.rstrip())
        return lines
