"""The command line: `radvision run | predict | evaluate ...`, the same as `python -m radvision_utils run ...`."""

from __future__ import annotations

import argparse
import io
import json
import logging
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from radvision_utils.config import (
    DISCLAIMER,
    PROFILES,
    STAGES,
    Profile,
    RadVisionError,
    RunPaused,
    load_profile,
    meanings,
    parse_json,
    settings_of,
)
from radvision_utils.environment import open_room, process_rank, quiet_libraries, set_up_libraries
from radvision_utils.files import require_writable
from radvision_utils.runs import RunFolder, is_current, only_run, require_locks


class _Parser(argparse.ArgumentParser):
    """Says in one sentence, as everything here does, what it cannot take."""

    def error(self, message: str) -> NoReturn:
        raise RadVisionError(f"{message}: `{self.prog} --help` says what there is.")


def _parser() -> argparse.ArgumentParser:
    about = "Fine-tune a vision-language model on chest radiographs. `python -m radvision_utils` is the same command."
    plain = argparse.RawTextHelpFormatter
    parser = _Parser(prog="radvision", description=about, epilog=DISCLAIMER, formatter_class=plain)
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", title="verbs")

    def verb(
        act: Callable[[argparse.Namespace], None], about: str, example: str, *shared: _Parser
    ) -> argparse.ArgumentParser:
        name = act.__name__.strip("_").replace("_", "-")
        example = f"radvision {name} {example}".strip()
        told = f"{about}\n  {example}"
        added = verbs.add_parser(name, parents=shared, help=told, description=about, epilog=f"Example: {example}")
        added.set_defaults(act=act)
        return added

    root = _option("--output-root", default="", metavar="DIR", help="default: outputs/ of the project")
    changes = _option("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting, e.g. stage3.epochs=2")
    finished = _option("--run", default="tiny", metavar="NAME", help="folder below outputs/")
    made = _option("--run", default="", metavar="NAME", help="folder below outputs/ (default: the profile's name)")
    made.add_argument("--source", default="", help="phantom, a hub id, parquet, or a folder of images with tables")
    made.add_argument("--force", action="store_true", help="also what is finished and unchanged")
    whole = (_profile_name("tiny"), made, changes, root)

    run = verb(_run, "prepare, train three stages, evaluate: the six notebooks in order", "--profile tiny", *whole)
    run.add_argument("--from", type=int, default=1, dest="first", metavar="N", help="begin with notebook N (1 to 6)")
    run.add_argument("--continue-from", type=Path, metavar="DIR", help="go on with a run that lies there, read only")
    train = verb(_train, "one stage without its notebook; also under `accelerate launch`", "--stage 1", *whole)
    train.add_argument("--stage", type=int, required=True, choices=STAGES)

    predict = verb(_predict, "report on radiographs of your own (PNG, JPEG, DICOM)", "radiograph.png --run tiny", root)
    predict.add_argument("images", nargs="+", type=Path, metavar="IMAGE|FOLDER|CSV")
    predict.add_argument("--to", type=Path, metavar="DIR", help="write JSONL and a page there, resumable")
    predict.add_argument("--stage", type=int, default=3, choices=(0, 1, 2, 3), help="0: the untuned base")
    predict.add_argument("--run", default="", metavar="NAME", help="whose model (default: the only run's)")

    judge = verb(_evaluate, "write and score the reports of a split", "--run tiny --split validation", finished, root)
    judge.add_argument("--split", default="test", metavar="SPLIT", help="train, validation or test (default)")
    judge.add_argument("--force", action="store_true", help="also where nothing has changed")
    judge.add_argument(
        "--evidence", type=_count, default=0, metavar="N", help="maps of what sentences rest on, N studies, worst first"
    )
    judge.add_argument("--samples", type=_count, default=0, metavar="K", help="confidence of sentences, from K reports")

    file = "outputs/tiny/evaluation/predictions.jsonl"
    score = verb(_score, "score predictions of any system; needs no torch", file, root)
    kinds = "predictions.jsonl, a CSV: uid, prediction, reference, or a file of ReXrank or MedEvalKit"
    score.add_argument("predictions", type=Path, help=kinds)
    score.add_argument("--run", default="", metavar="NAME", help="compare with the references of this run's split")
    score.add_argument("--split", default="test", metavar="SPLIT", help="of that run (default: test)")
    trained = "training reports, files as for constant: R2Gen knows no word that is rare in them"
    score.add_argument("--train", type=Path, nargs="+", default=[], metavar="FILE", help=trained)
    models = "also CheXbert, RadGraph, RadCliQ and RaTEScore by radeval 2.x, in an environment of its own"
    score.add_argument("--with", dest="models", default="", choices=["radeval"], help=models)
    score.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")

    about = "memory, hours and disk of the whole run on a card, by arithmetic"
    plan = verb(_plan, about, "--gpu t4", _profile_name("lingshu-7b"), changes)
    cards = "t4 (default), 't4 x2', p100, l4, 3090, 4090, a10g, l40s, a100 or h100"
    plan.add_argument("--gpu", default="t4", metavar="CARD", help=cards)
    plan.add_argument("--gib", type=float, metavar="N", help="instead: any card, with N GiB that torch can use")

    verb(_settings, "all settings with their values and meaning", "--profile lingshu-7b", _profile_name("tiny"))

    label = verb(_label, "the 14 finding labels of a text, by this project's rules", '"Small left effusion."')
    label.add_argument("text", nargs="?", default="", help="a report or a sentence of one")
    label.add_argument("--mesh", type=Path, metavar="CSV", help="instead: how the rules agree with MeSH")
    label.add_argument("--examples", type=_count, default=0, metavar="N", help="also N disagreements of each kind")

    constant = verb(
        _constant,
        "what one normal report earns that is said of all test studies of a published split",
        "annotation.json",
    )
    published = "R2Gen's annotation.json; or a CSV with uid, findings, impression and the JSON of its split"
    constant.add_argument("files", type=Path, nargs="+", help=published)
    constant.add_argument("--to", type=Path, metavar="CSV", help="write it there, as score reads it")

    about = "adapter, merged 16-bit weights and model card in a folder"
    export = verb(_export, about, "--run tiny --to handover", finished, root)
    export.add_argument("--to", type=Path, required=True, metavar="DIR", help="a new folder")
    export.add_argument("--push-to-hub", default="", metavar="REPO", help="also upload, private if REPO is new")
    parts = export.add_mutually_exclusive_group()
    parts.add_argument("--adapter-only", action="store_true", help="without merged weights; so with --push-to-hub")
    parts.add_argument("--merged", action="store_true", help="with merged weights, also with --push-to-hub")

    check = verb(_gpu_check, "the 7B with random weights on this card: 10 minutes, no download", "", root)
    check.add_argument("--source", default="phantom", help="as for run (default: phantom)")
    check.add_argument("--minutes", type=float, default=10.0, metavar="N", help="begin no part later (default: 10)")

    base = verb(_build_base, "train the embedded tiny base anew (minutes on a CPU)", "--to my-base")
    base.add_argument(
        "--source", default="", help="instead: teach its language model this source's English, as for run"
    )
    base.add_argument("--to", type=Path, metavar="DIR", help="default: inside the package")
    return parser


def _count(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of 0 or more")
    return int(text)


def _option(name: str, **how: Any) -> _Parser:
    """An option that verbs share."""
    parent = _Parser(add_help=False)
    parent.add_argument(name, **how)
    return parent


def _profile_name(usual: str) -> _Parser:
    known = f"{', '.join(PROFILES)} (default: {usual})"
    return _option("--profile", default=usual, metavar="NAME", help=known)


def parse_settings(pairs: list[str]) -> dict[str, Any]:
    """`["stage3.epochs=2", "data.source=phantom"]` as a mapping; a value that is no JSON is a text.

    Raises:
        RadVisionError: a pair without "=".
    """
    settings: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise RadVisionError(f"--set {pair!r} is not KEY=VALUE: write for example `--set stage3.epochs=2`.")
        try:
            settings[key] = parse_json(value, "", "")
        except RadVisionError:
            settings[key] = value
    return settings


def _run(options: argparse.Namespace) -> None:
    from radvision_utils.data.sources import open_source
    from radvision_utils.environment import choose_device, require_device
    from radvision_utils.evaluation.table import result_lines
    from radvision_utils.pipeline import continue_run, kept_log, run_notebooks

    profile = profile_of(options)
    run = RunFolder.of(profile)
    require_locks()
    require_writable(run.log)
    device = choose_device()
    require_device(profile.model, device)
    if options.first == 1 and not options.continue_from and (options.force or not is_current(profile, "data")):
        open_source(profile.data.source, profile.data, profile.seed)  # what it lacks is told before a kernel starts
    if options.continue_from:
        continue_run(run, options.continue_from)
    cost = open_room("planning.tables").cost_here(profile, device.title)
    print(f"Profile {profile.name}, run {profile.run}, on {device.title}{cost}\nLog        {run.log}", flush=True)
    if profile.name == "tiny-real" and profile.model.base == "tiny":
        started = time.perf_counter()
        with kept_log(run.log, "radvision_utils"):
            base = open_room("bases.build").base_for_source(profile, run.path / "base")
        print(f"0 of 6  a base that knows the reports {(time.perf_counter() - started) / 60:5.1f} min", flush=True)
        profile = replace(profile, model=replace(profile.model, base=str(base)))
    run_notebooks(profile, options.first, options.force)
    print(result_lines(run.record("evaluation") or {}))
    print(f"Dashboard  {(run.dashboard / 'index.html').resolve().as_uri()}\nThe rest   {run.path}\n{DISCLAIMER}")


def _train(options: argparse.Namespace) -> None:
    from radvision_utils.training.train import train_stage

    result = train_stage(profile_of(options), options.stage, options.force)
    if process_rank() == 0:
        print(f"{result.folder}\n{DISCLAIMER}")


def profile_of(options: argparse.Namespace) -> Profile:
    """The profile that the words of `run` or `train` ask for."""
    # The notebooks run elsewhere: a path that is meant from here must not depend on where they are.
    source, root = _absolute(options.source), _absolute(options.output_root)
    return load_profile(options.profile, parse_settings(options.set), run=options.run, source=source, output_root=root)


def _absolute(path: str) -> str:
    return str(Path(path).resolve()) if not os.path.isabs(path) and os.path.exists(path) else path


def _predict(options: argparse.Namespace) -> None:
    root = options.output_root or "outputs"
    from radvision_utils.evaluation.records import Model, flags_of

    for image in options.images:
        if not image.exists():
            raise RadVisionError(f"image {image} does not exist: give paths of PNG, JPEG or DICOM files.")
    run = only_run(options.run, root)
    band = Model.of(RunFolder(run, root).profile(), options.stage).band(own=True)
    print(f"Run {run}. {band}", end="\n\n")
    if options.to or any(path.is_dir() or path.suffix.lower() == ".csv" for path in options.images):
        from radvision_utils.own_images import predict_files, told

        print(f"{told(predict_files(options.images, run, options.stage, options.to, root))}\n{DISCLAIMER}")
        return
    from radvision_utils.report import load_reporter

    reporter = load_reporter(run, options.stage, root)
    for image, written in zip(options.images, reporter.write(options.images), strict=True):
        report, flags = written.report, flags_of(written.report, frozenset(), written.finished)
        sections = [f"Findings: {report.line} {report.findings}".replace("  ", " "), f"Impression: {report.impression}"]
        print(
            "\n  ".join([str(image), *sections, *(f"Flag: {flag}" for flag in flags), *filter(None, [band])]),
            end="\n\n",
        )
    print(DISCLAIMER)


def _evaluate(options: argparse.Namespace) -> None:
    from radvision_utils.evaluation.evaluate import evaluate

    profile = RunFolder(options.run, options.output_root or "outputs").profile()
    result = evaluate(profile, options.split, options.force, options.evidence, options.samples)
    if process_rank():
        return
    print((result.folder / "table.md").read_text(encoding="utf-8"))
    print(f"{result.folder}\n{DISCLAIMER}")


def _score(options: argparse.Namespace) -> None:
    from radvision_utils.evaluation.score import score_file
    from radvision_utils.files import write_json

    if options.json:
        require_writable(options.json)
    run = RunFolder(options.run, options.output_root or "outputs") if options.run else None
    published = open_room("collections.open_i").read_published(options.train) if options.train else {"train": {}}
    training = [report.findings for report in published["train"].values()]
    clinical = open_room("hand_over.radeval").radeval_scores if options.models else None
    metrics, page = score_file(options.predictions, run, options.split, training, clinical)
    print(f"{page}\n{DISCLAIMER}")
    if options.json:
        write_json(options.json, metrics)


def _plan(options: argparse.Namespace) -> None:
    from radvision_utils.planning.cost import open_card
    from radvision_utils.planning.tables import plan_text

    profile = load_profile(options.profile, parse_settings(options.set))
    print(plan_text(profile, open_card(options.gpu, options.gib)))


def _settings(options: argparse.Namespace) -> None:
    values, said = settings_of(load_profile(options.profile)), meanings()
    lines, last = [f"Settings of profile {options.profile}; any is changed by `--set NAME=VALUE`."], ""
    for name, value in list(values.items())[1:]:  # the first is the profile's name
        part = name.rpartition(".")[0]
        lines += [""] if part != last else []
        text = json.dumps(value)
        text = text if len(text) <= 30 else f"{text[:27]}..."
        lines.append(f"{name:27}{text:31}{said[name]}")
        last = part
    print("\n".join(lines))


def _label(options: argparse.Namespace) -> None:
    from radvision_utils.evaluation.score import label_lines

    if options.mesh:
        print(open_room("collections.open_i").mesh_table(options.mesh, options.examples))
    else:
        print(label_lines(options.text))


def _constant(options: argparse.Namespace) -> None:
    print(open_room("collections.open_i").constant_table(options.files, options.to))


def _export(options: argparse.Namespace) -> None:
    from radvision_utils.hand_over.export import export_run, push_to_hub

    profile = RunFolder(options.run, options.output_root or "outputs").profile()
    merged = options.merged or not (options.adapter_only or options.push_to_hub)
    record = export_run(profile, options.to, merged)
    print(f"For PEFT          {options.to / 'adapter'}")
    if merged:
        print(f"{json.dumps(record['check'], indent=2)}\nFor all others    {options.to / 'merged'}")
    if options.push_to_hub:
        print(f"Uploaded to       {push_to_hub(options.to, options.push_to_hub)}")
    print(DISCLAIMER)


def _gpu_check(options: argparse.Namespace) -> None:
    from radvision_utils.planning.gpu_check import check_table, gpu_check

    if not options.minutes >= 0:
        raise RadVisionError(f"--minutes {options.minutes:g} is no time: give minutes such as 10.")
    folder = RunFolder("gpu-check", options.output_root or "outputs").path
    record = gpu_check(folder, source=_absolute(options.source), minutes=options.minutes)
    print(f"{record['device']}, random weights\n\n{check_table(record)}\n{folder / 'gpu_check.json'}\n{DISCLAIMER}")
    if not record["ok"]:
        raise RadVisionError(f"not every part of the check went well: {folder / 'gpu_check.json'} has the tracebacks.")


def _build_base(options: argparse.Namespace) -> None:
    from radvision_utils.bases.build import TINY_BASE, base_for_source, build_base

    if options.source:
        if options.to is None:
            raise RadVisionError("a base that is taught a source's English needs a folder of its own: add --to DIR.")
        with tempfile.TemporaryDirectory(prefix="radvision-base-") as scratch:
            profile = load_profile("tiny-real", run="base", source=_absolute(options.source), output_root=scratch)
            print(base_for_source(profile, options.to))
        return
    folder = options.to or TINY_BASE
    print(json.dumps(build_base(folder), indent=2))
    print(folder)


def main(arguments: list[str] | None = None) -> int:
    """Run one verb; 0 if it went well or paused as told to, 1 with one sentence on standard error if it did not."""
    level = logging.WARNING if process_rank() else logging.INFO  # of several processes the first speaks
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stdout)
    quiet_libraries()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files need not be in the terminal's letters
    try:
        options = _parser().parse_args((sys.argv[1:] if arguments is None else arguments) or ["--help"])
        set_up_libraries()
        options.act(options)
    except RunPaused as pause:
        if process_rank() == 0:
            print(f"{pause}\n{DISCLAIMER}")
    except RadVisionError as error:
        told = str(error).replace("\n", "\\n")  # in the name of a file
        print(f"radvision: {told}", file=sys.stderr)
        return 1
    except OSError as error:
        if error.filename is None:
            raise
        print(f"radvision: {error.filename!r} cannot be used ({error.strerror}): check this path.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("radvision: stopped; what is finished is whole, and the same command goes on.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
