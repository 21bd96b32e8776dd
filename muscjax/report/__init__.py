"""The report of a run: one HTML file that opens anywhere and loads nothing from elsewhere.

    side = report.picture_side(len(scans))
    cards = [report.encode(report.ReportScan(...), limits=limits, side=side) for ...]
    report.write_report(out / "report.html", report.Report(title=..., config=..., record=...), cards)

Needs the ``report`` extra; `available` says what to do where it is missing.
"""

from muscjax.report.cloud import places
from muscjax.report.images import Card, ReportScan, encode, picture_side
from muscjax.report.page import MAX_BYTES, Report, available, write_report

__all__ = [
    "MAX_BYTES",
    "Card",
    "Report",
    "ReportScan",
    "available",
    "encode",
    "picture_side",
    "places",
    "write_report",
]
