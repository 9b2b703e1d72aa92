"""The page in Chromium, without a network."""

import json
from pathlib import Path

import pytest

from tests.report.page.comparisons import IMAGE, MARKUP, NAME

pytestmark = pytest.mark.slow
AXE = Path(__file__).parent / "axe" / "axe.min.js"
FIRST_TABLE = "#w2 table.devices"
"""The table of resnet50 at batch 1, with three compared devices."""
ROOFLINE = "#w2 [data-plot=roofline]"
"""Its roofline, with the roofs of two of them."""


def eventually(page, expression):
    """Wait until an expression is true; Playwright's own wait evaluates a string, which the page's policy forbids."""
    for _ in range(200):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"still false: {expression}")


def rows(page, table=FIRST_TABLE):
    return page.locator(f"{table} tbody th").all_inner_texts()


def visible_rows(page):
    return [
        row.locator("th").inner_text().split("\n")[0] for row in page.locator("table.devices tbody tr:visible").all()
    ]


def test_every_plot_draws_all_of_its_devices(open_page, draw_all):
    page = open_page("plain")
    plots = json.loads(page.locator("#plots").text_content())
    assert draw_all(page).count() == sum(map(len, plots.values())) >= 5
    for anchor, data in plots.items():
        bars = page.locator(f"#{anchor} [data-plot=bars]")
        assert bars.locator(".barlayer .point").count() == len(data["bars"])
        assert bars.locator(".xerror").count() == len(data["bars"])
        if "scatter" in data:
            scatter = page.locator(f"#{anchor} [data-plot=scatter]")
            assert scatter.locator(".scatterlayer .points .point").count() == len(data["scatter"]["points"])
        if "roofline" in data:
            roofline, number = page.locator(f"#{anchor} [data-plot=roofline]"), len(data["roofline"])
            assert roofline.locator(".scatterlayer .js-line").count() == number, "a roof each"
            assert roofline.locator(".scatterlayer .points .point").count() == 3 * number, "ridge, limit and plan"


def test_a_roof_rises_with_the_bytes_to_the_matrix_rate(open_page, draw_all):
    page = open_page("plain")
    draw_all(page)
    traces = page.evaluate(f"document.querySelector('{ROOFLINE}').data.map(({{ x, y }}) => ({{ x, y }}))")
    (fast, slow), (ridges, limits, plans) = traces[:2], traces[2:]
    for roof, bandwidth_gb_s, tflops in ((fast, 1000.0, 300.0), (slow, 300.0, 60.0)):
        start, ridge, end = zip(roof["x"], roof["y"], strict=True)
        assert start[1] == pytest.approx(start[0] * bandwidth_gb_s / 1e3) and start[0] < ridge[0] < end[0]
        assert ridge == pytest.approx((tflops / bandwidth_gb_s * 1e3, tflops)) and end[1] == tflops
    assert ridges["y"] == [300.0, 60.0] and plans["x"] == limits["x"] == pytest.approx([160.0, 160.0])
    assert plans["y"] == pytest.approx([16.0, 4.0]) and limits["y"] == pytest.approx([8 / 0.06, 8 / 0.17667], rel=1e-3)


def test_a_plan_of_the_roofline_is_described_by_hover_and_by_a_list(open_page, draw_all):
    page = open_page("plain")
    draw_all(page)
    plot = page.locator(ROOFLINE)
    words = page.locator(f"#{plot.get_attribute('aria-describedby')} li").all_inner_texts()
    assert words[0] == "nvidia-h200, fp16: 16 TFLOP/s at 160 operations per byte; 8.3× the limit, by bandwidth"
    plot.scroll_into_view_if_needed()
    place = plot.locator(".scatterlayer .trace").last.locator(".point").first.bounding_box()
    page.mouse.move(place["x"] + place["width"] / 2, place["y"] + place["height"] / 2)
    plot.locator(".hoverlayer text").first.wait_for()
    assert "8.3× the limit, by bandwidth" in plot.locator(".hoverlayer").text_content()


def test_plans_of_the_roofline_differ_by_shape_and_the_key_has_the_same(open_page, draw_all):
    page = open_page("plain")
    draw_all(page)
    shapes = page.locator(f"{ROOFLINE} .scatterlayer .trace").last.locator(".point")
    assert len({shape.get_attribute("d") for shape in shapes.all()}) == shapes.count() == 2
    fill = "(element) => getComputedStyle(element).fill"
    for shape, mark in zip(shapes.all(), page.locator("#w2 .key svg").all(), strict=True):
        assert shape.evaluate(fill) == mark.locator("use").evaluate(fill)
        assert mark.locator("use").evaluate("(element) => element.getBBox().width") > 5


def test_plots_are_drawn_when_they_come_into_view(open_page):
    page = open_page("plain", height=300)
    page.wait_for_timeout(300)
    assert page.locator("[data-drawn]").count() == 0
    assert page.evaluate("typeof window.Plotly") == "undefined"


def test_rows_are_sorted_by_keyboard(open_page):
    page = open_page("plain")
    assert [name.split("/")[0] for name in rows(page)] == ["nvidia-h200", "nvidia-l4", "amd-epyc-2c"]
    button = page.locator(f"{FIRST_TABLE} thead button", has_text="throughput")
    head = page.locator(f"{FIRST_TABLE} thead th", has_text="throughput")
    button.focus()
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "ascending"
    assert [name.split("/")[0] for name in rows(page)] == ["amd-epyc-2c", "nvidia-l4", "nvidia-h200"]
    page.keyboard.press("Space")
    assert head.get_attribute("aria-sort") == "descending"
    assert "descending" in page.locator("#status").inner_text()
    page.locator(f"{FIRST_TABLE} thead button", has_text="device class").press("Enter")
    assert page.locator(f"{FIRST_TABLE} [aria-sort]").count() == 1
    assert [name.split("/")[0] for name in rows(page)] == ["amd-epyc-2c", "nvidia-h200", "nvidia-l4"]


def test_every_column_can_be_sorted_and_no_row_is_lost(open_page):
    page = open_page("plain")
    for table in ("#w1 table.devices", FIRST_TABLE, "#w3 table.devices", ".overview table"):
        before = sorted(rows(page, table))
        for button in page.locator(f"{table} thead button").all():
            button.press("Enter")
            button.press("Enter")
            assert sorted(rows(page, table)) == before


def test_a_row_without_a_plan_stays_last(open_page):
    page = open_page("plain")
    button = page.locator("#w1 table.devices thead button", has_text="speedup")
    for _ in range(2):
        button.press("Enter")
        assert "no plan" in rows(page, "#w1 table.devices")[-1]


def test_the_filter_hides_rows_and_empty_workloads(open_page):
    page = open_page("plain")
    everything = visible_rows(page)
    for _ in range(3):  # past the links to the content and to the notes
        page.keyboard.press("Tab")
    page.keyboard.type("resnet50 L4")
    assert visible_rows(page) == ["nvidia-l4/whole/72w"] * 2
    assert page.locator("section.workload:visible").count() == 2
    assert page.locator(".overview tbody tr:visible").count() == 2
    assert page.locator("#status").inner_text() == f"2 of {len(everything)} rows, in 2 of 3 workloads"
    page.locator("#filter").fill("there is no such thing")
    assert visible_rows(page) == [] and page.locator("#nothing").is_visible()
    page.locator("#filter").fill("")
    assert visible_rows(page) == everything and page.locator("#nothing").is_hidden()


def test_equal_parameters_are_shown_on_request(open_page):
    page = open_page("plain")
    details = page.locator("#w2 details.parameters")
    details.locator("summary").press("Enter")
    shown = details.locator("tbody th:visible")
    assert shown.all_inner_texts() == ["layout"]
    button = details.locator("button.all")
    button.press("Enter")
    assert button.get_attribute("aria-pressed") == "true"
    assert shown.all_inner_texts() == ["backend", "layout", "level", "precision"]
    button.press("Enter")
    assert shown.all_inner_texts() == ["layout"]


def test_a_command_is_copied(open_page):
    page = open_page("plain", permissions=["clipboard-read", "clipboard-write"])
    cell = page.locator(f"{FIRST_TABLE} td.command").first
    cell.locator("button").press("Enter")
    cell.locator("button", has_text="Copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == cell.locator("code").inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("name", ["plain", "carried"])
def test_axe_sees_no_serious_violation(open_page, draw_all, name, scheme, width):
    page = open_page(name, width=width, color_scheme=scheme)
    draw_all(page)
    page.evaluate("document.querySelectorAll('details').forEach((element) => { element.open = true; })")
    page.evaluate("scrollTo(0, 0)")
    page.evaluate(AXE.read_text(encoding="utf-8"))
    results = page.evaluate("axe.run(document, { resultTypes: ['violations'] })")
    assert len(results["passes"]) > 20
    serious = [
        f"{violation['id']}: {violation['help']}: {[node['html'][:200] for node in violation['nodes'][:3]]}"
        for violation in results["violations"]
        if violation["impact"] in ("serious", "critical")
    ]
    assert serious == []


def test_colours_follow_the_system_until_they_are_chosen(open_page, draw_all):
    page = open_page("plain", color_scheme="dark")
    draw_all(page)
    background = "getComputedStyle(document.body).backgroundColor"
    ink = "getComputedStyle(document.querySelector('.plot .xtick text')).fill"
    dark = (page.evaluate(background), page.evaluate(ink))
    page.locator("#theme").press("Enter")
    eventually(page, f"{ink} !== '{dark[1]}'")
    assert page.evaluate(background) != dark[0]
    assert page.locator("#theme").inner_text() == "Dark colours"


def test_it_is_printed_in_light_colours_with_every_plot(open_page):
    page = open_page("plain", color_scheme="dark", height=300)
    ink = "getComputedStyle(document.querySelector('.plot .xtick text')).fill"
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    eventually(page, "[...document.querySelectorAll('.plot')].every((place) => place.dataset.drawn)")
    light = page.evaluate(ink)
    page.emulate_media(media="print")
    assert page.locator("form.bar").is_hidden() and page.locator("#w1 table.devices").is_visible()
    page.emulate_media(media="screen")
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    eventually(page, f"{ink} !== '{light}'")


@pytest.mark.parametrize("name", ["plain", "hostile", "carried"])
def test_a_telephone_needs_no_sideways_scroll(open_page, draw_all, name):
    page = open_page(name, width=390, height=844)
    draw_all(page)
    page.evaluate("document.querySelectorAll('details').forEach((element) => { element.open = true; })")
    assert page.evaluate("[document.documentElement.scrollWidth, document.body.scrollWidth]") == [390, 390]
    wider = "(table) => table.scrollWidth > table.parentElement.clientWidth"
    assert page.evaluate(f"[...document.querySelectorAll('table[role]')].filter({wider}).length") == 0, "no cards"


def test_hostile_text_stays_text(open_page, draw_all):
    page = open_page("hostile")
    draw_all(page)
    name = NAME
    assert page.locator("img").count() == 0 and page.locator("[onerror]").count() == 0
    assert page.locator("h2", has_text=name).count() == 1
    page.locator("details summary").first.press("Enter")
    assert name in page.locator("details tbody").first.inner_text()
    ticks = page.locator("[data-plot=bars] .ytick text").all_text_contents()
    assert any(MARKUP in tick for tick in ticks), ticks
    assert MARKUP in page.locator(".key").inner_text()
    titles = page.locator("[data-plot=scatter] .ytitle").all_text_contents()
    assert any(name in title for title in titles), titles
    page.locator("#filter").fill(IMAGE)
    assert page.locator("section.workload:visible").count() == 1


def test_the_tables_need_no_script(open_page):
    page = open_page("plain", java_script_enabled=False)
    assert len(rows(page)) == 3 and page.locator("#w2 .summary").is_visible()
