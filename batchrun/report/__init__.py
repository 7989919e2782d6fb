"""The report: one self-contained HTML file that tells how a job went."""

from batchrun.report.page import report_path, write_report

__all__ = ["report_path", "write_report"]
