"""Pages that are texts of the repository: the documents of its root as they are, and notebooks. One text, one place.

`README.md` of the root is `documents/README.md` of the site, and so on; a document that is named between backticks
becomes a link to its page, from whichever page. A notebook is shown as text and code, and can be taken away.
"""

import json
import re
from pathlib import Path, PurePosixPath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted(path.name for path in ROOT.glob("*.md"))
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The site's files, the documents of the root, and a page for each notebook."""
    for name in DOCUMENTS:
        files.append(File.generated(config, f"documents/{name}", abs_src_path=str(ROOT / name)))
    for path in NOTEBOOKS:
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=_page(path)))
    return files


def _page(notebook: Path) -> str:
    """The cells of a notebook, one after the other, behind a link to the file."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    texts = ["".join(cell["source"]) for cell in cells]
    shown = [t if c["cell_type"] == "markdown" else f"```python\n{t}\n```" for c, t in zip(cells, texts, strict=True)]
    heading, *rest = shown
    title, _, below = heading.partition("\n")
    return "\n\n".join([title, f"[This page as a notebook]({notebook.name})", below, *rest])


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """The page's text with links to the documents that it names; blocks of code stay as they are."""
    up = "../" * (len(PurePosixPath(page.file.src_uri).parts) - 1)
    names = "|".join(map(re.escape, DOCUMENTS))
    parts = re.split(r"(^ *```.*?^ *```)", markdown, flags=re.DOTALL | re.MULTILINE)
    for n in range(0, len(parts), 2):
        parts[n] = re.sub(rf"(?<!\[)`({names})`", rf"[`\1`]({up}documents/\1)", parts[n])
    return "".join(parts)
