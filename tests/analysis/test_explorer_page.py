"""The explorer's page in a browser: what is pointed at, clicked, compared and saved shows what was computed."""

import re
import zlib
from contextlib import contextmanager
from itertools import product

import numpy as np
import pytest
from browser import chromium, complaints, frame, look, point_in, serious_faults, until
from explored import data_of, explored_runs
from PIL import Image

import mvar
from mvar.analysis.explorer.view import Side

pytestmark = pytest.mark.slow

CUTS = ["own,layer=0", "own,layer=0,head=1", "coarser,layer=0", "own,layer=2"]
WIDEST = """return [...document.querySelectorAll("body *")]
  .filter((e) => e.getBoundingClientRect().right > innerWidth).map((e) => e.outerHTML.slice(0, 80))"""
HALF = 0.5 * (1 + 1e-4)  # of a step of quantisation, and rounding


class Page:
    """A page that is open, and the explorer in Python that wrote it."""

    def __init__(self, driver, path, explorer, downloads):
        self.driver, self.path, self.explorer, self.downloads = driver, path, explorer, downloads
        self.schedule = explorer.subjects[0].schedule

    def open(self, width=1280, dark=False):
        look(self.driver, width, dark)
        self.driver.get(self.path.as_uri())
        self.ready()

    def ready(self):
        self.driver.execute_async_script("window.explorer.ready.then(arguments[0])")
        until(lambda: not self.find(".mvar-explorer").get_attribute("aria-busy"))
        self.frame()

    def frame(self):
        """What was asked for is drawn."""
        frame(self.driver)

    def find(self, selector):
        return self.driver.find_element("css selector", selector)

    def all(self, selector):
        return self.driver.find_elements("css selector", selector)

    def panel(self, scale, side=0):
        return self.find(f'[data-side="{side}"] figure[data-scale="{scale}"]')

    def point_at(self, token, side=0, click=False):
        scale = self.schedule.levels[token]
        per_side, inside = self.schedule.sides[scale], token - self.schedule.offsets[scale]
        canvas = self.panel(scale, side).find_element("css selector", "canvas")
        x, y = ((place + 0.5) / per_side for place in (inside % per_side, inside // per_side))
        point_in(self.driver, canvas, x, y, click)

    def choose(self, label, text, side=0):
        (select,) = (
            s for s in self.all(f'[data-side="{side}"] select') if s.find_element("xpath", "..").text.startswith(label)
        )
        next(o for o in select.find_elements("css selector", "option") if o.text == text).click()
        self.ready()

    def check(self, query, side=0):
        """Every panel shows the mass of what is seen, as it was computed."""
        weights, looked_at = self.explorer.weights(query, side), self.looked_at(query, side)
        for scale, part in enumerate(np.split(weights, self.schedule.offsets[1 : self.schedule.num_scales])):
            panel = self.panel(scale, side)
            if scale > self.schedule.levels[query]:
                assert "not seen" in panel.text and panel.get_attribute("data-mass") == ""
                continue
            assert float(panel.get_attribute("data-mass")) == pytest.approx(float(part.sum()), rel=1e-6, abs=1e-12)
            assert near(panel.find_element("css selector", "strong").text, part.sum())
            assert self.tick(panel) == pytest.approx(looked_at[scale] / sum(looked_at), abs=1e-5)
            most = panel.find_element("css selector", ".most").text
            assert near(most.removeprefix("most "), part.max()) if looked_at[scale] else "not seen by" in most

    @contextmanager
    def showing(self, *sides):
        """The page has come to show another view."""
        first, self.explorer = self.explorer, self.explorer.at(sides=sides)
        try:
            yield
        finally:
            self.explorer = first

    def looked_at(self, query, side=0):
        """Of how many tokens of each scale a token's weight is more than 0: those that its mixer lets it see."""
        parts = np.split(self.explorer.weights(query, side), self.schedule.offsets[1 : self.schedule.levels[query] + 1])
        return [np.count_nonzero(part) for part in parts]

    def tick(self, panel):
        """Where the bar under a panel has its tick, from 0 to 1."""
        return (
            float(panel.find_element("css selector", ".bar b").get_attribute("style").split("%")[0].split()[-1]) / 100
        )

    def check_weight(self, query, probe, side=0):
        """The readout has the weight of a token, within half a step, and as so many times an even look."""
        readout = self.find(".readout")
        shown, step = (float(readout.get_attribute(name)) for name in ("data-weight", "data-step"))
        exact = self.explorer.weights(query, side)[probe]
        assert abs(shown - exact) <= step * HALF and step > 0
        even = float(re.search(r"([\d.]+) times even", readout.text)[1])
        assert even == pytest.approx(shown * sum(self.looked_at(query, side)), abs=0.0051)
        assert (
            near(readout.find_element("css selector", "strong").text, shown)
            and f"looks at token {probe} " in readout.text
        )


def near(text, value):
    """Whether a percentage is a number, to its digits."""
    number = text.removesuffix(" %")
    digits = len(number.partition(".")[2])
    return abs(float(number) - 100 * value) <= 0.5001 * 10**-digits


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    root = tmp_path_factory.mktemp("explorer-page")
    store, names = explored_runs(root)
    runs = [mvar.load(names[key], results=store.root) for key in ("maps", "mamba")]
    runs[0].knockout(CUTS, draws=1)
    explorer = mvar.explore(*runs, image=[0, 3], layer=0, beside={"layer": 0, "head": 0})
    single = explorer.at(sides=explorer.view.sides[:1])
    single.page(root / "a.html")
    with chromium(root) as driver:
        yield Page(driver, root / "a.html", single, root)


@pytest.fixture(autouse=True)
def quiet(request):
    yield
    if "page" in request.fixturenames:
        assert complaints(request.getfixturevalue("page").driver) == []


def test_what_is_pointed_at_looks_and_what_is_clicked_stays(page):
    page.open()
    assert "held" not in page.find(".readout").text
    for token in (0, 3, 12, 29):
        page.point_at(token)
        assert f"Token {token} " in page.find(".readout").text
        page.check(token)
    page.point_at(20, click=True)
    assert ", held: " in page.find(".readout").text
    for probe in (0, 4, 9, 29):
        page.point_at(probe)
        page.check(20)
        page.check_weight(20, probe)
    page.point_at(20, click=True)  # lets go
    page.point_at(7)
    page.check(7)


@pytest.mark.parametrize(("run", "mixer"), [(0, "intra"), (0, "window"), (1, "mamba")])
def test_even_is_of_what_the_mixer_sees(page, run, mixer):
    subject = page.explorer.subjects[run]
    number, part = next((n, part) for n, part in enumerate(subject.parts) if part.mixer == mixer)
    page.open()
    page.choose("Run", subject.name)
    page.choose("Layer", f"{part.layer} · {mixer}" + (" (reach)" if part.kind == "reach" else ""))
    with page.showing(Side(run, number)):
        for query in (9, 24):
            page.point_at(query)
            page.check(query)
            count = sum(page.looked_at(query))
            assert count < sum(page.schedule.lengths[: page.schedule.levels[query] + 1])
            entropy, most = re.search(r"entropy ([\d.]+) of at most ([\d.]+) nats", page.find(".readout").text).groups()
            weights = page.explorer.weights(query)
            assert float(entropy) == pytest.approx(-np.sum(weights * np.log(np.maximum(weights, 1e-30))), abs=0.0051)
            assert float(most) == pytest.approx(np.log(count), abs=0.0051)
        page.point_at(24, click=True)
        page.point_at(22)
        page.check_weight(24, 22)
    measure(page, "entropy")
    alike = dict(re.findall(r"(\S+) ([\d.]+)(?:,| nats\.)", page.find(".legend").text.partition("that it sees: ")[2]))
    counts = part.visible(page.schedule).sum(1)
    assert float(alike[mixer]) == pytest.approx(np.log(counts).mean(), abs=0.0051)


def test_keys_do_all_that_the_pointer_does(page):
    from selenium.webdriver import ActionChains, Keys

    page.open()
    canvas = page.panel(3).find_element("css selector", "canvas")
    first = page.explorer.view.query
    canvas.send_keys(Keys.ARROW_RIGHT, Keys.ARROW_UP)
    page.frame()
    page.check(first + 1 - 4)
    canvas.send_keys(Keys.SHIFT + Keys.ARROW_LEFT + Keys.NULL)
    page.frame()
    assert "looks at token" in page.find(".readout").text
    probe = int(re.search(r"looks at token (\d+)", page.find(".readout").text)[1])
    page.check_weight(first + 1 - 4, probe)
    reached, last = set(), None
    page.open()
    for _ in range(60):
        ActionChains(page.driver, duration=0).send_keys(Keys.TAB).perform()
        element = page.driver.switch_to.active_element
        if element == last or element.tag_name == "body":
            break
        last = element
        reached.add(element.get_attribute("data-act") or element.get_attribute("data-cell") or element.tag_name)
    assert {"compare", "png", "pdf", "python", "canvas", "select", "0/mean", "input"} <= reached
    cell = page.find('[data-cell="0/mean"]')
    cell.send_keys(Keys.ARROW_DOWN)
    page.driver.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
    chosen = page.driver.switch_to.active_element
    assert chosen.get_attribute("data-cell") == "1/0"
    chosen.send_keys(Keys.ENTER)
    page.ready()
    assert page.find(".side-title").text == "Layer 1, intra, head 0"
    assert page.driver.switch_to.active_element.get_attribute("data-cell") == "1/0"
    page.all('[data-side="0"] select')[1].send_keys(Keys.ARROW_DOWN)  # Run, Layer, Head
    page.ready()
    page.driver.switch_to.active_element.send_keys(Keys.ARROW_DOWN)  # the focus stayed where it was
    page.ready()
    assert page.find(".side-title").text == "Layer 3, window, head 0"


def test_the_matrix_shows_means_and_measured_effects(page):
    page.open()
    data = data_of(page.path)
    means = {f"{row[0]}/{row[1]}": row[2:] for row in data["means"]["0/0"]}
    digits = {"share in the own scale": (0, lambda v: f"{100 * v:.0f}"), "entropy": (1, lambda v: f"{v:.1f}")}
    for name, (column, text) in digits.items():
        measure(page, name)
        cells = {cell.get_attribute("data-cell"): cell for cell in page.all("[data-cell]")}
        assert cells.keys() == means.keys()
        for key, cell in cells.items():
            assert float(cell.get_attribute("data-value")) == means[key][column]
            assert cell.text == text(means[key][column])
    measure(page, "harm, own scale cut")
    measured = page.explorer.subjects[0].effects.changes["own"]
    cells = {cell.get_attribute("data-cell"): cell.text for cell in page.all("[data-cell]")}
    expected = {
        f"{part}/{'mean' if head is None else head}": f"{change:+.3f}" for (part, head), change in measured.items()
    }
    assert expected.keys() == {"0/mean", "0/1", "2/mean"}
    assert cells == {key: expected.get(key, "–") for key in cells}
    assert "held-out images" in page.find(".matrix caption").text
    page.find('[data-cell="2/1"]').click()
    page.ready()
    assert page.find(".side-title").text == "Layer 2, markov:2, head 1" or "markov" in page.find(".side-title").text


def measure(page, name):
    options = page.all(".matrix select option")
    next(option for option in options if option.text == name).click()
    page.frame()


def test_two_runs_side_by_side_and_the_python_that_makes_them(page, monkeypatch):
    monkeypatch.setenv("MVAR_RESULTS", str(page.path.parent / "results"))  # where the page's lines look
    page.open()
    page.find('[data-act="compare"]').click()
    page.ready()
    run_b = page.explorer.subjects[1].name
    assert page.find('[data-side="1"] option:checked').text == run_b
    page.choose("Layer", "2 · mamba (reach)", side=1)
    page.choose("Head", "1", side=0)
    page.all("input[type=radio]")[1].find_element("xpath", "..").click()  # the second picture
    page.ready()
    page.point_at(26, click=True)
    assert "of its reach" in page.find(".readout").text and "of its mass" in page.find(".readout").text
    lines = page.find(".code").text.splitlines()
    assert len(lines) == 3 and lines[0] == "import mvar" and "/" not in "".join(lines)
    names = {}
    exec("\n".join([*lines[:2], f"seen = {lines[2]}"]), names)
    seen, first = names["seen"], page.explorer
    assert [s.name for s in seen.subjects] == [s.name for s in first.subjects] and seen.view.query == 26
    page.explorer = seen
    try:
        for side in (0, 1):
            page.check(26, side)
        page.point_at(3)
        page.check_weight(26, 3)
    finally:
        page.explorer = first
    page.find('[data-act="python"]').click()
    until(lambda: "copied" in page.find(".message").text)
    assert page.driver.execute_async_script("navigator.clipboard.readText().then(arguments[0])").splitlines() == lines


def test_the_view_is_saved_as_png_and_as_pdf(page):
    page.open()
    page.point_at(25, click=True)
    for kind in ("png", "pdf"):
        page.find(f'[data-act="{kind}"]').click()
        until(lambda kind=kind: (page.downloads / f"attention.{kind}").is_file())
    picture = np.asarray(Image.open(page.downloads / "attention.png").convert("RGB"))
    assert min(picture.shape[:2]) > 300 and len(np.unique(picture.reshape(-1, 3), axis=0)) > 50
    document = (page.downloads / "attention.pdf").read_bytes()
    start = int(re.search(rb"startxref\n(\d+)\n%%EOF\n$", document)[1])
    offsets = [int(number) for number in re.findall(rb"(\d{10}) 00000 n", document[start:])]
    assert document[start:].startswith(b"xref\n") and len(offsets) == 5
    assert [document[at:].split(b" ")[0] for at in offsets] == [b"1", b"2", b"3", b"4", b"5"]
    stream = re.search(rb"/Length (\d+)>>stream\n", document[offsets[4] :])
    begin = offsets[4] + stream.end()
    pixels = zlib.decompress(document[begin : begin + int(stream[1])])
    assert pixels == picture.tobytes()
    ends = colours(page, ".key canvas")[[0, -1], -1]  # the most, over black and over white
    assert all((picture == end).all(-1).any() for end in ends)  # of the saved picture's key
    page.find('[data-act="picture"]').click()
    until(lambda: page.find(".message").text == "Picture copied.")
    copied = "navigator.clipboard.read().then((items) => arguments[0](items.flatMap((item) => item.types)))"
    assert page.driver.execute_async_script(copied) == ["image/png"]


def colours(page, selector):
    """A canvas's pixels `(height, width, 3)`."""
    script = """const canvas = document.querySelector(arguments[0]), { width, height } = canvas;
        const copy = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
        copy.drawImage(canvas, 0, 0);
        return [height, width, [...copy.getImageData(0, 0, width, height).data]]"""
    height, width, values = page.driver.execute_script(script, selector)
    return np.array(values, np.uint8).reshape(height, width, 4)[..., :3]


def test_the_key_has_the_colours_of_the_panels(page):
    """The only token of the first scale has the most of it: its panel's colours lie between those at the key's end."""
    page.open()
    page.point_at(29, click=True)
    for heat in ("80", "30"):
        script = "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input'))"
        page.driver.execute_script(script, page.find("input[type=range]"), heat)
        page.frame()
        key, panel = colours(page, ".key canvas"), colours(page, '[data-side="0"] [data-scale="0"] canvas')
        half = len(panel) // 2  # away from the frame, in the lower right
        low, high = key[0, -1].astype(int) - 1, key[-1, -1].astype(int) + 1
        found = panel[:half, :half].reshape(-1, 3)
        assert (low < high).all() and ((low <= found) & (found <= high)).all()
        assert (np.abs(key[0, -1].astype(int) - key[0, 0]) > 30).any()


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_every_width_in_light_and_dark(page, dark):
    for width, compared in product((400, 800, 1600), (False, True)):
        page.open(width, dark)
        if compared:
            page.find('[data-act="compare"]').click()
            page.ready()
        wide = page.driver.execute_script("return document.documentElement.scrollWidth")
        assert wide <= width, page.driver.execute_script(WIDEST)
        assert page.driver.execute_script(
            "const c = document.querySelector('.code'); return c.scrollWidth <= c.clientWidth"
        )
        matrix, export = page.find(".matrix").rect, page.find(".export").rect
        if compared and width == 1600:  # beside each other: no row is left all but empty
            assert abs(matrix["y"] - export["y"]) < 2 and export["width"] > 1600 / 2
        else:
            assert export["y"] >= matrix["y"] + matrix["height"]
        ground = page.driver.execute_script(
            "return getComputedStyle(document.querySelector('.mvar-explorer')).backgroundColor"
        )
        assert (sum(map(int, re.findall(r"\d+", ground))) < 200) == dark
        if width != 800:
            page.point_at(22, click=True)
            assert serious_faults(page.driver, "body") == []


def test_print_is_dark_on_white(page):
    page.open(dark=True)
    dark = {"name": "prefers-color-scheme", "value": "dark"}
    script = "const { color, backgroundColor } = getComputedStyle(arguments[0]); return [color, backgroundColor]"
    try:
        page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": [dark]})
        assert page.find(".mvar-explorer").get_attribute("data-theme") == "dark"
        for selector in (".mvar-explorer", ".readout", ".most"):
            ink, ground = page.driver.execute_script(script, page.find(selector))
            assert max(map(int, re.findall(r"\d+", ink)[:3])) < 110, selector
            assert ground == "rgba(0, 0, 0, 0)" or min(map(int, re.findall(r"\d+", ground)[:3])) > 230, selector
    finally:
        page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def test_a_page_that_lacks_maps_says_so(page, tmp_path):
    small = tmp_path / "small.html"
    page.explorer.page(small, layers=[0, 3], heads=[0])
    page.driver.get(small.as_uri())
    page.ready()
    cell = page.find('[data-cell="1/mean"]')
    assert cell.get_attribute("aria-disabled") == "true" and float(cell.get_attribute("data-value")) > 0
    cell.click()
    until(lambda: "not in this file" in page.find(".message").text)
    assert page.find(".side-title").text == "Layer 0, global, mean over heads"
    assert [line.text for line in page.all(".left-out li")] == data_of(small)["leftOut"] != []
    page.choose("Run", page.explorer.subjects[1].name)
    dashes = [cell for cell in page.all("[data-cell]") if cell.text == "–"]
    assert ["reach" in cell.get_attribute("title") for cell in dashes] == [True]  # layer 2's; layer 3's is there
    legend = page.find(".legend").text
    assert "A dash: its reach is not in this file." in legend and "looked at" not in legend
