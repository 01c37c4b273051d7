"""The explorer as a widget: it answers what its module asks, in a bare page with a stub and in JupyterLab."""

import json
import os
import secrets
import socket
import subprocess
import sys
from base64 import b64decode, b64encode

import numpy as np
import pytest
from browser import BINARIES, chromium, complaints, frame, look, need, point_in, serious_faults, until
from PIL import Image

import mvar
from mvar.analysis.explorer import widget
from mvar.analysis.explorer.packed import unpack_row
from mvar.analysis.explorer.page import module, resource
from mvar.analysis.explorer.widget import answer, view_of
from mvar.errors import UserError


@pytest.fixture(scope="module")
def explorer(explored_store):
    store, names = explored_store
    runs = [mvar.load(names[key], results=store.root) for key in ("mamba", "maps")]
    return mvar.explore(*runs, image=[0, 3], layer=0, head=1, query=20)


@pytest.fixture(autouse=True)
def class_anew():
    widget.widget_class.cache_clear()
    yield
    widget.widget_class.cache_clear()


def test_what_is_asked_is_answered(explorer):
    subjects, question = list(explorer.subjects), {"id": 7, "subject": 0, "picture": 1}
    reply, buffers = answer(subjects, question | {"ask": "pictures"})
    assert reply["id"] == 7 and len(reply["urls"]) == 4 and not buffers
    reply, _ = answer(subjects, question | {"ask": "means"})
    means = {(row[0], row[1]): row[2:] for row in reply["means"]}
    assert {(row[0], row[1]) for row in reply["means"]} == {(p, h) for p in (0, 1, 2, 4) for h in ("mean", 0, 1)}
    for part, head in ((0, 1), (3, "mean")):
        reply, (data,) = answer(subjects, question | {"ask": "map", "part": part, "head": head})
        row = unpack_row(data, subjects[0].schedule, 20)
        side = view_of({"picture": 1, "query": 20, "sides": [{"subject": 0, "part": part, "head": head}]}).sides
        exact = explorer.at(picture=1, sides=side).weights(20)
        assert (np.abs(row.weights - exact) <= row.step * 0.5001 + 1e-30).all()
        rows = [unpack_row(data, subjects[0].schedule, token) for token in range(subjects[0].schedule.num_tokens)]
        expected = [np.mean([row.mass[-1] for row in rows]), np.mean([row.entropy for row in rows])]
        assert reply["id"] == 7 and reply["means"] == pytest.approx(expected, rel=1e-5)
        assert reply["means"] == means.get((part, head), reply["means"])
    for wrong in (
        {"subject": 5},
        {"picture": 9, "ask": "means"},
        {"ask": "map", "part": 0, "head": "x"},
        {"ask": "map"},
    ):
        reply, buffers = answer(subjects, question | {"ask": "means"} | wrong)
        assert reply["id"] == 7 and reply["error"] and not buffers


def test_a_widget_knows_what_is_seen_and_a_figure_stands_in_for_it(explorer):
    need("anywidget")
    shown = explorer.widget()
    assert shown.explorer.view == explorer.view and shown.data["subjects"][1]["name"] == explorer.subjects[1].name
    shown.view = {"picture": 1, "query": 4, "sides": [{"subject": 1, "part": 2, "head": "mean"}]}
    assert shown.explorer.view == view_of(shown.view) and shown.explorer.weights().shape == (5,)
    data, _ = explorer._repr_mimebundle_()
    assert b64decode(data["image/png"])[:4] == b"\x89PNG" and "application/vnd.jupyter.widget-view+json" in data
    assert "token 20" in data["text/plain"] or explorer.subjects[0].name in repr(explorer)


def test_without_anywidget_a_notebook_has_the_figure_and_what_to_install(explorer, monkeypatch):
    monkeypatch.setitem(sys.modules, "anywidget", None)
    with pytest.raises(UserError, match="anywidget: not installed; allowed: pip install anywidget"):
        explorer.widget()
    data = explorer._repr_mimebundle_()
    assert set(data) == {"image/png", "text/plain"} and "pip install anywidget" in data["text/plain"]


# In a browser ---------------------------------------------------------------------------------------------------------

STUB = """
const listeners = [];
window.asked = [];
window.state = { data: %s };
window.answered = (message, texts) => listeners.forEach((act) => act(message, texts.map((text) => {
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  return new DataView(bytes.buffer);
})));
const model = {
  get: (name) => window.state[name],
  set: (name, value) => { window.state[name] = value; },
  save_changes: () => { window.saved = JSON.stringify(window.state.view); },
  on: (name, act) => { if (name === "msg:custom") listeners.push(act); },
  send: (message) => window.asked.push(message),
};
window.leave = widget.render({ model, el: document.getElementById("cell") });
"""


def test_what_is_not_installed_is_skipped_or_fails(monkeypatch):
    need("json")
    for required, outcome in (("1", pytest.fail.Exception), ("", pytest.skip.Exception)):
        monkeypatch.setenv("REQUIRE_CHROMIUM", required)
        with pytest.raises(outcome, match="not installed: no_such_module "):
            need("json", "no_such_module")


class Stub:
    """A page with the module, a model that is none, and Python that answers it."""

    def __init__(self, driver, explorer, folder):
        self.driver, self.explorer = driver, explorer
        shown = explorer.widget()
        self.sent, self.waiting = [], []
        shown.send = lambda content, buffers=None: self.sent.append((content, buffers or []))
        self.widget, path = shown, folder / "stub.html"
        script = f"{module()}\n{STUB % json.dumps(shown.data)}"
        path.write_text(
            "<!DOCTYPE html><html lang=en><meta charset=utf-8><title>stub</title>"
            f"<style>{resource('explorer.css')}</style><main id=cell></main><script type=module>{script}</script>"
        )
        driver.get(path.as_uri())

    def settle(self, later=()):
        """Answer until nothing more is asked; questions of some kinds the next time."""

        def done():
            for question in [
                *(self.waiting if not later else []),
                *self.driver.execute_script("return window.asked.splice(0)"),
            ]:
                if question["ask"] in later:
                    self.waiting.append(question)
                else:
                    self.widget._asked(self.widget, question, [])
            if not later:
                self.waiting.clear()
            for content, buffers in self.sent:
                texts = [b64encode(buffer).decode() for buffer in buffers]
                self.driver.execute_script("window.answered(arguments[0], arguments[1])", content, texts)
            self.sent.clear()
            idle = "return !document.querySelector('[aria-busy]') && !window.asked.length"
            return self.driver.execute_script(idle)

        until(done)
        frame(self.driver)

    def looked(self):
        """What the module has told of the view, once it has."""
        self.driver.execute_script("window.saved = null")
        point_in(self.driver, self.driver.find_element("css selector", ".panels canvas"), 0.5, 0.5)
        return until(lambda: self.driver.execute_script("return window.saved"))

    def cells(self):
        """The matrix's values, by mixer and head, of those that are there."""
        script = "return [...document.querySelectorAll('[data-cell]')].map((cell) => ({ ...cell.dataset }))"
        return {found["cell"]: float(found["value"]) for found in self.driver.execute_script(script) if found["value"]}

    def masses(self, side=0):
        return masses_in(self.driver, side)


def masses_in(driver, side=0):
    """What each panel says of a side, once it says anything."""
    script = "return [...document.querySelectorAll(arguments[0])].map((figure) => figure.dataset.mass)"
    found = driver.execute_script(script, f'[data-side="{side}"] figure')
    return [float(mass or 0) for mass in found] if any(found) else []


def check_masses(shown, explorer, side=0):
    schedule = explorer.subjects[0].schedule
    weights = explorer.weights(side=side)
    level = schedule.levels[explorer.view.query]
    parts = np.split(weights, schedule.offsets[1 : level + 1])
    expected = [float(part.sum()) for part in parts] + [0.0] * (schedule.num_scales - level - 1)
    assert shown == pytest.approx(expected, rel=1e-6, abs=1e-12)


@pytest.fixture
def page(explorer, tmp_path):
    """The widget's module in a bare page, 1,000 px wide, before anything is answered."""
    need(*BINARIES, "selenium", "anywidget")
    with chromium(tmp_path) as driver:
        look(driver, 1000)
        yield Stub(driver, explorer, tmp_path)


@pytest.mark.slow
def test_the_module_in_a_bare_page(page, explorer, tmp_path):
    driver = page.driver
    page.settle(later=["means"])  # of all layers and heads: that can take long, and what is chosen is seen before
    assert len(driver.find_elements("css selector", "h2.title")) == 1
    for side in (0, 1):
        check_masses(page.masses(side), explorer, side)
    assert page.cells().keys() == {"0/1"} and "not there yet" in driver.find_element("css selector", ".legend").text
    page.settle()
    attention = {f"{part}/{head}" for part in (0, 1, 2, 4) for head in ("mean", 0, 1)}
    assert page.cells().keys() == attention
    assert "a reach is measured when it is looked at" in driver.find_element("css selector", ".legend").text
    option = driver.find_element("xpath", "//*[@data-side='0']//option[text()='3 · mamba (reach)']")
    option.click()
    page.settle()
    assert page.cells().keys() == attention | {"5/mean"}  # the reach that is looked at
    driver.find_element("css selector", '[data-side="0"] figure[data-scale="2"] canvas').click()
    page.settle()
    until(lambda: driver.execute_script("return window.saved && JSON.parse(window.saved).query < 14"))
    page.widget.view = json.loads(driver.execute_script("return window.saved"))
    seen = page.widget.explorer
    assert seen.subjects[0].parts[seen.view.sides[0].part].kind == "reach"
    assert seen.subjects[0].schedule.levels[seen.view.query] == 2
    for side in (0, 1):
        check_masses(page.masses(side), seen, side)
    assert serious_faults(driver, "main") == [] and complaints(driver) == []
    compare = driver.find_element("css selector", '[data-act="compare"]')
    shown = "return [...document.querySelectorAll('.side')].filter((side) => !side.hidden).length"
    for sides in (1, 2):
        compare.click()
        page.settle()
        assert driver.execute_script(shown) == sides == len(json.loads(page.looked())["sides"])
    driver.find_element("css selector", '[data-act="png"]').click()
    saved = until(lambda: (tmp_path / "attention.png").is_file() and tmp_path / "attention.png")
    assert min(Image.open(saved).size) > 300
    page.widget._explorer = explorer.at()  # what fails is said, and asked again
    page.widget.send = lambda content, buffers=None: page.sent.append(({"id": content["id"], "error": "gone"}, []))
    driver.find_element("xpath", "//*[@data-side='1']//option[text()='1 · intra']").click()
    page.settle()
    assert driver.find_element("css selector", ".message").text == "gone"
    driver.execute_script("window.leave()")
    assert complaints(driver) == []


@pytest.mark.slow
def test_the_widget_follows_the_theme_of_what_it_is_in(page):
    driver = page.driver
    page.settle()

    def theme_after(change):
        driver.execute_script(f"const {{ body }} = document; {change}")
        frame(driver)
        return driver.execute_script("return document.querySelector('.mvar-explorer').dataset.theme")

    assert theme_after("body.dataset.jpThemeLight = 'false'") == "dark"
    assert theme_after("body.dataset.jpThemeLight = 'true'") == "light"
    assert theme_after("delete body.dataset.jpThemeLight; body.className = 'vscode-dark'") == "dark"
    look(driver, 1000, dark=True)
    assert theme_after("body.className = 'vscode-light'") == "light"
    assert theme_after("body.className = ''") == "dark"
    assert theme_after("window.leave(); body.dataset.jpThemeLight = 'true'") == "dark"


# As JupyterLab looks for whose a key is: from what has the focus upwards; its shortcuts are of `:focus`.
SHORTCUTS = """
window.taken = [];
document.addEventListener("keydown", (event) => {
  for (let at = event.target; at && !at.hasAttribute("data-lm-suppress-shortcuts"); at = at.parentElement) {
    if (at.matches(":focus")) {
      event.preventDefault();
      return window.taken.push(`${at.tagName} ${event.key}`);
    }
  }
}, true);
"""


@pytest.mark.slow
def test_the_widget_keeps_its_keys_from_a_notebook(page):
    from selenium.webdriver import Keys

    driver = page.driver
    page.settle()
    driver.execute_script(SHORTCUTS)
    for selector in ("input[type=radio]", "input[type=range]", ".panels canvas", ".matrix select"):
        driver.find_element("css selector", selector).send_keys(Keys.ARROW_DOWN)
        page.settle()
    driver.find_elements("css selector", '[data-side="0"] select')[1].send_keys(Keys.ARROW_DOWN)
    page.settle()
    assert driver.switch_to.active_element.tag_name == "select"
    driver.switch_to.active_element.send_keys(Keys.ARROW_DOWN)
    page.settle()
    assert driver.find_element("css selector", '[data-side="0"] .side-title').text.startswith("A: layer 2, intra")
    assert driver.execute_script("return window.taken") == []


NOTEBOOK = {
    "cells": [
        {
            "cell_type": "code", "execution_count": None, "id": "a", "metadata": {}, "outputs": [],
            "source": "import mvar\nmvar.explore(mvar.load({name!r}, results={results!r}), image=0, layer=0, query=20)",
        }
    ],
    "metadata": {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}},
    "nbformat": 4, "nbformat_minor": 5,
}  # fmt: skip


def runs_the_cell(driver):
    """Whether the first cell could be run: while the page is built its elements come and go."""
    from selenium.common.exceptions import WebDriverException
    from selenium.webdriver import Keys

    try:
        if "Idle" in driver.find_element("css selector", "#jp-main-statusbar").text:
            driver.find_element("css selector", ".jp-Notebook .cm-content").send_keys(Keys.SHIFT + Keys.ENTER)
            return True
    except WebDriverException:
        pass
    return False


def cells_in(driver):
    """Which cell is active, and how many there are."""
    script = """const cells = [...document.querySelectorAll(".jp-Notebook .jp-Cell")];
        return [cells.findIndex((cell) => cell.classList.contains("jp-mod-active")), cells.length]"""
    return driver.execute_script(script)


def check_keys_in_a_notebook(driver, canvas, explorer):
    """The widget has its keys: the notebook neither moves to another cell nor adds one."""
    from selenium.webdriver import Keys

    before = cells_in(driver)
    assert before[0] == 0 < before[1] - 1  # there is one below to move to
    canvas.send_keys(Keys.ARROW_DOWN)
    frame(driver)
    check_masses(masses_in(driver), explorer.at(query=12))
    driver.find_element("css selector", '.mvar-explorer [data-side="0"] select').send_keys(Keys.ARROW_DOWN)
    title = driver.find_element("css selector", ".mvar-explorer .side-title")
    until(lambda: title.text == "Layer 1, intra, mean over heads")
    driver.switch_to.active_element.send_keys("b")
    frame(driver)
    assert driver.switch_to.active_element.tag_name == "select" and cells_in(driver) == before


@pytest.mark.slow
@pytest.mark.timeout(600)  # a server, a browser and a kernel begin, beside all other tests
def test_in_jupyterlab(explored_store, tmp_path):
    need(*BINARIES, "selenium", "anywidget", "jupyterlab")
    store, names = explored_store
    cell = NOTEBOOK["cells"][0]
    source = cell["source"].format(name=names["maps"], results=str(store.root))
    (tmp_path / "a.ipynb").write_text(json.dumps(NOTEBOOK | {"cells": [cell | {"source": source}]}))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(8)
    homes = {
        name: str(tmp_path / name)
        for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")
    }
    command = [
        *(sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}", "--ip=127.0.0.1"),
        *(f"--IdentityProvider.token={token}", "--LabApp.extension_manager=readonly", "--ServerApp.port_retries=0"),
    ]
    log = (tmp_path / "log.txt").open("w+")
    server = subprocess.Popen(command, cwd=tmp_path, env=os.environ | homes, stdout=log, stderr=subprocess.STDOUT)
    try:
        until(lambda: server.poll() is not None or f":{port}/" in (tmp_path / "log.txt").read_text(), 240)
        assert server.poll() is None, (tmp_path / "log.txt").read_text()
        with chromium(tmp_path) as driver:
            look(driver, 1400)
            driver.get(f"http://127.0.0.1:{port}/lab/tree/a.ipynb?token={token}")
            until(lambda: runs_the_cell(driver), 120)
            until(lambda: driver.find_elements("css selector", ".mvar-explorer figure[data-mass]"), 120)
            shown = until(lambda: masses_in(driver), 30)
            explorer = mvar.explore(mvar.load(names["maps"], results=store.root), image=0, layer=0, query=20)
            check_masses(shown, explorer)
            canvas = driver.find_element("css selector", '.mvar-explorer [data-scale="2"] canvas')
            for click, told in ((False, ": "), (True, ", held: ")):
                point_in(driver, canvas, 0.5, 0.5, click)  # the middle of 3x3
                check_masses(masses_in(driver), explorer.at(query=9))
                assert f"Token 9 (3×3, row 1, column 1){told}" in driver.find_element("css selector", ".readout").text
            check_keys_in_a_notebook(driver, canvas, explorer)
            assert complaints(driver) == []
            if shots := os.environ.get("MVAR_SHOTS"):
                driver.save_screenshot(f"{shots}/lab.png")
    finally:
        server.terminate()
        server.wait(60)
        log.close()
