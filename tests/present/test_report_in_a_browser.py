"""The report in a real browser: axe-core finds nothing, nothing lies beside the screen, tables sort, the map answers.

``axe/axe.min.js`` is axe-core 4.14.1 (Deque Systems, MPL 2.0, see ``axe/LICENSE``), unchanged.
"""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from sharpscope.present.report import build_report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
AXE = Path(__file__).parent / "axe" / "axe.min.js"
DRIVER = """
for (const fold of document.querySelectorAll("details")) fold.open = true;
const said = {};
said.beside = [...document.querySelectorAll("body *")]
  .filter((e) => !e.closest("thead") && e.getBoundingClientRect().right > innerWidth + 1)
  .map((e) => `${e.tagName} ${e.textContent.trim().slice(0, 60)}`);
said.width = innerWidth;
said.paper = getComputedStyle(document.documentElement).backgroundColor;
const head = document.querySelectorAll("#advice thead th")[4], body = head.closest("table").tBodies[0];
const column = () => [...body.rows].map((row) => row.cells[4].textContent);
said.before = column();
for (const order of ["ascending", "descending"]) {
  head.querySelector("button").click();
  said[order] = [head.getAttribute("aria-sort"), column()];
}
const told = document.querySelector(".map output"), cell = document.querySelector(".map td");
const press = (key) => document.activeElement.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
cell.focus();
said.map = [told.textContent];
for (const key of ["ArrowRight", "ArrowDown", "ArrowUp", "ArrowUp"]) { press(key); said.map.push(told.textContent); }
said.rows = document.querySelectorAll(".map tbody tr").length;
said.tabs = document.querySelectorAll(".map td[tabindex='0']").length;
axe.run(document, { resultTypes: ["violations"] }).then((found) => {
  said.violations = found.violations.map((v) => [v.id, v.nodes.length, v.nodes[0].target.join(" ")]);
  parent.postMessage(JSON.stringify(said), "*");
});
"""
PAGE = """<!DOCTYPE html><meta charset="utf-8"><body>
<iframe style="border:0;width:%dpx;height:900px" srcdoc="%s"></iframe><script>
addEventListener("message", (e) => {
  const told = document.createElement("pre");
  told.id = "said"; told.textContent = e.data; document.body.append(told);
});
</script></body>"""  # without its encoding the browser guesses one, now and then the wrong one

FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--dump-dom")
pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Its path; without one that starts the tests are skipped, and say why."""
    if CHROMIUM is None:
        pytest.skip("no chromium is installed (Debian: apt install chromium)")
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('probe')}", "about:blank"]
    try:
        tried = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except subprocess.TimeoutExpired:
        pytest.skip("chromium does not open an empty page within a minute here")
    if tried.returncode or "<html>" not in tried.stdout:
        pytest.skip(f"chromium does not start here: {tried.stderr[-200:]}")
    return CHROMIUM


@pytest.fixture
def opened(
    chromium: str, tables: dict[str, pd.DataFrame], manifest: dict[str, Any], tmp_path: Path
) -> Callable[..., dict[str, Any]]:
    """A function of (width, dark) that opens the report in a frame of that width, and says what the driver saw."""
    report = build_report(tables, {}, manifest)

    def open_(width: int, dark: bool = False) -> dict[str, Any]:
        text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", report)  # the driver is not the page's
        text = text.replace("(prefers-color-scheme: dark)", "all") if dark else text
        driver = f"<script>{_axe()}</script><script>{DRIVER}</script>"
        text = text.replace("</body>", f"{driver}</body>")
        (tmp_path / "page.html").write_text(PAGE % (width, html.escape(text)))
        command = [
            chromium, *FLAGS, "--window-size=1600,1000", "--virtual-time-budget=60000",
            f"--user-data-dir={tmp_path}/profile", f"file://{tmp_path}/page.html",
        ]  # fmt: skip
        page = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
        found = re.search(r'<pre id="said">(.*?)</pre>', page, re.S)
        assert found is not None, page[-500:]
        said: dict[str, Any] = json.loads(html.unescape(found[1]))
        return said

    return open_


@cache
def _axe() -> str:
    return AXE.read_text().replace("</script", r"<\/script")


@pytest.mark.parametrize(("width", "dark"), [(1400, False), (390, False), (1400, True)])
def test_a_report_is_accessible_and_fits_the_screen(
    width: int, dark: bool, opened: Callable[..., dict[str, Any]], tables: dict[str, pd.DataFrame]
) -> None:
    said = opened(width, dark)
    assert said["violations"] == [] and said["beside"] == [] and said["width"] == width
    assert (said["paper"] == "rgb(255, 255, 255)") == (not dark)

    place = {"ascending": 1, "descending": -1}
    numbers = {order: [float(x) for x in said[order][1] if x != "—"] for order in place}
    assert sorted(said["before"]) == sorted(said["ascending"][1]) and len(set(numbers["ascending"])) > 1
    assert said["before"][-1] != "—" and all(said[order][1][-1] == "—" for order in place), "no number comes last"
    for order, direction in place.items():
        assert said[order][0] == order and numbers[order] == sorted(numbers[order])[::direction]

    rows = tables["sharpness"]
    rows = rows[(rows["pair"] == "success") & (rows["measure"] == "hessian_trace")].set_index(["layer", "alpha"])
    first = [rows.loc[("visual.conv1", alpha)] for alpha in (0.0, 0.1)]
    assert said["rows"] == 22 and said["tabs"] == 1
    for told, row, alpha in zip(said["map"], first, ("0", "0.1"), strict=False):
        shown = re.fullmatch(rf"visual\.conv1, α = {alpha}: hessian_trace ([-\d.e+]+)( ± .*)?, .*", told)
        assert shown is not None and float(shown[1]) == pytest.approx(row["estimate"], rel=6e-3)
    assert said["map"][2].startswith("visual.embed, α = 0.1:") and said["map"][3] == said["map"][1]
    assert said["map"][4] == said["map"][3], "above the first row there is nothing"
