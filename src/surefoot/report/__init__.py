"""Tables, pictures and the page of a comparison, made from its records and nothing else."""

from surefoot.report.explained import write_explained_page
from surefoot.report.frontier import frontier_column, frontier_svg
from surefoot.report.page import write_page
from surefoot.report.series import parts_in, series_markdown, series_table, write_series_page
from surefoot.report.table import markdown, rich_table, rows

__all__ = [
    "frontier_column",
    "frontier_svg",
    "markdown",
    "parts_in",
    "rich_table",
    "rows",
    "series_markdown",
    "series_table",
    "write_explained_page",
    "write_page",
    "write_series_page",
]
