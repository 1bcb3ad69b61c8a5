"""The figure of a learned table beside the exact one: right numbers, one scale, and no harm from a broken file."""

import io
import re
import zipfile

import numpy as np
import pytest
from test_browser import check, chromium, look  # noqa: F401  fixtures
from test_report import check_self_contained

from polyak.report import write

CELLS = "S.#GO."  # 2 × 3
ARROWS = ("←", "↓", "→", "↑")
EXACT = np.array(
    [[0.1, 0.2, 0.3, 0.4], [0.5, 0.9, 0.5, 0.5], [0.0] * 4, [0.0] * 4, [0.0] * 4, [0.7, 0.7, 0.1, 0.1]]
)  # fmt: skip


def arrays(**changed):
    """The arrays of a run of two seeds whose errors are known: 0.25 for seed 0 and 0.5 for seed 1, in state 1."""
    learned = np.stack([EXACT, EXACT])
    learned[0, 1, 0] += 0.25
    learned[1, 1, 1] -= 0.5
    reachable = np.array([True, True, False, True, True, False])
    return {
        "exact": EXACT, "learned": learned, "reachable": reachable, "shape": np.array([2, 3]), "cells": np.array(CELLS),
        "actions": np.array(ARROWS), "kind": np.array("Q"), "gamma": np.array(0.9),
    } | changed  # fmt: skip


@pytest.fixture
def report(run_folder, tmp_path):
    """A function that writes a run with these arrays and returns the source of its report."""

    def source_of(**changed):
        run = tmp_path / f"run{len(list(tmp_path.iterdir()))}"
        run_folder(run, seeds=1, rows=4, episodes=2)
        np.savez(run / "exact.npz", **arrays(**changed))
        return write(run).read_text("utf-8")

    return source_of


def section(source):
    return source[source.index("<h2>Learned and exact</h2>") : source.index("<h2>Evaluation episodes</h2>")]


def test_the_numbers_are_those_of_the_file(report):
    source = report()
    check_self_contained(source)
    part = section(source)
    assert re.findall(r"<h3>(\w+)</h3>", part) == ["Learned", "Exact", "Error"]
    assert 'value="0.25"' in part and 'value="0.5"' in part, "the largest error of each seed"
    assert "[0.1, 0.9]" in part and "γ = 0.9" in part
    assert "one of the best in 2 of 2 states" in part, "neither the unreachable one nor those that end an episode"
    # State 1: exact max 0.9; learned mean: max(0.625, 0.65) = 0.65; error: the mean of 0.25 and 0.5.
    exact, error = part[part.index("<h3>Exact") :], part[part.index("<h3>Error") :]
    assert ">0.900</text>" in exact and ">0.650</text>" in part[: part.index("<h3>Exact")]
    assert ">0.375</text>" in error


def test_both_boards_have_one_scale_and_the_error_its_own(report):
    part = section(report())
    ends = re.findall(r'<p class="ramp"><span>([^<]*)</span>.*?<span>([^<]*)</span>', part)
    assert ends[0] == ends[1] == ("0.400", "0.900"), "over states that are reached and go on"
    assert ends[2] == ("0.000", "0.375")


def test_a_table_of_values_has_no_arrows(report):
    V = EXACT.max(axis=1, keepdims=True)
    part = section(report(exact=V, learned=np.stack([V, V + 0.1]), actions=np.array([""]), kind=np.array("V")))
    assert 'class="arrow' not in part
    assert "The exact values, V of the policy that is followed, lie in" in part and "greedy" not in part


def test_without_a_grid_there_is_a_scatter(report):
    part = section(report(shape=np.array([0, 0]), cells=np.array("")))
    assert part.count("<figure") == 1
    dots = part[: part.index("for-narrow")].count('class="value"')
    assert dots == arrays()["reachable"].sum() * 4
    assert "state 1, ↓: learned 0.65, exact 0.9" in part


def test_a_large_board_is_a_picture(report):
    n = 60 * 50
    draw = np.random.default_rng(0)
    exact = draw.normal(size=(n, 4))
    source = report(
        exact=exact, learned=exact[None] + 0.1, reachable=np.ones(n, bool), shape=np.array([60, 50]), cells=np.array("")
    )
    part = section(source)
    assert "<text" not in part
    assert part.count("<image") == 6, "three boards, wide and narrow"
    check_self_contained(source)


def test_learned_values_that_ran_away_are_drawn_and_told(report):
    learned = arrays()["learned"]
    learned[0, 0, 0], learned[1, 1, 1] = 1e30, np.nan
    source = report(learned=learned)
    check_self_contained(source)
    for drawn in re.findall(r' (?:d|x|y|cx|cy|x1|x2|y1|y2|width|height|points)="([^"]*)"', section(source)):
        assert "nan" not in drawn and "inf" not in drawn


def test_no_file_no_section(run_folder, tmp_path):
    source = write(run_folder(tmp_path / "run", seeds=1, rows=4)).read_text("utf-8")
    assert "Learned and exact" not in source and "exact.npz" not in source


BROKEN = {
    "one array is missing": lambda a: a.pop("learned"),
    "other states": lambda a: a.update(exact=EXACT[:3]),
    "no seeds": lambda a: a.update(learned=np.zeros((0, 6, 4))),
    "not finite": lambda a: a.update(exact=np.full((6, 4), np.nan)),
    "words": lambda a: a.update(exact=np.full((6, 4), "x")),
    "objects": lambda a: a.pop("learned"),  # and put back as OBJECTS
    "a shape of three": lambda a: a.update(shape=np.array([1, 2, 3])),
    "a negative shape": lambda a: a.update(shape=np.array([-2, -3])),
}


def objects() -> bytes:
    """An array of objects as a hostile file would hold it: the header says so, and nothing may look at what follows."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": (2,)})
    return file.getvalue() + b"cos\nabort\n(tR."


@pytest.mark.parametrize("how", BROKEN)
def test_arrays_that_do_not_belong_together_are_a_note(run_folder, tmp_path, how):
    run = run_folder(tmp_path / "run", seeds=1, rows=4)
    changed = arrays()
    BROKEN[how](changed)
    np.savez(run / "exact.npz", allow_pickle=False, **changed)
    if how == "objects":
        with zipfile.ZipFile(run / "exact.npz", "a") as archive:
            archive.writestr("learned.npy", objects())
    page = check_self_contained(write(run).read_text("utf-8"))
    assert "exact.npz could not be read" in page.words
    assert "Learned and exact" not in page.words


@pytest.mark.parametrize("raw", [b"", b"garbage", b"PK\x03\x04 cut"])
def test_a_damaged_file_is_a_note(run_folder, tmp_path, raw):
    run = run_folder(tmp_path / "run", seeds=1, rows=4)
    (run / "exact.npz").write_bytes(raw)
    page = check_self_contained(write(run).read_text("utf-8"))
    assert "exact.npz could not be read" in page.words


def test_foreign_words_are_never_markup(report):
    bad = "<script>alert(1)</script>"
    source = report(actions=np.array([bad] * 4), kind=np.array(bad), cells=np.array('<">&;\x1b'))
    check_self_contained(source)
    assert "<script" not in source


@pytest.mark.full
@pytest.mark.parametrize(("shape", "figures"), [((2, 3), 3), ((0, 0), 1)])
def test_the_section_fits_both_widths(run_folder, tmp_path, look, shape, figures):  # noqa: F811
    run = run_folder(tmp_path / "run", seeds=1, rows=4, episodes=2)
    np.savez(run / "exact.npz", **arrays(shape=np.array(shape), learned=arrays()["learned"] * -100))
    check(look(write(run)), figures=11 + figures)
