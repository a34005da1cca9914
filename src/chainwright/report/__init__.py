"""The report of a diagnosis: figures for notebooks, and one HTML file with all of them that opens offline."""

from chainwright.report.page import write_report

__all__ = ["write_report"]
