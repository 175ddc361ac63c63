"""Settings: what a user may change, and what one is told when it cannot be."""

import subprocess
import sys

import pytest

from radvision_utils.config import PROFILES, RadVisionError, load_profile, meanings, profile_from_dict, settings_of


def test_overrides_reach_the_setting_that_they_name():
    profile = load_profile("tiny", {"stage3.epochs": 2, "data.limit": 200})
    assert (profile.stage3.epochs, profile.data.limit) == (2.0, 200)


def test_overrides_may_be_json_text_as_papermill_passes_them():
    assert load_profile("tiny", '{"stage1.learning_rate": 0.5}').stage1.learning_rate == 0.5


def test_empty_run_and_source_keep_the_profiles_own():
    profile = load_profile("lingshu-7b", "{}", run="", source="")
    assert (profile.run, profile.data.source) == ("lingshu-7b", "ykumards/open-i")


@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_survives_being_written_and_read(name):
    profile = load_profile(name)
    assert profile_from_dict(profile.to_dict()) == profile


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ({"stage3.epocs": 2}, "setting 'stage3.epocs' does not exist: did you mean 'stage3.epochs'?"),
        ({"stage3.epochs": "two"}, "setting 'stage3.epochs' must be a number, not 'two'."),
        ({"stage1.micro_batch": 1.5}, "setting 'stage1.micro_batch' must be a whole number or auto, not 1.5."),
        ({"stage1.micro_batch": True}, "setting 'stage1.micro_batch' must be a whole number or auto, not True."),
        ({"stage1.micro_batch": "most"}, "setting 'stage1.micro_batch' must be a whole number or auto, not 'most'."),
        ({"stage1.learning_rate": "auto"}, "setting 'stage1.learning_rate' must be a number, not 'auto'."),
        ({"stage1.micro_batch": 0}, "setting 'stage1.micro_batch' must be at least 1, not 0."),
        ({"stage2.cache_features": 1}, "setting 'stage2.cache_features' must be true or false, not 1."),
        ({"model.quantization": "int8"}, "setting 'model.quantization' must be one of nf4, none, not 'int8'."),
        ({"stage1.learning_rate": float("nan")}, "setting 'stage1.learning_rate' must be a finite number, not nan."),
        ({"name": "other"}, "setting 'name' cannot be overridden: choose another profile."),
        ({"run": "../elsewhere"}, "run '../elsewhere' cannot name a folder"),
        ("{stage3: 2}", "the text of overrides is not readable JSON"),
        ("[" * 100_000, "the text of overrides is not readable JSON"),
        ('{"seed": ' + "9" * 5000 + "}", "the text of overrides is not readable JSON (a number of 5000 digits)"),
        (
            {"data.source": 2024},
            "setting 'data.source' must be a text, not 2024: write it in quotes, or for papermill as `-r",
        ),
        (
            {"seed": "5"},
            "setting 'seed' must be a whole number, not '5': write the number without quotes, or for papermill",
        ),
        ("[1]", "overrides must be a JSON object"),
    ],
)
def test_a_wrong_override_is_named_in_one_sentence(overrides, sentence):
    with pytest.raises(RadVisionError, match="^" + __import__("re").escape(sentence)):
        load_profile("tiny", overrides)


def test_an_unknown_profile_is_answered_with_those_that_exist():
    with pytest.raises(RadVisionError, match=r"'huge' does not exist: choose one of tiny, tiny-real, lingshu-7b\."):
        load_profile("huge")


def test_every_setting_of_a_stage_is_reachable_by_its_dotted_name():
    assert {"stage1.lora_rank", "stage2.learning_rate", "stage3.accumulation", "seed"} <= set(
        settings_of(PROFILES["tiny"])
    )


def test_every_setting_has_a_meaning():
    said = meanings()
    assert list(said) == list(settings_of(PROFILES["tiny"]))
    assert [name for name, meaning in said.items() if len(meaning) < 5] == ["name"]
    assert said["stage2.lora_alpha"] == "what LoRA adds is multiplied by lora_alpha / lora_rank"
    assert said["stage1.label_weight"].endswith("which makes a step many times faster.")  # a comment of two lines


def test_importing_the_package_and_a_profile_imports_no_torch():
    code = "import sys, radvision_utils as r; r.load_profile('tiny'); r.Report; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
