"""What a run keeps is checked when it is used: a byte flipped or a file cut is told, or does no harm."""

import os
import shutil
from dataclasses import replace
from itertools import count
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from radvision_utils import RadVisionError, predict_beautiful, prepare_dataset, train_stage
from radvision_utils.data.images import load_image
from radvision_utils.data.studies import open_prepared
from radvision_utils.files import LIST, DamagedFile, checked, is_whole, list_files, read_json_lines
from radvision_utils.report import reporter_of
from radvision_utils.runs import RunFolder, require
from radvision_utils.training import train as trainer
from radvision_utils.training.resume import CheckpointMark, last_checkpoint

FAULTS = st.tuples(
    st.floats(0, 1, exclude_max=True), st.integers(0, 8)
)  # where; which bit flips, 8: all behind is gone
TICKS = count(1)
few = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


class damaged:
    """Within, a file has a fault; afterwards it is as before."""

    def __init__(self, path, fault):
        (place, self.bit), self.path, self.whole = fault, path, path.read_bytes()
        self.place = min(int(place * len(self.whole)), len(self.whole) - 1)

    def __enter__(self):
        data = bytearray(self.whole)
        if self.bit == 8:
            del data[self.place :]
        else:
            data[self.place] ^= 1 << self.bit
        self.write(data)

    def __exit__(self, *_):
        self.write(self.whole)

    def write(self, data):
        self.path.write_bytes(data)
        os.utime(self.path, ns=(0, next(TICKS)))  # a clock's tick is longer than some of these tests


def records(profile):
    return [require(profile, f"stage{number}")["hash"] for number in (1, 2, 3)]


def studies(profile):
    return [repr(study) for study in open_prepared(profile).split("test")]


def image(profile):
    return load_image(open_prepared(profile).split("test")[0].image).tobytes()


def report(profile):
    reporter = reporter_of(replace(profile, generation=replace(profile.generation, max_new_tokens=8)), 3)
    return [value.sum().item() for value in reporter.model.state_dict().values()]


@pytest.fixture(scope="module")
def run(trained, tmp_path_factory):
    """A copy of the finished run."""
    profile = replace(trained, output_root=str(tmp_path_factory.mktemp("damaged")))
    shutil.copytree(RunFolder.of(trained).path, RunFolder.of(profile).path)
    return profile


@pytest.fixture(scope="module")
def whole(run):
    return {use: use(run) for use in (records, studies, image, report)}


def told(profile, name, use, whole, fault):
    path, said, found = RunFolder.of(profile).path / name, "", None
    with damaged(path, fault):
        try:
            found = use(profile)
        except RadVisionError as error:
            said = str(error)
    if said:
        assert str(path.parent if path.name == LIST else path) in said
        assert "bring back a whole copy, or delete" in said
        assert said.endswith(".")
    else:  # what it lists besides may be damaged
        assert path.name == LIST
        assert found == whole[use]
    assert use(profile) == whole[use]


@pytest.mark.parametrize(
    ("name", "use"),
    [
        ("data/summary.json", studies),
        ("data/studies.arrow", studies),
        ("data/files.json", studies),
        ("data/files.json", image),
        *((f"stage{n}/{name}", records) for n in (1, 2, 3) for name in ("stage.json", "files.json")),
    ],
)
@few
@given(fault=FAULTS)
def test_of_a_record_or_the_studies(run, whole, name, use, fault):
    told(run, name, use, whole, fault)


@few
@given(fault=FAULTS)
def test_of_an_image(run, whole, fault):
    path = open_prepared(run).split("test")[0].image
    told(run, path.relative_to(RunFolder.of(run).path).as_posix(), image, whole, fault)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
@settings(few, max_examples=8)
@given(fault=FAULTS)
def test_of_an_adapter(run, whole, name, fault):
    told(run, f"stage3/adapter/{name}", report, whole, fault)


def test_reports_that_were_worked_on_are_shown_with_a_warning(run, tmp_path, caplog):
    shutil.copytree(RunFolder.of(run).stage(1), tmp_path / "stage1")
    with damaged(tmp_path / "stage1" / "log.jsonl", (0.99, 8)):
        assert len(read_json_lines(tmp_path / "stage1" / "log.jsonl", torn=True)) > 1
    assert "log.jsonl is cut or damaged" in caplog.text


def test_the_adapter_of_another_stage_is_none_of_this_one(run):
    one, three = (RunFolder.of(run).adapter(number) / "adapter_model.safetensors" for number in (1, 3))
    kept = three.read_bytes()
    shutil.copyfile(one, three)
    with pytest.raises(DamagedFile, match=r"stage3/adapter/adapter_model\.safetensors is cut or damaged"):
        reporter_of(run, 3)
    three.write_bytes(kept)


def test_a_damaged_record_is_told_before_its_step_is_made_anew(run, monkeypatch):
    monkeypatch.setattr(trainer, "_train", lambda *_: pytest.fail("it trains again"))
    for step, make in (("stage1", lambda: train_stage(run, 1)), ("data", lambda: prepare_dataset(run))):
        with damaged(RunFolder.of(run).record_path(step), (0.5, 0)), pytest.raises(DamagedFile, match="delete"):
            make()


def test_force_makes_anew_what_is_damaged(trained, tmp_path):
    profile = replace(trained, output_root=str(tmp_path))
    shutil.copytree(RunFolder.of(trained).path, RunFolder.of(profile).path)
    before = require(profile, "stage1")["hash"]
    RunFolder.of(profile).record_path("stage1").write_text("{}")
    assert train_stage(profile, 1, force=True).record["hash"] == before


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_link_that_leads_out_of_a_run_is_refused(run, tmp_path, kind):
    study = open_prepared(run).split("test")[0]
    place = study.image if kind == "file" else study.image.parent
    shutil.move(place, tmp_path / "elsewhere")
    place.symlink_to(tmp_path / "elsewhere")
    try:
        with pytest.raises(DamagedFile, match="a link that leads out of"):
            load_image(study.image)
        with pytest.raises(RadVisionError, match=r"is not in .*prepare the data again"):
            predict_beautiful(uid=study.uid, run=run.run, output_root=run.output_root)
    finally:
        place.unlink()
        shutil.move(tmp_path / "elsewhere", place)


def test_a_folder_without_a_list_is_taken_as_it_is(tmp_path):
    (tmp_path / "a").write_text("of one's own")
    assert checked(tmp_path / "a").read_text() == "of one's own"
    assert not is_whole(tmp_path)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Two checkpoints as training leaves them, but for their size."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for step in (9, 10):
        (folder / f"checkpoint-{step}").mkdir()
        for name in ("trained.safetensors", "optimizer.pt", "rng_state.pth", "trainer_state.json"):
            (folder / f"checkpoint-{step}" / name).write_bytes(os.urandom(50))
        list_files(folder / f"checkpoint-{step}")
    return folder


@few
@given(
    name=st.sampled_from(["trained.safetensors", "optimizer.pt", "rng_state.pth", "trainer_state.json"]), fault=FAULTS
)
def test_of_a_checkpoint_leads_to_the_one_before(checkpoints, name, fault):
    with damaged(checkpoints / "checkpoint-10" / name, fault):
        assert last_checkpoint(checkpoints).name == "checkpoint-9"
    assert last_checkpoint(checkpoints).name == "checkpoint-10"


def test_a_clock_that_was_set_back_costs_no_checkpoint(tmp_path):
    for step in (98, 99, 100):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "optimizer.pt").write_bytes(b"state")
        list_files(folder)
        os.utime(folder, (2e9 - step, 2e9 - step))
    args = SimpleNamespace(output_dir=str(tmp_path), distributed_state=SimpleNamespace(wait_for_everyone=lambda: None))
    CheckpointMark().on_save(
        args, SimpleNamespace(is_world_process_zero=True, global_step=100, best_model_checkpoint=None), None
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-100", "checkpoint-99"]
    assert last_checkpoint(tmp_path).name == "checkpoint-100"
