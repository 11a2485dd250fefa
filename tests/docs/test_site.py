"""The documentation site is built as `make docs` builds it: every page is in the navigation, every link leads somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from docs import figures, generate

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory, monkeypatch_module) -> Path:
    """The built site; its own warnings are errors."""
    build = pytest.importorskip("mkdocs.commands.build", reason="mkdocs is not installed (extra `docs`)")
    pytest.importorskip("mkdocstrings_handlers.python", reason="mkdocstrings is not installed (extra `docs`)")
    from mkdocs.config import load_config

    folder = tmp_path_factory.mktemp("site")
    config = load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder))
    config.plugins.on_startup(command="build", dirty=False)
    build.build(config)
    return folder


@pytest.fixture(scope="module")
def monkeypatch_module():
    """Leaves out a notice of the theme's that has nothing to do with these pages."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_MKDOCS_2_WARNING", "1")
        patch.chdir(ROOT)
        yield patch


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(site):
    pages = {page.relative_to(site).as_posix() for page in site.rglob("*.html")}
    assert {path.replace(".md", ".html") for path in generate.PAGES} <= pages
    assert not list(site.rglob("*.py"))
    api = (site / "reference" / "api.html").read_text()
    assert 'id="smallr.training.trainer.Trainer.fit"' in api
    # Evidence is folded, and read as Markdown inside the fold.
    study = (site / "methods" / "cogpo_ablation.html").read_text()
    assert re.search(r"<details>\s*<summary>The command and the tables</summary>.*?<table>", study, re.DOTALL)


def test_the_pictures_can_be_drawn_from_the_tables():
    assert len(figures.table("performance.md", "case")) == 8
    assert len(figures.table("scale.md", "slice")) == 12


def test_links_to_files_outside_the_site_become_their_names():
    class Page:
        class file:
            src_uri = "methods/crv.md"

    text = "[notebook](../../colab/collate.ipynb), [page](../data.md)"
    shown = generate.on_page_markdown(text, Page)
    assert shown == "notebook (`colab/collate.ipynb`), [page](../data.md)"


def test_paths_of_pages_become_links_to_them():
    File = pytest.importorskip("mkdocs.structure.files", reason="mkdocs is not installed (extra `docs`)").File

    files = {path: File(path, "docs", "site", False) for path in ("data.md", "methods/crv.md", "reference/configs.md")}

    class Page:
        file = files["reference/configs.md"]

    class Files:
        get_file_from_path = staticmethod(files.get)

    shown = generate.on_page_content("<pre>see docs/methods/crv.md, docs/data.md; docs/none.md</pre>", Page, Files)
    assert shown == (
        '<pre>see <a href="../methods/crv.html">crv</a>, <a href="../data.html">data</a>; docs/none.md</pre>'
    )
