"""Build the documentation site from the documents where they stand: `make docs` writes it into .site/site.

The sources are copied into one folder in the layout of the repository, so that links between them, to pictures and to code hold
on the site as they do here. A page of the API reference is made for each public module; mkdocstrings fills it from docstrings.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / ".site"
SOURCES = BUILD / "docs"

DOCUMENTS = (
    "README.md",
    "CHANGELOG.md",
    "LICENSE",
    "examples/guide/*.md",
    "flowcore/PROMISES.md",
    "flowcore_otel/TELEMETRY.md",
    "dashboards/*.md",
    "dashboards/*.png",
    ".github/*.md",
)
API = {
    "flowcore": "Workflows, engines, runs and errors",
    "flowcore.stores": "Stores",
    "flowcore.events": "Events and hooks",
    "flowcore.testing": "Testing kit",
    "flowcore.temporal": "On Temporal",
    "flowcore.picture": "Pictures of a run",
    "flowcore_otel": "Telemetry",
}

CONFIG = """
site_name: flowcore
site_description: An embeddable, observability-first workflow engine for Python.
docs_dir: {sources}
site_dir: {site}
use_directory_urls: true
theme:
  name: material
  font: false
  features: [navigation.sections, navigation.top, content.code.copy, toc.follow]
  palette:
  - {{media: "(prefers-color-scheme: light)", scheme: default, toggle: {{icon: material/weather-night, name: Dark}}}}
  - {{media: "(prefers-color-scheme: dark)", scheme: slate, toggle: {{icon: material/weather-sunny, name: Light}}}}
plugins:
- search
- mkdocstrings:
    default_handler: python
    handlers:
      python:
        paths: [{root}]
        options: {{show_source: false, show_root_heading: true, members_order: alphabetical, docstring_style: null}}
markdown_extensions: [admonition, attr_list, md_in_html, pymdownx.details, pymdownx.superfences, tables, toc]
validation: {{links: {{absolute_links: warn, unrecognized_links: warn, not_found: warn, anchors: warn}}}}
nav:
- Home: README.md
- Guide:
{guide}
- Promises: flowcore/PROMISES.md
- Telemetry: flowcore_otel/TELEMETRY.md
- On call:
  - Dashboards and alerts: dashboards/README.md
  - Runbook: dashboards/RUNBOOK.md
- API:
{api}
- Changes: CHANGELOG.md
- Security: github/SECURITY.md
- Contributing: github/CONTRIBUTING.md
"""


def collect() -> None:
    """Copy the documents, and the files that they link to."""
    shutil.rmtree(SOURCES, ignore_errors=True)
    for pattern in DOCUMENTS:
        for file in ROOT.glob(pattern):
            copy(file)
    for document in list(SOURCES.rglob("*.md")):
        text = document.read_text(encoding="utf-8").replace(".github/", "github/")
        for link in re.findall(r"\]\(([^)\s#]+)", text):
            linked = ROOT / document.relative_to(SOURCES).parent / link
            if not re.match(r"[a-z]+:", link) and linked.is_file() and linked.suffix != ".md":
                copy(linked.resolve())
            elif linked.is_dir():  # a site has no listing of a folder: the text stays, the link goes
                text = text.replace(f"]({link})", "]")
        document.write_text(folded(text), encoding="utf-8")


def copy(file: Path) -> None:
    target = SOURCES / str(file.relative_to(ROOT)).replace(".github", "github")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(file, target)


def folded(text: str) -> str:
    """PROMISES with the tests of each sentence folded away."""

    def fold(match: re.Match[str]) -> str:
        tests = "".join(f"<br><code>{name}</code>" for name in re.findall(r"`([^`]+)`", match[0]))
        return f"  <details><summary>tests</summary>{tests}</details>\n"

    return re.sub(r"(?:^  `[\w/.]+::\w+`\n)+", fold, text, flags=re.MULTILINE)


def reference() -> None:
    """A page for each public module."""
    for module, title in API.items():
        page = SOURCES / "api" / f"{module}.md"
        page.parent.mkdir(exist_ok=True)
        page.write_text(f"# {title}\n\n::: {module}\n", encoding="utf-8")


def titles(folder: str) -> str:
    """The pages of a folder for the navigation, in the order of its index."""
    index = (ROOT / folder / "README.md").read_text(encoding="utf-8")
    pages = re.findall(r"\[([^\]]+)\]\((\w+\.md)\)", index)
    return "\n".join(f"  - {title}: {folder}/{page}" for title, page in [("Contents", "README.md"), *pages])


def main() -> None:
    collect()
    reference()
    api = "\n".join(f"  - {title}: api/{module}.md" for module, title in API.items())
    config = CONFIG.format(sources=SOURCES, site=BUILD / "site", root=ROOT, guide=titles("examples/guide"), api=api)
    (BUILD / "mkdocs.yml").write_text(config, encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--quiet",
        "--config-file",
        str(BUILD / "mkdocs.yml"),
    ]
    sys.exit(subprocess.run(command, check=False).returncode)


if __name__ == "__main__":
    main()
