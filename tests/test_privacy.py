"""What leaves a machine names neither its user nor its folders nor its host: adapter, hand-over, page, predictions."""

import json
import shutil
import socket

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from radvision_utils import load_profile, predict_beautiful, prepare_dataset, train_stage
from radvision_utils.config import STAGES
from radvision_utils.data.studies import open_prepared
from radvision_utils.evaluation.records import study_prediction
from radvision_utils.files import write_json_lines
from radvision_utils.hand_over.export import export_run
from radvision_utils.model.folder import TINY_BASE
from radvision_utils.own_images import predict_files
from radvision_utils.phantoms.phantom_rows import phantom_rows
from radvision_utils.report import WrittenReport
from radvision_utils.runs import RunFolder

USER, HOST = "alice.smith", "reading-room-7"
_OF_A_STAGE = ("stage.json", "begun.json")  # they name the settings that a stage was made with; they stay at home


@pytest.fixture(scope="module", autouse=True)
def host():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "gethostname", lambda: HOST)
        yield


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """The home of somebody who keeps base, source, images and runs in it."""
    home = tmp_path_factory.mktemp("home") / USER
    shutil.copytree(TINY_BASE, home / "models" / "base")
    rows = [{**row, "uid": f"MRN{row['uid']}-77"} for row in phantom_rows(60, "B", 11, workers=1)]
    pq.write_table(pa.Table.from_pylist(rows), home / "studies.parquet")
    return home


@pytest.fixture(scope="module")
def run(home, small_settings):
    settings = {**small_settings, "model.base": str(home / "models" / "base"), "generation.max_new_tokens": 16}
    profile = load_profile(
        "tiny", settings, run="r", source=str(home / "studies.parquet"), output_root=str(home / "outputs")
    )
    prepare_dataset(profile)
    for stage in (1, 2, 3):
        train_stage(profile, stage)
    return profile


def names_of(home):
    return [name.encode() for name in (USER, str(home.parent), HOST)]


def leaks(folder, secrets):
    """Files that hold a secret, by their names in the folder."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    return {
        (path.relative_to(folder).as_posix(), secret)
        for path in files
        for secret in secrets
        if secret in path.read_bytes()
    }


def test_the_search_finds_what_it_looks_for(run, home):
    assert leaks(RunFolder.of(run).path, [USER.encode()]) == {
        (name, USER.encode())
        for name in ("run.json", "data/summary.json", *(f"stage{n}/{kept}" for n in STAGES for kept in _OF_A_STAGE))
    }


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_an_adapter_names_no_place(run, home, stage):
    assert not leaks(RunFolder.of(run).adapter(stage), names_of(home))


def test_a_hand_over_names_neither_place_nor_study(run, home, tmp_path):
    export_run(run, tmp_path / "given")
    studies = [study.uid.encode() for split in ("train", "validation") for study in open_prepared(run).split(split)]
    assert not leaks(tmp_path / "given", [*names_of(home), *studies])
    assert "studies.parquet" in (tmp_path / "given" / "README.md").read_text()
    assert json.loads((tmp_path / "given" / "export.json").read_text())["base"] == "base"


def test_cards_pages_and_predictions_name_no_place(run, home, tmp_path):
    given = tmp_path / "given"
    predict_beautiful(index=0, run="r", output_root=run.output_root).save(given / "card.html")
    images = shutil.copytree(RunFolder.of(run).data / "images", home / "scans")
    for path in sorted(images.iterdir())[2:]:
        path.unlink()
    (images / "broken.png").write_bytes(b"nothing")
    predict_files([images], run="r", to=given / "own", output_root=run.output_root)
    study = open_prepared(run).split("test")[0]
    written = WrittenReport(study.report, "", 3, True, 1.0)
    said = study_prediction(run, 3, study, 0, written, training=set(), scores={})
    write_json_lines(given / "predictions.jsonl", [said.to_json()])
    assert not leaks(given, names_of(home))
