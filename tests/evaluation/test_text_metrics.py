"""Text metrics: those of the field, with intervals that come from the same counts."""

import math
import shutil
import tracemalloc

import numpy as np
import pytest
import sacrebleu
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from radvision_utils import Report
from radvision_utils.evaluation import bootstrap, text_metrics
from radvision_utils.evaluation.bootstrap import Bootstrap
from radvision_utils.evaluation.text_metrics import (
    PROTOCOLS,
    R2GEN,
    RAW,
    r2gen_vocabulary,
    r2gen_words,
    rexrank_estimates,
    score_texts,
    sentence_bleu2,
    text_estimates,
    text_pairs,
)


def reports(*texts):
    return [Report(text, "") for text in texts]


def by_study(of):
    """Reports as pycocoevalcap takes them."""
    return {i: [report.findings] for i, report in enumerate(of)}


def figures(generated, reference, protocol=RAW):
    scores = score_texts(generated, reference, protocol)
    return {name: each.value for name, each in text_estimates(scores, Bootstrap(len(reference), seed=1)).items()}


GENERATED = reports("the heart is normal in size", "there is a left effusion today", "lungs are clear")
REFERENCE = reports("the heart is enlarged in size", "there is a left effusion", "the lungs are clear")


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_bleu_equals_sacrebleu(order):
    ours = figures(GENERATED, REFERENCE)
    theirs = sacrebleu.metrics.BLEU(tokenize="none", smooth_method="none", max_ngram_order=order, force=True)
    expected = theirs.corpus_score([r.findings for r in GENERATED], [[r.findings for r in REFERENCE]]).score / 100
    assert math.isclose(ours[f"bleu{order}"], expected, abs_tol=1e-6)


def test_the_value_beside_an_interval_is_that_of_pycocoevalcap():
    scores = score_texts(GENERATED, REFERENCE, RAW)
    estimates = text_estimates(scores, Bootstrap(3, seed=1))
    texts = by_study(REFERENCE), by_study(GENERATED)
    values = [*Bleu(4).compute_score(*texts, verbose=0)[0], Rouge().compute_score(*texts)[0]]
    for each, value in zip(estimates.values(), [*values, Cider().compute_score(*texts)[0]], strict=True):
        assert each.value == pytest.approx(value, abs=1e-9)
        low, high = each.interval
        assert low <= high


def test_bleu_of_a_resample_is_that_of_the_studies_in_it():
    scores = score_texts(GENERATED, REFERENCE, RAW)
    chosen = [0, 0, 1]
    texts = by_study([REFERENCE[i] for i in chosen]), by_study([GENERATED[i] for i in chosen])
    bleu, _ = Bleu(4).compute_score(*texts, verbose=0)
    assert text_metrics.corpus_bleu(scores.bleu_counts[chosen].sum(0), 2) == pytest.approx(bleu[1], abs=1e-9)


def test_identical_reports_score_one():
    scores = figures(REFERENCE, REFERENCE)
    assert scores["bleu4"] == pytest.approx(1, abs=1e-6)
    assert scores["rouge_l"] == pytest.approx(1)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_empty_report_scores_zero_and_does_not_fail(protocol):
    scores = figures(reports("", "", ""), REFERENCE, protocol)
    assert scores["rouge_l"] == 0
    assert scores["cider_d"] == 0


@pytest.mark.parametrize(
    ("text", "words"),
    [  # what R2Gen's clean_report_iu_xray makes of them, without the blanks that its split drops
        (
            "1. Heart size, normal. 2. No pneumothorax/effusion.. Clear.",
            "heart size normal . no pneumothoraxeffusion . clear .",
        ),
        ("Left-sided x-XXXX; T7-T8: 5 mm.", "left-sided x-xxxx t7-t8 5 mm ."),
        ("Seen at L1. Clear. 3. Calm", "seen at lclear . calm ."),
        ("Clear. . Calm.", "clear . . calm ."),
        ("Size <5 mm, {old} [XXXX] 'no' \"yes\" a\\b?", "size 5 mm old xxxx no yes ab ."),
        (" .", ""),
    ],
)
def test_r2gen_words_are_those_of_r2gen(text, words):
    assert r2gen_words(text) == words


def test_r2gen_reads_59_tokens_of_a_reference_and_60_of_a_report():
    long = Report("word " * 100, "")
    [(ours, true)] = text_pairs([long], [long], R2GEN)
    assert (len(ours.split()), len(true.split())) == (60, 59)


def test_words_that_training_reports_say_less_than_three_times_are_one_word_to_r2gen():
    known = r2gen_vocabulary(["Clear lungs.", "Clear lungs. Calm.", "Clear lungs, calm."])
    assert known == {"clear", "lungs", "."}
    pair = ([Report("Clear spleen.", "")], [Report("Calm lungs.", "")], R2GEN)
    assert text_pairs(*pair, known) == [("clear <unk> .", "<unk> lungs .")]
    assert text_pairs(*pair) == [("clear spleen .", "calm lungs .")]


@pytest.mark.parametrize(
    ("ours", "true", "score"),
    [
        ("The lungs are clear.", "the lungs are clear.", 1.0),
        ("Lungs clear", "the lungs are clear.", math.sqrt(0.1) * math.exp(1 - 5 / 2)),  # no pair is right: a tenth
        ("No effusion.", "the lungs are clear.", math.sqrt(1 / 3 * 0.1 / 2) * math.exp(1 - 5 / 3)),
        ("effusion", "clear", 0.0),
        ("", "clear", 0.0),
    ],
)
def test_rexranks_bleu_is_of_each_report_with_a_tenth_for_no_hit(ours, true, score):
    assert sentence_bleu2(ours, true) == pytest.approx(score)


def test_rexranks_two_tables_are_of_the_findings_and_of_the_whole_report():
    ours, true = (
        [Report("Clear lungs.", "Calm.")] * 2,
        [Report("Clear lungs.", "Edema."), Report("Clear lungs.", "Calm.")],
    )
    found = rexrank_estimates(ours, true, Bootstrap(2, seed=1))
    assert found["findings"].value == 1
    assert 0.5 < found["findings + impression"].value < 1


def test_without_java_there_is_no_meteor(monkeypatch):
    monkeypatch.setattr(text_metrics.shutil, "which", lambda _: None)
    assert text_metrics.meteor_scores([[("a", "b")], [("c", "d")]]) == [None, None]


@pytest.mark.skipif(shutil.which("java") is None, reason="METEOR needs Java")
def test_with_java_meteor_is_a_number_for_every_set():
    same, other = text_metrics.meteor_scores(
        [[("clear lungs", "clear lungs")], [("", "clear lungs"), ("a ||| b", "c")]]
    )
    assert same > 0.9
    assert other == 0


def test_java_that_does_not_answer_is_as_good_as_none(monkeypatch):
    class Mute:
        def compute_score(self, references, candidates):
            return float(""), []

    monkeypatch.setattr(text_metrics.shutil, "which", lambda _: "/usr/bin/java")
    monkeypatch.setattr(text_metrics, "Meteor", Mute)
    assert text_metrics.meteor_scores([[("a", "b")]]) == [None]


def test_equal_seeds_give_equal_intervals():
    scores = score_texts(GENERATED, REFERENCE, RAW)
    first, second = (text_estimates(scores, Bootstrap(3, seed=5))["bleu1"].draws for _ in range(2))
    assert np.array_equal(first, second)


def test_resamples_drawn_in_parts_are_those_drawn_at_once(monkeypatch):
    values = np.arange(40.0)
    whole = Bootstrap(40, seed=5).mean(values).draws
    monkeypatch.setattr(bootstrap, "_PART", 4_000)
    assert Bootstrap(40, seed=5).mean(values).draws == pytest.approx(whole, rel=1e-12)


def test_each_report_more_takes_a_few_kilobytes_while_it_is_scored():
    words = [f"word{number}" for number in range(300)]
    many = reports(*(" ".join(words[n % 200 : n % 200 + 60]) for n in range(600)))
    tracemalloc.start()
    try:
        score_texts(many[:300], many[:300], RAW)  # the words and what the libraries load
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        score_texts(many, many, RAW)
        peak = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    assert peak / len(many) < 12_000, f"{peak / len(many):.0f} bytes a report"
