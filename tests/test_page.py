"""The page of `handful serve`, in a browser: classes come and go, and it answers at once."""

from __future__ import annotations

import re
import shutil
import threading
import time
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytest.importorskip("fastapi", reason="the extra serve is not installed")
from playwright.sync_api import Browser, Locator, Page, Response, expect  # noqa: E402

from handful.serve import make_server  # noqa: E402

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this system")
expect.set_options(timeout=20_000)
PHONE = {"viewport": {"width": 360, "height": 740}, "is_mobile": True, "has_touch": True}


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A server without models, in a thread: a process of its own would import everything again."""
    server = make_server([], port=0)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.url and thread.is_alive():
        time.sleep(0.01)
    yield server.url
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Visit:
    """A page in a fresh browser context, and what went wrong on it."""

    def __init__(self, browser: Browser, address: str, **options: object) -> None:
        self.context = browser.new_context(**options)  # type: ignore[arg-type]
        self.context.set_default_timeout(20_000)
        self.page: Page = self.context.new_page()
        self.errors: list[str] = []
        self.refusals: list[tuple[str, int]] = []
        self.origins: set[str] = set()
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", lambda said: self.errors.append(said.text) if said.type == "error" else None)
        self.page.on("request", lambda request: self.origins.add(request.url))
        self.page.on("response", self.heed)
        self.address = address
        self.page.goto(address)
        expect(self.page.get_by_label("Name of unnamed class 1")).to_be_visible()

    def heed(self, answer: Response) -> None:
        if answer.status >= 400:
            self.refusals.append((urlsplit(answer.url).path, answer.status))

    def card(self, name: str) -> Locator:
        return self.page.get_by_role("region", name=name, exact=True)

    def name_class(self, name: str) -> None:
        field = self.page.get_by_label("Name of unnamed class 1")
        if not field.count():
            self.page.get_by_role("button", name="Add a class").click()
        field.fill(name)
        field.press("Enter")
        expect(self.card(name)).to_be_visible()

    def give(self, name: str, *files: Path) -> None:
        self.page.get_by_label(f"Add images to {name}").set_input_files(files)

    def ask(self, file: Path) -> None:
        self.page.get_by_label("Choose an image to ask about").set_input_files(file)

    def teach(self, digits: Path, *names: str, images: int = 2) -> None:
        for name in names:
            self.name_class(name)
            self.give(name, *some(digits / "train" / name, images))
            expect(self.card(name)).to_contain_text(f"{images} images")

    @property
    def headline(self) -> Locator:
        return self.page.locator("#headline")

    def close(self) -> None:
        self.context.close()
        here = [f"{self.address}/", "blob:", "data:"]
        assert not [url for url in self.origins if not any(map(url.startswith, here))]
        assert not [error for error in self.errors if not error.startswith("Failed to load resource")]
        assert not self.refusals


@pytest.fixture
def visit(browser: Browser, address: str) -> Iterator[Visit]:
    visit = Visit(browser, address)
    yield visit
    visit.close()


DROP = """([node, files]) => {
    const dataTransfer = new DataTransfer();
    for (const [name, bytes] of files)
        dataTransfer.items.add(new File([Uint8Array.from(atob(bytes), one => one.charCodeAt(0))], name));
    for (const kind of ["dragenter", "dragover", "drop"])
        node.dispatchEvent(new DragEvent(kind, { dataTransfer, bubbles: true, cancelable: true }));
}"""


def drop(target: Locator, *files: Path) -> None:
    data = [(file.name, b64encode(file.read_bytes()).decode()) for file in files]
    target.page.evaluate(DROP, [target.element_handle(), data])


def some(folder: Path, count: int, start: int = 0) -> list[Path]:
    return sorted(folder.iterdir())[start : start + count]


def fits(page: Page) -> bool:
    return page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


def pictures_appear(page: Page, count: int) -> bool:
    """Whether so many thumbnails are drawn in the classes, in two seconds."""
    wide = "() => [...document.querySelectorAll('.thumbs img')].map(one => one.naturalWidth > 0)"
    for _ in range(40):
        if page.evaluate(wide) == [True] * count:
            return True
        page.wait_for_timeout(50)
    return False


DECIDED = re.compile(
    r"^Rather than zero: (names [<\d]+ %, images [<\d]+ %"
    r"|by the (images|names) \([<\d]+ %\), against the (images|names) \([<\d]+ %\))\.$"
)


def test_first_visit_explains_itself_and_makes_no_draft(visit: Visit):
    page = visit.page
    expect(page.get_by_text("the classifier learns at once")).to_be_visible()
    expect(page.get_by_label("Name of unnamed class 2")).to_be_visible()
    expect(page.get_by_role("contentinfo")).to_contain_text("mini (a demonstration model)")
    assert page.get_by_role("link", name="API").get_attribute("href") == "docs"
    assert "draft=" not in page.url


def test_it_says_which_classes_are_likely(visit: Visit, digits: Path):
    visit.teach(digits, "zero", "one", images=6)
    visit.ask(some(digits / "test/one", 1)[0])
    said = re.compile(r"At 90 % (only: one|one of: one, zero)\.|None of these is likely\.")
    expect(visit.page.locator("#facts")).to_have_text(said)


def test_it_learns_from_two_images_of_each_class_and_is_corrected(visit: Visit, digits: Path):
    page = visit.page
    question = some(digits / "test/one", 1)[0]
    visit.name_class("zero")
    visit.ask(question)
    expect(page.get_by_text("as soon as two classes have names")).to_be_visible()
    visit.name_class("one")
    expect(visit.headline).to_contain_text("%")  # by the names alone
    expect(page.get_by_text("The names alone decided: there is no image yet")).to_be_visible()
    expect(page.get_by_label("Auto")).to_be_checked()
    expect(visit.card("one")).to_contain_text("No images yet: known by its name alone.")
    for name in ("zero", "one"):
        visit.give(name, *some(digits / "train" / name, 2))
        expect(visit.card(name)).to_contain_text("2 images")

    expect(visit.headline).to_have_text(re.compile(r"^one \(\d+ %\)$"))
    expect(page.locator("#facts")).to_contain_text(re.compile(r"Answered in [\d.]+ ms"))
    bars = page.get_by_role("list", name="Class probabilities").get_by_role("listitem")
    expect(bars).to_have_count(2)
    expect(bars.first).to_have_text(re.compile(r"^one\d+ %$"))
    support = page.get_by_role("list", name="Images that spoke for one").get_by_role("listitem")
    expect(support.first).to_have_text(re.compile(r"^one\d+ %$"))
    assert {text[:3] for text in support.all_text_contents()} == {"one"}
    expect(page.locator("#decided")).to_have_text(DECIDED)
    expect(page.locator("#support img").first).to_have_attribute("src", re.compile("^blob:"))
    assert pictures_appear(page, 4)

    page.get_by_role("group", name="Correct it").get_by_role("button", name="zero").click()
    expect(visit.card("zero")).to_contain_text("3 images")
    expect(page.get_by_text("It is now one of the images of zero.")).to_be_visible()
    page.get_by_role("group", name="Correct it").get_by_role("button", name="one").click()  # moves it
    expect(visit.card("zero")).to_contain_text("2 images")
    expect(visit.card("one")).to_contain_text("3 images")
    learned = page.locator(f'#support li[title="{question.name}"]')  # the image itself decides too
    expect(learned).to_have_text(re.compile(r"^one\d+ %$"))

    page.get_by_label("Name of a new class").fill("thin")
    page.get_by_role("button", name="New class").click()
    expect(visit.card("thin")).to_contain_text("1 image")
    expect(bars).to_have_count(3)
    expect(page.locator("#decided")).to_have_text(re.compile("^Rather than (zero|one|thin): "))
    best, rival = (bars.nth(row).text_content() for row in range(2))
    spoke = page.locator("#support li").all_text_contents()
    assert spoke and not [one for one in spoke if one.startswith(re.sub(r"\d+ %", "", rival or ""))], best


def test_classes_and_images_come_and_go_and_a_reload_goes_on(visit: Visit, digits: Path):
    page = visit.page
    visit.teach(digits, "zero", "one", "two")
    field = page.get_by_label("Name of the class two")
    field.fill("swan")
    field.press("Enter")
    expect(visit.card("swan")).to_contain_text("2 images")
    expect(visit.card("two")).to_have_count(0)

    first, second = some(digits / "train/zero", 2)
    visit.card("zero").get_by_role("button", name=first.name).click()
    page.get_by_role("button", name="Remove image").click()
    expect(visit.card("zero")).to_contain_text("1 image")
    visit.card("zero").get_by_role("button", name=second.name).click()
    page.get_by_label(f"Class to move {second.name} to").select_option("swan")
    page.get_by_role("button", name="Move", exact=True).click()
    expect(visit.card("swan")).to_contain_text("3 images")
    expect(visit.card("zero")).to_contain_text("known by its name alone")

    page.get_by_role("button", name="Remove zero").click()
    expect(page.get_by_role("button", name="Keep")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="Keep")).to_be_hidden()
    page.get_by_role("button", name="Remove zero").click()
    page.get_by_role("button", name="Remove class").click()
    expect(visit.card("zero")).to_have_count(0)

    page.get_by_label("Meta-Adapter").check()
    expect(page.get_by_text("refine its name")).to_be_visible()
    page.reload()
    expect(visit.card("swan")).to_contain_text("3 images")
    expect(visit.card("one")).to_contain_text("2 images")
    expect(page.get_by_label("Meta-Adapter")).to_be_checked()
    assert pictures_appear(page, 5)


def test_what_is_refused_is_named_where_it_happened_and_the_rest_stays(
    visit: Visit, digits: Path, tmp_path: Path
):
    page = visit.page
    text = tmp_path / "<b>notes.txt"
    text.write_text("no image")
    visit.name_class("zero")
    visit.give("zero", text, *some(digits / "train/zero", 2))
    expect(visit.card("zero")).to_contain_text("2 images")
    expect(visit.card("zero")).to_contain_text("Refused: <b>notes.txt: not an image")
    assert not visit.refusals
    visit.ask(text)
    visit.name_class("one")
    expect(page.locator("#ask-message")).to_contain_text("image")
    expect(visit.headline).to_be_empty()
    field = page.get_by_label("Name of the class one")
    field.fill("zero")
    field.press("Enter")
    expect(visit.card("one").get_by_role("status")).to_contain_text("zero")
    expect(field).to_have_value("one")
    assert len(visit.refusals) >= 2
    visit.refusals.clear()

    page.get_by_role("button", name="Add a class").click()  # images that come before the name wait for it
    page.get_by_label("Add images to unnamed class 1").set_input_files(some(digits / "train/two", 2))
    expect(page.get_by_text("2 images waiting: name the class first.")).to_be_visible()
    visit.name_class("two")
    expect(visit.card("two").get_by_role("listitem")).to_have_count(2)


def test_files_are_dropped_and_images_dragged(visit: Visit, digits: Path):
    visit.name_class("zero")
    visit.name_class("one")
    for name in ("zero", "one"):
        drop(visit.card(name), *some(digits / "train" / name, 2))
        expect(visit.card(name)).to_contain_text("2 images")
    drop(visit.page.locator("#drop"), *some(digits / "test/zero", 2))
    expect(visit.headline).to_contain_text("zero")
    expect(visit.page.locator("#asked-name")).to_contain_text("the first of 2")
    visit.card("zero").get_by_role("listitem").first.drag_to(visit.card("one"))
    expect(visit.card("one")).to_contain_text("3 images")
    drop(visit.page.get_by_role("button", name="Add a class"), *some(digits / "train/two", 2))
    expect(visit.card("unnamed class 1")).to_contain_text("2 images waiting")


def test_a_draft_that_is_gone_is_said_and_begun_anew(visit: Visit, address: str):
    visit.page.goto(f"{address}/#draft=nothing")
    expect(visit.page.get_by_text("no longer has this draft")).to_be_visible()
    expect(visit.page.get_by_label("Name of unnamed class 2")).to_be_visible()
    assert "draft=" not in visit.page.url
    assert {status for _, status in visit.refusals} == {404}
    visit.refusals.clear()


def test_download_and_open_again(visit: Visit, digits: Path, tmp_path: Path):
    page = visit.page
    visit.teach(digits, "zero", "one")
    visit.ask(some(digits / "test/zero", 1)[0])
    corrections = page.get_by_role("group", name="Correct it")
    corrections.get_by_role("button", name="zero").click()
    expect(corrections.get_by_role("button", name="zero", pressed=True)).to_be_visible()
    before = page.url
    with page.expect_download() as download:
        page.get_by_role("button", name="Download").click()
    kept = tmp_path / download.value.suggested_filename
    assert kept.suffix == ".zip"
    download.value.save_as(kept)
    page.get_by_role("button", name="Start anew").click()
    expect(visit.card("zero")).to_have_count(0)
    page.get_by_role("button", name="Open…").click()
    page.get_by_label("Upload a .zip").set_input_files(kept)
    expect(visit.card("zero")).to_contain_text("3 images")
    expect(visit.card("one").get_by_role("listitem")).to_have_count(2)
    assert pictures_appear(page, 5)
    expect(visit.headline).to_contain_text("zero")  # the question still stands
    expect(corrections.get_by_role("button", pressed=False)).to_have_count(2)
    visit.give("zero", some(digits / "train/zero", 3)[2])
    expect(visit.card("zero")).to_contain_text("4 images")
    assert page.url != before

    page.go_back()
    page.go_back()  # over the empty one
    expect(visit.card("zero")).to_contain_text("3 images")
    assert page.url == before


def test_a_phone_scrolls_only_downwards(browser: Browser, address: str, digits: Path):
    visit = Visit(browser, address, color_scheme="dark", **PHONE)
    assert fits(visit.page)
    visit.teach(digits, "zero", "one", images=3)
    visit.name_class("a rather long name of a class that nobody would want " + "o" * 40)
    expect(visit.page.get_by_label("Take a photo for zero")).to_be_attached()
    assert visit.page.get_by_label("Take a photo to ask about").get_attribute("capture") == "environment"
    visit.ask(some(digits / "test/zero", 1)[0])
    expect(visit.headline).to_contain_text("zero")
    visit.page.get_by_role("button", name="Open…").click()
    expect(visit.page.get_by_role("dialog", name="Open a classifier")).to_be_visible()
    assert fits(visit.page)
    visit.close()
