"""Every setting of a run, once: typed, validated, and overridable by name.

Knows nothing of torch. A `Profile` is frozen, so two runs with equal profiles have equal fingerprints.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import json
import math
import os
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

PROMPT = (
    "You are a helpful assistant. Please generate a report for the given image, including both findings "
    "and impressions. Return the report in the following format: Findings: {} Impression: {}."
)
"""The report prompt of Lingshu's own evaluation (MedEvalKit, `utils/question_formats.py`), in the singular."""

REPOSITORY = "https://github.com/radvision-7b/radvision-7b"
"""Where the project is cloned from. README and the first cells of the notebooks, which come before it, say the same."""

STAGES = (1, 2, 3)
STAGE_LABELS = {0: "base, untuned", 1: "after stage 1", 2: "after stage 2", 3: "after stage 3"}  # of its reports
DISCLAIMER = "Research and education only. Not a medical device."


class RadVisionError(Exception):
    """An error whose message is meant for the user: what was wrong, where, and what to do."""


class RunPaused(RadVisionError):
    """No failure: a stage used up its `max_minutes` and stopped at a checkpoint; the same command goes on."""

    def _render_traceback_(self) -> list[str]:
        # IPython shows this in place of a traceback: in a notebook the pause reads as a sentence.
        return [str(self)]


def parse_json(text: str | bytes, where: str, remedy: str) -> Any:
    """The value of a JSON text; bytes may be UTF-8, UTF-16 or UTF-32. An error begins with `where`, ends with `remedy`.

    Raises:
        RadVisionError: it is none, is nested too deeply, has a name twice, half a character or more than 18 digits.
    """
    try:
        text = text.decode(json.detect_encoding(text)) if isinstance(text, bytes) else text
        value = json.loads(text, parse_int=_whole_number, object_pairs_hook=_names_once)
        (json.dumps(value, ensure_ascii=False) if "\\u" in text else text).encode()
        return value
    except (ValueError, RecursionError) as error:
        why = "not in UTF-8, or half a character in it" if isinstance(error, UnicodeError) else error
        raise RadVisionError(f"{where} is not readable JSON ({why}): {remedy}.") from error


def _names_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        twice = next(name for n, (name, _) in enumerate(pairs) if name in dict(pairs[:n]))
        raise ValueError(f"the name {twice[:40]!r} twice in one object")
    return values


def _whole_number(digits: str) -> int:
    if len(digits) > 18:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def _setting(
    default: Any,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] = (),
    auto: bool = False,
) -> Any:
    """A dataclass field with its allowed range (inclusive) or its allowed words.

    With `auto` it may be `AUTO`: then the planner puts a number in its place before it is used (`planning.plan`).
    """
    return field(default=default, metadata={"low": low, "high": high, "choices": choices, "auto": auto})


AUTO: Any = "auto"
"""In place of a number that the planner chooses for the card at hand; what is trained is the same on every card."""


@dataclass(frozen=True)
class DataSettings:
    """From source rows to prepared studies."""

    source: str = "phantom"  # "phantom", a hub id, a parquet file or folder, or a folder of images with tables
    limit: int | None = _setting(None, low=1)  # read at most this many rows
    phantoms: int = _setting(2000, low=10)  # embedded studies to draw, where source is "phantom"
    hospital: str = _setting("B", choices=("A", "B", "C"))  # whose look and reporting habits the phantoms have
    image_size: int = _setting(512, low=56, high=4096)  # side of the stored square image, pixels
    required: str = _setting("both", choices=("both", "either"))  # report sections that a study must have
    deidentified: str = _setting("drop", choices=("drop", "keep"))  # sentences with XXXX in training targets
    priors: str = _setting("drop", choices=("drop", "keep"))  # sentences that refer to earlier studies
    workers: int = _setting(0, low=0)  # processes for preparation; 0: one a core
    # Training sees images turned, scaled, moved, brighter or darker by chance, never mirrored; no features are kept.
    augment: bool = False
    abnormal_share: float | None = _setting(None, low=0.0, high=1.0)  # share of abnormal studies shown; null: as is


@dataclass(frozen=True)
class ModelSettings:
    """The base model and how it is loaded."""

    base: str = "tiny"  # "tiny" (embedded), a hub id, or a folder
    quantization: str = _setting("nf4", choices=("nf4", "none"))  # of the language model's linear layers only
    visual_tokens: int = _setting(16, low=1)  # tokens that one prepared image must become; asserted
    max_report_tokens: int = _setting(320, low=8)  # longer reports are cut at the end, never the image
    prompt: str = PROMPT  # what the model is asked, the same in training and in use
    indication: bool = False  # why the examination was made stands behind the prompt
    # Findings begin with a line of labels, which weighs most in the loss; see small_data/summary.py.
    summary: bool = False


@dataclass(frozen=True)
class StageSettings:
    """How one stage trains. An optimizer step takes the same studies on every card, over all processes together."""

    learning_rate: float = _setting(1e-4, low=0.0)  # the highest, after the warm-up
    epochs: float = _setting(1.0, low=0.0)  # how often each training study is shown
    max_steps: int | None = _setting(None, low=1)  # optimizer steps; ends before `epochs` if reached
    batch: int = _setting(16, low=1)  # studies of an optimizer step, unless both of the next two are numbers
    micro_batch: int = _setting("auto", low=1, high=1024, auto=True)  # studies at a time in the model; auto: that fit
    accumulation: int = _setting("auto", low=1, auto=True)  # micro-batches of an optimizer step; auto: what is left
    warmup_ratio: float = _setting(0.05, low=0.0, high=1.0)  # share of the steps in which the learning rate rises
    # How the learning rate goes on after the warm-up.
    schedule: str = _setting("cosine", choices=("cosine", "linear", "constant_with_warmup"))
    weight_decay: float = _setting(0.0, low=0.0)  # of AdamW
    max_grad_norm: float = _setting(1.0, low=0.0)  # a longer gradient is shortened to it; 0: none is
    # 8-bit AdamW whose state may move to the computer's memory, or torch's own.
    optimizer: str = _setting("paged_adamw_8bit", choices=("paged_adamw_8bit", "adamw_torch"))
    # Language model layers under gradient checkpointing; null: all; 0: none, also in the vision encoder; auto: what the
    # card's memory asks for.
    checkpointed_layers: int | None = _setting("auto", low=0, auto=True)
    # Decoder and vision encoder train as compiled code; auto: on a card with bfloat16, where a stage earns it.
    compile: str = _setting("auto", choices=("auto", "always", "never"))
    cache_features: bool = True  # stages 2 and 3: compute the frozen vision encoder once for each image, on disk
    save_steps: int = _setting(100, low=1)  # optimizer steps between checkpoints
    eval_steps: int | None = _setting(None, low=1)  # between validations; null: after each epoch
    patience: int | None = _setting(None, low=1)  # validations without a better loss that end it, with the best kept
    report_to: str = "none"  # transformers sends the curves there too: tensorboard, wandb, trackio
    max_minutes: float | None = _setting(None, low=0.0)  # of one call; then it stops at a checkpoint and can go on
    validation_studies: int = _setting(200, low=1)  # validation studies whose loss is measured
    lora_rank: int = _setting(16, low=1)  # of this stage's component; the projector has no LoRA
    lora_alpha: int = _setting(32, low=1)  # what LoRA adds is multiplied by lora_alpha / lora_rank
    lora_dropout: float = _setting(0.05, low=0.0, high=0.9)  # share of what LoRA sees that is left out by chance

    @property
    def step_size(self) -> int:
        """Studies of an optimizer step."""
        split = self.micro_batch, self.accumulation
        return self.batch if AUTO in split else math.prod(split)

    def shown(self, studies: int) -> float:
        """Studies that the stage shows, each as often as it comes, where there are so many to train on."""
        return min(self.epochs * studies, (self.max_steps or math.inf) * self.step_size)


@dataclass(frozen=True)
class SeeingSettings(StageSettings):
    """Of stages 1 and 2, which make the visual tokens."""

    # How much of the loss is that of finding labels, which a head reads off the tokens while the stage trains. With 1.0
    # the language model is not asked, which makes a step many times faster.
    label_weight: float = _setting(0.0, low=0.0, high=1.0)


@dataclass(frozen=True)
class VisionSettings(SeeingSettings):
    """Of stage 1."""

    train: str = _setting("lora", choices=("lora", "full"))  # LoRA, or all weights of the vision encoder


@dataclass(frozen=True)
class GenerationSettings:
    """How reports are written. Greedy: the same image always gives the same report."""

    batch_size: int = _setting(32, low=1, auto=True)  # reports that are written together; auto: as many as fit
    max_new_tokens: int = _setting(256, low=1)  # a longer report is cut there
    # With model.summary: the line of findings as the model writes it, or by their probabilities, fitted on validation.
    findings: str = _setting("written", choices=("written", "scored"))
    # How much of what the mean training image makes likely is taken off while words are chosen; 0: nothing.
    contrast: float = _setting(0.0, low=0.0, high=1.0)
    # At most this share of the findings said so is unsupported on validation; null: as the highest F1 is expected.
    unsupported: float | None = _setting(None, low=0.0, high=1.0)


@dataclass(frozen=True)
class EvaluationSettings:
    """How much notebook 05 judges. What is left out can be added later; nothing that is there is taken away."""

    stages: str = _setting("all", choices=("all", "ends"))  # whose reports; "ends": the untuned base and stage 3
    evidence: int = _setting(12, low=0)  # studies whose sentences get maps, the worst reports first
    samples: int = _setting(3, low=0)  # reports drawn by lot for each study, for confidence in its sentences

    @property
    def judged(self) -> tuple[int, ...]:
        """The stages whose reports are written; 0 is the untuned base."""
        return (0, *STAGES) if self.stages == "all" else (0, STAGES[-1])


@dataclass(frozen=True)
class Profile:
    """All settings of one run."""

    name: str
    run: str  # the folder of this run, below output_root
    data: DataSettings
    model: ModelSettings
    stage1: VisionSettings
    stage2: SeeingSettings
    stage3: StageSettings
    generation: GenerationSettings
    evaluation: EvaluationSettings = EvaluationSettings()
    seed: int = _setting(23, low=0, high=2**31 - 1)  # of all that is left to chance
    output_root: str = "outputs"  # the folder of all runs

    def stage(self, number: int) -> StageSettings:
        """Settings of stage 1, 2 or 3.

        Raises:
            RadVisionError: `number` is not a stage.
        """
        if number not in STAGES:
            raise RadVisionError(f"stage {number!r} does not exist: choose 1, 2 or 3.")
        return (self.stage1, self.stage2, self.stage3)[number - 1]

    def keeps_features(self, stage: int, studies: int) -> bool:
        """Whether a stage computes the frozen vision encoder once for each image and keeps what it gives.

        That pays where the stage sees each of so many training studies at least once, always the same; a trial of a
        few steps computes what it needs as it goes.
        """
        settings = self.stage(stage)
        frozen = stage > 1 and not self.data.augment
        return frozen and settings.cache_features and settings.shown(studies) >= studies

    def to_dict(self) -> dict[str, Any]:
        """The profile as plain JSON values; `profile_from_dict` reads it back."""
        return dataclasses.asdict(self)


Settings = TypeVar("Settings", bound=StageSettings)


def _tiny(kind: type[Settings], batch: int = 8, **changes: Any) -> Settings:
    return kind(batch=batch, micro_batch=batch, accumulation=1, lora_dropout=0.0, **changes)


PROFILES: dict[str, Profile] = {
    # Small, not fake: the same classes and code as the 7B, minutes on two CPU cores. Images are stored at 512 x 512
    # like the real ones; the tiny processor then reduces them to 224 x 224 (8 x 8 patches of 28, 16 visual tokens).
    "tiny": Profile(
        name="tiny",
        run="tiny",
        data=DataSettings(),
        model=ModelSettings(),
        # Memory is no concern at this size: stage 2 alone computes its layers twice, to go the 7B's way.
        stage1=_tiny(VisionSettings, learning_rate=2e-3, epochs=3.0, checkpointed_layers=0),
        stage2=_tiny(SeeingSettings, learning_rate=1e-3, epochs=1.0, checkpointed_layers=None),
        stage3=_tiny(StageSettings, learning_rate=1e-3, epochs=2.0, checkpointed_layers=0),
        generation=GenerationSettings(),
    ),
    # Real radiographs on a CPU: before the stages the base learns the source's English (`build-base --source`); finding
    # labels teach the vision encoder, and reports begin with them. docs/profiles.md says what each of these means does.
    "tiny-real": Profile(
        name="tiny-real",
        run="tiny-real",
        data=DataSettings(source="ykumards/open-i", augment=True, abnormal_share=0.55),
        model=ModelSettings(summary=True),
        stage1=_tiny(
            VisionSettings,
            learning_rate=1e-3,
            epochs=28.0,
            batch=32,
            train="full",
            label_weight=1.0,
            checkpointed_layers=0,
            weight_decay=0.05,
            warmup_ratio=0.1,
            eval_steps=400,  # labels alone are learned: the report loss says nothing of it
        ),
        stage2=_tiny(SeeingSettings, learning_rate=1e-3, epochs=2.0, batch=16, checkpointed_layers=0),
        stage3=_tiny(StageSettings, learning_rate=2e-3, epochs=6.0, batch=16, checkpointed_layers=0),
        generation=GenerationSettings(max_new_tokens=160, findings="scored"),
        evaluation=EvaluationSettings(stages="all", evidence=0, samples=0),
    ),
    # A card of 16 GB or more. 512 x 512 becomes 504 x 504 (multiples of 28): 36 x 36 patches, 324 visual tokens.
    "lingshu-7b": Profile(
        name="lingshu-7b",
        run="lingshu-7b",
        data=DataSettings(source="ykumards/open-i"),
        model=ModelSettings(base="lingshu-medical-mllm/Lingshu-7B", visual_tokens=324),
        stage1=VisionSettings(learning_rate=1e-4, epochs=1.0),
        stage2=SeeingSettings(learning_rate=5e-5, epochs=1.0),
        stage3=StageSettings(learning_rate=1e-4, epochs=2.0),
        generation=GenerationSettings(batch_size=AUTO),
        # On a T4 judging then takes no longer than training, even where every report runs to max_new_tokens (`plan`).
        evaluation=EvaluationSettings(evidence=0, samples=0),
    ),
}


def project_root() -> Path:
    """The project's folder, or the working directory where the package is installed without its project."""
    root = Path(__file__).resolve().parent.parent
    return root if (root / "pyproject.toml").is_file() else Path.cwd()


def load_profile(
    name: str = "tiny",
    overrides: Mapping[str, Any] | str | None = None,
    *,
    run: str = "",
    source: str = "",
    output_root: str = "",
    seed: int | None = None,
) -> Profile:
    """A named profile with changes applied; an empty `run`, `source` or `output_root` keeps the profile's own.

    Args:
        name: one of `PROFILES`.
        overrides: dotted setting names to values, as a mapping or its JSON text:
            `{"stage3.epochs": 2, "data.limit": 200}`.

    Raises:
        RadVisionError: an unknown profile or setting, a value of the wrong type or out of range, JSON that is none.
    """
    values = _defaults(name).to_dict()
    changes = _parse_overrides(overrides)
    named = {"run": run, "data.source": source, "output_root": output_root}
    changes = {**{key: value for key, value in named.items() if value != ""}, **changes}
    if seed is not None:
        changes = {"seed": seed, **changes}
    for key, value in changes.items():
        _assign(values, key, value)
    return profile_from_dict(values)


def _defaults(name: str) -> Profile:
    if name not in list(PROFILES):
        raise RadVisionError(f"profile {name!r} does not exist: choose one of {', '.join(PROFILES)}.")
    return PROFILES[name]


def command_words(profile: Profile, verb: str) -> list[str]:
    """What stands behind `python -m radvision_utils` to give this very profile to `run` or `train`.

    Raises:
        RadVisionError: the profile's name is none of ours.
    """
    words = [verb, "--profile", profile.name, "--run", profile.run]
    usual, options = settings_of(_defaults(profile.name)), {"data.source": "--source", "output_root": "--output-root"}
    for key, value in settings_of(profile).items():
        if key in ("name", "run") or value == usual[key]:
            continue
        plain = key in options and _stands_for_itself(value)
        words += [options[key], value] if plain else ["--set", f"{key}={json.dumps(value)}"]
    return words


def _stands_for_itself(path: str) -> bool:
    """Whether the command line takes the word as it is: no other option, no line's end, no path from where one is."""
    return path.isprintable() and path[:1] not in ("", "-") and (os.path.isabs(path) or not os.path.exists(path))


def profile_from_dict(values: Mapping[str, Any]) -> Profile:
    """A validated profile from what `Profile.to_dict` gave, as `run.json` keeps it.

    Raises:
        RadVisionError: a setting is unknown, missing, of the wrong type or out of range.
    """
    profile: Profile = _build(Profile, values, "")
    _defaults(profile.name)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", profile.run):
        raise RadVisionError(
            f"run {profile.run!r} cannot name a folder: use letters, digits, '.', '_' and '-', "
            "beginning with a letter or digit."
        )
    return profile


def _parse_overrides(overrides: Mapping[str, Any] | str | None) -> dict[str, Any]:
    if overrides is None or overrides == "":
        return {}
    if isinstance(overrides, str):
        overrides = parse_json(overrides, "the text of overrides", 'write them like {"stage3.epochs": 2}')
    if not isinstance(overrides, Mapping):
        raise RadVisionError(f'overrides must be a JSON object such as {{"stage3.epochs": 2}}, not {overrides!r}.')
    return dict(overrides)


def settings_of(settings: Any, prefix: str = "") -> dict[str, Any]:
    """All settings of a profile, or of a part of it, by their dotted names: `data.limit`, `stage1.epochs`, ..."""
    found: dict[str, Any] = {}
    for item in dataclasses.fields(settings):
        value = getattr(settings, item.name)
        inner = dataclasses.is_dataclass(value)
        found |= settings_of(value, f"{prefix}{item.name}.") if inner else {prefix + item.name: value}
    return found


def usual_settings() -> dict[str, Any]:
    """Each setting as its class has it: so were made the results of versions that did not know it, in any profile."""
    stages = VisionSettings(), SeeingSettings(), StageSettings()
    return settings_of(Profile("", "", DataSettings(), ModelSettings(), *stages, GenerationSettings()))


def unusual_settings(profile: Profile) -> dict[str, Any]:
    """The settings that are unlike `usual_settings`. One that a later version adds changes no fingerprint of these."""
    usual = usual_settings()
    return {name: value for name, value in settings_of(profile).items() if value != usual[name]}


def meanings(part: type = Profile, prefix: str = "") -> dict[str, str]:
    """What each setting means, by its dotted name: the comment that stands behind or above it in this file."""
    said = {}
    for kind in reversed(part.__mro__[:-1]):
        fields = r"(?m)^((?:    # .*\n)*)    (\w+): [^#\n]*(?:# (.*))?$"
        for above, name, behind in re.findall(fields, inspect.getsource(kind)):
            said[name] = behind or " ".join(above.replace("# ", "").split())
    found: dict[str, str] = {}
    for name, hint in typing.get_type_hints(part).items():
        inner = dataclasses.is_dataclass(hint)
        found |= meanings(hint, f"{prefix}{name}.") if inner else {prefix + name: said[name]}
    return found


def _assign(values: dict[str, Any], key: str, value: Any) -> None:
    if key == "name":
        raise RadVisionError("setting 'name' cannot be overridden: choose another profile.")
    names = settings_of(PROFILES["tiny"])
    if key not in names:
        near = difflib.get_close_matches(key, names, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"settings are {', '.join(names)}."
        raise RadVisionError(f"setting {key!r} does not exist: {hint}")
    *parents, leaf = key.split(".")
    for parent in parents:
        values = values[parent]
    values[leaf] = value


def _build(cls: Any, values: Mapping[str, Any], prefix: str) -> Any:
    if not isinstance(values, Mapping):
        raise RadVisionError(f"setting {prefix.rstrip('.')!r} must be an object of settings, not {values!r}.")
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for key in values:
        if key not in fields:
            raise RadVisionError(f"setting {prefix + key!r} does not exist.")
    built: dict[str, Any] = {}
    for name, setting in fields.items():
        if name not in values:
            if setting.default is dataclasses.MISSING:
                raise RadVisionError(f"setting {prefix + name!r} is missing.")
            continue
        if dataclasses.is_dataclass(hints[name]):
            built[name] = _build(hints[name], values[name], f"{prefix}{name}.")
        else:
            built[name] = _check(prefix + name, values[name], hints[name], setting.metadata)
    return cls(**built)


def _check(key: str, value: Any, hint: Any, limits: Mapping[str, Any]) -> Any:
    allowed = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if (value is None and type(None) in allowed) or (limits.get("auto") and value == AUTO):
        return value
    wanted = next(kind for kind in allowed if kind is not type(None))
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    # bool is an int in Python; a setting that wants a number does not.
    if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
        hint = ""  # papermill's -p makes of a value what it looks like, its -r a text
        if wanted is str and isinstance(value, int | float):
            hint = f": write it in quotes, or for papermill as `-r {key} {value}`"
        elif isinstance(value, str) and re.fullmatch(r"[-+\d.e]+", value):
            hint = f": write the number without quotes, or for papermill as `-p {key} {value}`"
        kind = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}[wanted]
        kind += " or null" * (type(None) in allowed) + " or auto" * bool(limits.get("auto"))
        raise RadVisionError(f"setting {key!r} must be {kind}, not {value!r}{hint}.")
    if isinstance(value, float) and not math.isfinite(value):
        raise RadVisionError(f"setting {key!r} must be a finite number, not {value!r}.")
    low, high, choices = limits.get("low"), limits.get("high"), limits.get("choices")
    if choices and value not in choices:
        raise RadVisionError(f"setting {key!r} must be one of {', '.join(choices)}, not {value!r}.")
    if low is not None and value < low:
        raise RadVisionError(f"setting {key!r} must be at least {low:g}, not {value!r}.")
    if high is not None and value > high:
        raise RadVisionError(f"setting {key!r} must be at most {high:g}, not {value!r}.")
    return value
