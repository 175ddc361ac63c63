"""MIMIC-CXR-JPG with the reports of MIMIC-CXR, in the layout in which PhysioNet publishes them (credentialed access).

A folder with `files/p10/p10000032/s50414267/<image>.jpg`, `mimic-cxr-2.0.0-metadata.csv.gz`,
`mimic-cxr-2.0.0-split.csv.gz` and the unpacked `mimic-cxr-reports.zip`: `files/p10/p10000032/s50414267.txt`, in the
same `files` or below `mimic-cxr-reports`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import groupby, zip_longest
from pathlib import Path

from radvision_utils.config import RadVisionError
from radvision_utils.data.cells import check_columns, csv_columns, csv_lines, study_number
from radvision_utils.data.sources import MIMIC, Row, Source, add_picture, make_row
from radvision_utils.files import inside

SPLIT = "mimic-cxr-2.0.0-split.csv"

_FRONTAL = ("PA", "AP")  # ViewPosition, the preferred one first

# With its first line, so that a heading right behind a heading is its text.
_HEADING = re.compile(r"\n ([A-Z ()/,-]+):\s([^\n]*)")
_NAMES = {
    "comparisons": "comparison",
    "clinical history": "history",
    "reason for examination": "indication",
    "reason for exam": "indication",
    "clinical information": "history",
    "clinical indication": "indication",
    "conclusion": "impression",
    "chest, two views": "findings",
    "patient history": "history",
    "findings and impression": "impression",
    "findings/impression": "impression",
    "findings/ impression": "impression",
    "pfi": "history",
    "ndication": "impression",
    **dict.fromkeys(
        ("impresson", "imprression", "imoression", "impressoin", "imprssion", "impresion", "imperssion", "mpression"),
        "impression",
    ),
    "impession": "impression",
    **dict.fromkeys(("finding", "findins", "findindgs", "findgings", "findngs", "findnings", "finidngs"), "findings"),
    "idication": "indication",
}
_MAIN = ("impression", "findings", "history", "comparison", "addendum")
_LIKE_FINDINGS = re.compile(
    "chest|portable|pa and lateral|lateral and pa|ap and lateral|lateral and ap|frontal and|two views|frontal view"
    "|pa view|ap view|one view|lateral view|bone window|frontal upright|frontal semi-upright|ribs|pa and lat"
)


def sections_of(text: str) -> list[tuple[str, str]]:
    """Name and text of each section of a report, in order; the name is one of the common ones where it is like one.

    Follows `txt/section_parser.py` of MIT-LCP/mimic-cxr: a section begins at a line that starts with one blank and
    words in capitals up to a colon; empty findings and impressions are left out; without either, the last paragraph is
    a section of its own, "last_paragraph". That file's list of studies sectioned by hand is not used.
    """
    headings = list(_HEADING.finditer(text))
    found = [("preamble", text[: headings[0].start(1)]) if headings else ("full report", text)]
    for heading, following in zip_longest(headings, headings[1:]):
        end = following.start() if following else len(text)
        found.append((_common_name(heading[1]), text[heading.start(2) : end]))
    kept = [(name, body) for name, body in found if body.strip() or name not in ("findings", "impression")]
    return _with_last_paragraph(kept)


def _with_last_paragraph(sections: list[tuple[str, str]]) -> list[tuple[str, str]]:
    if {"findings", "impression"} & {name for name, _ in sections}:
        return sections
    name, body = sections[-1]
    before, parting, after = body.partition("\n \n")
    return [*sections[:-1], (name, before), ("last_paragraph", after)] if parting else sections


def _common_name(heading: str) -> str:
    name = heading.strip().lower()
    if name in _NAMES:
        return _NAMES[name]
    main = next((main for main in _MAIN if main in name), None)
    return main or ("findings" if _LIKE_FINDINGS.search(name) else name)


def open_collection(name: str, folder: Path, seed: int) -> Source:
    """The collection in its official layout and split, which needs no seed.

    Raises:
        RadVisionError: a table or the reports are missing, or a table lacks columns, is empty or damaged.
    """
    metadata, split = _table(folder, MIMIC), _table(folder, SPLIT)
    check_columns(csv_columns(metadata), str(metadata), ("dicom_id", "subject_id", "study_id", "ViewPosition"))
    check_columns(csv_columns(split), str(split), ("subject_id", "split"))
    roots = [root for root in (folder / "mimic-cxr-reports" / "files", folder / "files") if root.is_dir()]
    if not any(next(root.glob("p*/p*/s*.txt"), None) for root in roots):
        raise RadVisionError(
            f"folder {folder} holds no reports: unpack mimic-cxr-reports.zip of MIMIC-CXR into it, so that "
            "mimic-cxr-reports/files/p10/p10000032/s50414267.txt is there."
        )
    count = sum(1 for _ in groupby(csv_lines(metadata), key=lambda line: study_number(line["study_id"])))
    return Source(
        name=name,
        kind="mimic",
        count=count,
        rows=lambda: _rows(folder, metadata, split, roots),
        citation="Johnson AEW, Pollard TJ, Greenbaum NR, et al. MIMIC-CXR-JPG, a large publicly available database of "
        "labeled chest radiographs. arXiv:1901.07042, 2019.",
        license="PhysioNet Credentialed Health Data License: for credentialed users, never shipped.",
        split_by="official, by patient",
    )


def _table(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise RadVisionError(f"folder {folder} lacks {name} (or .gz): MIMIC-CXR-JPG has it beside {MIMIC}.")


def _rows(folder: Path, metadata: Path, split: Path, roots: Sequence[Path]) -> Iterator[Row]:
    # By patient, not by image: the official split is one of patients, and there are six times fewer.
    splits = {study_number(line["subject_id"]): line["split"] for line in csv_lines(split)}
    # The table keeps the images of a study together; so no study waits in memory for another of its images.
    for study, group in groupby(csv_lines(metadata), key=lambda line: study_number(line["study_id"])):
        lines = list(group)
        patient = study_number(lines[0]["subject_id"]) or ""
        place = f"p{patient[:2]}/p{patient}/s{study}"
        report = next((file for root in roots if (file := inside(root, f"{place}.txt", links=True))), None)
        sections = dict(sections_of(report.read_text(encoding="utf-8", errors="replace"))) if report else {}
        row = make_row(
            {
                "uid": study,
                "findings": _plain(sections.get("findings")),
                "impression": _plain(sections.get("impression")),
                "indication": _plain(sections.get("indication") or sections.get("history")),
                "comparison": _plain(sections.get("comparison")),
                "patient": patient,
                "split": splits.get(patient),
            }
        )
        named = [
            f"files/{place}/{line['dicom_id']}.jpg"
            for view in _FRONTAL
            for line in lines
            if line["ViewPosition"].strip().upper() == view
        ]
        yield add_picture(row, *((name, inside(folder, name, links=True)) for name in named))


def _plain(text: str | None) -> str | None:
    """A section in one line: the reports are wrapped at eighty columns."""
    return None if text is None else " ".join(text.split())
