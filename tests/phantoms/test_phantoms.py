"""Phantom studies: what is drawn, what is said about it, and what the rows look like."""

import io
import json
from collections import Counter

import numpy as np
import pytest
from PIL import Image, UnidentifiedImageError

from radvision_utils.phantoms import phantom_rows as phantom
from radvision_utils.phantoms.hospitals import FINDINGS, HOSPITALS
from radvision_utils.phantoms.phantom_reports import read_findings, soil, truth_findings, write_report
from radvision_utils.phantoms.phantom_rows import draw, phantom_row, phantom_rows

COLUMNS = {
    "uid": int,
    "MeSH": str,
    "Problems": str,
    "image": str,
    "indication": str,
    "comparison": str,
    "findings": str,
    "impression": str,
    "img_frontal": bytes,
    "truth": str,
}


def planned(uid: int, hospital: str) -> tuple:
    return phantom._plan(phantom._stream(uid, hospital, 0)("plan"), HOSPITALS[hospital])


def report(uid: int, hospital: str) -> tuple[str, str]:
    return write_report(phantom._stream(uid, hospital, 0)("report"), planned(uid, hospital), HOSPITALS[hospital])


def pairs(plan: tuple) -> set:
    return {(f.name, f.side) for f in plan}


def first_uid(hospital: str, name: str, side: str | None = None) -> int:
    """The first study with this finding and no other."""
    return next(
        uid
        for uid in range(1, 5000)
        if [f.name for f in planned(uid, hospital)] == [name]
        and (side is None or planned(uid, hospital)[0].side == side)
    )


@pytest.fixture(scope="module")
def clean_rows() -> list[dict]:
    return [phantom_row(uid, "B", dirt=False) for uid in range(1, 13)]


def test_the_same_arguments_give_the_same_study():
    image, findings = draw(7, "B", seed=3)
    again, same = draw(7, "B", seed=3)
    assert np.array_equal(image, again)
    assert findings == same
    assert phantom_row(7, "B", seed=3) == phantom_row(7, "B", seed=3)


@pytest.mark.parametrize("other", [(8, "B", 3), (7, "A", 3), (7, "B", 4)])
def test_uid_hospital_and_seed_each_change_the_picture(other):
    assert not np.array_equal(draw(7, "B", 3)[0], draw(*other)[0])


@pytest.mark.parametrize("hospital", ["A", "B"])
def test_a_report_asserts_exactly_what_is_drawn(hospital):
    for uid in range(1, 2001):
        findings, impression = report(uid, hospital)
        text = f"{findings} {impression}"
        assert read_findings(text) == pairs(planned(uid, hospital)), text
        assert read_findings(findings) == pairs(planned(uid, hospital)), findings


@pytest.mark.parametrize("hospital", ["A", "B"])
def test_a_normal_report_asserts_nothing_and_says_so(hospital):
    normal = [uid for uid in range(1, 300) if not planned(uid, hospital)]
    for uid in normal:
        findings, impression = report(uid, hospital)
        assert not read_findings(f"{findings} {impression}")
        assert "clear" in findings or "No focal" in findings or "no focal" in findings
        assert "No " in impression or "Normal" in impression


def test_soiling_a_report_changes_words_but_no_assertion():
    changed = 0
    for uid in range(1, 1500):
        text = " ".join(report(uid, "B"))
        dirty = soil(np.random.default_rng(uid), text)
        changed += dirty != text
        assert read_findings(dirty) == read_findings(text), dirty
    assert 0.15 < changed / 1500 < 0.35


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("No left pleural effusion.", set()),
        ("The heart is not enlarged.", set()),
        ("Heart size is normal.", set()),
        ("left pleural effusion, no right effusion", {("pleural effusion", "left")}),
        ("No right effusion, left pneumothorax.", {("pneumothorax", "left")}),
        ("No pleural effusion, pneumothorax, or consolidation.", set()),
        ("Right effusion without pneumothorax.", {("pleural effusion", "right")}),
        ("No pneumothorax but a right effusion.", {("pleural effusion", "right")}),
        ("Pneumothorax is not seen.", set()),
        ("The lungs are clear of nodules.", set()),
        ("Bilateral effusions.", {("pleural effusion", "right"), ("pleural effusion", "left")}),
        (
            "Right effusion and left basilar atelectasis.",
            {("pleural effusion", "right"), ("atelectasis", "left")},
        ),
        (
            "Consolidation in the right upper zone and nodule in the left lower zone.",
            {("consolidation", "right"), ("nodule", "left")},
        ),
        ("A nodular opacity in the left lung.", {("nodule", "left")}),
        ("Airspace disease on the right.", {("consolidation", "right")}),
        (
            "Enlarged cardiac silhouette. 1. Left PICC.",
            {("cardiomegaly", None), ("central venous catheter", "left")},
        ),
        ("Left-sided pacemaker with lead in the right ventricle.", {("pacemaker", "left")}),
        ("Pacemaker lead in the right ventricle.", {("pacemaker", None)}),
        ("There is a pneumothorax.", {("pneumothorax", None)}),
        ("", set()),
    ],
)
def test_the_reader_is_not_fooled(text, expected):
    assert read_findings(text) == expected


def test_hospital_a_never_draws_nodules_or_pacemakers_but_denies_them():
    names = {f.name for uid in range(1, 2001) for f in planned(uid, "A")}
    assert names == set(FINDINGS) - {"nodule", "pacemaker"}
    words = " ".join(report(uid, "A")[0] for uid in range(1, 200)).lower()
    assert "no pulmonary nodule" in words
    assert "no pacemaker" in words


@pytest.mark.parametrize("hospital", ["A", "B"])
def test_findings_are_frequent_and_balanced(hospital):
    plans = [planned(uid, hospital) for uid in range(1, 3001)]
    assert 0.35 < sum(not p for p in plans) / 3000 < 0.45
    assert max(map(len, plans)) == 3
    share = {n: c / 3000 for n, c in Counter(f.name for p in plans for f in p).items()}
    if hospital == "B":  # what A never draws: pacemakers often, nodules seldom
        assert 0.01 < share.pop("nodule") < 0.03
        assert 0.17 < share.pop("pacemaker") < 0.24
        assert "central venous catheter" not in share
    assert min(share.values()) > 0.12
    for name in set(share) - {"cardiomegaly"}:
        right = [f.side == "right" for p in plans for f in p if f.name == name]
        assert 0.4 < np.mean(right) < 0.6, name


def test_no_finding_hides_another():
    for uid in range(1, 1500):
        plan = planned(uid, "B")
        for side in ("right", "left"):
            inside = [f for f in plan if f.side == side and f.name in phantom._ONE_PER_SIDE]
            assert len(inside) <= 1
        assert {"central venous catheter", "pacemaker"} - {f.name for f in plan}


def test_each_hospital_speaks_its_own_words():
    def share(hospital: str, phrase: str) -> float:
        return float(np.mean([phrase in report(u, hospital)[0].lower() for u in range(1, 400)]))

    assert 0.15 < share("A", "cardiac silhouette") < 0.4 < 0.6 < share("B", "cardiac silhouette") < 0.85
    normal = [uid for uid in range(1, 400) if not planned(uid, "B")]
    lungs_first = ["lungs" in (first := report(u, "B")[0].lower().split(".")[0]) or "focal" in first for u in normal]
    assert 0.6 < np.mean(lungs_first) < 0.8
    numbered = [np.mean([report(uid, h)[1].startswith("1.") for uid in range(1, 600)]) for h in "AB"]
    assert numbered[1] > 2 * numbered[0] > 0


@pytest.mark.parametrize(("hospital", "name"), [(h, n) for h in "AB" for n in HOSPITALS[h].rates])
def test_a_finding_changes_the_picture_inside_its_box(hospital, name):
    uid = first_uid(hospital, name)
    image, (finding,) = draw(uid, hospital)
    without, none = draw(uid, hospital, omit={name})
    x0, y0, x1, y1 = finding.box
    assert not none
    assert 0 <= x0 < x1 <= 512
    assert 0 <= y0 < y1 <= 512
    change = np.abs(image.astype(float) - without.astype(float))
    inside = np.zeros(image.shape, bool)
    inside[y0:y1, x0:x1] = True
    assert change[inside].mean() > 4 * change[~inside].mean()
    # Visible to the tiny model, which sees 224 x 224.
    small = [np.asarray(Image.fromarray(i).resize((224, 224))).astype(float) for i in (image, without)]
    assert np.sort(np.abs(small[0] - small[1]).ravel())[-60:].mean() > 12


def test_the_patients_right_is_on_the_images_left():
    for side, half in (("right", np.s_[:, :256]), ("left", np.s_[:, 256:])):
        uid = first_uid("B", "pleural effusion", side)
        with_fluid, (finding,) = draw(uid, "B")
        without, _ = draw(uid, "B", omit={"pleural effusion"})
        change = np.abs(with_fluid.astype(float) - without)
        assert change[half].sum() > 0.9 * change.sum()
        assert finding.side == side


def test_hospital_b_is_darker_and_flatter_than_a():
    a, b = (np.stack([draw(uid, h)[0] for uid in range(1, 9)]) for h in "AB")
    centre = np.s_[:, 100:412, 100:412]
    assert b[centre].mean() < a[centre].mean()
    assert b[centre].std() < 0.85 * a[centre].std()
    assert (b[:, :4].mean(axis=(1, 2)) < 15).any()  # collimation


def test_rows_have_the_columns_of_the_collection(clean_rows):
    assert [row["uid"] for row in clean_rows] == list(range(1, 13))
    for row in clean_rows:
        assert {key: type(value) for key, value in row.items()} == COLUMNS
        with Image.open(io.BytesIO(row["img_frontal"])) as image:
            assert (image.size, image.mode) == ((512, 512), "L")
        truth = json.loads(row["truth"])
        assert (truth["hospital"], truth["seed"]) == ("B", 0)
        drawn = draw(row["uid"], "B")[1]
        assert truth_findings(row["truth"]) == pairs(drawn)
        assert read_findings(f"{row['findings']} {row['impression']}") == pairs(drawn)
        assert (row["MeSH"] == "normal") == (row["Problems"] == "normal") == (not drawn)
        assert row["Problems"].lower().split(";")[0] in (*FINDINGS, "normal")


def test_rows_do_not_depend_on_the_number_of_workers():
    alone = list(phantom_rows(20, "A", workers=1))
    assert list(phantom_rows(20, "A", workers=2)) == alone


def test_rows_can_be_left_early():
    rows = phantom_rows(10_000, "A", workers=1)
    assert next(rows)["uid"] == 1
    rows.close()


@pytest.fixture
def blank(monkeypatch):
    """Nothing is drawn, for tests of what is written: drawing takes nearly all of the time."""
    pixels = np.zeros((8, 8), np.uint8)
    monkeypatch.setattr(phantom, "render", lambda look, findings, stream: (pixels, [(0, 0, 1, 1)] * len(findings)))


def test_dirt_is_there_in_the_stated_amount(blank):
    rows = list(phantom_rows(1500, "B", workers=1))
    text = [f"{row['findings']} {row['impression']}" for row in rows]

    def undecodable(data: bytes) -> bool:
        try:
            Image.open(io.BytesIO(data)).load()
        except (OSError, UnidentifiedImageError):
            return True
        return False

    images = [row["img_frontal"] for row in rows]
    share = {
        "no section": np.mean([None in (row["findings"], row["impression"]) for row in rows]),
        "no image": np.mean([data is None for data in images]),
        "undecodable": np.mean([undecodable(data) for data in images if data]),
        "XXXX": np.mean(["XXXX" in t for t in text]),
        "prior": np.mean([any(w in t for w in ("prior", "previous", "Compared")) for t in text]),
        "entity": np.mean(["&lt;" in t for t in text]),
        "stops": np.mean([".." in t or ". ." in t for t in text]),
        "spaces": np.mean(["  " in t for t in text]),
    }
    stated = {
        "no section": (0.02, 0.045),
        "no image": (0.008, 0.025),
        "undecodable": (0.004, 0.018),
        "XXXX": (0.05, 0.20),
        "prior": (0.05, 0.20),
        "entity": (0.005, 0.05),
        "stops": (0.02, 0.10),
        "spaces": (0.02, 0.12),
    }
    for name, (low, high) in stated.items():
        assert low < share[name] < high, (name, share[name])


def test_bad_input_is_answered_with_one_sentence():
    with pytest.raises(ValueError, match=r"Unknown hospital 'Z'; known are 'A', 'B', 'C'\."):
        draw(1, "Z")
    with pytest.raises(ValueError, match="uid is -1"):
        draw(-1)
    assert list(phantom_rows(0)) == []


def test_where_opacities_are_ambiguous_the_image_does_not_tell_them_apart():
    images = {}
    for name in ("consolidation", "atelectasis"):
        plan = [phantom.Finding(name, "right", "lower" if name == "consolidation" else None)]
        seen = phantom._as_seen(plan, HOSPITALS["C"])
        images[name], _ = phantom.render(
            HOSPITALS["C"], seen, lambda purpose: np.random.default_rng([7, int.from_bytes(purpose.encode(), "big")])
        )
    np.testing.assert_array_equal(images["consolidation"], images["atelectasis"])


def test_an_ambiguous_hospitals_indication_names_the_kind_and_says_nothing_where_there_is_none(blank):
    told = Counter()
    for uid in range(1, 400):
        row = phantom_row(uid, "C", dirt=False)
        kinds = {name for name, _ in truth_findings(row["truth"])} & {"consolidation", "atelectasis"}
        assert len(kinds) <= 1
        told[(next(iter(kinds), ""), row["indication"])] += 1
    assert {kind: said for kind, said in told if kind} == {
        "consolidation": "Fever and cough.",
        "atelectasis": "Shortness of breath after surgery.",
    }
    clear = [count for (kind, _), count in told.items() if not kind]
    assert len(clear) == 2
    assert min(clear) > 0.35 * sum(clear)


def test_no_phantom_speaks_of_a_person_or_has_a_stop_alone():
    for uid in range(400):
        text = soil(np.random.default_rng(uid), "The lungs are clear. The heart is normal.")
        assert "Dr." not in text
        assert ". ." not in text
