"""Debian's Chromium with its driver: a page as a reader has it, by pointer and by keys; and axe-core's judgement."""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

BINARIES = "chromium", "chromedriver"
SERIOUS = "serious", "critical"


def need(*names: str) -> None:
    """Without these programs and modules a test is skipped; under REQUIRE_CHROMIUM it fails."""
    lacking = [name for name in names if not (shutil.which(name) if name in BINARIES else find_spec(name))]
    if lacking:
        why = f"not installed: {', '.join(lacking)} (apt-get install chromium chromium-driver, make .venv/dev)"
        (pytest.fail if os.environ.get("REQUIRE_CHROMIUM") else pytest.skip)(why)


@contextmanager
def chromium(downloads: Path) -> Iterator[Any]:
    """A driver without a window; `need` says what happens where there is none."""
    need(*BINARIES, "selenium")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    for argument in ("--headless=new", "--disable-gpu", "--hide-scrollbars", "--force-device-scale-factor=1"):
        options.add_argument(argument)
    if os.getuid() == 0:
        options.add_argument("--no-sandbox")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    try:
        driver.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(downloads)})
        permissions = ["clipboardReadWrite", "clipboardSanitizedWrite"]
        driver.execute_cdp_cmd("Browser.grantPermissions", {"permissions": permissions})
        yield driver
    finally:
        driver.quit()


def look(driver: Any, width: int, dark: bool = False, height: int = 1000) -> None:
    """How wide the window is, and which colours its reader prefers."""
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def point_in(driver: Any, element: Any, x: float, y: float, click: bool = False) -> None:
    """The pointer moves to a place in an element, from 0 to 1 of its width and height; and what follows is drawn."""
    from selenium.webdriver import ActionChains

    driver.execute_script("arguments[0].scrollIntoView({ block: 'center' })", element)
    size = element.size
    place = round((x - 0.5) * size["width"]), round((y - 0.5) * size["height"])
    actions = ActionChains(driver, duration=0).move_to_element_with_offset(element, *place)
    (actions.click() if click else actions).perform()
    frame(driver)


def frame(driver: Any) -> None:
    """What was asked for is drawn."""
    driver.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")


def until(what: Callable[[], Any], seconds: float = 10) -> Any:
    """What is true at last.

    Raises:
        AssertionError: it is not, after so long.
    """
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, "it does not come about"
        time.sleep(0.02)
    return found


def complaints(driver: Any) -> list[str]:
    """Errors and warnings on the console since the last call."""
    return [entry["message"] for entry in driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]


def serious_faults(driver: Any, within: str) -> list[str]:
    """What axe-core finds in elements, of its two worst kinds."""
    import axe_core_python

    driver.execute_script((Path(axe_core_python.__file__).parent / "axe.min.js").read_text())
    found = driver.execute_async_script("axe.run(arguments[0]).then(arguments[1])", within)
    assert found["passes"], "axe-core has looked at nothing"
    worst = [fault for fault in found["violations"] if fault["impact"] in SERIOUS]
    return [f"{fault['id']}: {node['html'][:200]}" for fault in worst for node in fault["nodes"]]
