/* What the pages do beside htmx: keys, the chart, questions before an act, what went wrong. */
(() => {
  "use strict";

  const corner = () => document.getElementById("corner");
  let quiet = 0;
  const tell = (text) => {
    corner().textContent = text;
    clearTimeout(quiet);
    quiet = setTimeout(() => { corner().textContent = ""; }, 8000);
  };

  // -- keys -----------------------------------------------------------------------------------
  const isTyping = (one) => one.closest("input, textarea, select, dialog[open]") !== null;
  const rows = () => [...document.querySelectorAll("table.rows tbody tr[tabindex]")];
  let led = 0;

  const step = (by) => {
    const all = rows();
    const at = all.findIndex((row) => row.contains(document.activeElement));
    const next = all[Math.max(0, Math.min(all.length - 1, at < 0 ? 0 : at + by))];
    if (next) next.focus();
  };

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Escape") { corner().textContent = ""; return; }
    if (isTyping(event.target)) return;
    if (Date.now() - led < 1500) {
      led = 0;
      const link = document.querySelector(`.side [data-key="${CSS.escape(event.key)}"]`);
      if (link) { event.preventDefault(); link.click(); }
      return;
    }
    const acts = {
      g: () => { led = Date.now(); },
      j: () => step(1),
      k: () => step(-1),
      "/": () => document.getElementById("find")?.focus(),
      "?": () => document.getElementById("keys")?.showModal(),
      Enter: () => event.target.matches("tr[tabindex]") && event.target.querySelector("a")?.click(),
    };
    if (!(event.key in acts)) return;
    if (event.key !== "Enter") event.preventDefault();
    acts[event.key]();
  });

  document.addEventListener("click", (event) => {
    if (event.target.closest("[data-help]")) document.getElementById("keys").showModal();
    const button = event.target.closest("button[data-sure]");
    if (button && !window.confirm(button.dataset.sure)) event.preventDefault();
  });

  // A second press of a button must not send a form twice.
  document.addEventListener("submit", (event) => {
    if (event.defaultPrevented || event.target.method !== "post") return;
    if (event.target.dataset.sent) event.preventDefault();
    event.target.dataset.sent = "1";
    setTimeout(() => { delete event.target.dataset.sent; }, 4000);
  });

  // -- what went wrong ------------------------------------------------------------------------
  document.addEventListener("htmx:response:error", (event) => {
    const ctx = event.detail.ctx;
    if (ctx && ctx.response && ctx.response.status === 401) { window.location.assign("/login"); return; }
    tell((ctx && ctx.text) || "");
  });
  document.addEventListener("htmx:sse:error", (event) => {
    if (event.detail.status === 401) window.location.assign("/login");
  });
  document.addEventListener("ended", () => window.location.assign("/login"));

  // -- the chart ------------------------------------------------------------------------------
  const draw = (place) => {
    const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
    const axis = { stroke: colour("--calm"), grid: { stroke: colour("--line"), width: 1 }, ticks: { stroke: colour("--line"), width: 1 } };
    const clock = (at) => new Date(at * 1000).toLocaleTimeString("en-GB", { timeZone: "Asia/Shanghai" });
    const samples = JSON.parse(place.dataset.samples);
    const data = samples.length ? samples.slice(0, 3) : [[], [], []];
    // Of one sample uPlot would show a day.
    const span = (chart, low, high) => {
      const end = chart.data[0].length === 1 ? low : high;
      return low === null ? [low, high] : [Math.min(low, end - 60), end];
    };
    const size = () => ({ width: place.clientWidth, height: 180 });
    const chart = new uPlot({
      ...size(),
      cursor: { y: false },
      scales: { x: { range: span }, y: { range: (_, low, high) => [0, Math.max(high, 5)] } },
      axes: [{ ...axis, space: 70, values: (_, all) => all.map(clock) }, { ...axis, size: 56, values: (_, all) => all.map((one) => one.toLocaleString("en")) }],
      series: [
        { label: place.dataset.time, value: (_, at) => (at === null ? "--" : clock(at)) },
        { label: place.dataset.open, stroke: colour("--main"), width: 2, fill: colour("--busy-ground") },
        { label: place.dataset.flight, stroke: colour("--wait"), width: 2 },
      ],
      tzDate: (at) => uPlot.tzDate(new Date(at * 1000), "Asia/Shanghai"),
    }, data, place);
    document.addEventListener("sample", (event) => {
      JSON.parse(event.detail.data).slice(0, 3).forEach((value, column) => {
        data[column].push(value);
        if (data[column].length > 720) data[column].shift();
      });
      chart.setData(data);
    });
    window.addEventListener("resize", () => chart.setSize(size()));
  };

  const place = document.getElementById("depth");
  if (place) draw(place);
})();
