"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const all = (query) => [...document.querySelectorAll(query)];
  document.documentElement.classList.add("js");

  // ---- shapes ----
  function shape(parent, name, attributes, text) {
    const element = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const key in attributes) element.setAttribute(key, attributes[key]);
    if (text !== undefined) element.textContent = text;
    parent.append(element);
    return element;
  }
  const linear = (from, to, start, end) => (v) => start + ((v - from) / (to - from)) * (end - start);
  const log = (from, to, start, end) => {
    const place = linear(Math.log10(from), Math.log10(to), start, end);
    return (v) => place(Math.log10(Math.max(v, from)));
  };
  const path = (points) => points.map(([x, y], i) => `${i ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");
  const share = (v) => (v === 0 || v >= 0.001 ? v.toFixed(4) : v.toExponential(1));
  const signed = (v, digits) => (digits === undefined ? String(v) : v.toFixed(digits)).replace("-", "\u2212");
  const count = (n) => n.toLocaleString("en");
  const clamp = (v, low, high) => Math.min(Math.max(v, low), high);

  function decades(lowest) {
    const found = [];
    for (let power = 0; power >= Math.log10(lowest) - 1e-9; power -= 1) found.push(10 ** power);
    return found.map((v) => [v, v > 0.0005 ? String(Number(v.toPrecision(1))) : v.toExponential(0).replace("e", "e")]);
  }
  function evenly(from, to, about) {
    const raw = (to - from) / about;
    const unit = 10 ** Math.floor(Math.log10(raw));
    const step = unit * [1, 2, 5, 10].find((m) => m * unit >= raw);
    const found = [];
    for (let v = Math.ceil(from / step - 1e-9) * step; v <= to + 1e-9; v += step) found.push([v, signed(Number(v.toFixed(6)))]);
    return found;
  }

  // A chart redraws itself at the true width of its place, so that text keeps its size on every screen.
  function chart(holder, label, draw) {
    let width = 0;
    const redraw = () => {
      const now = Math.floor(holder.clientWidth);
      if (!now || now === width) return;
      width = now;
      holder.querySelector("svg")?.remove();
      const height = Number(holder.dataset.height) || Math.floor(holder.clientHeight);
      const svg = shape(holder, "svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": label });
      draw(svg, width, height);
    };
    new ResizeObserver(redraw).observe(holder);
    redraw();
  }
  function axes(svg, frame, x, y, xTicks, yTicks, xName, yName) {
    for (const [value, text] of xTicks) {
      shape(svg, "line", { class: "tick", x1: x(value), x2: x(value), y1: frame.top, y2: frame.bottom });
      shape(svg, "text", { x: x(value), y: frame.bottom + 18, "text-anchor": "middle" }, text);
    }
    for (const [value, text] of yTicks) {
      shape(svg, "line", { class: "tick", x1: frame.left, x2: frame.right, y1: y(value), y2: y(value) });
      shape(svg, "text", { x: frame.left - 8, y: y(value) + 4, "text-anchor": "end" }, text);
    }
    shape(svg, "line", { class: "base", x1: frame.left, x2: frame.right, y1: frame.bottom, y2: frame.bottom });
    shape(svg, "text", { x: frame.right, y: frame.bottom + 36, "text-anchor": "end" }, xName);
    if (yName) shape(svg, "text", { x: 0, y: 12 }, yName);
  }

  // ---- the threshold, shared by every section ----
  const table = data.thresholds;
  const listeners = [];
  let row = table ? table.start : 0;
  function follow(listener) {
    listeners.push(listener);
    listener();
  }
  function choose(next) {
    row = clamp(next, 0, table.threshold.length - 1);
    listeners.forEach((listener) => listener());
  }
  const at = (k) => ({
    threshold: table.threshold[k],
    tar: table.genuine[k] / table.n_genuine,
    far: table.impostor[k] / table.n_impostor,
  });
  // The row nearest to a wanted value among numbers that rise or fall.
  function nearestRow(value, of) {
    let best = 0;
    for (let k = 1; k < table.threshold.length; k += 1) if (Math.abs(of(k) - value) < Math.abs(of(best) - value)) best = k;
    return best;
  }
  function dragging(svg, frame, to) {
    const hit = shape(svg, "rect", { class: "hit", x: frame.left, y: frame.top, width: frame.right - frame.left, height: frame.bottom - frame.top });
    const move = (event) => to(event.clientX - svg.getBoundingClientRect().left);
    hit.addEventListener("pointerdown", move);
    hit.addEventListener("pointermove", (event) => event.buttons && move(event));
  }

  function histogram() {
    const { edge, bin_genuine: genuine, bin_impostor: impostor } = table;
    const low = edge[0], high = edge[edge.length - 1];
    const density = (n, i, total) => n / total / (edge[i + 1] - edge[i]);
    const most = Math.max(...genuine.map((n, i) => density(n, i, table.n_genuine)), ...impostor.map((n, i) => density(n, i, table.n_impostor)));
    let mark = () => {};
    chart(byId("histogram"), "Histogram of the scores of pairs of one person and of two people", (svg, width, height) => {
      const frame = { left: 8, right: width - 8, top: 24, bottom: height - 42 };
      const x = linear(low, high, frame.left, frame.right), y = linear(0, most, frame.bottom, frame.top + 8);
      axes(svg, frame, x, y, evenly(low, high, width / 90), [], "score");
      for (const [kind, bins, total] of [["impostor", impostor, table.n_impostor], ["genuine", genuine, table.n_genuine]]) {
        const corners = [[x(low), y(0)]];
        bins.forEach((n, i) => corners.push([x(edge[i]), y(density(n, i, total))], [x(edge[i + 1]), y(density(n, i, total))]));
        corners.push([x(high), y(0)]);
        shape(svg, "path", { class: `bars ${kind}`, d: path(corners) });
      }
      const line = shape(svg, "line", { class: "now", y1: frame.top - 4, y2: frame.bottom });
      const said = shape(svg, "text", { class: "said", y: 12, "text-anchor": "middle" });
      mark = () => {
        const place = clamp(x(table.threshold[row]), frame.left, frame.right);
        line.setAttribute("x1", place);
        line.setAttribute("x2", place);
        said.setAttribute("x", clamp(place, 24, width - 24));
        said.textContent = signed(table.threshold[row], 4);
      };
      mark();
      dragging(svg, frame, (px) => choose(nearestRow(low + ((px - frame.left) / (frame.right - frame.left)) * (high - low), (k) => table.threshold[k])));
    });
    follow(() => mark());
  }

  // `drawn`: the curves; `reject`: errors on both axes; `moves`: a click sets the threshold, and a mark shows it.
  function curve(id, label, xName, yName, { drawn, reject, moves }) {
    const lowest = Math.min(0.1, ...drawn.map((c) => c.far[0]));
    const value = (tar) => (reject ? 1 - tar : tar);
    let floor = 0.1;
    for (const c of drawn) for (const tar of c.tar) if (tar < 1) floor = Math.min(floor, 1 - tar);
    if (drawn.some((c) => c.tar.some((tar) => tar >= 1))) floor /= 3; // no error at all lies below the marks
    let mark = () => {};
    chart(byId(id), label, (svg, width, tall) => {
      const frame = { left: reject ? 50 : 36, right: width - 10, top: 26, bottom: tall - 42 };
      const x = log(lowest, 1, frame.left, frame.right);
      const y = reject ? log(floor, 1, frame.bottom, frame.top) : linear(0, 1, frame.bottom, frame.top);
      axes(svg, frame, x, y, decades(lowest), reject ? decades(floor) : evenly(0, 1, 5), xName, yName);
      drawn.forEach((c, i) => {
        if (c.band_far.length) {
          const up = c.band_far.map((far, k) => [x(far), y(value(c.band_high[k]))]);
          const down = c.band_far.map((far, k) => [x(far), y(value(c.band_low[k]))]);
          shape(svg, "path", { class: `band band-${i % 7}`, d: `${path([...up, ...down.reverse()])}Z` });
        }
        const steps = [];
        c.far.forEach((far, k) => {
          if (k) steps.push([x(far), y(value(c.tar[k - 1]))]);
          steps.push([x(far), y(value(c.tar[k]))]);
        });
        shape(svg, "path", { class: `line line-${i % 7}`, d: path(steps) });
      });
      if (!moves) return;
      const point = shape(svg, "circle", { class: "point", r: 5 });
      mark = () => {
        const { tar, far } = at(row);
        point.setAttribute("cx", x(far));
        point.setAttribute("cy", y(value(tar)));
      };
      mark();
      dragging(svg, frame, (px) => {
        const wanted = linear(frame.left, frame.right, Math.log10(lowest), 0)(px);
        choose(nearestRow(wanted, (k) => Math.log10(Math.max(at(k).far, lowest / 10))));
      });
    });
    if (moves) follow(() => mark());
  }

  function control() {
    const slider = byId("slider");
    slider.addEventListener("input", () => choose(Number(slider.value)));
    all(".marks button").forEach((button) => button.addEventListener("click", () => choose(Number(button.dataset.row))));
    follow(() => {
      const { threshold, tar, far } = at(row);
      const accepts = table.genuine[row], mistaken = table.impostor[row];
      slider.value = row;
      slider.setAttribute("aria-valuetext", `threshold ${signed(threshold, 4)}, TAR ${share(tar)}, FAR ${share(far)}`);
      const said = {
        "slider-value": signed(threshold, 4),
        "true-accepts": count(accepts), "false-rejects": count(table.n_genuine - accepts),
        "false-accepts": count(mistaken), "true-rejects": count(table.n_impostor - mistaken),
        tar: share(tar), far: share(far), frr: share(1 - tar),
      };
      for (const id in said) byId(id).textContent = said[id];
      all(".marks button").forEach((button) => button.setAttribute("aria-pressed", String(Number(button.dataset.row) === row)));
      for (const kind of ["genuine", "impostor"]) {
        const cases = all(`.cases.${kind} .case`);
        const wrong = cases.filter((item) => (Number(item.dataset.score) >= threshold) === (kind === "impostor"));
        cases.forEach((item) => item.classList.toggle("fine", !wrong.includes(item)));
        all(`[data-tally="${kind}"]`).forEach((place) => {
          place.textContent = `${wrong.length} of these ${cases.length} are mistakes at the threshold ${signed(threshold, 4)}`;
        });
      }
    });
  }

  // ---- the map ----
  function map() {
    const { x: xs, y: ys, person, people, names, wrong, sprite, cell, columns } = data.map;
    const holder = byId("map-plot"), card = byId("map-card"), picture = byId("map-picture");
    let px = [], py = [], svg, over, current = -1, printing = false;
    if (sprite) picture.style.backgroundImage = `url(${sprite})`;
    else picture.classList.add("none");
    const own = new Map();
    person.forEach((who, i) => own.has(who) ? own.get(who).push(i) : own.set(who, [i]));

    function show(i) {
      current = i;
      over.replaceChildren();
      svg.classList.toggle("faded", i >= 0);
      card.hidden = i < 0;
      if (i < 0) return;
      const mates = own.get(person[i]);
      for (const k of mates) shape(over, "circle", { class: "same", cx: px[k], cy: py[k], r: 4 });
      shape(over, "circle", { class: "here", cx: px[i], cy: py[i], r: 8 });
      const step = columns > 1 ? 100 / (columns - 1) : 0;
      const rows = Math.ceil(names.length / columns);
      picture.style.backgroundSize = `${columns * 100}% ${rows * 100}%`;
      picture.style.backgroundPosition = `${(i % columns) * step}% ${rows > 1 ? (Math.floor(i / columns) * 100) / (rows - 1) : 0}%`;
      byId("map-person").textContent = people[person[i]];
      byId("map-name").textContent = names[i];
      byId("map-note").textContent = `${mates.length} here; nearest is ${wrong[i] ? "somebody else" : "the same person"}`;
      const { clientWidth: width, clientHeight: height } = holder;
      const left = px[i] + 16 + card.offsetWidth > width ? px[i] - 16 - card.offsetWidth : px[i] + 16;
      card.style.left = `${clamp(left, 0, width - card.offsetWidth)}px`;
      card.style.top = `${clamp(py[i] - card.offsetHeight / 2, 0, height - card.offsetHeight)}px`;
    }
    const distance = (i, x, y) => (px[i] - x) ** 2 + (py[i] - y) ** 2;
    function nearest(x, y, fits) {
      let best = -1;
      for (let i = 0; i < px.length; i += 1) if (fits(i) && (best < 0 || distance(i, x, y) < distance(best, x, y))) best = i;
      return best;
    }
    const point = (event) => {
      const box = holder.getBoundingClientRect();
      const x = event.clientX - box.left, y = event.clientY - box.top;
      const i = nearest(x, y, () => true);
      show(i >= 0 && distance(i, x, y) < 24 ** 2 ? i : -1);
    };
    const directions = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1] };
    function step(event) {
      if (event.key === "Escape") return show(-1);
      const way = directions[event.key];
      if (!way) return;
      event.preventDefault();
      const from = current < 0 ? nearest(holder.clientWidth / 2, holder.clientHeight / 2, () => true) : current;
      const ahead = (i) => {
        const along = (px[i] - px[from]) * way[0] + (py[i] - py[from]) * way[1];
        return along > 0.5 && along ** 2 * 2 >= distance(i, px[from], py[from]);
      };
      const next = current < 0 ? from : nearest(px[from], py[from], ahead);
      if (next < 0) return;
      show(next);
      byId("map-said").textContent = `${people[person[next]]}, ${names[next]}, nearest is ${wrong[next] ? "somebody else" : "the same person"}`;
    }
    chart(holder, `Map of ${names.length} embeddings`, (made, width, height) => {
      svg = made;
      const x = linear(0, 1, 12, width - 12), y = linear(0, 1, height - 12, 12);
      px = xs.map(x);
      py = ys.map(y);
      let dots = "", crosses = "";
      wrong.forEach((bad, i) => {
        const [a, b] = [px[i], py[i]].map((v) => v.toFixed(1));
        if (bad) crosses += `M${a} ${b}m-2.5-2.5l5 5m0-5l-5 5`;
        else dots += `M${a} ${b}h0`;
      });
      shape(svg, "path", { class: "dots", d: dots });
      shape(svg, "path", { class: "crosses", d: crosses });
      over = shape(svg, "g", {});
      if (current >= 0) show(current);
      if (printing) printed();
    });
    // Paper has no pointer: as many pictures as have room are drawn with their names, the people in turn.
    function printed() {
      svg.querySelector(".printed")?.remove();
      if (!printing) return;
      const group = shape(svg, "g", { class: "printed" });
      const side = sprite ? 40 : 0, wide = 64, high = side + 16, rows = Math.ceil(names.length / columns);
      const turn = new Map();
      const order = person.map((who, i) => { turn.set(who, (turn.get(who) || 0) + 1); return [turn.get(who), i]; }).sort((a, b) => a[0] - b[0] || a[1] - b[1]);
      const placed = [];
      for (const [, i] of order) {
        if (placed.some((k) => Math.abs(px[k] - px[i]) < wide && Math.abs(py[k] - py[i]) < high)) continue;
        placed.push(i);
        if (sprite) {
          const view = `${(i % columns) * cell} ${Math.floor(i / columns) * cell} ${cell} ${cell}`;
          const box = shape(group, "svg", { x: px[i] - side / 2, y: py[i] - side / 2, width: side, height: side, viewBox: view });
          shape(box, "image", { href: sprite, width: columns * cell, height: rows * cell });
        }
        const name = people[person[i]];
        shape(group, "text", { x: px[i], y: py[i] + side / 2 + 10, "text-anchor": "middle" }, name.length > 14 ? `${name.slice(0, 13)}\u2026` : name);
      }
    }
    window.addEventListener("beforeprint", () => { printing = true; printed(); });
    window.addEventListener("afterprint", () => { printing = false; printed(); });
    holder.addEventListener("pointermove", point);
    holder.addEventListener("pointerdown", point);
    holder.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && show(-1));
    holder.addEventListener("focus", () => {
      if (current < 0 && holder.matches(":focus-visible")) show(nearest(holder.clientWidth / 2, holder.clientHeight / 2, () => true));
    });
    holder.addEventListener("blur", () => show(-1));
    holder.addEventListener("keydown", step);
  }

  if (table) {
    histogram();
    control();
  }
  if (data.curves.length) {
    const both = { drawn: data.curves, moves: Boolean(table) };
    curve("roc", "ROC: true accept rate over false accept rate on a log axis", "false accept rate", "true accept rate", { ...both, reject: false });
    curve("det", "Detection error trade-off: false reject rate over false accept rate, both on log axes", "false accept rate", "false reject rate", { ...both, reject: true });
  }
  if (data.search) {
    curve("search-det", "Identification: FNIR over FPIR, both on log axes", "FPIR", "FNIR", { drawn: [data.search], reject: true, moves: false });
  }
  if (data.map) map();
})();
