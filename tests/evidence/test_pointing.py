"""Pointing game: one rule for every map, chance where a map says nothing, lesions where the truth says."""

import json

import numpy as np
import pytest

from radvision_utils import Report
from radvision_utils.evaluation.bootstrap import Bootstrap
from radvision_utils.evaluation.records import Model, Prediction, by_contradiction
from radvision_utils.evidence.pointing import (
    area,
    center_map,
    curve_masks,
    energy_inside,
    estimate,
    hit,
    inside_cells,
    pointing_figures,
)
from radvision_utils.evidence.study_maps import rank_correlation, side_consistent
from radvision_utils.phantoms.phantom_rows import draw, drawn_regions, phantom_row


def region(rows, columns, size=256):
    plane = np.zeros((size, size), bool)
    plane[rows, columns] = True
    return plane


def test_a_cell_counts_that_the_region_covers_by_a_tenth():
    plane = region(slice(0, 64), slice(0, 71))  # all of the first cell, 7 of 64 columns of the second
    assert np.flatnonzero(inside_cells(plane, 4)).tolist() == [0, 1]
    assert np.flatnonzero(inside_cells(region(slice(0, 64), slice(0, 70)), 4)).tolist() == [0]


def test_a_cell_counts_that_holds_a_tenth_of_a_small_region():
    plane = region(slice(120, 130), slice(60, 70))  # 100 pixels around a corner: 32, 48, 8 and 12
    assert np.flatnonzero(inside_cells(plane, 4)).tolist() == [4, 5, 9]


def test_a_peak_counts_by_its_share_where_tokens_tie():
    inside = np.array([True, False, False, False])
    assert hit(np.array([3.0, 1, 2, 0]), inside) == 1
    assert hit(np.array([1.0, 3, 2, 0]), inside) == 0
    assert hit(np.zeros(4), inside) == 0.25


def test_energy_counts_what_speaks_for_the_sentence_only():
    inside = np.array([True, False, False, False])
    assert energy_inside(np.array([3.0, 1, -5, 0]), inside) == 0.75
    assert energy_inside(np.full(4, -1.0), inside) == 0.25


def test_the_center_map_of_an_even_grid_has_four_peaks():
    values = center_map(4)
    assert np.flatnonzero(values == values.max()).tolist() == [5, 6, 9, 10]


def test_curves_begin_with_all_and_end_with_nothing_the_highest_first():
    deletion, insertion = curve_masks(np.arange(16.0))
    assert deletion[0].all()
    assert not deletion[-1].any()
    assert np.flatnonzero(~deletion[1]).tolist() == [14, 15]
    assert (insertion == ~deletion).all()
    assert area(np.ones(9)) == 1
    assert area(np.linspace(1, 0, 9)) == 0.5


def test_lesions_of_one_study_are_resampled_together():
    alone = estimate([(i, float(i % 2)) for i in range(20)], Bootstrap(20, seed=1))
    together = estimate([(i // 10, float(i // 10)) for i in range(20)], Bootstrap(2, seed=1))
    assert alone.value == together.value == 0.5
    assert np.ptp(together.interval) > np.ptp(alone.interval)


def test_figures_are_by_map_and_by_finding():
    curve = {"occlusion": np.linspace(1, 0, 9).tolist()}
    curves = {"deletion": curve, "insertion": curve}
    nodule = {"finding": "nodule", "hit": {"occlusion": 1.0, "random": 0.1}, "energy": {"occlusion": 0.9}, **curves}
    device = {"finding": "pacemaker", "hit": {"occlusion": 0.0, "random": 0.3}, "energy": {"occlusion": 0.2}, **curves}
    lesions = [(0, nodule), (1, device)]
    found = pointing_figures(lesions, Bootstrap(2, seed=1))
    assert found["hit"]["occlusion"]["value"] == 0.5
    assert found["hit"]["random"]["value"] == pytest.approx(0.2)
    assert found["by_finding"]["nodule"]["occlusion"]["value"] == 1
    assert found["deletion"]["occlusion"]["area"]["value"] == 0.5
    json.dumps(found)


@pytest.mark.parametrize("hospital", ["A", "B", "C"])
def test_every_drawn_finding_has_a_region_within_its_box(hospital):
    for uid in range(1, 12):
        _, findings = draw(uid, hospital, seed=5)
        regions = drawn_regions(uid, str(phantom_row(uid, hospital, seed=5, dirt=False)["truth"]))
        assert list(regions) == [(finding.name, finding.side) for finding in findings]
        for finding, plane in zip(findings, regions.values(), strict=True):
            scale = 512 // len(plane)
            ys, xs = np.nonzero(plane)
            box = (xs.min() * scale, ys.min() * scale, (xs.max() + 1) * scale, (ys.max() + 1) * scale)
            assert box == finding.box


def test_a_study_of_another_version_of_the_drawing_is_refused():
    truth = {
        "hospital": "B",
        "seed": 5,
        "findings": [{"name": "cardiomegaly", "side": None, "zone": None, "box": [0, 0, 9, 9]}],
    }
    with pytest.raises(ValueError, match="study 3 was drawn by another version"):
        drawn_regions(3, json.dumps(truth))


def test_the_patients_right_is_the_images_left():
    values = np.zeros((4, 4))
    values[2, 0] = 1
    assert side_consistent("There is a right pleural effusion.", values) is True
    assert side_consistent("There is a left pleural effusion.", values) is False
    assert side_consistent("There are bilateral pleural effusions.", values) is None
    assert side_consistent("No right pleural effusion.", values) is None
    assert side_consistent("There is a right pleural effusion.", np.zeros((4, 4))) is None


def test_rank_correlation_is_spearmans():
    one = np.array([[1.0, 2, 2, 3]])
    assert rank_correlation(one, one**3) == pytest.approx(1)
    assert rank_correlation(one, -one) == pytest.approx(-1)
    assert np.isnan(rank_correlation(one, np.zeros((1, 4))))


def test_the_worst_study_comes_first():
    def record(uid, verdicts, f1=1.0):
        found = dict(enumerate(verdicts))
        return Prediction(
            uid=uid,
            index=0,
            generated=Report(),
            reference=Report(),
            verdicts=found,
            scores={"label_f1": f1},
            model=Model("tiny", 3, "tiny"),
        )

    records = [
        record("right", ["agree"]),
        record("wrong", ["missed", "missed"], 0.0),
        record("worst", ["contradiction"]),
    ]
    assert [r.uid for r in sorted(records, key=by_contradiction)] == ["worst", "wrong", "right"]
