import contextlib
import os
import shutil

import pytest

from autotune.database.store import Store
from autotune.report.page.page import write_page
from tests.report.page import comparisons


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The written pages by the names of their comparisons."""
    folder = tmp_path_factory.mktemp("pages")
    paths = {}
    for build in (comparisons.plain, comparisons.hostile, comparisons.carried):
        with Store.open(str(folder / f"{build.__name__}.db")) as store:
            paths[build.__name__] = folder / f"{build.__name__}.html"
            write_page(build(store), paths[build.__name__])
    return paths


def chromium():
    """The path of Chromium; without it the test is skipped, unless it must be there, as in CI."""
    try:
        import playwright  # noqa: F401

        reason = "" if shutil.which("chromium") else "there is no chromium; Debian: apt-get install chromium"
    except ModuleNotFoundError as error:
        reason = str(error)
    if reason and os.environ.get("AUTOTUNE_TESTS_NEED_CHROMIUM"):
        pytest.fail(f"AUTOTUNE_TESTS_NEED_CHROMIUM is set, and: {reason}", pytrace=False)
    if reason:
        pytest.skip(reason)
    return shutil.which("chromium")


@pytest.fixture(scope="module")
def browser():
    path = chromium()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def open_page(browser, pages):
    """Open a page without a network; at the end nothing may have been asked for, said on the console, or thrown."""
    with contextlib.ExitStack() as stack:
        wrong = []

        def open_one(name, *, width=1280, height=900, **options):
            context = browser.new_context(viewport={"width": width, "height": height}, offline=True, **options)
            stack.callback(context.close)
            address = pages[name].as_uri()

            def answer(route):
                if route.request.url == address:
                    return route.continue_()
                wrong.append(f"request {route.request.url}")
                return route.abort()

            context.route("**/*", answer)
            page = context.new_page()
            page.on("console", lambda message: wrong.append(f"console {message.type}: {message.text}"))
            page.on("pageerror", lambda error: wrong.append(f"error {error}"))
            page.on("dialog", lambda dialog: (wrong.append(f"dialog {dialog.message}"), dialog.dismiss()))
            page.goto(address)
            return page

        yield open_one
        assert wrong == []


@pytest.fixture
def draw_all():
    """Bring every plot into view and wait until it is drawn."""

    def draw(page):
        for plot in page.locator(".plot").all():
            plot.scroll_into_view_if_needed()
            plot.locator("xpath=self::*[@data-drawn]").wait_for()
        return page.locator(".plot")

    return draw
