"""From the published checkpoint to ours and back. ``moepp convert`` prints what this does."""

from .folders import appearing
from .released import REPORT, Report, convert
from .source import EXTRAS, Format

__all__ = ["EXTRAS", "REPORT", "Format", "Report", "appearing", "convert"]
