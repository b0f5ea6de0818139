"""The built site in a browser, from the disk: links, errors, search, formulas, tables, dark mode, copy buttons."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from browser import CHROMIUM, Browser

ROOT = Path(__file__).parents[1]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
]
PAGES = (
    "index.html",
    "quickstart.html",
    "methods/index.html",
    "methods/losses/index.html",
    "methods/losses/FocalLoss.html",
    "methods/distillation/DualHead.html",
    "methods/averaging/BEMA.html",
    "guides/index.html",
    "guides/coming_from.html",
    "guides/faq.html",
    "developers.html",
    "performance.html",
    "evidence/index.html",
    "stories/ema_widths.html",
    "stories/merging.html",
    "package/kinds.html",
)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site; DOCS_SITE=docs/site takes one that is built."""
    if built := os.environ.get("DOCS_SITE"):
        return Path(built).resolve()
    out = tmp_path_factory.mktemp("site")
    sources = ROOT / "build" / "docs"
    subprocess.run([sys.executable, "-m", "docs.gen", str(sources)], cwd=ROOT, check=True)
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(out)]
    subprocess.run(command, cwd=ROOT, check=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"})
    return out


@pytest.fixture(scope="module")
def browser():
    with Browser() as browser:
        yield browser


@pytest.mark.parametrize("width", [400, 1400])
@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_whole(site, browser, page, width):
    """Without errors in the console, without requests to the network, and without anything that is cut at its side."""
    browser.open((site / page).as_uri(), width=width)
    assert not browser.errors()
    wide = browser.run(WIDE)
    assert browser.run("document.documentElement.scrollWidth") <= width, f"wider than {width} px: {wide}"
    cut = browser.run(CUT)
    assert not cut, f"at {width} px these tables are cut: {cut}"


CUT = """[...document.querySelectorAll("article table")].filter(table => {
    const box = table.closest(".md-typeset__scrollwrap") || table.parentElement;
    return box.scrollWidth > box.clientWidth + 1;
}).map(table => table.innerText.slice(0, 60) + ": " + table.offsetWidth)"""


WIDE = """[...document.querySelectorAll("article *")].filter(part => {
    if (part.getBoundingClientRect().right <= document.documentElement.clientWidth + 1) return false;
    for (let box = part.parentElement; box; box = box.parentElement)
        if (getComputedStyle(box).overflowX !== "visible" && box !== document.body) return false;
    return true;
}).slice(0, 5).map(part => part.tagName + "." + part.className + ": " + part.innerText?.slice(0, 60))"""


def test_links_lead_to_pages(site):
    """Every link within the site has a file, and every fragment an anchor."""
    links = {page: page.read_text() for page in sorted(site.rglob("*.html"))}
    broken = []
    for page, text in links.items():
        for link in set(re.findall(r'<a [^>]*?href="([^"]*)"', text)):
            if link.startswith(("http", "mailto:")) or page.name == "404.html":
                continue
            path, _, fragment = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            target = target / "index.html" if target.is_dir() else target
            if target not in links:
                if not target.exists():
                    broken.append(f"{page.relative_to(site)} -> {link}")
            elif fragment and f'id="{fragment}"' not in links[target] and f'name="{fragment}"' not in links[target]:
                broken.append(f"{page.relative_to(site)} -> {link}")
    assert not broken


@pytest.mark.parametrize("word", ["imbalance", "overfitting", "LoRA", "teacher", "calibration", "EMA", "noisy"])
def test_the_search_finds(site, browser, word):
    browser.open((site / "index.html").as_uri())
    typed = f"""(() => {{
        const input = document.querySelector('.md-search__input');
        document.querySelector('#__search').click();
        input.focus();
        input.value = '{word}';
        for (const kind of ['input', 'keyup']) input.dispatchEvent(new Event(kind, {{bubbles: true}}));
    }})()"""
    found = 0
    for _ in range(4):  # until the theme listens
        browser.run(typed)
        found = found or browser.until("document.querySelectorAll('.md-search-result__item').length", seconds=6)
        if found:
            break
    assert found, f"nothing is found for {word}; {browser.errors()}"
    assert not browser.errors()


def test_formulas_are_drawn(site, browser):
    browser.open((site / "methods/losses/FocalLoss.html").as_uri())
    assert browser.run("document.querySelectorAll('article math').length") >= 3
    heights = "[...document.querySelectorAll('article math')].map(math => math.getBoundingClientRect().height)"
    assert browser.run(f"Math.min(...{heights})") > 5
    assert "\\(" not in browser.run("document.querySelector('article').innerText")


def test_code_can_be_copied_and_tabs_switch(site, browser):
    browser.open((site / "methods/losses/FocalLoss.html").as_uri())
    assert browser.until("document.querySelectorAll('.md-clipboard, .md-code__button').length") >= 4
    browser.run("[...document.querySelectorAll('.tabbed-labels label')].find(l => l.innerText == 'YAML').click()")
    shown = "[...document.querySelectorAll('.tabbed-block')].filter(b => b.offsetHeight).map(b => b.innerText).join()"
    assert "class_path" in browser.until(f"({shown}).includes('class_path') && {shown}")


def test_the_gallery_is_filtered(site, browser):
    browser.open((site / "methods/index.html").as_uri())
    count = "[...document.querySelectorAll('.lo-gallery tbody tr')].filter(row => row.offsetHeight).length"
    everything = browser.run(count)
    browser.run("document.getElementById('lo-family').value = 'label noise'")
    browser.run("document.getElementById('lo-family').dispatchEvent(new Event('change'))")
    assert 0 < browser.run(count) < everything
    browser.run("document.getElementById('lo-word').value = 'no such method'")
    browser.run("document.getElementById('lo-word').dispatchEvent(new Event('input'))")
    assert browser.run(count) == 0


def test_the_dark_mode_is_dark(site, browser):
    shade = "getComputedStyle(document.body).backgroundColor.match(/[0-9]+/g).slice(0, 3).reduce((a, b) => a + +b, 0)"
    browser.open((site / "index.html").as_uri(), dark=True)
    assert browser.run(shade) < 200
    browser.open((site / "index.html").as_uri(), dark=False)
    assert browser.run(shade) > 600
