"""The plan as tables: for a terminal, for a notebook, and beside what was measured. Knows no torch."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from radvision_utils.config import AUTO, STAGES, Profile
from radvision_utils.environment import Device
from radvision_utils.planning.cost import Card, disk_gib, find_card, longest, typical
from radvision_utils.planning.judging import STEP_SECONDS, JudgingPart, plan_judging, reports_here
from radvision_utils.planning.plan import StagePlan, card_here, copied_from, first_change, plan_here, plan_run

KAGGLE_HOURS = 30  # with a card


def plan_table(plans: Sequence[StagePlan]) -> list[dict[str, str]]:
    """What is set for each stage, or chosen where the profile says "auto", GiB by part, operations and hours: a column
    a stage, for `figures.text_table`."""
    columns = {f"stage {plan.stage}": _figures(plan) for plan in plans}
    return [{"": name, **{stage: figures[name] for stage, figures in columns.items()}} for name in _figures(plans[0])]


def _figures(plan: StagePlan) -> dict[str, str]:
    parts = {**plan.memory.parts, "total": plan.memory.total}
    return {
        "settings": "auto" if plan.auto else "as set",
        "image": f"{plan.profile.data.image_size} px",
        "micro_batch": str(plan.settings.micro_batch),
        "accumulation": str(plan.settings.accumulation),
        "checkpointed_layers": str(plan.step.layers),
        "weights in": ("4 and 16 bits" if plan.copied else "4 bits") if plan.step.quantized else "16 bits",
        **{f"{part}, GiB": _number(gib) for part, gib in parts.items()},
        f"fits {plan.card.usable_gib:g} GiB": "yes" if plan.fits else "does not fit",
        "fullest at": plan.memory.moment,
        "TFLOP a sample": _number(plan.usual.tflop()),
        "samples": str(plan.samples),
        "time at the card's peak": _time(plan.hours_at_peak),
        "time likely": _time(plan.hours),
    }


def judging_table(parts: Sequence[JudgingPart]) -> list[dict[str, str]]:
    """What notebook 05 writes and computes, its fullest moment and its time; what is left out names its setting."""
    return [
        {
            "judging": part.name,
            "reports": str(part.reports),
            "passes": str(part.passes),
            "GiB": _number(part.memory.total),
            "fullest at": part.memory.moment,
            "time likely": _time(part.hours),
            "at most": _time(part.hours_at_most),
            "asked for": f"no: --set {part.setting}" if part.setting else "yes",
        }
        for part in parts
    ]


def total_table(plans: Sequence[StagePlan], parts: Sequence[JudgingPart]) -> list[dict[str, str]]:
    """Training and what is asked for of judging, together: the fullest moment, and the time."""
    return [
        {"in all": name, "GiB": _number(gib), "time likely": _time(hours), "at most": _time(most)}
        for name, (gib, hours, most) in _totals(plans, parts).items()
    ]


def _totals(plans: Sequence[StagePlan], parts: Sequence[JudgingPart]) -> dict[str, tuple[float, float, float]]:
    """GiB, hours likely and hours at most."""
    asked = [part for part in parts if not part.setting]
    training, judging = (max(part.memory.total for part in those) for those in (plans, asked))
    hours, likely = sum(plan.hours for plan in plans), sum(part.hours for part in asked)
    at_most = sum(part.hours_at_most for part in asked)
    return {
        "training": (training, hours, hours),
        "judging": (judging, likely, at_most),
        "the whole run": (max(training, judging), hours + likely, hours + at_most),
    }


def choices(profile: Profile, device: Device) -> dict[str, str]:
    """What the planner chooses on a device where the profile says "auto", with the reason, by the dotted names."""
    told: dict[str, str] = {}
    for stage in STAGES:
        plan = plan_here(profile, stage, device)
        chosen = plan.chosen
        told |= {f"stage{stage}.{name}": f"auto: {chosen[name]} ({chosen['why']})" for name in plan.auto}
    if profile.generation.batch_size == AUTO:
        settled = reports_here(profile, device)
        told["generation.batch_size"] = f"auto: {settled.generation.batch_size} (on {card_here(device).title})"
    return told


def _number(value: float) -> str:
    return f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"


def _time(hours: float) -> str:
    if math.isnan(hours):
        return "not known"
    return f"{hours:.1f} h" if hours >= 1 else f"{60 * hours:.0f} min" if hours >= 1 / 60 else "seconds"


def cost_line(profile: Profile, card: Card) -> str:
    """What a whole run costs, in a line: time, memory, disk, and on a card that Kaggle lends the share of its week."""
    gib, hours, _ = _totals(plan_run(profile, card), plan_judging(profile, card))["the whole run"]
    disk = sum(disk_gib(profile).values())
    line = f"{_time(hours)}, {gib:.1f} of {card.usable_gib:.1f} GiB, {disk:.0f} GiB of disk"
    if re.search("T4|P100", card.title):
        line += f", {hours / KAGGLE_HOURS:.0%} of Kaggle's {KAGGLE_HOURS} hours a week"
    return line


def cost_here(profile: Profile, device: str) -> str:
    """`cost_line` for a device by its title, behind ": by arithmetic "; "" for a CPU, of which no plan is made."""
    card = find_card(device)
    return f": by arithmetic {cost_line(profile, card)}" if card else ""


def disk_table(profile: Profile) -> list[dict[str, str]]:
    """GiB on disk by use, and their total."""
    uses = disk_gib(profile)
    return [{"on disk": use, "GiB": _number(gib)} for use, gib in {**uses, "total": sum(uses.values())}.items()]


def plan_text(profile: Profile, card: Card) -> str:
    """The whole plan for a terminal."""
    plans, parts, speed = plan_run(profile, card), plan_judging(profile, card), "speed not known"
    if card.peak_tflops:
        speed = f"at most {card.peak_tflops:g} TFLOP/s in {card.dtype}, {card.bandwidth_gbs:g} GB/s"
    lines = [
        f"Profile {profile.name} on {card.title}: {card.usable_gib:g} GiB usable, {speed}.",
        f"In all: {cost_line(profile, card)}.",
        "",
    ]
    for table in (plan_table(plans), judging_table(parts), total_table(plans, parts), disk_table(profile)):
        lines += [*_columns(table), ""]
    lines += [
        "By arithmetic, not measured. Memory: every report as long as model.max_report_tokens allows; `context` is an",
        "allowance for CUDA and fragmentation; the 8-bit optimizer's state may move to the computer's memory where the",
        f"card is full. Time: reports of {typical(longest(profile)).report} tokens; at most: those written have",
        f"generation.max_new_tokens, {profile.generation.max_new_tokens}. Preparation, downloads, loading come on top.",
    ]
    if card.peak_tflops:
        lines += [
            f"Time likely: {card.share:g} of the peak and dequantization for every micro-batch; {card.why}.",
            "But never less than Python takes to launch it, as on an H100's host; a slower one takes longer:",
            f"{1000 * STEP_SECONDS:.0f} ms for a word of each report of a batch, 6 or 10 for a layer in training.",
        ]
    if plans[0].step.quantized:
        from_gib = [copied_from(profile, plan.stage, card) for plan in plans]
        sizes = ", ".join("no GiB" if gib is None else f"{gib} GiB" for gib in from_gib)
        lines.append(
            f"On such a card 4-bit weights are also kept in 16 bits, dequantized once, from {sizes} on (stages)."
        )
    if card.count > 1:
        lines += [
            "`run` trains on all cards, a process each; memory is of each card, and one of them judges. Gradients are",
            "exchanged in a second copy, which is not in the table (`gradients` once more).",
        ]
    return "\n".join([*lines, *("\n" + first_change(plan) for plan in plans if not plan.fits)])


def _columns(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """Rows in aligned columns, under their names."""
    lines = [list(rows[0]), *(list(row.values()) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]


def beside_measured(record: Mapping[str, Any], card: bool) -> str:
    """One sentence on plan and measurement.

    Args:
        record: of `stage.json`, with `plan` and `peak_memory_gib`.
        card: a card was measured; on a CPU the process is, with all its libraries.
    """
    planned, measured = record["plan"]["tensors"], record["peak_memory_gib"]
    if not card:
        return (
            f"stage {record['stage']}: memory by plan {planned:.3f} GiB of tensors; measured {measured:.2f} GiB of the "
            "whole process with its libraries and data, which on a CPU is not the same thing"
        )
    return (
        f"stage {record['stage']}: memory by plan {planned:.2f} GiB of tensors, measured {measured:.2f} "
        f"({planned / measured - 1:+.0%})"
    )
