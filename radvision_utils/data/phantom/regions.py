"""Where in a phantom's image each finding was drawn: drawn again from the study's truth, without the picture."""

import json

import numpy as np
from numpy.typing import NDArray

from radvision_utils.data.phantom.findings import DRAW
from radvision_utils.data.phantom.reports import Finding
from radvision_utils.data.phantom.rows import _as_seen, _hospital, _rng
from radvision_utils.data.phantom.scene import Body, Scene, box_of, strong_part

Region = NDArray[np.bool_]


def drawn_regions(uid: int, truth: str) -> dict[tuple[str, str | None], Region]:
    """The regions of a study's drawn findings, by (name, side).

    Args:
        uid: number of the study.
        truth: its JSON, as a row has it.

    Returns:
        Square planes over the whole image, of 256 or 512 pixels a side: where the finding has at least 30 % of its
        greatest strength. A large heart's region is the heart.

    Raises:
        ValueError: this version draws the finding elsewhere than the truth says: another version drew the study.
    """
    known = json.loads(truth)
    hospital, seed = _hospital(known["hospital"]), known["seed"]
    findings = [Finding(f["name"], f["side"], f["zone"]) for f in known["findings"]]
    if hospital.ambiguous:
        findings = [_as_seen(finding) for finding in findings]
    scene = Scene(Body(_rng(uid, hospital, seed, "body"), hospital.zoom, hospital.shift, findings))
    regions = {}
    for finding, told in zip(findings, known["findings"], strict=True):
        plane = DRAW[finding.name](scene, _rng(uid, hospital, seed, f"{finding.name}/{finding.side}"), finding)
        if list(box_of(plane)) != told["box"]:
            raise ValueError(
                f"study {uid} was drawn by another version: its {told['name']} lies at {told['box']}, and this version "
                f"draws it at {list(box_of(plane))}."
            )
        regions[told["name"], told["side"]] = strong_part(plane)
    return regions
