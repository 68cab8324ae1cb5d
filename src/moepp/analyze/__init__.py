"""What the experts do on text, and the page that shows it."""

from .collect import collect_stats
from .report import Figure, Report, Table, write_report

__all__ = ["Figure", "Report", "Table", "collect_stats", "write_report"]
