"""Pages that are texts of the repository: the documents of its root, as they are. One text, one place.

`README.md` of the root is `documents/README.md` of the site, and so on; a document that is named between backticks
becomes a link to its page, from whichever page.
"""

import re
from pathlib import Path, PurePosixPath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted(path.name for path in ROOT.glob("*.md"))


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The site's files, and the documents of the root."""
    for name in DOCUMENTS:
        files.append(File.generated(config, f"documents/{name}", abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """The page's text with links to the documents that it names; blocks of code stay as they are."""
    up = "../" * (len(PurePosixPath(page.file.src_uri).parts) - 1)
    names = "|".join(map(re.escape, DOCUMENTS))
    parts = re.split(r"(^ *```.*?^ *```)", markdown, flags=re.DOTALL | re.MULTILINE)
    for n in range(0, len(parts), 2):
        parts[n] = re.sub(rf"(?<!\[)`({names})`", rf"[`\1`]({up}documents/\1)", parts[n])
    return "".join(parts)
