"""The pages: sound HTML, no request, no script, every number from the files, nothing foreign taken for markup."""

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from polyak.errors import RunError
from polyak.report import compare, plots, style, write
from polyak.report.text import bracket, clean, data, plain, span, tick
from polyak.statistics import interval, iqm, probability_of_improvement

VOID = {"meta", "img", "br", "hr", "input", "link"}
SVG = {"svg", "g", "line", "text", "polyline", "polygon", "circle", "rect", "path", "title", "image"}
HTML = {
    *(
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "main",
        "header",
        "footer",
        "h1",
        "h2",
        "h3",
        "p",
        "span",
        "data",
    ),
    *("dl", "div", "dt", "dd", "figure", "figcaption", "ul", "li", "details", "summary", "table", "thead", "tbody"),
    *("tr", "th", "td", "pre", "small", "video", "img", "input", "label", "sub"),
}


class Page(HTMLParser):
    """A strict reader: every tag is known and closed in order; collects attributes, numbers and text."""

    def __init__(self, source):
        HTMLParser.__init__(self)
        self.open, self.attributes, self.numbers, self.text = [], [], [], []
        self.feed(source)
        self.close()
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag, attrs):
        assert tag in HTML | SVG, f"unexpected <{tag}>"
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag == "data":
            self.numbers.append(float(dict(attrs)["value"]))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open[-1] == tag, f"</{tag}> closes <{self.open[-1]}>"
        self.open.pop()

    def handle_data(self, text):
        if "style" not in self.open:
            self.text.append(text)

    @property
    def words(self):
        return " ".join(" ".join(self.text).split())


def page_of(path):
    return Page(path.read_text("utf-8"))


def check_self_contained(source):
    page = Page(source)
    for tag, name, value in page.attributes:
        assert not name.startswith("on"), f"<{tag} {name}>: a script"
        if name in ("src", "href", "srcset", "poster", "action", "data"):
            assert value.startswith(("data:video/", "data:image/")), f"<{tag} {name}={value[:60]!r}>"
    style = "".join(re.findall(r"<style>(.*?)</style>", source, re.S))
    assert "url(" not in style
    assert "@import" not in style
    assert not re.search(r"(?:https?:)?//[a-z]", source.replace("data:", "")[: source.find("<body>")])
    return page


def test_report_is_sound_and_self_contained(run_folder, tmp_path):
    run = run_folder(tmp_path / "CartPole-v1_1")
    path = write(run)
    assert path == run / "report.html"
    source = path.read_text("utf-8")
    page = check_self_contained(source)
    for words in ("PPO on CartPole-v1", "Learning curve", "Evaluation episodes", "Inside the training", "Run it again"):
        assert words in page.words
    assert "default-src 'none'" in source
    assert "@media (prefers-color-scheme: dark)" in source
    assert 'name="viewport" content="width=device-width, initial-scale=1"' in source
    assert source.count("<svg") > 10
    assert not [p for p in run.iterdir() if p.name.startswith(".")], "the draft is left behind"


def schemes():
    """The colour variables of the light and of the dark scheme."""
    sheet = Path(style.__file__).with_name("style.css").read_text("utf-8")
    blocks = re.findall(r":root \{(.*?)\}", sheet, re.S)
    return dict(zip(("light", "dark"), (dict(re.findall(r"--([\w-]+): ([^;]+);", b)) for b in blocks), strict=True))


def test_the_colours_of_both_schemes_have_the_same_names():
    light, dark = schemes().values()
    assert light.keys() == dark.keys()
    assert {f"s{k}" for k in range(plots.COLOURS)} <= light.keys()


def luminance(colour):
    parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a, b):
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_is_readable_in_both_schemes(scheme):
    """Text at least 4.5 : 1 and lines at least 3 : 1 (WCAG 2.2, AA)."""
    colours = schemes()[scheme]
    for text in ("ink", "soft"):
        assert min(contrast(colours[text], colours[on]) for on in ("paper", "panel", "code")) >= 4.5, text
    assert contrast(colours["mark-ink"], colours["mark"]) >= 4.5
    assert contrast(colours["soft"], colours["mark"]) >= 4.5
    for k in range(plots.COLOURS):
        assert contrast(colours[f"s{k}"], colours["panel"]) >= 3, f"s{k}"


def test_every_number_of_the_files_is_on_the_page(run_folder, tmp_path):
    run = run_folder(tmp_path / "run")
    numbers = page_of(write(run)).numbers
    summary = json.loads((run / "summary.json").read_text())
    for key in ("iqm", "ci_low", "ci_high", "mean", "episodes"):
        assert summary["eval"][key] in numbers, key
    assert summary["steps"] in numbers
    assert summary["time"]["fps"] in numbers
    for seed in range(5):
        with np.load(run / f"seed_{seed}" / "evaluations.npz", allow_pickle=False) as file:
            assert set(file["results"].mean(axis=1).tolist()) <= set(numbers), f"evaluations of seed {seed}"
            assert set(file["timesteps"].astype(float).tolist()) <= set(numbers)
    last = {}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        last[row["seed"]] = row["rollout/ep_rew_mean"]
    assert iqm(list(last.values())) in numbers


def test_the_page_says_what_the_summary_says_even_where_the_data_differ(run_folder, tmp_path):
    """The summary is the record: its numbers are shown, not recomputed."""
    run = run_folder(tmp_path / "run")
    summary = json.loads((run / "summary.json").read_text())
    summary["eval"] |= {"iqm": 123.456, "ci_low": 120.001, "ci_high": 130.002}
    (run / "summary.json").write_text(json.dumps(summary))
    page = page_of(write(run))
    assert {123.456, 120.001, 130.002} <= set(page.numbers)
    assert "123.5 [ 120.0 , 130.0 ]" in page.words


def test_configuration_marks_what_differs_and_where_it_comes_from(run_folder, tmp_path):
    run = run_folder(tmp_path / "run", fields={"gamma": 0.5, "vf_coef": 0.7})
    source = write(run).read_text("utf-8")
    rows = {
        name: (bool(mark), rest)
        for mark, name, rest in re.findall(r'<tr( class=changed)?><th class="mono">([\w.]+)</th>(.*?)</tr>', source)
    }
    assert rows["lr"][0]
    assert "Linear(start=0.001, end=0.0, fraction=1.0, steps=100000.0)" in rows["lr"][1]
    assert ">preset<" in rows["lr"][1]
    assert rows["gamma"][0]
    assert "set here; the preset has 0.98" in rows["gamma"][1]
    assert rows["vf_coef"][0]
    assert ">set here<" in rows["vf_coef"][1]
    assert not rows["clip_range"][0]
    assert ">default<" in rows["clip_range"][1]
    assert {"normalised", "run.n_envs", "env.id"} <= set(rows)
    assert not rows["normalised"][0]
    assert "7 of 14 hyper-parameters differ" in source
    assert "The preset is zoo, after a zoo." in source
    config = json.loads((run / "config.json").read_text())
    config["agent"]["normalised"] = {"clip_obs": 10.0}
    config["agent"]["fields"]["network"] = {"network": "MLP", "hidden": [32, 32]}
    (run / "config.json").write_text(json.dumps(config))
    again = write(run).read_text("utf-8")
    for words in ("9 of 15 hyper-parameters differ", "MLP(hidden=[32, 32])", "normalised.clip_obs"):
        assert words in again, words


def test_a_run_that_lost_exactness_says_so(run_folder, tmp_path):
    run = run_folder(tmp_path / "run", rows=4, episodes=2)
    assert "exact (tier 2)" in page_of(write(run)).words
    summary = json.loads((run / "summary.json").read_text()) | {"exact": False}
    (run / "summary.json").write_text(json.dumps(summary))
    assert "not exact: the run may differ" in page_of(write(run)).words


def test_command_hash_versions_and_tier(run_folder, tmp_path):
    run = run_folder(tmp_path / "run", tier=3)
    page = page_of(write(run))
    assert (run / "command.txt").read_text().strip() in page.words
    assert "b3c1" * 16 in page.words
    assert "tier 3" in page.words
    assert "0.12.0" in page.words
    assert "secret-host" not in page.words, "host names stay out of reports"


HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>&amp;\u202e\x1b[31m"


def test_foreign_text_is_never_markup(run_folder, tmp_path):
    run = run_folder(
        tmp_path / "run<b>&'",
        algorithm=HOSTILE,
        env=HOSTILE,
        fields={HOSTILE: HOSTILE, "nested": {HOSTILE: {"x": HOSTILE}}},
    )
    (run / "command.txt").write_text(f"polyak train {HOSTILE}")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    extra = {f"train/{HOSTILE}": 1.0}
    (run / "metrics.jsonl").write_text(
        "".join(json.dumps(r | {k: v * r["step"] for k, v in extra.items()}) + "\n" for r in rows)
    )
    system = {HOSTILE: HOSTILE, "git": {HOSTILE: HOSTILE}}
    (run / "system.json").write_text(json.dumps(system))
    summary = json.loads((run / "summary.json").read_text()) | {
        "state_hash": HOSTILE,
        "exact": HOSTILE,
        "tier": HOSTILE,
    }
    (run / "summary.json").write_text(json.dumps(summary))
    config = json.loads((run / "config.json").read_text())
    config["run"]["preset"] = config["polyak"] = HOSTILE
    (run / "config.json").write_text(json.dumps(config))
    for path in (write(run), compare([run, run], tmp_path / "cmp.html")):
        source = path.read_text("utf-8")
        page = check_self_contained(source)  # refuses <script>, unknown tags, handlers and sources
        assert "\u202e" not in source
        assert "\x1b" not in source
        assert "alert(1)" in page.words
        assert not [a for a in page.attributes if a[0] == "img"]


def test_one_seed_has_no_interval(run_folder, tmp_path):
    page = page_of(write(run_folder(tmp_path / "run", seeds=1)))
    assert "one seed: no interval" in page.words
    assert "95 % bootstrap interval over" not in page.words
    assert "nan" not in page.words.lower().split()


def test_an_unfinished_run_shows_its_latest_evaluation(run_folder, tmp_path):
    run = run_folder(tmp_path / "run", finished=False)
    page = page_of(write(run))
    assert "has not finished" in page.words
    assert "latest evaluation" in page.words
    finals = []
    for k in range(5):
        with np.load(run / f"seed_{k}" / "evaluations.npz", allow_pickle=False) as file:
            finals.append(float(file["results"][-1].mean()))
    assert {iqm(finals), *interval(finals)} <= set(page.numbers)


MISSING = ["metrics.jsonl", "system.json", "command.txt", "config.json", "summary.json", "evaluations"]


@pytest.mark.parametrize("name", MISSING)
@pytest.mark.parametrize("how", ["gone", "empty", "garbage", "binary"])
def test_missing_and_damaged_files_give_a_page(run_folder, tmp_path, name, how):
    run = run_folder(tmp_path / "run", rows=5, episodes=3)
    paths = [run / f"seed_{k}" / "evaluations.npz" for k in range(5)] if name == "evaluations" else [run / name]
    for path in paths:
        whole = path.read_bytes()
        broken = {"empty": b"", "garbage": b'{"a": [1, NaN', "binary": whole[: len(whole) // 2] + b"\x00\xff\xfe" * 20}
        path.unlink() if how == "gone" else path.write_bytes(broken[how])
    page = check_self_contained(write(run).read_text("utf-8"))
    assert "PPO" in page.words or name == "config.json"
    check_self_contained(compare([run, run], tmp_path / "c").read_text("utf-8"))


@pytest.mark.parametrize(
    "text", ["", "{}\n", '{"seed": 0, "step": 1}\n', '{"seed": 0, "step": 1, "train/loss": NaN}\n[]\n{']
)
def test_a_run_that_has_only_begun(tmp_path, text):
    run = tmp_path / "run"
    run.mkdir()
    (run / "metrics.jsonl").write_text(text)
    page = check_self_contained(write(run).read_text("utf-8"))
    assert "There is no result yet" in page.words
    assert "There is no curve yet" in page.words
    assert "There are no evaluations" in page.words


def test_nan_infinite_and_extreme_values(run_folder, tmp_path):
    run = run_folder(tmp_path / "run", rows=6, episodes=4)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for k, row in enumerate(rows):
        row |= {
            "train/loss": [math.nan, math.inf, 1e300, -1e300, 0.0, 1e-300][k % 6],
            "train/tiny": 1e-12 * k,
            "train/same": 7,
        }
        row["rollout/ep_rew_mean"] = -1e9 if k % 2 else math.nan
    (run / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    results = np.full((2, 4), math.nan)
    results[0] = 3.0
    np.savez(run / "seed_0" / "evaluations.npz", timesteps=[5000, 100_000], results=results)
    source = write(run).read_text("utf-8")
    check_self_contained(source)
    for drawn in re.findall(r'(?:points|d|x|y|cx|cy|x1|x2|y1|y2|width)="([^"]*)"', source):
        assert "nan" not in drawn, drawn
        assert "inf" not in drawn, drawn
    assert "not finite" in source
    assert "train/same</data>" not in source
    assert 'train/same = <data value="7.0">7</data>' in source


def test_no_run_is_refused_with_a_sentence(tmp_path):
    with pytest.raises(RunError, match="there is no such folder"):
        write(tmp_path / "nothing")
    (tmp_path / "other").mkdir()
    with pytest.raises(RunError, match=r"it has none of config\.json"):
        write(tmp_path / "other")
    with pytest.raises(RunError, match="nothing to compare"):
        compare([], tmp_path)
    assert RunError("x").exit_code == 4


def test_a_place_that_cannot_be_written_is_a_sentence(run_folder, tmp_path):
    run = run_folder(tmp_path / "run", seeds=1, rows=4)
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written"):
        compare([run], tmp_path / "file" / "out.html")


def test_links_out_of_the_run_are_not_followed(run_folder, tmp_path):
    run = run_folder(tmp_path / "run", seeds=1, rows=4)
    secret = tmp_path / "secret.txt"
    secret.write_text("top secret")
    (run / "command.txt").unlink()
    (run / "command.txt").symlink_to(secret)
    (run / "seed_0" / "videos").mkdir()
    (run / "seed_0" / "videos" / "a.gif").symlink_to(secret)
    source = write(run).read_text("utf-8")
    assert "top secret" not in source
    assert "dG9wIHNlY3JldA" not in source  # the same in base64


def test_a_video_is_embedded(run_folder, tmp_path):
    run = run_folder(tmp_path / "run", seeds=2, rows=4)
    videos = run / "seed_1" / "videos"
    videos.mkdir()
    (videos / "step_1.mp4").write_bytes(b"first")
    (videos / "step_2.mp4").write_bytes(b"second")
    (videos / "step_3.gif").write_bytes(b"GIF89a")
    source = write(run).read_text("utf-8")
    check_self_contained(source)
    assert 'src="data:video/mp4;base64,c2Vjb25k"' in source
    given = write(run, videos / "step_3.gif").read_text("utf-8")
    assert 'src="data:image/gif;base64,R0lGODlh"' in given
    assert "missing, empty or over" in write(run, videos / "gone.mp4").read_text("utf-8")
    assert "no browser shows" in write(run, run / "config.json").read_text("utf-8")


def test_compare_has_scores_odds_and_differences(run_folder, tmp_path):
    a = run_folder(tmp_path / "a", speed=2)
    b = run_folder(tmp_path / "b", speed=9, salt=1, algorithm="DQN", fields={"gamma": 0.5})
    path = compare([a, b], tmp_path / "out" / "page.html")
    assert path == tmp_path / "out" / "page.html"
    page = check_self_contained(path.read_text("utf-8"))
    scores = []
    for run in (a, b):
        result = json.loads((run / "summary.json").read_text())["eval"]
        assert {result["iqm"], result["ci_low"], result["ci_high"], result["mean"]} <= set(page.numbers)
        scores.append(result["per_seed"])
    assert set(probability_of_improvement(*scores)) <= set(page.numbers)
    assert set(probability_of_improvement(*scores[::-1])) <= set(page.numbers)
    assert "gamma 0.98 0.5" in page.words
    assert "clip_range" not in page.words


def test_compare_names_runs_apart_and_warns(run_folder, tmp_path):
    a = run_folder(tmp_path / "x" / "run", seeds=1, rows=4)
    b = run_folder(tmp_path / "y" / "run", seeds=3, rows=4, env="Pendulum-v1", finished=False)
    path = compare([a, b, a], tmp_path)
    assert path == tmp_path / "compare.html"
    page = page_of(path)
    for words in (
        "x/run (1)",
        "y/run",
        "x/run (2)",
        "different environments",
        "y/run has not finished",
        "one seed: no interval",
    ):
        assert words in page.words, words


def test_many_runs_and_seeds(run_folder, tmp_path):
    runs = [run_folder(tmp_path / f"run{k}", seeds=2, rows=4, episodes=2, salt=k) for k in range(10)]
    page = check_self_contained(compare(runs, tmp_path).read_text("utf-8"))
    dashes = {value for tag, name, value in page.attributes if name == "stroke-dasharray"}
    assert dashes == {plots.DASHES[1]}, "the ninth series reuses a colour, so it needs another dash"
    many = check_self_contained(write(run_folder(tmp_path / "many", seeds=20, rows=3, episodes=2)).read_text("utf-8"))
    assert "all seeds" in many.words


def test_long_runs_stay_small_and_keep_their_spikes(run_folder, tmp_path):
    run = run_folder(tmp_path / "run", rows=5000, seeds=2)
    path = write(run)
    assert path.stat().st_size < 2_000_000
    y = np.zeros(5000)
    y[1234] = 99
    thinned = plots.thin((np.arange(5000.0), y))
    assert len(thinned[0]) <= 242
    assert thinned[1].max() == 99
    assert (thinned[0][0], thinned[0][-1]) == (0, 4999)


@pytest.mark.parametrize(
    ("low", "high"),
    [(0, 500), (-1600, -100), (0, 1e6), (3e-4, 9e-4), (-1, 1), (499.9, 500.1), (1e-9, 2e-9), (-1e12, 1e12)],
)
def test_ticks_are_round_distinct_and_inside(low, high):
    found = plots.ticks(low, high, 5)
    assert 3 <= len(found) <= 11
    assert all(low - 1e-9 * (high - low) <= t <= high + 1e-9 * (high - low) for t in found)
    labels = [tick(t, found[1] - found[0]) for t in found]
    assert len(set(labels)) == len(labels), labels
    assert max(map(len, labels)) <= 8, labels


@pytest.mark.parametrize(
    ("value", "spacing", "text"),
    [
        (0, 1, "0"),
        (100_000, 20_000, "100k"),
        (1e6, 5e5, "1M"),
        (2.5e6, 5e5, "2.5M"),
        (1000, 500, "1k"),
        (0.25, 0.05, "0.25"),
        (-200, 100, "−200"),
        (5e-5, 1e-5, "5e−5"),
        (1500, 500, "1.5k"),
        (1005, 5, "1005"),
    ],
)
def test_tick_labels(value, spacing, text):
    assert tick(value, spacing) == text


def test_texts():
    assert plain(1234.5) == "1,234"
    assert plain(-0.5) == "−0.5"
    assert plain(3e-5) == "3.00e−5"
    assert plain(math.nan) == data(math.nan) == "–"
    assert plain(-math.inf) == "−∞"
    assert data(1 / 3) == f'<data value="{1 / 3!r}">0.3333</data>'
    assert bracket(math.nan, 1.0) == ""
    assert [span(s) for s in (0.83, 42, 200, 7500)] == ["0.8 s", "42 s", "3 min 20 s", "2 h 5 min"]
    assert clean("<a href='x'>&\x00\u202e") == "&lt;a href=&#x27;x&#x27;&gt;&amp;\ufffd\ufffd"
