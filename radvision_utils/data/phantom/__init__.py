"""Phantom studies: procedural chest radiographs whose findings are drawn, hence known, with reports in varied words."""

from radvision_utils.data.phantom.reading import read_findings
from radvision_utils.data.phantom.regions import drawn_regions
from radvision_utils.data.phantom.reports import FINDINGS
from radvision_utils.data.phantom.rows import (
    HOSPITALS,
    DrawnFinding,
    Hospital,
    draw,
    phantom_row,
    phantom_rows,
    truth_findings,
)

__all__ = [
    "FINDINGS",
    "HOSPITALS",
    "DrawnFinding",
    "Hospital",
    "draw",
    "drawn_regions",
    "phantom_row",
    "phantom_rows",
    "read_findings",
    "truth_findings",
]
