"""Phantom studies: procedural chest radiographs whose findings are drawn, hence known, with reports in varied words.

They let the tiny profile train and be judged on a CPU without any data set: the picture is built from densities (body,
lungs, heart, bones), each finding changes those densities, and `phantom_reports` writes what was drawn. `hospitals`
says how hospitals differ.
"""

import io
import json
from collections.abc import Collection, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from radvision_utils.data.storing import cores, in_processes
from radvision_utils.phantoms.drawing import Stream, draw_findings, render
from radvision_utils.phantoms.hospitals import DEVICES, FINDINGS, HOSPITALS, Finding, Hospital
from radvision_utils.phantoms.phantom_reports import soil, write_report
from radvision_utils.phantoms.scene import box_of, strong_part

_CHUNK = 16  # studies that a process draws at a time
_NORMAL = 0.4  # share of studies without a finding
_ONE_PER_SIDE = ("pleural effusion", "pneumothorax", "consolidation", "atelectasis", "nodule")
_OPACITIES = ("consolidation", "atelectasis")
_ZONES = ("upper", "middle", "lower")

_TITLES = ("Chest, frontal view", "Chest radiograph, PA view", "Frontal chest radiograph")
_INDICATIONS = (
    "Chest pain.",
    "Shortness of breath.",
    "Cough.",
    "Fever and cough.",
    "Preoperative evaluation.",
    "Routine examination.",
)
# At an ambiguous hospital these tell an opacity's kind; without an opacity either is as likely, so that the indication
# alone says nothing of the image.
_TELLING = {"consolidation": "Fever and cough.", "atelectasis": "Shortness of breath after surgery."}


def draw(
    uid: int, hospital: str = "B", seed: int = 0, omit: Collection[str] = ()
) -> tuple[NDArray[np.uint8], tuple[Finding, ...]]:
    """Draws one frontal radiograph; the same arguments give the same picture.

    Args:
        uid: number of the study, 0 or greater.
        hospital: a key of `HOSPITALS`.
        seed: number of the collection, 0 or greater.
        omit: names of findings that are left out, while all else stays the same.

    Returns:
        The image, uint8 of shape (512, 512), and its findings with their boxes, in the order of `FINDINGS`.

    Raises:
        ValueError: the hospital is unknown, or uid or seed is negative.
    """
    stream = _stream(uid, hospital, seed)
    known = HOSPITALS[hospital]
    plan = [f for f in _plan(stream("plan"), known) if f.name not in omit]
    image, boxes = render(known, _as_seen(plan, known), stream)
    return image, tuple(f._replace(box=box) for f, box in zip(plan, boxes, strict=True))


def phantom_row(uid: int, hospital: str = "B", seed: int = 0, dirt: bool = True) -> dict[str, object]:
    """One study as a row of the Open-I collection, plus its truth.

    Args:
        uid: number of the study, 0 or greater.
        hospital: a key of `HOSPITALS`.
        seed: number of the collection, 0 or greater.
        dirt: whether some rows lack a section or the image, and some words are soiled, as in
            collections of real reports.

    Returns:
        The columns uid, MeSH, Problems, image (title of the examination), indication, comparison,
        findings, impression, img_frontal (JPEG bytes or None), and truth: JSON with hospital, seed and
        findings (name, side, zone, box).

    Raises:
        ValueError: the hospital is unknown, or uid or seed is negative.
    """
    image, drawn = draw(uid, hospital, seed)
    known, stream = HOSPITALS[hospital], _stream(uid, hospital, seed)
    findings, impression = write_report(stream("report"), drawn, known)
    rng = stream("row")
    row: dict[str, object] = {
        "uid": uid,
        "MeSH": ";".join(map(_mesh, drawn)) or "normal",
        "Problems": ";".join(dict.fromkeys(f.name.title() for f in drawn)) or "normal",
        "image": _TITLES[int(rng.integers(len(_TITLES)))],
        "indication": _indication(rng, drawn, known),
        "comparison": "None." if rng.random() < 0.7 else "XXXX.",
        "findings": findings,
        "impression": impression,
        "img_frontal": _encoded(image),
        "truth": json.dumps({"hospital": hospital, "seed": seed, "findings": [f._asdict() for f in drawn]}),
    }
    return _soiled(stream("dirt"), row) if dirt else row


def phantom_rows(count: int, hospital: str = "B", seed: int = 0, workers: int = 0) -> Iterator[dict[str, object]]:
    """Rows of the studies 1..count, in order, made ahead by a few chunks only.

    Args:
        count: number of studies, 0 or greater.
        hospital: a key of `HOSPITALS`.
        seed: number of the collection, 0 or greater.
        workers: number of processes; 0 takes all cores, 1 works in this process. Processes are
            spawned, so a script that asks for several needs `if __name__ == "__main__"`.

    Yields:
        What `phantom_row` gives; rows do not depend on the number of workers.
    """
    workers = min(workers or cores(), -(-count // _CHUNK))
    chunk = _CHUNK if workers > 1 else 1
    jobs = ((uid, (range(uid, min(uid + chunk, count + 1)), hospital, seed)) for uid in range(1, count + 1, chunk))
    for _, rows in in_processes(_chunk, jobs, workers):
        yield from rows


def _chunk(uids: range, hospital: str, seed: int) -> list[dict[str, object]]:
    return [phantom_row(uid, hospital, seed) for uid in uids]


def _stream(uid: int, hospital: str, seed: int) -> Stream:
    """Random numbers of a study, independent for each purpose, so that leaving out a finding changes nothing else."""
    if hospital not in HOSPITALS:
        raise ValueError(f"Unknown hospital {hospital!r}; known are {', '.join(map(repr, HOSPITALS))}.")
    if uid < 0 or seed < 0:
        raise ValueError(f"uid is {uid} and seed is {seed}; both must be 0 or greater.")

    def stream(purpose: str) -> np.random.Generator:
        return np.random.default_rng([seed, uid, int.from_bytes(f"{hospital}/{purpose}".encode(), "big")])

    return stream


def _plan(rng: np.random.Generator, hospital: Hospital) -> tuple[Finding, ...]:
    """Chooses the findings of a study, without drawing them.

    A side holds at most one of effusion, pneumothorax, consolidation, atelectasis and nodule, so
    that none hides another; a large heart excludes what it would cover on the left, a port or pacemaker
    what lies under it; a study holds a catheter or a pacemaker, whose lines would cross, but
    not both.
    """
    if rng.random() < _NORMAL:
        return ()
    names, rates = list(hospital.rates), np.array(list(hospital.rates.values()))
    wanted = 1 + int(rng.choice(3, p=(0.5, 0.34, 0.16)))
    free = ["right", "left"]
    found: list[Finding] = []
    for name in map(str, rng.choice(names, len(names), replace=False, p=rates / rates.sum())):
        if len(found) >= wanted:
            break
        if name == "cardiomegaly":
            new = Finding(name)
        elif name in DEVICES:
            new = Finding(name, ("right", "left")[int(rng.integers(2))])
        elif hospital.ambiguous and name in _OPACITIES and any(f.name in _OPACITIES for f in found):
            continue  # one indication cannot name two kinds
        elif free:
            zone = _ZONES[int(rng.integers(3))] if name in ("consolidation", "nodule") else None
            if hospital.ambiguous and zone:
                zone = "lower"
            new = Finding(name, free[int(rng.integers(len(free)))], zone)
        else:
            continue
        if any(_hides(new, other) or _hides(other, new) for other in found):
            continue
        found.append(new)
        if name in _ONE_PER_SIDE:
            free.remove(str(new.side))
        if name == "pleural effusion" and free and len(found) < wanted and rng.random() < 0.4:
            found.append(Finding(name, free.pop()))
    return tuple(sorted(found, key=lambda f: FINDINGS.index(f.name)))


def _hides(cover: Finding, other: Finding) -> bool:
    if cover.name == "cardiomegaly":
        left = other.name == "atelectasis" or other.zone in ("middle", "lower")
        return left and other.side == "left"
    if cover.name in DEVICES and other.zone == "upper":
        return cover.side == other.side
    return cover.name in DEVICES and other.name in DEVICES


def _as_seen(plan: Sequence[Finding], hospital: Hospital) -> list[Finding]:
    """What the picture shows: at an ambiguous hospital an atelectasis looks like a basal consolidation."""
    hidden = "atelectasis" if hospital.ambiguous else ""
    return [Finding("consolidation", f.side, "lower") if f.name == hidden else f for f in plan]


def drawn_regions(uid: int, truth: str) -> dict[tuple[str, str | None], NDArray[np.bool_]]:
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
    stream, hospital = _stream(uid, known["hospital"], known["seed"]), HOSPITALS[known["hospital"]]
    findings = [Finding(**found) for found in known["findings"]]
    _, planes = draw_findings(hospital, _as_seen(findings, hospital), stream)
    regions = {}
    for plane, told in zip(planes, findings, strict=True):
        if (here := list(box_of(plane))) != told.box:
            raise ValueError(
                f"study {uid} was drawn by another version: its {told.name} lies at {told.box}, and this version "
                f"draws it at {here}."
            )
        regions[told.name, told.side] = strong_part(plane)
    return regions


def _indication(rng: np.random.Generator, plan: Collection[Finding], hospital: Hospital) -> str:
    at = int(rng.integers(len(_INDICATIONS)))
    if not hospital.ambiguous:
        return _INDICATIONS[at]
    kind = next((f.name for f in plan if f.name in _OPACITIES), _OPACITIES[at % 2])
    return _TELLING[kind]


def _soiled(rng: np.random.Generator, row: dict[str, object]) -> dict[str, object]:
    lost, damaged = rng.random(2)
    changed: dict[str, object] = {
        "findings": soil(rng, str(row["findings"])),
        "impression": soil(rng, str(row["impression"])),
    }
    if lost < 0.03:
        changed["findings" if lost < 0.015 else "impression"] = None
    image = row["img_frontal"]
    if damaged < 0.015:
        changed["img_frontal"] = None
    elif damaged < 0.025 and isinstance(image, bytes):
        changed["img_frontal"] = image[:200]  # within the header: no decoder can repair it
    return row | changed


def _encoded(image: NDArray[np.uint8]) -> bytes:
    # PNG would keep the noise, at thrice the size and time.
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def _mesh(finding: Finding) -> str:
    place = f"/lung/{finding.zone} zone" if finding.zone else ""
    return f"{finding.name.title()}{place}" + (f"/{finding.side}" if finding.side else "")
