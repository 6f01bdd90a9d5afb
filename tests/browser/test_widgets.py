"""The explorers, driven as a reader would: in the static page without a kernel, and in JupyterLab with one."""

from __future__ import annotations

import math
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
import torch
from nbformat.v4 import new_code_cell, new_notebook

pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")

from lib import anomaly, prose
from lib.book import notebooks
from lib.detectors.lred_annealing import closed_form

ROOT = Path(__file__).resolve().parents[2]
SHOTS = ROOT / "_build" / "screenshots"
CHAPTER = "notebooks/15_explore"
PATIENCE = 90_000  # milliseconds: a page of widgets loads four megabytes of script, and runners are slow


@pytest.fixture(scope="module")
def glued(book) -> dict[str, Any]:
    """What the chapter computed."""
    return notebooks.glued(book.executed[Path(CHAPTER).name])


@pytest.fixture(scope="module")
def page(browser, site) -> Iterator[Any]:
    """The chapter of the explorers, loaded once; no kernel anywhere."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(PATIENCE)
    tab = context.new_page()
    tab.goto(f"{site}{CHAPTER}.html")
    tab.wait_for_function("document.querySelectorAll('.rb').length >= 7")
    tab.errors = []  # of the explorers, while they are driven; test_pages looks at the loading
    tab.on("pageerror", lambda e: tab.errors.append(str(e)))
    tab.on("console", lambda m: tab.errors.append(m.text) if m.type == "error" else None)
    yield tab
    context.close()


def explorer(page: Any, title: str) -> Any:
    """The explorer of that title."""
    return page.get_by_role("group", name=title, exact=False)


def numbers(table: Any, column: int) -> list[float]:
    return [
        float(x) for x in table.locator(f"tbody tr td:nth-child({column + 2}) .rb-number").all_inner_texts()
    ]


def facts(group: Any) -> dict[str, str]:
    return dict(
        zip(group.locator("dt").all_inner_texts(), group.locator("dd").all_inner_texts(), strict=True)
    )


def digits(x: float) -> float:
    return float(f"{x:.3g}")


def pixels(canvas: Any) -> str:
    return canvas.evaluate("c => c.toDataURL()")


# -- the temperature explorer


@pytest.mark.parametrize("key", ["paper", "hard", "uniform"])
def test_norms_and_p_value_are_those_that_the_chapter_computed(page, glued, key):
    """The paper's schedule against T = 0 and T = inf on the same classifier, in the static page."""
    group = explorer(page, "L-RED under different temperatures")
    select = group.get_by_role("combobox", name="Temperature schedule")
    name = next(o for o in select.locator("option").all_inner_texts() if o.startswith(key))
    select.select_option(label=name)
    group.get_by_role("slider", name="Iteration").press("End")
    norms, target = glued[f"explore_norms_{key}"], glued["explore_target"]
    assert numbers(group.locator("table").nth(1), 0) == [digits(x) for x in norms]
    p = prose.p(glued[f"explore_logp_{key}"])
    assert p == glued[f"explore_p_{key}"]
    status = group.get_by_role("status").first.inner_text()
    assert f"p = {p};" in status and f"leads to {int(np.argmin(norms))} " in status
    row = group.locator(f"tr[data-run='{key}'] td").all_inner_texts()
    assert [float(row[1]), float(row[2])] == [digits(norms[target]), digits(float(np.median(norms)))]
    assert row[3] == p


def test_weights_and_pattern_follow_the_iteration(page):
    group = explorer(page, "L-RED under different temperatures")
    group.get_by_role("combobox", name="Temperature schedule").select_option(index=0)
    bar, canvas = group.get_by_role("slider", name="Iteration"), group.locator("canvas")
    bar.press("Home")
    start, seen = pixels(canvas), facts(group)
    assert seen["T"] == "∞" and seen["‖v‖"] == "0"
    weights = numbers(group.locator("table").first, 1)
    assert weights == pytest.approx([1 / len(weights)] * len(weights), abs=1e-3)
    for _ in range(6):
        bar.press("ArrowRight")
    assert group.get_by_role("status").first.inner_text().startswith("Iteration 6: ")
    bar.press("End")
    assert pixels(canvas) != start
    seen, q, w = facts(group), *(numbers(group.locator("table").first, i) for i in (0, 1))
    assert sum(w) == pytest.approx(1, abs=6e-3) and float(seen["Q"]) >= 0.9 and max(q) > 0.9
    assert "‖v‖ = " + seen["‖v‖"] in group.locator("figcaption").inner_text()


def test_another_target_has_another_pattern(page):
    group = explorer(page, "L-RED under different temperatures")
    select = group.get_by_role("combobox", name="Putative target class")
    before = pixels(group.locator("canvas"))
    other = next(i for i, o in enumerate(select.locator("option").all_inner_texts()) if "not attacked" in o)
    chosen = select.input_value()
    select.select_option(index=other)
    assert pixels(group.locator("canvas")) != before
    select.select_option(value=chosen)
    assert pixels(group.locator("canvas")) == before


def test_play_runs_and_pauses(page):
    group = explorer(page, "L-RED under different temperatures")
    bar = group.get_by_role("slider", name="Iteration")
    bar.press("Home")
    group.get_by_role("button", name="Play").click()
    page.wait_for_function("bar => Number(bar.value) > 2", arg=bar.element_handle())
    group.get_by_role("button", name="Pause").click()
    at = bar.input_value()
    page.wait_for_timeout(600)
    assert bar.input_value() == at
    assert group.get_by_role("button", name="Play").is_visible()


def test_without_a_kernel_it_says_how_to_get_one(page):
    group = explorer(page, "L-RED under different temperatures")
    assert group.get_by_text("open this chapter in Jupyter").is_visible()
    assert not group.get_by_role("button", name="Run L-RED").is_visible()


# -- formulas


def test_weights_are_those_of_the_closed_form(page):
    group = explorer(page, "The weights of Eq. (8)")
    sliders = group.get_by_role("slider", name=re.compile("^q of class"))
    sliders.first.press("End")
    sliders.nth(1).press("Home")
    q = torch.tensor([float(s.input_value()) for s in sliders.all()])
    assert q[0] == 1 and q[1] == 0
    group.get_by_role("checkbox").check()
    t = -float(q.mean().log())
    assert f"T = {digits(t):g}" in group.get_by_role("status").inner_text()
    assert numbers(group.locator("table"), 0) == pytest.approx(
        closed_form(q[None], torch.tensor([t]))[0].tolist(), abs=6e-4
    )
    heat = group.get_by_role("slider", name="Temperature T")
    heat.press("Home")
    assert not group.get_by_role("checkbox").is_checked()
    hard = (q == q.max()) / (q == q.max()).sum()
    assert numbers(group.locator("table"), 0) == pytest.approx(hard.tolist(), abs=6e-4)
    heat.press("End")
    assert numbers(group.locator("table"), 0) == pytest.approx([1 / len(q)] * len(q), abs=6e-4)


def statistics(group: Any) -> np.ndarray:
    return np.array([float(dot.get_attribute("aria-valuenow")) for dot in group.get_by_role("slider").all()])


def test_p_value_follows_a_dragged_statistic(page, glued):
    group = explorer(page, "The Gamma fit")
    assert facts(group)["p-value"] == glued["explore_gamma_attacked"]
    group.get_by_role("combobox", name="Start from").select_option(label="clean classifier")
    assert facts(group)["p-value"] == glued["explore_gamma_clean"]
    before = statistics(group)
    dot = group.get_by_role("slider").nth(int(before.argmax()))
    dot.scroll_into_view_if_needed()
    box = dot.locator("circle").last.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + 60, box["y"], steps=4)
    page.mouse.up()
    after = statistics(group)
    assert after.max() > before.max() and np.array_equal(np.sort(after)[:-1], np.sort(before)[:-1])
    verdict = anomaly.gamma(after)
    assert facts(group)["p-value"] == prose.p(verdict.score)
    assert facts(group)["most suspicious"] == str(verdict.suspect)
    assert facts(group)["shape"] == f"{digits(float(anomaly.fit_gamma(np.sort(after)[:-1])[0])):g}"


def test_statistics_move_with_the_keyboard_and_the_page_stays(page):
    group, where = explorer(page, "The Gamma fit"), page.url
    dot = group.get_by_role("slider").nth(2)
    dot.focus()
    old = float(dot.get_attribute("aria-valuenow"))
    dot.press("ArrowRight")
    assert float(dot.get_attribute("aria-valuenow")) > old
    dot.press("PageDown")
    assert float(dot.get_attribute("aria-valuenow")) < old
    assert page.url == where
    assert (
        f"p = {prose.p(anomaly.gamma(statistics(group)).score)}" in group.get_by_role("status").inner_text()
    )


# -- recorded grids and frames


def test_attack_shows_the_recorded_rates_and_a_stronger_trigger_is_easier_to_see(page, glued):
    group, grid = explorer(page, "How strong"), np.array(glued["explore_grid_asr"])
    amplitude, count = (
        group.get_by_role("slider", name="Amplitude"),
        group.get_by_role("slider", name="Poisoned images"),
    )
    amplitude.press("Home")
    count.press("Home")
    weak, picture = facts(group), pixels(group.locator("canvas").nth(1))
    assert weak["ASR"] == f"{100 * grid[0, 0]:.1f} %"
    amplitude.press("End")
    count.press("End")
    strong = facts(group)
    assert strong["ASR"] == f"{100 * grid[-1, -1]:.1f} %"
    assert pixels(group.locator("canvas").nth(1)) != picture
    assert float(strong["PSNR"].split()[0]) < float(weak["PSNR"].split()[0])
    group.locator(".rb-cell").first.click()
    assert facts(group)["ASR"] == weak["ASR"] and amplitude.input_value() == "0"


@pytest.mark.parametrize("title", ["Neural Cleanse", "B3D"])
def test_frames_play_and_change_the_picture(page, title):
    group = explorer(page, title)
    bar = group.locator("input[type=range]")
    bar.press("Home")
    first = pixels(group.locator("canvas").first)
    bar.press("End")
    last = pixels(group.locator("canvas").first)
    assert first != last and "success" in facts(group)
    group.get_by_role("combobox", name="Putative target class").select_option(index=1)
    assert pixels(group.locator("canvas").first) != last


def test_triggers_are_drawn_from_the_search_distribution(page):
    group = explorer(page, "B3D")
    bar = group.locator("input[type=range]")
    bar.press("Home")
    button = group.get_by_role("button", name="Draw a trigger")
    button.click()
    counts = set()
    for _ in range(6):
        button.click()
        counts.add(re.search(r"Drawn: (\d+)", group.get_by_role("status").inner_text()).group(1))
    assert len(counts) > 1


def test_pruning_all_neurons_leaves_no_accuracy(page, glued):
    group = explorer(page, "Pruning")
    bar = group.get_by_role("slider", name="Share pruned")
    bar.press("Home")
    start = float(facts(group)["clean accuracy"].split()[0])
    bar.press("End")
    assert float(facts(group)["clean accuracy"].split()[0]) < start / 2
    assert "100 %" in group.get_by_role("status").inner_text()


# -- what every explorer owes


def test_no_explorer_raised_anything(page):
    assert not page.errors


def test_every_control_can_be_reached_and_shows_it(page):
    """Tab goes through the controls of each explorer in order, and the one in focus has an outline or a ring."""
    for group in page.locator(".rb").all():
        wanted = group.locator("button, select, input, [tabindex='0']").filter(visible=True).count()
        assert wanted
        first = group.locator("button, select, input, [tabindex='0']").filter(visible=True).first
        first.focus()
        for _ in range(wanted - 1):
            page.keyboard.press("Tab")
            shown = page.evaluate(
                """() => { const e = document.activeElement, s = getComputedStyle(e), ring = e.querySelector?.(".rb-touch");
                return Boolean(e.closest(".rb")) && (s.outlineStyle !== "none" || (ring && getComputedStyle(ring).stroke !== "none")) }"""
            )
            assert shown, page.evaluate("document.activeElement.outerHTML.slice(0, 200)")


def test_pictures_and_controls_have_names(page):
    nameless = page.evaluate(
        """() => [...document.querySelectorAll(".rb canvas, .rb [role=img], .rb [role=slider], .rb input, .rb select, .rb progress")]
        .filter(e => !(e.getAttribute("aria-label") || [...(e.labels || [])].some(l => l.textContent.trim()))).map(e => e.outerHTML.slice(0, 120))"""
    )
    assert not nameless


@pytest.mark.parametrize("colours", ["light", "dark"])
def test_lines_stand_out_from_the_paper(page, theme, colours):
    """3:1 for graphics, as WCAG asks."""
    theme(page, colours)
    ratios = page.evaluate(
        """() => { const c = document.createElement("canvas").getContext("2d");
        const rgb = x => { c.fillStyle = "#000"; c.fillStyle = x; c.fillRect(0, 0, 1, 1); return c.getImageData(0, 0, 1, 1).data };
        const light = d => [...d].slice(0, 3).map(v => (v /= 255) <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4).reduce((s, v, i) => s + v * [.2126, .7152, .0722][i], 0);
        const root = document.querySelector(".rb"), probe = root.appendChild(document.createElement("i")), out = {};
        for (const name of ["a", "b", "c", "bar", "edge"]) { probe.style.color = `var(--rb-${name})`;
          const [x, y] = [light(rgb(getComputedStyle(probe).color)), light(rgb(getComputedStyle(root).backgroundColor))].sort((p, q) => q - p);
          out[name] = (x + .05) / (y + .05) }
        probe.remove(); return out }"""
    )
    theme(page, "light")
    assert all(r >= 3 for r in ratios.values()), ratios


def test_on_a_phone_nothing_is_wider_than_the_screen(browser, site):
    context = browser.new_context(viewport={"width": 360, "height": 740}, has_touch=True)
    tab = context.new_page()
    tab.goto(f"{site}{CHAPTER}.html")
    tab.locator(".rb").nth(3).wait_for(timeout=PATIENCE)
    assert tab.evaluate("document.documentElement.scrollWidth") <= 361
    wide = tab.evaluate(
        "[...document.querySelectorAll('.rb')].filter(e => e.scrollWidth > e.clientWidth + 1).map(e => e.textContent.slice(0, 40))"
    )
    SHOTS.mkdir(parents=True, exist_ok=True)
    tab.locator(".rb").first.screenshot(path=SHOTS / "widgets-phone.png")
    context.close()
    assert not wide


def test_with_reduced_motion_nothing_moves_by_itself(browser, site):
    context = browser.new_context(reduced_motion="reduce")
    tab = context.new_page()
    tab.goto(f"{site}{CHAPTER}.html")
    tab.locator(".rb-fill").first.wait_for(state="attached", timeout=PATIENCE)
    assert tab.evaluate("getComputedStyle(document.querySelector('.rb-fill')).transitionProperty") == "none"
    context.close()


def test_without_javascript_a_figure_before_each_explorer_tells_the_story(browser, site):
    context = browser.new_context(java_script_enabled=False)
    tab = context.new_page()
    tab.goto(f"{site}{CHAPTER}.html")
    figures = tab.locator("article figure img")
    figures.nth(6).wait_for(state="attached")
    for image in figures.all():
        assert len(image.get_attribute("alt") or "") > 20
    context.close()


def test_the_state_of_a_page_is_small(book):
    heavy = {}
    for path in book.html.rglob("*.html"):
        found = re.findall(
            r'<script type="application/vnd\.jupyter\.widget-state\+json">(.*?)</script>',
            path.read_text(),
            re.S,
        )
        size = sum(map(len, found))
        if size > 2_000_000:
            heavy[path.name] = size
    assert not heavy


# -- with a kernel

LIVE = """
import time
import torch
from torch import nn
from lib import widgets
from lib.detectors import LRED

class Slow(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.kron(torch.eye(4), torch.ones(1, 4)) * torch.tensor([[4.0], [4.0], [4.0], [8.0]]))
        self.pause = 0.0

    def forward(self, x):
        time.sleep(self.pause)
        return x.flatten(1) @ self.weight.T

model = Slow()
clean = torch.zeros(4, 2, 1, 4, 4)
for k in range(4):
    clean[k, :, 0, k] = 0.5
scans = widgets.record(model, clean, detector=LRED(delta=0.02), schedules={"paper": "paper", "hard": "hard"})
model.pause = 0.3
widgets.temperature_explorer(scans, target=3, model=model, clean=clean, detector=LRED(delta=0.02))
"""


@pytest.fixture
def lab(tmp_path) -> Iterator[str]:
    """JupyterLab on a notebook with one explorer; its address."""
    cell = new_code_cell(LIVE)
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(new_notebook(cells=[cell], metadata={"kernelspec": kernel}), tmp_path / "live.ipynb")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    options = [
        f"--ServerApp.port={port}",
        "--ServerApp.port_retries=0",
        "--no-browser",
        "--IdentityProvider.token=",
        "--ServerApp.allow_root=True",
    ]
    options += [
        f"--ServerApp.root_dir={tmp_path}",
        "--LabApp.news_url=",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    ]
    private = {
        name: str(tmp_path / name)
        for name in (
            "JUPYTER_CONFIG_DIR",
            "JUPYTER_RUNTIME_DIR",
            "JUPYTERLAB_SETTINGS_DIR",
            "JUPYTERLAB_WORKSPACES_DIR",
        )
    }
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    env = {**os.environ, **private, "PYTHONPATH": path, "JUPYTER_PREFER_ENV_PATH": "1"}
    log = (tmp_path / "lab.log").open("w")
    server = subprocess.Popen(
        [sys.executable, "-m", "jupyterlab", *options],
        cwd=tmp_path,
        env=env,
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    try:
        for _ in range(600):
            if server.poll() is not None:
                pytest.fail("JupyterLab did not start:\n" + (tmp_path / "lab.log").read_text()[-2000:])
            with socket.socket() as s:
                if s.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/lab/tree/live.ipynb?reset"
    finally:
        server.terminate()
        server.wait(30)


def test_live_a_schedule_of_ones_own_runs_and_the_second_run_cancels_the_first(browser, lab):
    pytest.importorskip("jupyterlab")
    context = browser.new_context(viewport={"width": 1280, "height": 1000})
    context.set_default_timeout(PATIENCE)
    tab = context.new_page()
    tab.goto(lab)
    tab.locator(".jp-Notebook .jp-CodeCell").first.wait_for()
    tab.locator(".jp-Notebook .jp-CodeCell .jp-Editor").first.click()
    tab.get_by_text("Python 3 (ipykernel) | Idle").or_(tab.locator("[data-status='idle']")).first.wait_for()
    tab.keyboard.press("Control+Enter")
    group = explorer(tab, "L-RED under different temperatures")
    run = group.get_by_role("button", name="Run L-RED")
    run.wait_for()  # the kernel has answered
    rows = group.locator("tr[data-run]")
    assert rows.count() == 2
    said = group.locator("fieldset").get_by_role("status")

    field = group.get_by_role("textbox", name="Schedule")
    field.fill("constant:0.5")
    run.click()
    said.get_by_text("Run 1: iteration").wait_for()
    field.fill("hard")
    run.click()  # while the first is still under way
    said.get_by_text(re.compile("^Run 2 has ended")).wait_for()
    names = rows.locator("th").all_inner_texts()
    assert len(names) == 3 and names[2] == "run 2: hard"
    assert group.get_by_role("combobox", name="Temperature schedule").input_value() == "2"
    row = rows.nth(2).locator("td").all_inner_texts()
    assert math.isfinite(float(row[1])) and int(row[0]) > 5

    pad = group.locator(".rb-pad")  # a schedule drawn by hand, then stopped
    pad.scroll_into_view_if_needed()
    box = pad.bounding_box()
    tab.mouse.move(box["x"] + 5, box["y"] + 5)
    tab.mouse.down()
    tab.mouse.move(box["x"] + box["width"] - 5, box["y"] + box["height"] - 5, steps=24)
    tab.mouse.up()
    drawn = [float(x) for x in field.input_value().split(",")]
    assert len(drawn) == 24 and drawn[0] > 1.7 and drawn[-1] < 0.3 and drawn == sorted(drawn, reverse=True)
    run.click()
    said.get_by_text("Run 3: iteration").wait_for()
    group.get_by_role("button", name="Stop").click()
    said.get_by_text("Stopped").wait_for()
    assert rows.count() == 3
    SHOTS.mkdir(parents=True, exist_ok=True)
    tab.screenshot(path=SHOTS / "widgets-live.png")
    context.close()
