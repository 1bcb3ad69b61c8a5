"""The pages in headless Chromium: nothing sticks out, every figure is seen, and the dark scheme is dark.

Chromium is Debian's. It is needed, and where it is missing the tests fail and say how to install it: a page that no
browser has opened is not tested.
"""

import html
import json
import re
import shutil
import subprocess

import numpy as np
import pytest

from polyak.report import compare, record, write

WIDTHS = (390, 1280)
SCRIPT = """
onload = () => {
  const results = [...document.querySelectorAll('iframe')].map(frame => {
    const page = frame.contentDocument, view = frame.contentWindow, root = page.documentElement;
    const seen = e => e.getClientRects().length > 0 && e.getBoundingClientRect().width > 0;
    const inside = e => e.closest('.scroll') || e.closest('svg');
    const outside = [...page.body.querySelectorAll('*')].filter(e => seen(e) && !inside(e.parentElement)
      && (e.getBoundingClientRect().right > view.innerWidth + 0.5 || e.getBoundingClientRect().left < -0.5));
    const figures = [...page.querySelectorAll('figure')].map(f => {
      const drawn = [...f.querySelectorAll('svg.plot')].filter(seen);
      const box = drawn.length ? drawn[0].getBoundingClientRect() : {width: 0, height: 0};
      const texts = drawn.flatMap(s => [...s.querySelectorAll('text')].map(t => t.getBoundingClientRect()));
      const cut = texts.filter(t => t.left < f.getBoundingClientRect().left - 0.5
        || t.right > f.getBoundingClientRect().right + 0.5).length;
      const scale = drawn.length ? box.width / drawn[0].viewBox.baseVal.width : 0;
      return {drawn: drawn.length, width: box.width, height: box.height, cut,
              letters: scale * Number(drawn.length && drawn[0].getAttribute('font-size'))};
    });
    return {inner: view.innerWidth, scroll: root.scrollWidth, outside: outside.map(e => e.outerHTML.slice(0, 120)),
            figures, films: [...page.querySelectorAll('video, .film')].map(e => e.getBoundingClientRect().width),
            paper: view.getComputedStyle(page.body).backgroundColor, ink: view.getComputedStyle(page.body).color};
  });
  document.body.textContent = '';
  const said = {id: 'probe', textContent: JSON.stringify(results)};
  document.body.append(Object.assign(document.createElement('pre'), said));
};
"""


@pytest.fixture(scope="session")
def chromium():
    program = shutil.which("chromium")
    if program is None:
        pytest.fail("chromium is not installed: the report cannot be tested in a browser; run 'make setup'.")
    return program


@pytest.fixture
def look(chromium, tmp_path):
    """A function that opens a page in frames of the test's widths and returns what the browser measured in each.

    Frames, because Chromium's window is never narrower than 500 pixels; the probe stands outside of them, because the
    page's own policy lets no script run inside.
    """

    def measure(path, *flags):
        inner = html.escape(path.read_text("utf-8"))
        frames = "".join(
            f'<iframe width="{w}" height="900" style="border:0" srcdoc="{inner}"></iframe>' for w in WIDTHS
        )
        host = tmp_path / "host.html"
        head = '<!DOCTYPE html><meta charset="utf-8"><meta name="color-scheme" content="light dark">'
        host.write_text(f"{head}<body>{frames}<script>{SCRIPT}</script></body>", "utf-8")
        profile = tmp_path / f"profile{len(list(tmp_path.iterdir()))}"
        command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
        command += ["--disable-background-networking", "--disable-component-update", "--disable-sync", *flags]
        command += ["--disable-dev-shm-usage", f"--user-data-dir={profile}", "--dump-dom", host.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        found = re.search(r'<pre id="probe">(.*?)</pre>', done.stdout, re.S)
        assert found, f"chromium measured nothing (exit code {done.returncode}): {done.stderr[-500:]}"
        return dict(zip(WIDTHS, json.loads(html.unescape(found[1])), strict=True))

    return measure


def check(views, figures):
    for width, view in views.items():
        assert view["inner"] == width
        assert view["scroll"] <= width, f"the page of width {width} scrolls sideways"
        assert view["outside"] == []
        assert len(view["figures"]) == figures
        for figure in view["figures"]:
            assert figure["drawn"] == 1, "a figure is shown once: wide or narrow"
            assert min(figure["width"], figure["height"]) >= 70
            assert figure["width"] <= width
            assert figure["letters"] >= 10.5, "labels too small to read"
            assert figure["cut"] == 0, "labels outside of their figure"


LONG = "a_very_long_name_without_any_space_" * 4


def test_report_fits_both_widths_and_both_schemes(run_folder, tmp_path, look):
    run = run_folder(tmp_path / "CartPole-v1_1")
    frames = (np.full((120, 160, 3), k * 20, np.uint8) for k in range(5))
    record(frames, run / "seed_0" / "videos" / "final.mp4", 10)
    path = write(run)
    views = look(path)
    check(views, figures=11)
    assert all(0 < view["films"][0] <= width for width, view in views.items())
    dark = look(path, "--force-dark-mode")
    check(dark, figures=11)
    for width in WIDTHS:
        light_paper, dark_paper = ([int(v) for v in re.findall(r"\d+", s[width]["paper"])] for s in (views, dark))
        dark_ink = [int(v) for v in re.findall(r"\d+", dark[width]["ink"])]
        assert min(light_paper) > 230
        assert max(dark_paper) < 50
        assert min(dark_ink) > 200


def test_long_foreign_names_do_not_widen_the_page(run_folder, tmp_path, look):
    run = run_folder(tmp_path / LONG[:100], env=LONG, algorithm=LONG, fields={LONG: LONG}, rows=6, tier=3)
    (run / "command.txt").write_text(f"polyak train ppo {LONG}")
    check(look(write(run)), figures=11)


def test_comparison_fits_both_widths(run_folder, tmp_path, look):
    runs = [run_folder(tmp_path / f"{LONG[:60]}{k}", salt=k, speed=2 + k, rows=20, seeds=4) for k in range(6)]
    check(look(compare(runs, tmp_path / "page.html")), figures=3)


def test_one_seed_with_nothing_but_the_start_fits(run_folder, tmp_path, look):
    run = run_folder(tmp_path / "run", seeds=1, finished=False, rows=1, episodes=1)
    check(look(write(run)), figures=2 + 10)
