"""The report of a run as one HTML page."""

from .page import write_report  # noqa: F401
