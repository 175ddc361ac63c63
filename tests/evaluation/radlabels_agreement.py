"""How the rule labels agree with the labels of `radlabels`: 1,000 synthetic reports in the style of MIMIC-CXR (MIT).

Its labels come from RadGraph-XL and a radiologist's phrases; they are silver, not gold. The package wants torch below
2.5, so it can't be installed beside this project; its wheel is read instead:

    pip download --no-deps --ignore-requires-python radlabels==0.2.0
    python tests/evaluation/radlabels_agreement.py radlabels-0.2.0-py3-none-any.whl [examples]
"""

import json
import sys
import zipfile

from radvision_utils.data.labels import ABNORMAL, ASSERTED, find_mentions, label, sentences

FOLDER = "radlabels/samples/"
# Their findings that make up an observation. "air_space_opacity" is left out: it holds consolidation and pneumonia too.
THEIRS = {
    "Enlarged Cardiomediastinum": ["enlarged_cardiomediastinum"],
    "Cardiomegaly": ["cardiomegaly"],
    "Lung Lesion": ["lung_lesion", "lung_nodule_or_mass"],
    "Lung Opacity": [
        *("lung_opacity", "infiltration", "interstitial_thickening", "ground_glass_opacity", "pulmonary_fibrosis"),
        "peribronchial_cuffing",
    ],
    "Edema": ["pulmonary_edema"],
    "Consolidation": ["consolidation"],
    "Pneumonia": ["pneumonia"],
    "Atelectasis": ["atelectasis", "lobar_segmental_collapse", "whole_lung_or_majority_collapse"],
    "Pneumothorax": ["pneumothorax"],
    "Pleural Effusion": ["pleural_effusion"],
    "Pleural Other": ["pleural_thickening", "pleural_other"],
    "Fracture": ["fracture_generic", "acute_rib_fracture", "non_acute_rib_fracture"],
    "Support Devices": [
        *("central_venous_catheter", "endotracheal_tube", "enteric_tube", "intercostal_drain", "tracheostomy_tube"),
        *("pacemaker_electronic_cardiac_device_or_wires", "implantable_electronic_device", "support_devices_generic"),
    ],
}


def main(wheel: str, examples: int) -> None:
    """Print precision, recall and F1 by observation (uncertain as present), and so many disagreements of each."""
    with zipfile.ZipFile(wheel) as files:
        silver = json.loads(files.read(f"{FOLDER}synthetic_labels.json"))
        texts = {uid: files.read(f"{FOLDER}synthetic_reports/{uid}.txt").decode() for uid in silver}
    ours = {uid: label(text) for uid, text in texts.items()}
    total = [0, 0, 0]
    print(f"{'observation':28}{'radlabels':>10}{'precision':>11}{'recall':>8}{'F1':>7}")
    for name in ABNORMAL:
        said = {uid for uid, labels in ours.items() if labels[name].status in ASSERTED}
        true = {
            uid
            for uid, labels in silver.items()
            if any(labels.get(finding) in ("definitely present", "uncertain") for finding in THEIRS[name])
        }
        counts = [len(said & true), len(said), len(true)]
        total = [a + b for a, b in zip(total, counts, strict=True)]
        print(_line(name, *counts))
        for uid in sorted(said ^ true)[:examples]:
            spans = sentences(texts[uid])
            mentions = [m for m in find_mentions(texts[uid]) if m.observation == name]
            reason = [f"{m.status}: {' '.join(texts[uid][slice(*spans[m.sentence])].split())}" for m in mentions]
            print(f"  {'rules' if uid in said else 'radlabels'} only, {uid}: {' | '.join(reason) or 'no mention'}")
    print(_line("micro", *total))


def _line(name: str, both: int, said: int, true: int) -> str:
    f1 = 2 * both / max(said + true, 1)
    return f"{name:28}{true:10}{both / max(said, 1):11.3f}{both / max(true, 1):8.3f}{f1:7.3f}"


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 0)
