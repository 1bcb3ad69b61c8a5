"""The page of a solution: numbers, pictures and film are those of the planner, and it needs nothing but itself."""

import base64
import io
import math
import re
from dataclasses import replace

import matplotlib.image
import numpy as np
import pytest
from test_browser import chromium, look  # noqa: F401  fixtures
from test_report import check_self_contained

from polyak.mdp import METHODS, Solution, from_arrays, from_gymnasium, from_sparse
from polyak.report import grids, solution, write_solution
from polyak.report.solution import Facts

ARROWS = ("←", "↓", "→", "↑")
FACTS = Facts("polyak solve value-iteration FrozenLake-v1", 0.5, 1e-6, {"polyak": "0"})
FIGURES = 3  # values, film, errors


@pytest.fixture(scope="module")
def lake():
    """FrozenLake and its solution."""
    model = from_gymnasium("FrozenLake-v1")
    return model, METHODS["value-iteration"](model, 0.99, keep=24)


def corridor(name="corridor"):
    """Three squares in a row, the goal at the right end: V = (γ, 1, 0), always to the right."""
    to = np.array([[0, 1], [0, 2], [2, 2]])
    reward = np.array([[0.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    return from_sparse(
        to, np.ones((3, 2)), reward, start=0, terminal=[2], shape=(1, 3), name=name, actions=("←", "→"), cells="S.G"
    )


def page_of(model, found, path, facts=FACTS):
    source = write_solution(path, model, found, facts).read_text("utf-8")
    return check_self_contained(source), source


def test_the_numbers_are_those_of_the_planner(lake, tmp_path):
    model, found = lake
    page, source = page_of(model, found, tmp_path / "solution.html")
    assert {found.start_value, found.bound, float(found.sweeps), 16.0, float(model.transitions)} <= set(page.numbers)
    assert set(found.V.tolist()) <= set(page.numbers)
    assert set(found.Q.ravel().tolist()) <= set(page.numbers)
    assert f"{found.start_value:.9f}" in page.words
    for words in ("Value iteration on FrozenLake-v1", "From V⁰ to V*", "Error per sweep", FACTS.command, "γ"):
        assert words in page.words
    assert not re.search(r"<script|https?:|@import", source.replace("default-src", ""))
    assert not [p for p in tmp_path.iterdir() if p.name != "solution.html"]


def heads(source, kind='class="arrow" '):
    """(shaft's start, its tip) of each arrow of the first board."""
    first = source[source.index('class="base"') : source.index('class="seams"')]
    paths = re.findall(rf'<path {kind}[^>]*d="([^"]*)"', first)
    ends = [e for d in paths for e in re.findall(r"M([\d.]+) ([\d.]+)L([\d.]+) ([\d.]+)M", d)]
    return [((float(a), float(b)), (float(c), float(d))) for a, b, c, d in ends]


def test_arrows_point_where_the_policy_goes(tmp_path):
    model = corridor()
    found = METHODS["value-iteration"](model, 0.9, keep=8)
    assert found.V.tolist() == pytest.approx([0.9, 1.0, 0.0])
    _, source = page_of(model, found, tmp_path / "page.html")
    arrows = heads(source)
    assert len(arrows) == 2, "no arrow at the goal"
    for (x, y), (right, down) in arrows:
        assert right > x and down == y


def test_every_arrow_of_the_lake_is_right(lake, tmp_path):
    model, found = lake
    _, source = page_of(model, found, tmp_path / "page.html")
    ways = {0: (-1, 0), 1: (0, 1), 2: (1, 0), 3: (0, -1)}
    wanted = {}
    for s in np.flatnonzero(~model.terminal):
        rivals = grids.best(found.Q, 2 * 0.99 * found.bound)[s].sum()
        if rivals < 4:
            wanted[divmod(int(s), 4)] = ways[int(found.policy[s])]
    side = 80.0
    drawn = {}
    for (x, y), (right, down) in heads(source):
        drawn[int(y // side), int(x // side)] = (int(np.sign(right - x)), int(np.sign(down - y)))
    assert drawn == wanted


def test_actions_that_cannot_be_told_apart_are_faint(tmp_path):
    model = from_arrays(
        np.tile(np.eye(2)[1], (2, 3, 1)), np.array([[1.0, 1.0, 0.0], [0, 0, 0]]), start=0, terminal=[1], shape=(1, 2),
        actions=("←", "→", "↑"),
    )  # fmt: skip
    found = METHODS["value-iteration"](model, 0.5, keep=4)
    _, source = page_of(model, found, tmp_path / "page.html")
    assert len(heads(source)) == 1
    assert len(heads(source, 'class="arrow equal" ')) == 1, "the third action is worse"
    assert grids.best(np.array([[1.0, 1.0 - 1e-12, 0.9]])).tolist() == [[True, True, False]]
    assert grids.best(np.array([[1.0, 0.95, 0.9]]), 0.06).tolist() == [[True, True, False]]


def test_the_film_has_a_picture_for_each_sweep_that_was_kept(lake, tmp_path):
    model, found = lake
    page, source = page_of(model, found, tmp_path / "page.html")
    kept = solution._kept(found)
    assert (kept[0], kept[-1]) == (0, len(found.frames) - 1)
    assert 2 <= len(kept) <= solution.FRAMES
    for k in range(len(kept) - 1):
        assert source.count(f'<g class="frame f{k}">') == 2, "wide and narrow"
        assert f"#film{k}:checked ~ .stage .f{k} {{ visibility: visible; }}" in source
    assert f"frame f{len(kept) - 1}" not in source, "the last one is the ground on which the others lie"
    assert source.count('type="radio"') == len(kept) + 1
    for sweep in found.frame_sweeps[kept]:
        assert f">{sweep}</label>" in source
    assert "prefers-reduced-motion: reduce" in source
    assert f"sweep {found.sweeps}" in page.words


def test_without_frames_there_is_no_film(lake, tmp_path):
    model, _ = lake
    bare = METHODS["value-iteration"](model, 0.99)
    assert len(bare.frames) < 2
    page, source = page_of(model, bare, tmp_path / "page.html")
    assert "From V⁰" not in page.words and 'type="radio"' not in source and "@keyframes" not in source
    assert set(bare.V.tolist()) <= set(page.numbers)


@pytest.mark.parametrize("method", list(METHODS))
def test_every_method_has_its_equation_and_its_page(method, tmp_path):
    model = corridor()
    options = {"finite-horizon": {"horizon": 5}, "linear-program": {}}.get(method, {"keep": 6})
    found = METHODS[method](model, gamma=0.9, **options)
    page, source = page_of(model, found, tmp_path / "page.html")
    assert solution.METHODS[method].title in page.words
    assert solution.METHODS[method].equation in source
    assert found.start_value in page.numbers
    assert ("contraction" in page.words) == (solution.METHODS[method].contracts and "Error per sweep" in page.words)
    assert ("steps left" in page.words) == (method == "finite-horizon")
    assert ('type="radio"' in source) == (method != "linear-program")
    assert "nan" not in re.sub(r'value="nan"', "", source.split("</style>")[1].lower()).split()


def test_every_method_of_the_planner_is_described():
    assert set(solution.METHODS) == set(METHODS)


def test_a_film_that_begins_far_away_does_not_darken_the_answer(lake, tmp_path):
    model, found = lake
    frames = found.frames.copy()
    frames[0] = -1e6
    page, _ = page_of(model, replace(found, frames=frames), tmp_path / "page.html")
    assert "Values outside of the scale" in page.words
    assert "−1,000,000" not in page.words
    board = grids.board((1, 3), 3)
    flat = replace(found, V=np.array([5.0, 5.1, 5.2]))
    assert solution._scale(board, flat) == grids.Scale(0.0, 5.2), "nearly equal values are seen from 0"
    assert solution._scale(board, replace(found, V=np.array([1.0, 2, 3]))) == grids.Scale(1.0, 3.0)


def test_states_without_a_grid_are_listed(tmp_path):
    model = from_gymnasium("Taxi-v4")
    found = METHODS["value-iteration"](model, 0.99, keep=6)
    page, source = page_of(model, found, tmp_path / "page.html")
    assert "the first 200 of 500 states" in page.words
    assert set(found.V[:200].tolist()) <= set(page.numbers)
    assert "pick up" in page.words
    assert "<details open>" in source
    assert len(source) < 1_000_000


def test_undiscounted_and_unbounded_pages_are_sound(lake, tmp_path):
    model, found = lake
    endless = replace(
        found, gamma=1.0, bound=math.nan, errors=np.full(len(found.errors), math.nan), start_value=float(found.V[0])
    )
    page, source = page_of(model, endless, tmp_path / "page.html")
    assert "contraction" not in page.words
    assert "error ≤" not in page.words
    wild = replace(found, V=np.full(16, 1e300), frames=found.frames * 1e300, bound=math.inf)
    _, source = page_of(model, wild, tmp_path / "page.html")
    for drawn in re.findall(r' (?:d|x|y|cx|cy|x1|x2|y1|y2|width|height|points)="([^"]*)"', source):
        assert "nan" not in drawn and "inf" not in drawn


def test_a_million_states_make_a_small_page(tmp_path):
    n = 1000
    rows, columns = np.divmod(np.arange(n * n), n)
    V = np.sin(rows / 90) * np.cos(columns / 70) + rows / n
    stay = np.arange(n * n)[:, None]
    model = from_sparse(stay, np.ones((n * n, 1)), np.zeros((n * n, 1)), shape=(n, n), name="large")
    frames = np.linspace(0, 1, 24)[:, None] * V
    found = Solution(
        V=V, Q=V[:, None], policy=np.zeros(n * n, np.int32), sweeps=23, bound=1e-6, gamma=0.9, method="value-iteration",
        errors=np.geomspace(1, 1e-6, 23), frames=frames, frame_sweeps=np.arange(24), start_value=float(V[0]),
    )  # fmt: skip
    page, source = page_of(model, found, tmp_path / "page.html")
    assert len(source) < 3_000_000
    assert "the mean over the states that it covers, of 1,000 × 1,000" in page.words
    assert "<text" not in source[source.index('class="base"') : source.index("</figure>")]


def test_pictures_hold_the_colours_of_the_values():
    scale = grids.Scale(0.0, 1.0)
    levels = scale.levels(np.array([[0.0, 0.5, 1.0], [2.0, math.nan, -1.0]]))
    assert levels.tolist() == [[0, 120, 239], [239, grids.NOTHING, 0]]
    raw = base64.b64decode(grids.png(levels).split(",")[1])
    pixels = (matplotlib.image.imread(io.BytesIO(raw), format="png") * 255).round().astype(int)
    assert pixels.shape == (2, 3, 4)
    assert pixels[1, 1, 3] == 0, "no value, no colour"
    assert pixels[0, 0].tolist() == [0x0B, 0x1F, 0x4B, 255]
    assert pixels[0, 2].tolist() == [0xF4, 0xF6, 0xBF, 255]
    light = pixels[0, :, :3].sum(axis=1)
    assert light[0] < light[1] < light[2]


def test_both_ramps_rise_in_brightness_and_their_letters_are_readable():
    for ramp in grids.RAMPS:
        c = grids._colours(ramp) / 255
        linear = np.where(c <= 0.03928, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
        luminance = linear @ np.array([0.2126, 0.7152, 0.0722])
        assert (np.diff(luminance) > 0).all()
        contrast = np.where(grids._dark(ramp), 1.05 / (luminance + 0.05), (luminance + 0.05) / (0.0066 + 0.05))
        assert contrast.min() >= 4.0


def test_averages():
    values = np.arange(36.0).reshape(6, 6)
    values[0, 0] = math.nan
    small = grids.averaged(values, 3)
    assert small.shape == (3, 3)
    assert small[0, 0] == pytest.approx((1 + 6 + 7) / 3), "of those that are finite"
    assert small[2, 2] == pytest.approx(values[4:, 4:].mean())
    assert grids.averaged(np.zeros((1000, 7))).shape == (256, 7)
    assert grids.averaged(np.full((4, 4), math.nan), 2).shape == (2, 2)


def test_states_that_are_never_reached_do_not_stretch_the_scale():
    where = grids.board((1, 3), 3, "S.C", None, np.array([False, False, True]))
    assert grids.scale_of(where, [np.array([1.0, 2.0, -99.0])]) == grids.Scale(1.0, 2.0)
    assert grids.scale_of(where, [np.full(3, math.nan)]) == grids.Scale(0.0, 0.0)


def test_foreign_names_are_never_markup(tmp_path):
    bad = "<script>alert(1)</script>\x1b"
    model = corridor(bad)
    found = METHODS["value-iteration"](model, 0.9, keep=4)
    page, source = page_of(model, found, tmp_path / "page.html", Facts(bad, 1.0, 1e-6, {bad: bad}))
    assert "<script" not in source and "\x1b" not in source
    assert "alert(1)" in page.words


# ------------------------------------------------------------------------------------------------------------- browser


@pytest.mark.full
@pytest.mark.parametrize("env", ["FrozenLake8x8-v1", "CliffWalking-v1"])
def test_the_page_fits_both_widths_and_both_schemes(env, tmp_path, look):  # noqa: F811
    model = from_gymnasium(env)
    path = write_solution(tmp_path / "page.html", model, METHODS["value-iteration"](model, 0.99, keep=24), FACTS)
    views, dark = look(path), look(path, "--force-dark-mode")
    for width in views:
        for view in (views[width], dark[width]):
            assert view["scroll"] <= width, "the page scrolls sideways"
            assert view["outside"] == []
            assert len(view["figures"]) == FIGURES
            for figure in view["figures"]:
                assert figure["drawn"] == 1, "a figure is shown once: wide or narrow"
                assert figure["letters"] >= 10.5, "labels too small to read"
                assert figure["cut"] == 0, "labels outside of their figure"
        light_paper, dark_paper = ([int(v) for v in re.findall(r"\d+", v[width]["paper"])] for v in (views, dark))
        assert min(light_paper) > 230 and max(dark_paper) < 50
