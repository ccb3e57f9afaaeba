"""What the site has beside docs/: the README as its front page, the changelog, how to contribute, and the API."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
FROM_ROOT = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
}
# The seams: what code outside the project may import, subclass or be handed.
API = {
    "score_openrlhf.tasks.base": "Tasks",
    "score_openrlhf.rollout.trajectory": "Trajectories",
    "score_openrlhf.objective": "Objectives",
    "score_openrlhf.config.compose": "Configurations",
    "score_openrlhf.errors": "Errors",
}


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are not files of docs/."""
    for source, page in FROM_ROOT.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=_relink(text.replace("](docs/", "]("))))
    sections = "\n".join(f"## {title}\n\n`{module}`\n\n::: {module}\n" for module, title in API.items())
    introduction = "What code outside the project may import, subclass or be handed, from the sources themselves."
    files.append(File.generated(config, "api.md", content=f"# API\n\n{introduction}\n\n{sections}"))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links from docs/ to files above it lead to those files' pages."""
    return _relink(markdown.replace("](../", "]("))


def _relink(text: str) -> str:
    return re.sub(r"\]\(([A-Z]+\.md)", lambda link: f"]({FROM_ROOT.get(link[1], link[1])}", text)
