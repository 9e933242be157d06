"""The page that a study ends in."""

from pipeline.report.files import files_named, write_report
from pipeline.report.origins import program_facts
from pipeline.report.page import Page, build_report

__all__ = ["Page", "build_report", "files_named", "program_facts", "write_report"]
