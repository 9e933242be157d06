"""The page that a study ends in."""

from pipeline.report.page import build_report

__all__ = ["build_report"]
