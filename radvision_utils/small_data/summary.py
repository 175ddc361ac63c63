"""Findings first: with `model.summary` a report begins with a line of its labels, and tells what is abnormal before the
rest. What few reports say is then learned early and weighs more than the sentences that all reports share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from radvision_utils.data.labels import ABNORMAL, ASSERTED, asserted, label
from radvision_utils.data.reports import Report, format_report, line_of_findings, split_sentences

# How much a token weighs in the loss: of the line, of a sentence without a finding; of all else 1.
LINE, PLAIN = 3.0, 0.5


def with_line(report: Report, reference: Report) -> Report:
    """The report with a line of what the reference asserts, its sentences with a finding before those without one."""
    ordered = sorted(split_sentences(report.findings), key=lambda sentence: not asserted(sentence))
    line = line_of_findings(asserted(reference.text))
    return replace(report, findings=" ".join(ordered), line=line)


def following(report: Report) -> Report:
    """The report without sentences that contradict its line: that assert a finding it does not name, or deny one that
    it names. An impression that is left without a sentence says the line again."""
    against = {name: ("absent",) if name in asserted(report.line) else ASSERTED for name in ABNORMAL}

    def follows(sentence: str) -> bool:
        found = label(sentence)
        return not any(found[name].status in statuses for name, statuses in against.items())

    findings, impression = (
        " ".join(filter(follows, split_sentences(section))) for section in (report.findings, report.impression)
    )
    return replace(report, findings=findings, impression=impression or (report.impression and report.line))


def token_weights(report: Report, offsets: Sequence[tuple[int, int]]) -> list[float]:
    """How much each token of `format_report` weighs.

    Args:
        report: as `with_line` gives it.
        offsets: where the tokens begin and end in that text.
    """
    text, end = format_report(report), 0
    weights = [1.0] * (len(text) + 1)
    for place, sentence in enumerate(
        [report.line, *split_sentences(report.findings), *split_sentences(report.impression)]
    ):
        start = text.index(sentence, end)
        end = start + len(sentence)
        weight = LINE if place == 0 else 1.0 if asserted(sentence) else PLAIN
        weights[start:end] = [weight] * len(sentence)
    return [weights[max(start, stop - 1)] for start, stop in offsets]
