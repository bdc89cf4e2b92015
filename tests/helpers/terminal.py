"""Stand-in for a terminal."""

import io


class Terminal(io.StringIO):
    """Stream that claims to be a terminal and records what is written to it."""

    def isatty(self) -> bool:
        return True

    def screen(self) -> list[str]:
        """Return the visible lines: text after a carriage return overwrites the line."""
        lines = []
        for text in self.getvalue().split("\n"):
            line = ""
            for part in text.split("\r"):
                line = part + line[len(part) :]
            lines.append(line.rstrip())
        return lines
