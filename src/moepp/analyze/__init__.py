"""What the experts do on text, and the page that shows it."""

from .collect import collect, collect_stats
from .figures import save_figures, write_figures
from .fingerprint import fingerprint
from .page import save_page, write_page
from .relations import agreement, by_position, layer_correlation, loss_by_experts, router_entropy, score_density
from .report import Figure, Report, Table, write_report
from .routing_table import Document, Facts, RoutingTable
from .summary import Summary, summarize
from .tables import dropped, expert_load, experts_per_token, imbalance, load_aim, token_types
from .text import Text

__all__ = [
    "Document",
    "Facts",
    "Figure",
    "Report",
    "RoutingTable",
    "Summary",
    "Table",
    "Text",
    "agreement",
    "by_position",
    "collect",
    "collect_stats",
    "dropped",
    "expert_load",
    "experts_per_token",
    "fingerprint",
    "imbalance",
    "layer_correlation",
    "load_aim",
    "loss_by_experts",
    "router_entropy",
    "save_figures",
    "save_page",
    "score_density",
    "summarize",
    "token_types",
    "write_figures",
    "write_page",
    "write_report",
]
