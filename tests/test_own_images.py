"""Predictions for images of one's own: folders and CSV files, resumable, bad files named, one JSONL and one page."""

import csv
import dataclasses
import json
import shutil

import pytest
from PIL import Image

from radvision_utils import RadVisionError, own_images
from radvision_utils.__main__ import main
from radvision_utils.dashboard.card import ReportCard
from radvision_utils.dashboard.record import Record
from radvision_utils.own_images import find_images, predict_files
from radvision_utils.report import Reporter
from radvision_utils.runs import RunFolder, holding, only_run


@pytest.fixture
def run(trained):
    return {"run": trained.run, "output_root": trained.output_root}


@pytest.fixture
def folder(dataset, tmp_path):
    """Four radiographs, one of them in a folder below, beside a broken file and one that is no image."""
    sources = [study.image for study in dataset.split("validation")[:4]]
    (tmp_path / "own" / "b<i>").mkdir(parents=True)
    for name, source in zip(("1.png", "2.png", "b<i>/1.png"), sources, strict=False):
        shutil.copy(source, tmp_path / "own" / name)
    with Image.open(sources[3]) as image:
        image.resize((300, 200)).save(tmp_path / "own" / "wide.JPG", "JPEG")
    (tmp_path / "own" / "broken.png").write_bytes(b"nothing")
    (tmp_path / "own" / "notes.txt").write_text("words")
    return tmp_path / "own"


def records_of(to):
    return [json.loads(line) for line in (to / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]


def test_a_folder_becomes_one_file_of_records_and_one_page(run, folder, tmp_path, capsys, caplog):
    to = tmp_path / "reports"
    assert main(["predict", str(folder), "--to", str(to), *_options(run)]) == 0
    records = records_of(to)
    assert [record["uid"] for record in records] == ["1.png", "2.png", "b<i>/1.png", "wide.JPG"]
    assert all(record["reference"] is None and record["generated"]["findings"] for record in records)
    page = (to / "index.html").read_text(encoding="utf-8")
    assert page.count("<article") == 4
    assert "Image b&lt;i&gt;/1.png" in page
    assert "4 images without reference reports" in page
    assert "Reference" not in page
    assert "skipped: image" in caplog.text
    said = capsys.readouterr().out
    assert "4 reports written, 0 were there already, 1 skipped" in said
    assert list(json.loads((to / "skipped.json").read_text())) == ["broken.png"]
    with (to / "predictions.csv").open(encoding="utf-8", newline="") as stream:
        table = list(csv.DictReader(stream))
    assert [row["uid"] for row in table] == [record["uid"] for record in records]
    assert all(record["generated"]["findings"] in row["prediction"] for row, record in zip(table, records, strict=True))


def _options(run):
    return ["--run", run["run"], "--output-root", run["output_root"]]


def test_reports_are_those_of_one_image_at_a_time(run, trained, folder, tmp_path):
    predict_files([folder], to=tmp_path / "to", **run)
    reporter = own_images.reporter_of(trained, 3)
    for record in records_of(tmp_path / "to"):
        assert record["generated"]["findings"] == reporter.report(folder / record["uid"]).findings


def test_an_image_that_shows_nothing_is_named_and_the_others_are_reported_on(run, folder, tmp_path):
    Image.new("L", (300, 300), 255).save(folder / "white.png")
    result = predict_files([folder], to=tmp_path / "to", **run)
    assert (result.written, list(result.skipped)) == (4, ["broken.png", "white.png"])
    assert "shows nothing" in result.skipped["white.png"]


def test_reports_that_were_cut_say_so_in_record_card_page_and_result(run, trained, folder, tmp_path, monkeypatch):
    short = dataclasses.replace(trained, generation=dataclasses.replace(trained.generation, max_new_tokens=3))
    monkeypatch.setattr(RunFolder, "profile", lambda _: short)
    result = predict_files([folder], to=tmp_path / "to", **run)
    assert result.doubted == 4
    assert "4 with the flag 'cut at the token limit'" in own_images.told(result)
    records = records_of(tmp_path / "to")
    assert all("cut at the token limit" in record["flags"] for record in records)
    assert "cut off at the longest allowed length" in ReportCard(Record.read(records[0])).text()
    page = (tmp_path / "to" / "index.html").read_text(encoding="utf-8")
    assert '<option value="cut at the token limit">' in page


def test_it_goes_on_where_it_was_interrupted(run, trained, folder, tmp_path, monkeypatch):
    to, written = tmp_path / "to", []
    two = dataclasses.replace(trained, generation=dataclasses.replace(trained.generation, batch_size=2))
    original = Reporter.write

    def dies_at_the_second_batch(self, images, progress=None):
        if written:
            raise KeyboardInterrupt
        written.extend(images)
        return original(self, images, progress)

    with monkeypatch.context() as patch:
        patch.setattr(Reporter, "write", dies_at_the_second_batch)
        patch.setattr(RunFolder, "profile", lambda _: two)
        with pytest.raises(KeyboardInterrupt):
            predict_files([folder], to=to, **run)
    assert len(records_of(to)) == len(written) == 2
    with (to / "predictions.jsonl").open("a") as stream:
        stream.write('{"uid": "torn')
    result = predict_files([folder], to=to, **run)
    assert (result.kept, result.kept + result.written) == (len(written), 4)
    assert sorted(record["uid"] for record in records_of(to)) == ["1.png", "2.png", "b<i>/1.png", "wide.JPG"]


def test_a_finished_folder_loads_no_model_and_a_changed_file_is_reported_anew(
    run, dataset, folder, tmp_path, monkeypatch
):
    predict_files([folder], to=tmp_path / "to", **run)
    with monkeypatch.context() as patch:
        patch.setattr(own_images, "reporter_of", lambda *_: pytest.fail("loaded"))
        again = predict_files([folder], to=tmp_path / "to", **run)
        assert (again.written, again.kept) == (0, 4)
    shutil.copy(dataset.split("validation")[4].image, folder / "2.png")
    again = predict_files([folder], to=tmp_path / "to", **run)
    assert (again.written, again.kept) == (1, 3)
    assert len(records_of(tmp_path / "to")) == 4


@pytest.fixture
def namesakes(dataset, tmp_path):
    """Folders of one name; of their images some share a name, some their content, some both."""
    sources = [study.image for study in dataset.split("train")[:3]]
    contents = {"a": {"x.png": 0, "y.png": 1}, "b": {"x.png": 1, "z.png": 2}, "c": {"x.png": 0, "y.png": 1}}
    folders = {}
    for parent, images in contents.items():
        folders[parent] = tmp_path / parent / "images"
        folders[parent].mkdir(parents=True)
        for name, number in images.items():
            shutil.copy(sources[number], folders[parent] / name)
    return folders


def test_folders_of_one_name_have_each_their_page_by_what_is_in_them(run, trained, namesakes):
    results = {parent: predict_files([folder], **run) for parent, folder in namesakes.items()}
    for parent, folder in namesakes.items():
        found = {record["uid"]: record["file"] for record in records_of(results[parent].folder)}
        assert found == {image.name: image.hash for image in find_images([folder], folder / "to")}
        assert (results[parent].folder / "index.html").read_text(encoding="utf-8").count("<article") == 2
    assert results["a"].folder == results["c"].folder != results["b"].folder
    # What has a report of this model is not reported on again: of b one image is a's.
    assert [(ours.written, ours.kept) for ours in results.values()] == [(2, 0), (1, 1), (0, 2)]
    shutil.copy(namesakes["b"] / "z.png", namesakes["a"] / "new.png")
    grown = predict_files([namesakes["a"]], **run)
    assert (grown.written, grown.kept) == (0, 3)


def test_two_at_once_lose_nothing(run, trained, namesakes):
    first = predict_files([namesakes["a"]], **run)
    before = (first.folder / "predictions.jsonl").read_bytes()
    with holding(first.folder, "predict", "", ""):
        assert predict_files([namesakes["b"]], **run).folder != first.folder
        for to in (None, first.folder):
            with pytest.raises(
                RadVisionError, match=r"is being worked on by process \d+ .*or give another folder with"
            ):
                predict_files([namesakes["c"]], to=to, **run)
    assert (first.folder / "predictions.jsonl").read_bytes() == before


def test_a_report_is_not_replaced_by_that_on_another_folders_image_of_its_name(run, trained, namesakes, tmp_path):
    predict_files([namesakes["a"]], to=tmp_path / "to", **run)
    before = records_of(tmp_path / "to")
    with pytest.raises(
        RadVisionError, match=r"holds a report on another folder's image of the name x\.png, .*with --to"
    ):
        predict_files([namesakes["b"]], to=tmp_path / "to", **run)
    assert records_of(tmp_path / "to") == before


def test_reports_of_another_model_are_not_mixed_in(run, folder, tmp_path):
    predict_files([folder], to=tmp_path / "to", **run)
    with pytest.raises(RadVisionError, match=r"reports of another model .* give another folder with --to"):
        predict_files([folder], to=tmp_path / "to", stage=0, **run)


def test_a_csv_lists_images_from_where_it_lies(run, folder, tmp_path):
    (tmp_path / "list.csv").write_text(
        "\ufeffuid,image\nA,own/1.png\n,own/2.png\nC,own/nowhere.png\n", encoding="utf-8"
    )
    result = predict_files([tmp_path / "list.csv"], to=tmp_path / "to", **run)
    assert [record["uid"] for record in records_of(tmp_path / "to")] == ["A", "own/2.png"]
    assert list(result.skipped) == ["C"]


def test_what_was_written_into_the_folder_is_no_input(folder):
    (folder / "out" / "images").mkdir(parents=True)
    shutil.copy(folder / "1.png", folder / "out" / "images" / "x.png")
    names = [image.name for image in find_images([folder], folder / "out")]
    assert names == ["1.png", "2.png", "b<i>/1.png", "broken.png", "wide.JPG"]


def test_dicom_without_an_ending_is_found_and_equal_names_are_told_apart(folder):
    (folder / "IM0001").write_bytes(b"\0" * 128 + b"DICM")
    (folder / "README").write_text("words")
    assert "IM0001" in [image.name for image in find_images([folder], folder / "out")]
    twice = find_images([folder / "1.png", folder / "b<i>" / "1.png"], folder / "out")
    assert [image.name for image in twice] == ["1.png", "b<i>/1.png"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("name\nx.png\n", "has no column `image`"),
        ("image\n", "there is no image in"),
    ],
)
def test_a_csv_that_lists_nothing_is_answered(tmp_path, text, sentence):
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(RadVisionError, match=sentence):
        find_images([tmp_path / "list.csv"], tmp_path / "to")


def test_a_folder_of_broken_images_only_says_so(run, tmp_path):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "1.png").write_bytes(b"nothing")
    with pytest.raises(RadVisionError, match=r"none of the 1 images could be read; the first, 1\.png"):
        predict_files([tmp_path / "bad"], to=tmp_path / "to", **run)


def test_a_card_without_reference_says_what_the_report_asserts(run, folder, tmp_path):
    predict_files([folder], to=tmp_path / "to", **run)
    record = records_of(tmp_path / "to")[0]
    record["labels"]["generated"] = {
        "Pleural Effusion": {"status": "present", "sides": ["left"]},
        "Edema": {"status": "uncertain", "sides": []},
        "Fracture": {"status": "absent", "sides": []},
    }
    text = ReportCard(Record.read(record)).text()
    assert "Asserted by the report (rule-based, may be wrong)\n  Pleural effusion (left)\n  Edema (uncertain)" in text
    assert "Fracture" not in text[text.index("Asserted") :]
    html = ReportCard(Record.read(record), tmp_path / "to" / record["image"]).html()
    assert "Reference" not in html
    assert ReportCard(Record.read(record), tmp_path / "to" / record["image"]).save(tmp_path / "card.png").is_file()


def test_a_model_of_drawings_warns_first_and_on_every_card(run, folder, tmp_path, capsys):
    warning = "has only ever seen drawings, no patient, a model of 1.6 million parameters"
    image = next(path for path in sorted(folder.rglob("*.png")) if path.name != "broken.png")
    assert main(["predict", str(image), *_options(run)]) == 0
    told = capsys.readouterr().out
    assert warning in told.splitlines()[0]
    assert told.count(warning) == 2
    predict_files([folder], to=tmp_path / "to", **run)
    page = (tmp_path / "to" / "index.html").read_text(encoding="utf-8")
    assert page.count(warning) == 1 + page.count("<article")


def test_whose_model_is_asked_where_there_are_several_runs(run, folder, tmp_path, capsys):
    for name in ("one", "two"):
        shutil.copytree(RunFolder(**run).path, tmp_path / "runs" / name)
    assert main(["predict", str(folder), "--output-root", str(tmp_path / "runs")]) == 1
    assert "there are several runs (one, two): name one with --run." in capsys.readouterr().err
    shutil.rmtree(tmp_path / "runs" / "two")
    assert only_run("", tmp_path / "runs") == "one"
