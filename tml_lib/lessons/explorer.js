// The view of one trajectory. Every text of the data becomes a text node; nothing is parsed as HTML.
(() => {
  "use strict";
  const CSS = `
  .tml-explorer { font-size: 14px; line-height: 1.5; max-width: 80rem }
  .tml-explorer p { margin: .4rem 0 }
  .tml-explorer p, .tml-explorer button, .tml-explorer td { overflow-wrap: anywhere; white-space: normal }
  .tml-explorer button { font: inherit; color: inherit; background: transparent; cursor: pointer;
    border: 1px solid currentColor; border-radius: 4px; padding: .1rem .6rem; margin: 0 .4rem .4rem 0 }
  .tml-explorer button[aria-pressed="true"] { font-weight: bold; box-shadow: inset 0 -3px currentColor }
  .tml-explorer button svg { width: 26px; height: 8px; margin-right: .4rem; vertical-align: middle }
  .tml-explorer .tml-both { display: flex; flex-wrap: wrap; gap: .5rem 1.5rem; align-items: flex-start }
  .tml-explorer .tml-both > div { flex: 1 1 min(27rem, 100%); min-width: 0 }
  .tml-explorer pre { white-space: pre-wrap; overflow-wrap: anywhere; word-break: normal; overflow-y: auto; max-height: 24rem;
    position: relative; margin: 0; padding: .5rem; font: 13px/1.9 monospace; color: inherit;
    background: transparent; border: 1px solid rgba(128, 128, 128, .5) }
  .tml-explorer pre span { cursor: pointer; padding: .15em 0 }
  .tml-explorer pre span.tml-here { outline: 2px solid currentColor; outline-offset: 1px }
  .tml-explorer pre span.tml-unread { opacity: .7 }
  .tml-explorer label { display: flex; gap: .6rem; align-items: center }
  .tml-explorer input { flex: 1; min-width: 0 }
  .tml-explorer :focus-visible { outline: 2px solid currentColor; outline-offset: 2px }
  .tml-explorer .tml-chart { width: 100%; height: auto; display: block; touch-action: pan-y; cursor: crosshair }
  .tml-explorer .tml-chart text { fill: currentColor; font: 14px system-ui, sans-serif }
  .tml-explorer table { border-collapse: collapse; table-layout: auto; display: table; width: 100%; font-size: 13px; color: inherit; margin: 0 }
  .tml-explorer tr { background: transparent }
  .tml-explorer th, .tml-explorer td { text-align: left; padding: .1rem .5rem .1rem 0; border: 0;
    background: transparent; color: inherit; vertical-align: middle }
  .tml-explorer .tml-number { text-align: right; padding-right: .8rem; font-variant-numeric: tabular-nums; overflow-wrap: normal }
  .tml-explorer th:nth-child(4) { min-width: 5.2rem }
  .tml-explorer td svg { width: 30px; min-width: 30px; max-width: none }
  .tml-explorer td:nth-child(3) { width: 40% }
  .tml-explorer td:nth-child(6) { width: 15% }
  .tml-explorer .tml-bar { display: block; height: .7em; min-width: 1px; background: currentColor }
  .tml-explorer .tml-scale { display: inline-block; width: 9rem; height: .8em; vertical-align: middle;
    border: 1px solid rgba(128, 128, 128, .5) }`
    .replaceAll(".tml-explorer ", ".tml-explorer.tml-explorer.tml-explorer ");  // before a notebook's own styles
  const DRAWN = new Set(["svg", "path", "line", "circle", "text"]);
  const WIDE = 640, HIGH = 280, LEFT = 56, RIGHT = 14, TOP = 20, FOOT = 46;

  function make(tag, attributes = {}, ...children) {
    const node = DRAWN.has(tag) ? document.createElementNS("http://www.w3.org/2000/svg", tag)
      : document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...children);
    return node;
  }
  const nats = (x) => x.toFixed(3).replace("-", "−");
  const signed = (x) => (x > 0 ? "+" : "") + nats(x);
  const percent = (p) => p < 1e-5 ? "< 0.001 %" : `${(100 * p).toFixed(p < 0.01 ? 3 : 1)} %`;
  function ticks(top, count) {
    const rough = top / count, power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((k) => k * power).find((k) => k >= rough);
    return Array.from({length: Math.floor(top / step + 1e-9) + 1}, (_, k) => +(k * step).toPrecision(6));
  }
  function tint(colours, change, span) {
    const hex = change < 0 ? colours.likelier : colours.less;
    const parts = [1, 3, 5].map((k) => parseInt(hex.slice(k, k + 2), 16));
    return `rgba(${parts}, ${(0.7 * Math.min(1, Math.abs(change) / span)).toFixed(3)})`;
  }

  function explore(root) {
    root.dataset.ready = "yes";
    const data = JSON.parse(root.querySelector('script[type="application/json"]').textContent);
    const colour = (kind) =>
      data.styles[kind].colour === data.colours.black ? "currentColor" : data.styles[kind].colour;
    const top = 1.05 * Math.max(...data.conditions.flatMap((one) => one.nll.flat()), 0.1);
    const dashes = (k) => (k ? `${2 + 3 * k} ${3 + k}` : "");
    let shown = data.conditions[0], at = 0, x, y, mark, dots;

    const buttons = data.conditions.map((one) => {
      const line = make("line", {x1: 0, x2: 26, y1: 4, y2: 4, stroke: colour(one.kind), "stroke-width": 3,
        "stroke-dasharray": data.styles[one.kind].dash});
      const swatch = make("svg", {viewBox: "0 0 26 8", "aria-hidden": "true"}, line);
      const button = make("button", {type: "button"}, swatch, data.styles[one.kind].name);
      button.addEventListener("click", () => show(one));
      return button;
    });
    const text = make("pre", {tabindex: 0, role: "group",
      "aria-label": "The trajectory. Arrow keys move the cursor."});
    const slider = make("input", {type: "range", min: 0, step: 1, "aria-label": "cursor"});
    const readout = make("p", {class: "tml-readout"});
    const chart = make("svg", {class: "tml-chart", viewBox: `0 0 ${WIDE} ${HIGH}`, tabindex: 0, role: "img",
      "aria-label": "The answer's loss along the trajectory; the text beside it says the values."});
    const rows = make("tbody");

    function draw() {
      const {positions, nll, kind} = shown, last = positions.at(-1) || 1;
      x = (i) => LEFT + (WIDE - LEFT - RIGHT) * i / last;
      y = (v) => HIGH - FOOT - (HIGH - FOOT - TOP) * v / top;
      const grid = {stroke: "currentColor", "stroke-opacity": 0.18};
      const words = (s, px, py, more = {}) => make("text", {x: px, y: py, ...more}, String(s));
      const path = (values) => values.map((v, k) => `${k ? "L" : "M"}${x(positions[k]).toFixed(1)} ${y(v).toFixed(1)}`).join("");
      const parts = ticks(top, 5).flatMap((v) => [
        make("line", {x1: LEFT, x2: WIDE - RIGHT, y1: y(v), y2: y(v), ...grid}),
        words(v, LEFT - 6, y(v) + 5, {"text-anchor": "end"})]);
      parts.push(...ticks(last, 6).map((i) => words(i, x(i), HIGH - FOOT + 18, {"text-anchor": "middle"})));
      parts.push(words("trajectory tokens in context, i", (LEFT + WIDE) / 2, HIGH - 6, {"text-anchor": "middle"}));
      parts.push(words("L̂ (nats per token)", 0, 0,
        {"text-anchor": "middle", transform: `translate(14 ${(TOP + HIGH - FOOT) / 2}) rotate(-90)`}));
      if (shown.stated_at !== null) {
        const px = x(shown.stated_at), late = shown.stated_at > last / 2;
        parts.push(make("line", {x1: px, x2: px, y1: TOP, y2: HIGH - FOOT, stroke: "currentColor", "stroke-dasharray": "2 4"}));
        parts.push(words("answer not yet stated up to here", px + (late ? -5 : 5), TOP - 6, {"text-anchor": late ? "end" : "start"}));
      }
      nll.forEach((values, k) => parts.push(make("path", {d: path(values), fill: "none",
        stroke: k ? "currentColor" : colour(kind), "stroke-opacity": k ? 0.5 : 1, "stroke-width": k ? 1.2 : 2.5,
        "stroke-dasharray": dashes(k)})));
      mark = make("line", {y1: TOP, y2: HIGH - FOOT, stroke: "currentColor", "stroke-width": 1.5});
      dots = nll.map((_, k) => make("circle", {r: k ? 3 : 5, fill: k ? "currentColor" : colour(kind), stroke: "currentColor"}));
      chart.replaceChildren(...parts, mark, ...dots);
    }

    function show(condition) {
      const before = shown.positions[at];
      shown = condition;
      const {positions, nll, segments} = shown;
      buttons.forEach((b, k) => b.setAttribute("aria-pressed", data.conditions[k] === shown));
      text.replaceChildren(...segments.map((segment, k) => {
        const change = nll[0][k + 1] - nll[0][k];
        const part = make("span", {title: `ΔL̂ = ${signed(change)} nats per token`}, segment);
        part.style.backgroundColor = tint(data.colours, change, data.span);
        part.addEventListener("click", () => move(k + 1));
        return part;
      }));
      slider.max = positions.length - 1;
      draw();
      move(nearest(before));
    }
    const nearest = (i) => shown.positions.reduce((best, p, k) =>
      Math.abs(p - i) < Math.abs(shown.positions[best] - i) ? k : best, 0);

    function move(to) {
      const {positions, nll, segments} = shown, right = nll[0];
      at = Math.max(0, Math.min(positions.length - 1, to));
      const step = at ? right[at] - right[at - 1] : 0, tokens = at ? positions[at] - positions[at - 1] : 0;
      const where = `After ${positions[at]} of ${positions.at(-1)} tokens: L̂ = ${nats(right[at])} nats per token`;
      const which = tokens === 1 ? "this token" : `these ${tokens} tokens`;
      const word = step < 0 ? "the right answer became likelier" : "the right answer became less likely";
      readout.textContent = at ? `${where}. ΔL̂ of ${which}: ${signed(step)} (${word}); since the beginning: ${signed(right[at] - right[0])}.`
        : `${where}. Nothing of the trajectory is read yet.`;
      slider.value = at;
      slider.setAttribute("aria-valuetext", where);
      [...text.children].forEach((part, k) => {
        part.classList.toggle("tml-here", k === at - 1);
        part.classList.toggle("tml-unread", k >= at);
      });
      const here = text.children[Math.max(at - 1, 0)];
      if (here && (here.offsetTop < text.scrollTop || here.offsetTop + here.offsetHeight > text.scrollTop + text.clientHeight))
        text.scrollTop = here.offsetTop - text.clientHeight / 2;
      mark.setAttribute("x1", x(positions[at]));
      mark.setAttribute("x2", x(positions[at]));
      dots.forEach((dot, k) => { dot.setAttribute("cx", x(positions[at])); dot.setAttribute("cy", y(nll[k][at])); });
      rows.replaceChildren(...data.candidates.map((one, k) => {
        const likely = Math.exp(-one.tokens * nll[k][at]);
        const line = make("line", {x1: 0, x2: 30, y1: 5, y2: 5, stroke: k ? "currentColor" : colour(shown.kind),
          "stroke-width": k ? 1.5 : 3, "stroke-dasharray": dashes(k)});
        const bar = make("span", {class: "tml-bar"});
        bar.style.width = `${100 * likely}%`;
        return make("tr", {}, make("td", {}, make("svg", {width: 30, height: 10, "aria-hidden": "true"}, line)),
          make("td", {}, make("b", {}, one.answer)), make("td", {}, one.role), make("td", {class: "tml-number"}, nats(nll[k][at])),
          make("td", {class: "tml-number"}, percent(likely)), make("td", {}, bar));
      }));
    }

    slider.addEventListener("input", () => move(Number(slider.value)));
    for (const kind of ["pointermove", "pointerdown"]) chart.addEventListener(kind, (event) => {
      const box = chart.getBoundingClientRect(), last = shown.positions.at(-1) || 1;
      const px = (event.clientX - box.left) * WIDE / box.width;
      move(nearest((px - LEFT) / (WIDE - LEFT - RIGHT) * last));
    });
    root.addEventListener("keydown", (event) => {
      const steps = {ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: shown.positions.length - 1};
      if (event.target === slider || !(event.key in steps)) return;
      event.preventDefault();
      move(steps[event.key]);
    });

    const heads = ["", "answer", "what it is", "L̂, nats per token", "likelihood", ""].map((s, k) =>
      make("th", {scope: "col", class: k > 2 ? "tml-number" : ""}, s));
    const table = make("table", {}, make("thead", {}, make("tr", {}, ...heads)), rows);
    const scale = make("span", {class: "tml-scale", "aria-hidden": "true"});
    scale.style.background = `linear-gradient(to right, ${[-1, 0, 1].map((k) => tint(data.colours, k, 1))})`;
    const legend = make("p", {}, `ΔL̂ of a step: ${nats(-data.span)} (blue, likelier) `, scale,
      ` ${signed(data.span)} (orange, less likely) nats per token; stronger changes have the same colour.`);
    const still = root.querySelector(".tml-still");
    still.replaceWith(make("style", {}, CSS),
      make("p", {}, make("b", {}, "Question. "), data.question),
      make("p", {}, make("b", {}, "Model. "), data.model),
      make("div", {role: "group", "aria-label": "which trajectory"}, ...buttons),
      make("div", {class: "tml-both"}, make("div", {}, text, legend),
        make("div", {}, make("label", {}, "cursor", slider), readout, chart, table)));
    show(shown);
    move(shown.stated_at === null ? shown.positions.length - 1 : nearest(shown.stated_at));
  }
  document.querySelectorAll(".tml-explorer:not([data-ready])").forEach(explore);
})();
