"""SECURITY.md: each sentence of the threat model has a test or a page, and these are there."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / ".github" / "SECURITY.md"
LINK = re.compile(r"\]\(([^)\s]+)\)")


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_each_sentence_of_the_threat_model_has_a_test_or_a_page() -> None:
    model = PAGE.read_text(encoding="utf-8").partition("## Threat model")[2]
    statements = re.findall(r"^- (.*?)(?=^- |^#|\Z)", model, re.MULTILINE | re.DOTALL)
    assert len(statements) > 25
    for statement in statements:
        links = LINK.findall(statement)
        assert links, statement
        for link in links:
            file, _, anchor = link.partition("#")
            assert (PAGE.parent / file).is_file(), link
            assert not anchor or anchor in anchors(PAGE.parent / file), link
            if file.endswith(".py") and "test_" in file:
                assert re.search(
                    r"^\s*(async )?def test_", (PAGE.parent / file).read_text(encoding="utf-8"), re.MULTILINE
                ), file


def test_it_says_what_is_supported_and_when_an_answer_comes() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert re.search(r"\*\*Supported\*\*", text)
    assert re.search(r"within three working days", text)
