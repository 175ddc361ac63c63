"""README and docs: short enough to be read, and every file that they point to is there."""

import re

import pytest

from radvision_utils.config import project_root

PAGES = [project_root() / "README.md", *sorted((project_root() / "docs").glob("*.md"))]


def test_the_readme_is_read_in_five_minutes():
    assert len(PAGES[0].read_text(encoding="utf-8").split()) <= 1000


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_to_a_file_leads_somewhere(page):
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8"))
    assert not [link for link in links if not (page.parent / link).exists()]


def test_every_page_is_named_in_the_readme():
    readme = PAGES[0].read_text(encoding="utf-8")
    assert not [page.name for page in PAGES[1:] if f"docs/{page.name}" not in readme]


def test_the_eight_files_of_the_readme_are_there_and_short_enough_for_an_evening():
    files = re.findall(r"(?m)^\| `([a-z_/]+\.py)` \|", PAGES[0].read_text(encoding="utf-8"))
    sources = [(project_root() / "radvision_utils" / file).read_text(encoding="utf-8") for file in files]
    assert len(files) == 8
    assert sum(len(source.splitlines()) for source in sources) <= 2950
