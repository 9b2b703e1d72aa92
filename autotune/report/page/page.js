"use strict";
// The page without this script is complete but for the plots: it sorts, filters, copies, and draws.
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const one = (selector, root = document) => root.querySelector(selector);
  const status = one("#status");
  const say = (text) => { status.textContent = text; };

  // Sorting: numbers by their value, other text by the rules of the language; entries without a figure stay last.
  const keyOf = (row, column) => {
    const entry = row.cells[column];
    if (entry === undefined) return null;
    if (entry.dataset.number !== undefined) return Number(entry.dataset.number);
    return entry.classList.contains("absent") ? null : entry.textContent.trim();
  };
  const compare = (a, b) => typeof a === "number" && typeof b === "number"
    ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
  const sort = (button) => {
    const head = button.closest("th");
    const body = one("tbody", head.closest("table"));
    const order = head.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
    const sign = order === "ascending" ? 1 : -1;
    const keyed = [...body.rows].map((row) => ({ row, key: keyOf(row, head.cellIndex) }));
    keyed.sort((a, b) => a.key === null || b.key === null
      ? (a.key === null) - (b.key === null) : sign * compare(a.key, b.key));
    body.append(...keyed.map((entry) => entry.row));
    for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", order);
    say(`sorted by ${button.textContent.trim()}, ${order}`);
  };
  all("button.sort").forEach((button) => button.addEventListener("click", () => sort(button)));

  // Filtering: a row stays if it, together with the heading above it, has every word.
  const sections = all("section.workload").map((section) => ({
    section,
    heading: one("h2", section).textContent.toLowerCase(),
    summary: one(`tr[data-section="${section.id}"]`),
    rows: all("table.devices tbody tr", section).map((row) => ({ row, text: row.textContent.toLowerCase() })),
  }));
  const count = sections.reduce((sum, entry) => sum + entry.rows.length, 0);
  const filter = () => {
    const words = one("#filter").value.toLowerCase().split(/\s+/).filter(Boolean);
    let rows = 0;
    let shown = 0;
    for (const entry of sections) {
      const missing = words.filter((word) => !entry.heading.includes(word));
      let here = 0;
      for (const { row, text } of entry.rows) {
        row.hidden = !missing.every((word) => text.includes(word));
        here += row.hidden ? 0 : 1;
      }
      entry.section.hidden = here === 0;
      if (entry.summary) entry.summary.hidden = here === 0;
      rows += here;
      shown += here ? 1 : 0;
    }
    one("#nothing").hidden = shown > 0 || count === 0;
    say(words.length ? `${rows} of ${count} rows, in ${shown} of ${sections.length} workloads` : "");
  };
  one("#filter").addEventListener("input", filter);
  one("form.bar").addEventListener("submit", (event) => event.preventDefault());
  filter();

  // Copying a command; where a browser keeps the clipboard to itself, the command is selected.
  const copy = async (button) => {
    const code = one("code", button.parentElement);
    try {
      await navigator.clipboard.writeText(code.textContent);
      say("copied");
      button.textContent = "Copied";
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    } catch {
      getSelection().selectAllChildren(code);
      say("the command is selected: copy it with your keyboard");
    }
  };
  all("button.copy").forEach((button) => button.addEventListener("click", () => copy(button)));

  all("button.all").forEach((button) => button.addEventListener("click", () => {
    const pressed = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", String(pressed));
    all("tr.same", button.parentElement).forEach((row) => { row.hidden = !pressed; });
  }));

  // Plots: plotly.js is unpacked when the first of them comes into view.
  const data = JSON.parse(one("#plots").textContent || "{}");
  const drawn = new Set();
  let library = null;
  const load = () => {
    library = library || (async () => {
      const packed = Uint8Array.from(atob(one("#plotly").textContent), (character) => character.charCodeAt(0));
      const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
      const script = document.createElement("script");
      script.textContent = await new Response(stream).text();
      document.head.append(script);
      one("#plotly").textContent = "";
      return window.Plotly;
    })();
    return library;
  };

  const probe = document.body.appendChild(document.createElement("span"));
  probe.hidden = true;
  const colour = (name) => {
    probe.style.color = `var(--${name})`;
    return getComputedStyle(probe).color;
  };
  // plotly reads a few tags and entities in text: here all text is plain.
  const plain = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  // A long name loses its middle: devices differ at both ends.
  const clip = (text, place, share) => {
    const most = Math.max(12, Math.floor(place.clientWidth * share / 7.5));
    if (text.length <= most) return text;
    return `${text.slice(0, Math.ceil(most / 2) - 1)}…${text.slice(-Math.floor(most / 2))}`;
  };
  const short = (value) => String(Number(value.toPrecision(4)));
  const errors = (entries, ink) => ({
    type: "data", symmetric: false, color: ink, thickness: 1.5, width: 5,
    array: entries.map((entry) => entry.high - entry.value),
    arrayminus: entries.map((entry) => entry.value - entry.low),
  });
  // An axis over several powers of ten is logarithmic.
  const axis = (title, entries, ink) => {
    const values = entries.map((entry) => entry.value);
    const [least, most] = [Math.min(...values), Math.max(...values)];
    const wide = most > 20 * least;
    // Room for the names of the points.
    const range = wide ? [Math.log10(least) - 0.4, Math.log10(most) + 0.4] : [0, 1.25 * most];
    return {
      title: { text: title + (wide ? ", logarithmic" : ""), font: { size: 13 }, standoff: 8 }, range,
      type: wide ? "log" : "linear", fixedrange: true, gridcolor: colour("line"), linecolor: ink, zeroline: false,
      automargin: true, nticks: 6, dtick: wide ? 1 : undefined,
    };
  };
  const layout = (ink) => ({
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: ink, size: 13, family: getComputedStyle(document.body).fontFamily },
    margin: { l: 8, r: 8, t: 8, b: 8 }, showlegend: false, dragmode: false, hovermode: "closest",
  });
  const bars = (entries, place) => {
    const ink = colour("text");
    const text = entries.map((entry) => ` ${short(entry.value)} ms${entry.note ? ` (${entry.note})` : ""}`);
    const most = Math.max(...entries.map((entry) => entry.high));
    const trace = {
      type: "bar", orientation: "h", x: entries.map((entry) => entry.value), y: entries.map((_, at) => at),
      error_x: errors(entries, ink), hoverinfo: "skip", width: 0.55,
      marker: { color: entries.map((entry) => colour(entry.note ? "accent" : "bar")) },
    };
    // The figures stand right of the intervals, not of the bars.
    const labels = {
      type: "scatter", mode: "text", x: entries.map((entry) => entry.high), y: entries.map((_, at) => at), text,
      textposition: "middle right", hoverinfo: "skip", cliponaxis: false,
    };
    const names = entries.map((entry) => plain(clip(entry.name, place, 0.4)));
    const y = {
      tickvals: entries.map((_, at) => at), ticktext: names, autorange: "reversed", fixedrange: true, automargin: true,
      zeroline: false, showgrid: false, ticks: "outside", ticklen: 6, tickcolor: "rgba(0,0,0,0)",
    };
    const x = { ...axis("latency, ms", [{ value: 1 }], ink), range: [0, most * 1.45] };
    return [[trace, labels], { ...layout(ink), xaxis: x, yaxis: y }];
  };
  const scatter = ({ currency, points: unsorted }, place) => {
    const ink = colour("text");
    const points = [...unsorted].sort((a, b) => a.latency.value - b.latency.value);
    const [latencies, costs] = ["latency", "cost"].map((name) => points.map((point) => point[name]));
    const xy = (chosen) => ({ x: chosen.map((p) => p.latency.value), y: chosen.map((p) => p.cost.value) });
    const front = points.filter((point) => point.front);
    const line = {
      ...xy(front), type: "scatter", mode: "lines", line: { color: colour("accent"), dash: "dash" }, hoverinfo: "skip",
    };
    const marks = {
      ...xy(points), type: "scatter", mode: "markers+text", text: points.map((point) => plain(clip(point.name, place, 0.5))),
      // Neighbours are named above and below in turn.
      textposition: points.map((_, at) => (at % 2 ? "bottom center" : "top center")), cliponaxis: false, error_x: errors(latencies, ink), error_y: errors(costs, ink),
      hovertemplate: `%{text}: %{x:.4g} ms, %{y:.4g} ${plain(currency)}<extra></extra>`,
      marker: {
        size: 11, symbol: points.map((point) => (point.front ? "circle" : "circle-open")),
        color: points.map((point) => colour(point.front ? "accent" : "bar")),
      },
    };
    const y = axis(`${plain(currency)} per million items`, costs, ink);
    return [[line, marks], { ...layout(ink), xaxis: axis("latency, ms", latencies, ink), yaxis: y }];
  };
  // A symbol and a dash beside each colour, by the numbers of the key.
  const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "cross", "x", "triangle-down", "star"];
  const DASHES = ["solid", "dash", "dot", "dashdot"];
  const powers = (title, [least, most], ink) => ({
    title: { text: `${title}, logarithmic`, font: { size: 13 }, standoff: 8 }, range: [Math.log10(least), Math.log10(most)],
    type: "log", dtick: most > 500 * least ? 1 : "D2", tickformat: ",~g", fixedrange: true, gridcolor: colour("line"),
    linecolor: ink, zeroline: false, automargin: true,
  });
  const around = (values, factor) => [Math.min(...values) / factor, Math.max(...values) * factor];
  const roofline = (points, place) => {
    const ink = colour("text");
    // A roof rises with the bytes that a device copies, up to its matrix rate: GB/s times operations per byte is GFLOP/s.
    const ridge = (point) => 1e3 * point.roof_tflops / point.bandwidth_gb_s;
    const reach = around(points.flatMap((point) => [point.intensity, ridge(point)]), 5);
    const rates = around(points.flatMap((point) => [point.tflops, point.limit_tflops, point.roof_tflops]), 2);
    const tint = (point) => colour(`colour-${point.mark.colour}`);
    const lines = points.map((point) => ({
      type: "scatter", mode: "lines", hoverinfo: "skip", line: { color: tint(point), width: 2, dash: DASHES[point.mark.dash] },
      x: [reach[0], ridge(point), reach[1]],
      y: [reach[0] * point.bandwidth_gb_s / 1e3, point.roof_tflops, point.roof_tflops],
    }));
    const marks = (x, y, symbol, size, width, ring) => ({
      type: "scatter", mode: "markers", hoverinfo: "skip", cliponaxis: false, x: points.map(x), y: points.map(y),
      marker: {
        size, symbol: points.map(symbol), color: points.map(tint), opacity: 1, line: { width, color: ring || points.map(tint) },
      },
    });
    const shape = (point) => SYMBOLS[point.mark.symbol];
    const ridges = marks(ridge, (point) => point.roof_tflops, (point) => `${shape(point)}-open`, 9, 2);
    const limits = marks((point) => point.intensity, (point) => point.limit_tflops, () => "line-ew", 18, 2.5);
    const plans = marks((point) => point.intensity, (point) => point.tflops, shape, 12, 1, colour("paper"));
    plans.hoverinfo = "text";
    plans.text = points.map((point) => [
      `${plain(clip(point.name, place, 0.5))}, ${plain(point.precision)}`, point.position, point.distance,
    ].join("<br>"));
    const axes = { xaxis: powers("operations per byte", reach, ink), yaxis: powers("TFLOP/s", rates, ink) };
    return [[...lines, ridges, limits, plans], { ...layout(ink), ...axes, hoverlabel: { align: "left" } }];
  };
  const kinds = { bars, scatter, roofline };
  const draw = async (place) => {
    drawn.add(place);
    try {
      const plotly = await load();
      const plot = data[place.closest("section").id][place.dataset.plot];
      const [traces, shape] = kinds[place.dataset.plot](plot, place);
      await plotly.react(place, traces, shape, { displayModeBar: false, responsive: true });
      place.dataset.drawn = "true";
    } catch (error) {
      place.textContent = "This browser cannot draw the plot; its figures are in the table.";
      place.removeAttribute("role");
      if (typeof DecompressionStream !== "undefined") throw error;
    }
  };
  const watch = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      watch.unobserve(entry.target);
      draw(entry.target);
    }
  }, { rootMargin: "200px" });
  addEventListener("DOMContentLoaded", () => all(".plot").forEach((place) => watch.observe(place)));

  // Colours follow the system until the reader chooses.
  const system = matchMedia("(prefers-color-scheme: dark)");
  const button = one("#theme");
  const isDark = () => (document.documentElement.style.colorScheme || (system.matches ? "dark" : "light")) === "dark";
  const follow = () => {
    button.textContent = isDark() ? "Light colours" : "Dark colours";
    drawn.forEach(draw);
  };
  const choose = (scheme) => {
    document.documentElement.style.colorScheme = scheme;
    follow();
  };
  button.addEventListener("click", () => choose(isDark() ? "light" : "dark"));
  system.addEventListener("change", follow);
  follow();

  // Paper is light, and has every plot.
  let chosen = "";
  addEventListener("beforeprint", () => {
    chosen = document.documentElement.style.colorScheme;
    all(".plot").forEach((place) => drawn.add(place));
    choose("light");
  });
  addEventListener("afterprint", () => choose(chosen));
})();
