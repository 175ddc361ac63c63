"""A prepared dataset and its studies, read from the run's `data/` folder as they are asked for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import pyarrow as pa

from radvision_utils import files, runs
from radvision_utils.config import Profile, RadVisionError
from radvision_utils.data.reports import Report

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Study:
    """One prepared examination.

    Attributes:
        uid: its number in the source.
        split: "train", "validation" or "test".
        image: the frontal radiograph, an 8-bit grayscale PNG of `data.image_size` pixels square.
        report: the cleaned report, the training target.
        reference: the report as it stands in the source, for evaluation.
        indication: why the examination was made.
        mesh: MeSH headings with qualifiers, separated by ";"; "normal" if nothing is abnormal.
        problems: MeSH headings without qualifiers.
        truth: JSON of the findings drawn; phantoms only.
    """

    uid: str
    split: str
    image: Path
    report: Report
    reference: Report
    indication: str
    mesh: str
    problems: str
    truth: str | None


class Studies(Sequence[Study]):
    """The studies of one split, read from the memory-mapped Arrow file as they are asked for."""

    def __init__(self, folder: Path, split: str) -> None:
        self.folder, self.split = folder, split
        with pa.memory_map(str(files.checked(folder / "studies.arrow"))) as source:
            self.table: pa.Table = pa.ipc.open_stream(source).read_all()
        names = self.table.column("split").to_pylist()
        self._rows = [row for row, name in enumerate(names) if name == split]
        if split == "test":  # nothing trains on it: here phantoms stand in the order in which they are worth a look
            truths = self.table.column("truth").to_pylist()
            self._rows.sort(key=lambda row: _dullness(truths[row]))

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Study: ...
    @overload
    def __getitem__(self, index: slice) -> list[Study]: ...
    def __getitem__(self, index: int | slice) -> Study | list[Study]:
        if isinstance(index, slice):
            return [self._study(row) for row in self._rows[index]]
        return self._study(self._rows[index])

    def __reduce__(self) -> tuple[type[Studies], tuple[Path, str]]:
        # Pickled for a worker process, the table would be copied; opened again, its pages are shared.
        return Studies, (self.folder, self.split)

    def _study(self, row: int) -> Study:
        values = self.table.slice(row, 1).to_pylist()[0]
        if files.inside(self.folder, values["image"]) is None:
            raise RadVisionError(
                f"image {values['image']!r} of study {values['uid']!r} is not in {self.folder}: prepare the data again."
            )
        return Study(
            uid=values["uid"],
            split=values["split"],
            image=self.folder / values["image"],
            report=Report(values["findings"], values["impression"]),
            reference=Report(values["reference_findings"], values["reference_impression"]),
            indication=values["indication"],
            mesh=values["mesh"],
            problems=values["problems"],
            truth=values["truth"],
        )


def _dullness(truth: str | None) -> int:
    """First phantoms of two findings, which a report can half miss; then those of one or three; last the normal."""
    return abs(len(json.loads(truth)["findings"]) - 2) if truth else 0


@dataclass(frozen=True)
class PreparedDataset:
    """A finished `data/` folder of a run.

    Attributes:
        folder: holds `images/`, `studies.arrow`, `split.json` and `summary.json`.
        summary: what was read, dropped and counted, as `summary.json` has it.
    """

    folder: Path
    summary: dict[str, Any]

    def split(self, name: str) -> Studies:
        """The studies of a split, in the order of the source; of the test split phantoms of two findings come first.

        Raises:
            RadVisionError: there is no such split.
        """
        if name not in SPLITS:
            raise RadVisionError(f"split {name!r} does not exist: choose {', '.join(SPLITS[:-1])} or {SPLITS[-1]}.")
        return Studies(self.folder, name)


def open_prepared(profile: Profile) -> PreparedDataset:
    """The run's finished dataset.

    Raises:
        RadVisionError: it is missing, unfinished or was made with other settings.
    """
    summary = runs.require(profile, "data")
    return PreparedDataset(runs.RunFolder.of(profile).data, summary)
