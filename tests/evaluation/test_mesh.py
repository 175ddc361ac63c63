"""The rule labels against the human annotation of Open-I."""

from radvision_utils.__main__ import main as command
from radvision_utils.data.labels import OBSERVATIONS, mesh_labels


def test_mesh_annotations_become_observations() -> None:
    assert mesh_labels("normal") == {"No Finding"}
    assert mesh_labels("Catheters, Indwelling/left") == {"No Finding", "Support Devices"}
    assert mesh_labels("Opacity/lung/base/left;Cardiomegaly/mild") == {"Lung Opacity", "Cardiomegaly"}
    assert mesh_labels("Scoliosis/thoracic vertebrae") == set()
    assert mesh_labels("Pleural Effusion;Scoliosis") == {"Pleural Effusion"}
    assert mesh_labels("") == set()


def test_a_table_that_cannot_be_read_is_refused_in_one_sentence(tmp_path, capsys):
    table = tmp_path / "reports.csv"
    table.write_text("uid,findings\n1,Clear lungs.\n", encoding="utf-8")
    for path, told in ((table, "lacks the columns MeSH, impression"), (tmp_path / "none.csv", "is not a file")):
        assert command(["label", "--mesh", str(path)]) == 1
        assert told in capsys.readouterr().err


def test_the_command_wants_a_text_or_a_table(capsys):
    assert command(["label"]) == 1
    assert "give a report" in capsys.readouterr().err


def test_labels_agree_with_the_human_annotation_of_open_i(open_i, capsys):
    assert command(["label", "--mesh", str(open_i / "reports.csv"), "--examples", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    f1 = {line[:28].strip(): float(line[28:].split()[3]) for line in lines[1 : 1 + len(OBSERVATIONS)]}
    assert min(f1.values()) > 0.6
    assert sum(f1.values()) / len(f1) > 0.85  # 0.89 when written
    assert f1["Pleural Effusion"] > 0.88
    assert any("rules only" in line for line in lines)
