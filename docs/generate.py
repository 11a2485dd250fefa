"""Makes the pages that are generated, when the site is built; a hook of mkdocs, and a script that writes them to a folder.

python docs/generate.py --out=FOLDER
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # mkdocs knows a hook by its file alone

from docs.site import reference, support  # noqa: E402


def changelog() -> str:
    """Returns the changelog of the repository."""
    return (ROOT / "CHANGELOG.md").read_text()


# Path in the site -> the function that makes the page.
PAGES = {
    "reference/configs.md": reference.configs,
    "reference/losses.md": reference.losses,
    "reference/commands.md": reference.commands,
    "reference/support.md": support.page,
    "changelog.md": changelog,
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the generated pages to the site."""
    from mkdocs.structure.files import File

    for path, make in PAGES.items():
        files.append(File.generated(config, path, content=make()))
    return files


_LINK = re.compile(r"\[([^\]]+)\]\(((?:\.\./)+[^)#\s]+)\)")


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Turns links to files of the repository, which the site does not have, into their names."""
    folder = (ROOT / "docs" / page.file.src_uri).parent

    def named(match: re.Match[str]) -> str:
        target = (folder / match[2]).resolve()
        outside = target.is_relative_to(ROOT) and not target.is_relative_to(ROOT / "docs")
        return f"{match[1]} (`{target.relative_to(ROOT)}`)" if outside else match[0]

    return _LINK.sub(named, markdown)


_PAGE = re.compile(r"\bdocs/((?:\w+/)*(\w+)\.md)")


def on_page_content(html: str, page: Page, files: Files, **_: object) -> str:
    """Turns paths of pages, which the source names as `docs/data.md`, into links to the pages."""

    def link(match: re.Match[str]) -> str:
        target = files.get_file_from_path(match[1])
        if target is None:
            return match[0]
        return f'<a href="{target.url_relative_to(page.file)}">{match[2].replace("_", " ")}</a>'

    return _PAGE.sub(link, html)


def main() -> None:
    """Writes the generated pages to a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=Path)
    out = parser.parse_args().out
    for path, make in PAGES.items():
        (out / path).parent.mkdir(parents=True, exist_ok=True)
        (out / path).write_text(make())


if __name__ == "__main__":
    main()
