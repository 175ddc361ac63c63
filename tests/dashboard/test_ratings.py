from radvision_utils.dashboard.ratings import add_ratings, agreement, read_ratings, summary
from radvision_utils.dashboard.record import Record

BLIND = ("reference", "generated")


def test_a_line_torn_by_a_crash_spoils_no_other(make_record, tmp_path):
    path = tmp_path / "ratings.jsonl"
    add_ratings(path, Record.read(make_record(uid="1")), BLIND, (5, 3), "")
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:40])
    add_ratings(path, Record.read(make_record(uid="2")), BLIND, (4, 4), "")
    assert [(r["uid"], r["author"], r["score"]) for r in read_ratings(path)] == [
        ("1", "reference", 5),
        ("1", "generated", 3),
        ("2", "reference", 4),
        ("2", "generated", 4),
    ]


def test_a_study_rated_again_counts_once_with_its_latest_rating(make_record, tmp_path):
    path = tmp_path / "ratings.jsonl"
    add_ratings(path, Record.read(make_record()), BLIND, (5, 3), "")
    add_ratings(path, Record.read(make_record()), BLIND, (1, 2), "on second thoughts")
    generated, reference = summary(read_ratings(path))
    assert (generated["n"], generated["mean"], generated["preferred"]) == (1, 2.0, 1)
    assert (reference["n"], reference["1"], reference["preferred"]) == (1, 1, 0)


def test_without_ratings_there_is_no_summary(tmp_path):
    assert summary(read_ratings(tmp_path / "ratings.jsonl")) == []


def test_agreement_of_raters_is_one_where_they_agree_and_none_where_nobody_shares_a_study(make_record, tmp_path):
    path = tmp_path / "ratings.jsonl"
    for uid, scores in {"1": (5, 1), "2": (4, 2)}.items():
        add_ratings(path, Record.read(make_record(uid=uid)), BLIND, scores, "", rater="Ann")
    assert agreement(read_ratings(path)) is None
    for uid, scores in {"1": (5, 1), "2": (4, 2)}.items():
        add_ratings(path, Record.read(make_record(uid=uid)), BLIND, scores, "", rater="Bo")
    assert agreement(read_ratings(path)) == {"pairs": 4, "same": 1.0, "near": 1.0, "alpha": 1.0}
    for uid, scores in {"1": (1, 5), "2": (2, 4)}.items():
        add_ratings(path, Record.read(make_record(uid=uid)), BLIND, scores, "", rater="Bo")
    assert agreement(read_ratings(path))["alpha"] < 0
