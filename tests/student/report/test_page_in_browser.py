"""The page of an evaluation in a real browser, wide and narrow: it works, keeps to itself, and names stay text."""

import os
import shutil

import pytest
from page_support import HOSTILE, write_set

from student.evaluation.evaluate import EvaluationSettings
from student.report.evaluation import evaluate_to_page

pytestmark = pytest.mark.slow
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install 'dtkd[dev]'")

NAMES = [*HOSTILE, *(f"photo {i}" for i in range(11))]
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def until(page, expression):
    """Wait for it; `page.wait_for_function` evaluates strings in the page, which the page's policy forbids."""
    for _ in range(500):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(20)
    pytest.fail(f"never true: {expression}")


def settle(page):
    """Wait until what was loaded or scrolled has its place, so that a pointer meets what it aims at."""
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done())))")


@pytest.fixture(scope="module")
def browser():
    """Chromium without a window; its own, or the system's."""
    with playwright.sync_playwright() as run:
        own = run.chromium.executable_path
        path = own if os.path.exists(own) else next(filter(None, map(shutil.which, BROWSERS)), None)
        if path is None:
            pytest.skip("no Chromium found: apt-get install chromium, or playwright install chromium")
        browser = run.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    data, other = write_set(folder, NAMES, (128, 160))
    small, _ = write_set(folder / "small", ["a", "b"])
    small = small.rename(folder / "small <set>")
    settings = EvaluationSettings(metrics=("psnr_y", "ssim_y", "piqe"), device="cpu")
    evaluate_to_page([other], [data], folder / "page.html", settings)
    evaluate_to_page(["bicubic"], [data, small], folder / "sets.html", settings)
    return folder / "page.html"


@pytest.fixture(params=["wide", "narrow"])
def page(request, browser, file):
    """The page, opened; afterwards nothing may have been asked for, complained about or popped up."""
    size = {"wide": {"width": 1400, "height": 900}, "narrow": {"width": 390, "height": 844}}[request.param]
    context = browser.new_context(viewport=size, has_touch=request.param == "narrow")
    page, trouble = context.new_page(), []
    page.on("console", lambda message: trouble.append(f"console {message.type}: {message.text}"))
    page.on("pageerror", lambda error: trouble.append(f"error: {error}"))
    page.on("dialog", lambda dialog: trouble.append(f"dialog: {dialog.message}"))
    page.on("request", lambda request: request.url.startswith(("file:", "data:")) or trouble.append(request.url))
    page.goto(file.as_uri())
    until(page, "document.querySelector('.stage img').naturalWidth > 0")
    settle(page)
    yield page
    assert trouble == []
    context.close()


def column(page, table, index):
    """Texts of a column from top to bottom."""
    return page.eval_on_selector_all(
        f"{table} tbody tr", f"rows => rows.map(row => row.cells[{index}].innerText.trim())"
    )


def places(page):
    """What every view of the viewer shows: the transformation of its picture, in pictures' sizes."""
    return page.eval_on_selector_all(
        ".viewer:not([hidden]) .view img",
        """images => images.map(image => {
          const style = getComputedStyle(image), m = new DOMMatrix(style.transform);
          const shares = [m.a, m.e / parseFloat(style.width), m.f / parseFloat(style.height)];
          return shares.map(share => Math.round(share * 1000) / 1000 + 0);
        })""",
    )


def test_nothing_is_wider_than_the_page(page):
    width, window = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert width <= window


def test_names_are_text(page):
    assert page.locator("img[src='x'], [onerror]").count() == 0
    names = column(page, ".images", 0)
    assert set(names) == {" ".join(name.split()) for name in NAMES}
    page.get_by_role("button", name="Next image").click()
    for _ in range(len(NAMES)):
        page.keyboard.press("n")
        assert page.locator(".viewer .name").inner_text() in NAMES


def test_sorting_by_click_and_by_key(page):
    head = page.locator(".means thead th").nth(1)
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "descending"  # psnr_y: better first
    best_first = column(page, ".means", 0)
    assert best_first[-1].startswith("gt")  # has no figure
    head.locator("button").focus()
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "ascending"
    assert column(page, ".means", 0) == [*reversed(best_first[:-1]), best_first[-1]]


def test_all_images_sort_and_change_their_metric(page):
    page.locator(".images thead button").last.click()
    differences = [float(text.replace("\N{MINUS SIGN}", "-")) for text in column(page, ".images", 4)]
    assert differences == sorted(differences, reverse=True) and len(set(differences)) > 5
    before = column(page, ".images", 1)
    page.locator("select.metric").select_option(label="ssim_y ↑")
    after = column(page, ".images", 1)
    assert before != after and all(0 < float(text) < 1 for text in after)
    differences = [float(text.replace("\N{MINUS SIGN}", "-")) for text in column(page, ".images", 4)]
    assert differences == sorted(differences, reverse=True)


def test_the_divider_follows_pointer_and_keys(page):
    stage, clip = page.locator(".stage"), ".stage .clip"
    stage.scroll_into_view_if_needed()
    box = stage.bounding_box()

    def shown():
        return page.eval_on_selector(clip, "layer => getComputedStyle(layer).clipPath")

    assert shown() == "inset(0px 50% 0px 0px)"
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 40)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 4, box["y"] + 40, steps=4)
    page.mouse.up()
    assert shown() == "inset(0px 75% 0px 0px)"
    stage.focus()
    page.keyboard.press("ArrowRight")
    assert shown() == "inset(0px 73% 0px 0px)"
    page.locator(".split").fill("90")
    assert shown() == "inset(0px 10% 0px 0px)"


def test_any_two_candidates_stand_side_by_side(page):
    def sides():
        return page.eval_on_selector_all(".stage img", "images => images.map(image => image.src)")

    def source(candidate):
        return page.eval_on_selector(f".shot[data-candidate='{candidate}'] img", "image => image.src")

    assert sides() == [source(1), source(0)]  # right, left
    page.locator("select.left").select_option(label="gt")
    assert sides() == [source(1), source(2)] and page.locator(".left-tag").inner_text() == "gt"
    page.locator(".shot[data-candidate='0'] .to-right").click()
    assert sides() == [source(0), source(2)]
    page.locator(".swap").click()
    assert sides() == [source(2), source(0)]
    before = source(0)
    page.locator(".next").click()
    assert source(0) != before and sides() == [source(2), source(0)]  # the choice stays from image to image


def test_zoom_and_place_are_one_for_all_views(page):
    assert places(page) == [[1, 0, 0]] * 5
    stage = page.locator(".stage")
    stage.scroll_into_view_if_needed()
    settle(page)
    box = stage.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.25, box["y"] + box["height"] * 0.25)
    page.mouse.wheel(0, -400)
    page.locator(".viewer.zoomed").first.wait_for(state="attached")
    first = places(page)
    assert len(first) == 5 and all(place == first[0] for place in first)
    zoom, x, y = first[0]
    assert zoom > 1.2
    assert x == pytest.approx(0.25 * (1 - zoom), abs=0.01) and y == pytest.approx(
        x, abs=0.01
    )  # the pointer's place stays
    stage.focus()
    page.keyboard.press("+")
    page.keyboard.press("Shift+ArrowRight")
    second = places(page)
    assert all(place == second[0] for place in second)
    assert second[0][0] == pytest.approx(1.5 * zoom, abs=0.01) and second[0][1] != first[0][1]
    small = page.locator(".shot .view").nth(1)
    small.scroll_into_view_if_needed()
    box = small.bounding_box()
    page.mouse.move(box["x"] + 60, box["y"] + 60)
    page.mouse.down()
    page.mouse.move(box["x"] + 90, box["y"] + 75, steps=3)
    page.mouse.up()
    third = places(page)
    assert all(place == third[0] for place in third)
    assert third[0][1] == pytest.approx(second[0][1] + 30 / box["width"], abs=0.01)
    stage.focus()
    page.keyboard.press("0")
    assert places(page) == [[1, 0, 0]] * 5


def test_two_fingers_zoom(page):
    """By the events that a touch screen sends."""
    page.eval_on_selector(
        ".stage",
        """stage => {
          const box = stage.getBoundingClientRect();
          const send = (type, id, x, y) => stage.dispatchEvent(new PointerEvent(type, {
            pointerId: id, pointerType: "touch", bubbles: true, isPrimary: id === 1,
            clientX: box.left + x * box.width, clientY: box.top + y * box.height }));
          stage.setPointerCapture = () => {};
          send("pointerdown", 1, 0.4, 0.5); send("pointerdown", 2, 0.6, 0.5);
          send("pointermove", 1, 0.2, 0.5); send("pointermove", 2, 0.8, 0.5);
          send("pointerup", 1, 0.2, 0.5); send("pointerup", 2, 0.8, 0.5);
        }""",
    )
    zoomed = places(page)
    assert all(place == zoomed[0] for place in zoomed)
    assert zoomed[0][0] == pytest.approx(3, rel=0.1)
    assert zoomed[0][1] == pytest.approx(-1, abs=0.1)  # the middle stays


def test_every_image_opens_with_pictures_of_its_own(page):
    seen = set()
    for button in page.locator(".images button.pick").all():
        button.click()
        until(page, "[...document.querySelectorAll('.shot img')].every(image => image.naturalWidth > 0)")
        seen.add(page.eval_on_selector(".shot[data-candidate='2'] img", "image => image.src"))
        large = "part" not in page.locator(".extent").inner_text()
        assert page.locator(".bands").is_visible() == large
    assert len(seen) == len(NAMES)
    assert page.evaluate("document.activeElement.className").split() == ["view", "stage"]


def test_the_viewer_fills_the_window_and_comes_back(page):
    page.locator(".enlarge").click()
    box, window = page.locator(".viewer").bounding_box(), page.viewport_size
    assert (box["x"], box["y"], box["width"], box["height"]) == (0, 0, window["width"], window["height"])
    page.keyboard.press("Escape")
    assert page.eval_on_selector(".viewer", "viewer => getComputedStyle(viewer).position") == "static"
    assert page.locator(".enlarge").get_attribute("aria-pressed") == "false"


def test_sets_have_viewers_of_their_own(page, file):
    page.goto((file.parent / "sets.html").as_uri())
    until(page, "document.querySelectorAll('.viewer:not([hidden])').length === 2")
    page.locator(".viewer .in").first.click()
    factors = page.locator(".viewer .factor").all_inner_texts()
    assert factors == ["1.5x", "1x"]
    page.locator("nav").get_by_role("link", name="small <set>").click()
    assert page.evaluate("location.hash") == "#set-2"


def test_even_a_script_that_got_in_could_not_run_or_ask_for_anything(browser, file, tmp_path):
    """The policy inside the page refuses both."""
    bad = (
        "<img src='https://example.org/a.png'><script>window.ran = true</script><img src=x onerror='window.ran = true'>"
    )
    changed = tmp_path / "changed.html"
    changed.write_text(file.read_text(encoding="utf-8").replace("<main>", f"<main>{bad}"), encoding="utf-8")
    page, refused = browser.new_page(), []
    page.on("console", lambda message: refused.append(message.text))
    page.goto(changed.as_uri())
    until(page, "document.querySelector('.stage img').naturalWidth > 0")
    assert page.evaluate("window.ran") is None
    assert sum("Content Security Policy" in text for text in refused) >= 3
    page.close()
