"""The words of reports: cleaning, dropping sentences, writing and reading."""

import pytest

from radvision_utils.data.cleaning import clean_section, drop_sentences
from radvision_utils.data.parsing import parse_report
from radvision_utils.data.reports import Report, format_report, split_sentences


@pytest.mark.parametrize(
    ("dirty", "clean"),
    [
        ("1. No acute disease. 2. Stable heart.", "No acute disease. Stable heart."),
        ("1.Severe arthritis. .", "Severe arthritis."),
        ("1. Low lung volumes 2. Lungs appear clear", "Low lung volumes. Lungs appear clear."),
        ("Chest 1. Clear. 2. Dry. Right foot 1. Normal.", "Chest. Clear. Dry. Right foot. Normal."),
        ("1) No effusion. 2) Clear lungs.", "No effusion. Clear lungs."),
        ("Within normal limits.. Lungs clear. .", "Within normal limits. Lungs clear."),
        ("[&lt;The heart is normal.&gt;] Lungs clear", "The heart is normal. Lungs clear."),
        ("concerning for<BR>metastatic disease", "Concerning for metastatic disease."),
        ("Lungs are clear.There is no effusion .", "Lungs are clear. There is no effusion."),
        ("  heart size normal.\n\tLungs  clear. ", "Heart size normal. Lungs clear."),
        ("IMPRESSION: No acute disease.", "No acute disease."),
        ("Nodule &lt; 5 mm.", "Nodule < 5 mm."),
        (None, ""),
        (" . ", ""),
    ],
)
def test_cleaning_mends_the_dirt_of_the_collection(dirty, clean):
    assert clean_section(dirty) == clean


@pytest.mark.parametrize(
    "text",
    [
        "Old fracture of right rib 4. The lungs are clear.",
        "Compression of T12. No effusion.",
        "A 2.5 cm nodule. It measures 1.9 x 1.8 cm.",
        "Chronic degenerative changes at levels T11, T12.",
    ],
)
def test_numbers_that_number_nothing_stay(text):
    assert clean_section(text) == text


def test_cleaning_twice_changes_nothing_more():
    once = clean_section("1. a.. 2. b &lt; 4 c . . 3 .d")
    assert clean_section(once) == once


def test_sentences_end_at_stops_but_not_at_abbreviations_and_decimals():
    text = "Dr. Smith saw 2.5 cm of atelectasis vs. infiltrate. Compression of T12. Is it new? Lungs clear."
    assert split_sentences(text) == [
        "Dr. Smith saw 2.5 cm of atelectasis vs. infiltrate.",
        "Compression of T12.",
        "Is it new?",
        "Lungs clear.",
    ]


@pytest.mark.parametrize(
    "sentence",
    [
        "Biapical pleural thickening, unchanged from prior.",
        "Stable cardiomegaly.",
        "No acute abnormality since the previous chest radiograph.",
        "Calcified granuloma is again seen.",
        "Interval removal of chest tube.",
        "The lungs remain clear.",
        "The effusion has resolved.",
        "No comparison studies are available.",
        "Mild hyperinflation appears similar to prior.",
        "Not well appreciated on prior.",
        "No significant change.",
        "The mass has increased in size.",
        "Persistent left basilar opacity.",
    ],
)
def test_sentences_about_earlier_studies_are_dropped(sentence):
    text, dropped = drop_sentences(f"Clear lungs. {sentence}", {"priors"})
    assert text == "Clear lungs."
    assert dropped == {"priors": 1}


@pytest.mark.parametrize(
    "sentence",
    [
        "Evidence of prior granulomatous disease.",
        "Clips from prior cholecystectomy are noted.",
        "Status post prior anterior cervical fusion.",
        "Old right rib fractures.",
        "Degenerative changes of the thoracic spine.",
        "Chronic obstructive lung disease.",
        "Asymmetric opacity compared to the left.",
        "Increased interstitial markings.",
        "Recommend short interval followup.",
        "The remainder of the lungs is clear.",
    ],
)
def test_what_the_image_shows_of_the_past_stays(sentence):
    assert drop_sentences(sentence, {"priors", "deidentified"}) == (sentence, {})


def test_sentences_with_words_taken_out_are_dropped_only_when_asked():
    text = "There are no XXXX of effusion. Heart is normal. Stable since XXXX."
    assert drop_sentences(text, {"deidentified", "priors"}) == ("Heart is normal.", {"deidentified": 2})
    assert drop_sentences(text, {"priors"})[0] == "There are no XXXX of effusion. Heart is normal."
    assert drop_sentences(text, set()) == (text, {})


@pytest.mark.parametrize(
    "report",
    [
        Report("Clear lungs. Normal heart.", "No acute disease."),
        Report("", "No acute disease."),
        Report("Clear lungs.", ""),
        Report("Clear lungs and nothing else", "", headed=False),
    ],
)
def test_a_report_written_and_read_back_is_the_same(report):
    assert parse_report(format_report(report)) == report


def test_the_target_has_the_form_that_the_prompt_asks_for():
    assert format_report(Report("Clear.", "Normal.")) == "Findings: Clear. Impression: Normal."


@pytest.mark.parametrize(
    "text",
    [
        "FINDINGS: Clear lungs. IMPRESSION: Normal.",
        "**Findings:** Clear lungs.\n\n**Impression:** Normal.",
        "## Findings:\nClear\nlungs.\n## Impression:\nNormal.",
        "Impression: Normal. Findings: Clear lungs.",
        "Clear lungs. Impression: Normal.",
        "Here is the report. Findings : Clear lungs. Impressions: Normal.",
        "Findings: {Clear lungs.} Impression: {Normal.}",
        "Findings: Clear Findings: lungs. Conclusion: Normal.",
        "findings\nClear lungs.\nimpression\nNormal.",
        "Find\u200bings: Clear lungs. \uff29mpression\u2236 Normal.",
        '[{"section": "Findings", "text": "Clear lungs."}, {"section": "Impression", "text": "Normal."}]',
        '{"reportFindings": {"1": "Clear lungs."}, "reportImpression": {"text": "Normal."}}',
        '<section name="findings">Clear lungs.</section><impression lang="en"><![CDATA[Normal.]]></impression>',
        "Finding 1: Clear lungs.\nImpression 1: Normal.",
        r'"{\"findings\": \"Clear lungs.\", \"impression\": \"Normal.\"}"',
    ],
)
def test_parsing_tolerates_what_models_write(text):
    assert parse_report(text) == Report("Clear lungs.", "Normal.")


@pytest.mark.parametrize("quoted", ['"sail sign"', "{hilum}", "[left]", '"a" and "b"'])
def test_a_word_in_quotes_or_brackets_is_no_report_of_its_own(quoted):
    assert parse_report(f"Findings: A {quoted} is seen. Impression: Normal.").impression == "Normal."
    assert parse_report(f"A {quoted} is seen.").findings.startswith("A ")


@pytest.mark.parametrize("text", ["Findings in the left lung: opacity.", "Findings (left lung): opacity."])
def test_where_something_is_seen_is_no_part_of_a_heading(text):
    assert "left lung" in parse_report(f"{text}\nImpression: Normal.").findings


def test_a_text_without_headings_is_kept_whole():
    assert parse_report("The findings are\nsubtle.") == Report("The findings are subtle.", "", headed=False)
    assert parse_report("") == Report("", "", headed=False)


@pytest.mark.parametrize("brackets", ["[{}]", "<{}>", "{{{}}}", "{{{{{}}}}}", "[{}/]", "[ {} ]"])
@pytest.mark.parametrize(
    "word",
    [
        *("DATE OF BIRTH", "US_SSN", "e-mail_address", "MEDICAL_RECORD_NUMBER", "HCW", "zip code", "Name: ***"),
        "NAME",
        "Last Name",
        "DATE-1",
        "person_12",
        "Hospital 12",
        "redacted",
        "MASK",
        "dr. name",
    ],
)
def test_what_stands_in_brackets_for_a_name_or_a_date_is_a_hidden_word(brackets, word):
    text = clean_section(f"{brackets.format(word)} was told of it. The heart is normal.")
    assert drop_sentences(text, {"deidentified"})[0] == "The heart is normal."


@pytest.mark.parametrize(
    "word",
    [
        *("**NAME**", "##PHI##", "%%date%%", "XX/XX/XX", "**/**/**", "\ufffd\ufffd\ufffd"),
        "xXxx",
        "_ _ _",
        "****",
        "\u2588\u2588",
        "@@DATE@@",
        "[**2101-1-1**]",
        "[]",
        "[...]",
    ],
)
def test_so_is_a_word_that_was_blotted_out(word):
    assert drop_sentences(clean_section(f"Seen by {word} today. Clear."), {"deidentified"})[0] == "Clear."


@pytest.mark.parametrize(
    "text",
    ["Clear (see above).", "A <5 mm nodule.", "Age-appropriate.", "The [left] lung is clear.", "Clear (room air)."],
)
def test_other_brackets_hide_nothing(text):
    assert drop_sentences(clean_section(text), {"deidentified"})[1] == {}
