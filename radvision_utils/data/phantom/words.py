"""The phrasings of the phantom reports: for each statement those of hospital A and of hospital B.

In the texts {side} is right or left, {Side} the same capitalized, {zone} upper, middle or lower.
"""

from typing import NamedTuple


class Words(NamedTuple):
    a: tuple[str, ...]
    b: tuple[str, ...]


ASSERTED: dict[str, Words] = {
    "cardiomegaly": Words(
        ("The heart is enlarged.", "The heart is moderately enlarged.", "Heart size is enlarged."),
        ("The cardiac silhouette is enlarged.", "There is cardiomegaly."),
    ),
    "pleural effusion": Words(
        (
            "There is a {side} pleural effusion.",
            "A {side} pleural effusion is present.",
            "Moderate {side} pleural effusion.",
        ),
        (
            "There is blunting of the {side} costophrenic angle by a pleural effusion.",
            "{Side}-sided effusion is seen.",
        ),
    ),
    "both effusions": Words(
        ("There are bilateral pleural effusions.", "Bilateral pleural effusions are present."),
        ("There are bilateral effusions.", "Pleural effusions are seen on both sides."),
    ),
    "pneumothorax": Words(
        ("There is a {side} pneumothorax.", "A {side} pneumothorax is present."),
        ("{Side}-sided pneumothorax is seen.", "There is a pneumothorax on the {side}."),
    ),
    "consolidation": Words(
        (
            "There is consolidation in the {side} {zone} lung zone.",
            "Focal consolidation is present in the {side} {zone} lung zone.",
            "{Side} {zone} zone consolidation.",
        ),
        (
            "There is an air space opacity in the {side} {zone} lung zone.",
            "{Side} {zone} lung air space opacity is seen.",
        ),
    ),
    "atelectasis": Words(
        ("There is {side} basilar atelectasis.", "Atelectasis is present at the {side} lung base."),
        (
            "There is subsegmental atelectasis at the {side} base.",
            "Linear atelectasis is seen in the {side} lung base.",
        ),
    ),
    "nodule": Words(
        (
            "There is a pulmonary nodule in the {side} {zone} lung zone.",
            "A nodule is present in the {side} {zone} lung zone.",
        ),
        (
            "There is a nodule in the {side} {zone} lung zone.",
            "{Side} {zone} lung nodule is seen.",
            "A round nodular density is seen in the {side} {zone} lung zone.",
        ),
    ),
    "central venous catheter": Words(
        (
            "A {side} central venous catheter is present.",
            "There is a {side} central venous catheter with its tip in the SVC.",
        ),
        ("{Side}-sided central line terminates in the SVC.", "{Side} central line is in place."),
    ),
    "pacemaker": Words(
        ("A {side} pacemaker is present.", "There is a {side} chest pacemaker."),
        (
            "{Side}-sided pacemaker is in place.",
            "There is a {side}-sided pacemaker with its lead in the heart.",
        ),
    ),
}

ABSENT: dict[str, Words] = {
    "heart": Words(
        (
            "The heart is normal in size.",
            "Heart size is normal.",
            "The heart is not enlarged.",
        ),
        (
            "The cardiac silhouette is within normal limits.",
            "The cardiac silhouette is not enlarged.",
            "Normal cardiac silhouette.",
        ),
    ),
    "mediastinum": Words(
        ("The mediastinum is normal.", "The mediastinal contours are normal."),
        ("The mediastinal silhouette is unremarkable.", "Mediastinal contours are unremarkable."),
    ),
    "lungs": Words(
        (
            "The lungs are clear without focal consolidation.",
            "The lungs are clear.",
            "There is no focal consolidation.",
        ),
        (
            "Both lungs are clear of focal air space opacity.",
            "No focal air space opacity.",
            "Both lungs are clear.",
        ),
    ),
    "rest of the lungs": Words(
        ("The lungs are otherwise clear.", "The remaining lungs are clear."),
        ("The remainder of the lungs is clear.", "Otherwise both lungs are clear."),
    ),
    "pleura": Words(
        (
            "No pleural effusion or pneumothorax.",
            "There is no pleural effusion or pneumothorax.",
            "No pneumothorax or pleural effusion is seen.",
        ),
        (
            "No effusion or pneumothorax is identified.",
            "The costophrenic angles are sharp without effusion or pneumothorax.",
            "The pleural spaces are free of effusion and pneumothorax.",
        ),
    ),
    "pleural effusion": Words(
        ("No pleural effusion.", "There is no pleural effusion."),
        ("No effusion is identified.", "The costophrenic angles are sharp."),
    ),
    "other effusion": Words(("No {side} pleural effusion.",), ("No {side}-sided effusion.",)),
    "pneumothorax": Words(("No pneumothorax.", "There is no pneumothorax."), ("No pneumothorax is identified.",)),
    "nodule": Words(("No pulmonary nodule.",), ("No lung nodule is identified.",)),
    "pacemaker": Words(("No pacemaker.",), ("No pacemaker is identified.",)),
    "central venous catheter": Words(("No central venous catheter.",), ("No central line is identified.",)),
    "bones": Words(
        (
            "The bony structures are intact.",
            "The bones are intact.",
            "No acute bony abnormality.",
        ),
        (
            "The osseous structures are unremarkable.",
            "Visualized osseous structures are intact.",
            "No acute osseous abnormality is identified.",
        ),
    ),
}

CONCLUDED: dict[str, Words] = {
    "cardiomegaly": Words(("Cardiomegaly.", "Enlarged heart."), ("Enlarged cardiac silhouette.",)),
    "pleural effusion": Words(("{Side} pleural effusion.",), ("{Side}-sided effusion.",)),
    "both effusions": Words(("Bilateral pleural effusions.",), ("Bilateral effusions.",)),
    "pneumothorax": Words(("{Side} pneumothorax.",), ("{Side}-sided pneumothorax.",)),
    "consolidation": Words(("{Side} {zone} zone consolidation.",), ("{Side} {zone} lung air space opacity.",)),
    "atelectasis": Words(("{Side} basilar atelectasis.",), ("Subsegmental atelectasis at the {side} base.",)),
    "nodule": Words(("{Side} {zone} lung nodule.",), ("Nodule in the {side} {zone} lung zone.",)),
    "central venous catheter": Words(("{Side} central venous catheter.",), ("{Side}-sided central line in place.",)),
    "pacemaker": Words(("{Side} pacemaker.",), ("{Side}-sided pacemaker in place.",)),
    "nothing acute": Words(
        ("No acute cardiopulmonary abnormality.", "No acute abnormality."),
        ("No acute cardiopulmonary process.", "No acute process."),
    ),
    "normal": Words(
        ("No acute cardiopulmonary abnormality.", "Normal chest.", "Normal chest radiograph."),
        ("No acute cardiopulmonary process.", "No evidence of active disease."),
    ),
}
