"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const { paths, slot, sheet, cell } = data;
  const SHOWN = 24; // photographs of a large group before it is opened
  const PAIRS = 12; // questions at once

  // ---- what is known: the group of each photograph, the names, what is confirmed ----
  let group = Int32Array.from(data.group);
  let sure = Uint8Array.from(data.confirmed);
  let names = new Map(Object.entries(data.names).map(([number, name]) => [Number(number), name]));
  let last = data.last; // the highest number that any group has had
  let members = new Map();
  const history = [];
  let state = 0, states = 0, saved = 0; // which state this is, how many there were, and which one was saved
  const chosen = new Set(); // photographs
  const ticked = new Set(); // groups
  const opened = new Set(); // large groups that are shown whole
  let anchor = -1;
  let asked = PAIRS;

  const gather = () => {
    members = new Map();
    group.forEach((number, i) => (members.has(number) ? members.get(number).push(i) : members.set(number, [i])));
  };
  const photographs = (n) => `${n.toLocaleString("en")} photograph${n === 1 ? "" : "s"}`;
  const title = (number) => names.get(number) || `Group ${number}`;
  const isSure = (number) => members.get(number).every((i) => sure[i]);

  function make(tag, properties = {}, ...children) {
    const { dataset, ...rest } = properties;
    const element = Object.assign(document.createElement(tag), rest);
    if (dataset) Object.assign(element.dataset, dataset);
    element.append(...children);
    return element;
  }

  // ---- pictures: one blob for each sprite, so that no element holds a long text ----
  const sprites = data.sprites.map(([uri, columns]) => {
    if (!uri) return null;
    const text = atob(uri.slice(uri.indexOf(",") + 1));
    const bytes = new Uint8Array(text.length);
    for (let k = 0; k < text.length; k += 1) bytes[k] = text.charCodeAt(k);
    const blob = new Blob([bytes], { type: "image/jpeg" });
    return { url: URL.createObjectURL(blob), columns };
  });
  data.sprites = null;
  const pictured = slot.reduce((most, s) => Math.max(most, s + 1), 0);
  function photo(i) {
    const button = make("button", { type: "button", className: "photo", title: paths[i], dataset: { photo: i } });
    button.setAttribute("aria-pressed", String(chosen.has(i)));
    button.setAttribute("aria-label", paths[i]);
    const at = slot[i] < 0 ? null : sprites[Math.floor(slot[i] / sheet)];
    if (!at) {
      button.textContent = paths[i];
      return button;
    }
    const place = slot[i] % sheet;
    const count = Math.min(sheet, pictured - Math.floor(slot[i] / sheet) * sheet);
    const rows = Math.ceil(count / at.columns);
    const share = (k, of) => (of > 1 ? (100 * k) / (of - 1) : 0);
    button.style.backgroundImage = `url("${at.url}")`;
    button.style.backgroundSize = `${100 * at.columns}% ${100 * rows}%`;
    button.style.backgroundPosition = `${share(place % at.columns, at.columns)}% ${share(Math.floor(place / at.columns), rows)}%`;
    return button;
  }

  // ---- one group ----
  function card(number) {
    const own = members.get(number);
    const single = own.length === 1;
    const tick = make("input", { type: "checkbox", className: "tick" });
    tick.setAttribute("aria-label", `Choose ${title(number)}`);
    const name = make("input", { className: "name", value: names.get(number) || "", placeholder: "Who is this?", autocomplete: "off" });
    name.setAttribute("aria-label", `Name of group ${number}`);
    const about = make("span", { className: "about" });
    const confirmed = isSure(number);
    about.append(single ? `Group ${number}` : `Group ${number} · ${photographs(own.length)}`);
    if (confirmed) about.append(" · ", make("b", {}, "confirmed"));
    const head = make("div", {}, tick, name, about);
    if (!confirmed) head.append(make("button", { type: "button", className: "right", title: "Every photograph of this group is of one person" }, "All right"));
    head.append(make("button", { type: "button", className: "here" }, "Move here"));
    const all = opened.has(number) || own.length <= SHOWN + 4;
    const photos = make("div", { className: "photos" }, ...(all ? own : own.slice(0, SHOWN)).map(photo));
    if (!all) photos.append(make("button", { type: "button", className: "more" }, `Show all ${own.length.toLocaleString("en")}`));
    const kind = single ? "single" : "group";
    return make("article", { id: `group-${number}`, className: kind, dataset: { group: number } }, head, photos);
  }

  // Cards that look as before are used again: a change among 10,000 photographs draws a few of them.
  const drawn = new Map();
  function cardOf(number) {
    const looks = [names.get(number), isSure(number), opened.has(number), ...members.get(number)].join();
    const before = drawn.get(number);
    if (before && before.looks === looks) {
      before.element.querySelector(".name").value = names.get(number) || "";
      return before.element;
    }
    const element = card(number);
    drawn.set(number, { looks, element });
    return element;
  }

  // ---- the whole page ----
  function fits(number) {
    const word = byId("search").value.trim().toLowerCase();
    const filter = byId("filter").value;
    if (filter === "unnamed" && names.get(number)) return false;
    if (filter === "named" && !names.get(number)) return false;
    if (filter === "open" && isSure(number)) return false;
    if (!word) return true;
    return title(number).toLowerCase().includes(word) || members.get(number).some((i) => paths[i].toLowerCase().includes(word));
  }
  function draw() {
    gather();
    const numbers = [...members.keys()].filter(fits);
    numbers.sort((a, b) => members.get(b).length - members.get(a).length || a - b);
    byId("groups").replaceChildren(...numbers.filter((n) => members.get(n).length > 1).map(cardOf));
    byId("singles").replaceChildren(...numbers.filter((n) => members.get(n).length === 1).map(cardOf));
    byId("singles-section").hidden = !byId("singles").childElementCount;
    byId("empty").hidden = numbers.length > 0;
    byId("targets").replaceChildren(...[...names].filter(([n]) => members.has(n)).map(([, name]) => make("option", { value: name })));
    questions();
    press();
    bars();
  }
  // Which photographs and groups are chosen, shown on what is drawn.
  function press() {
    document.querySelectorAll("[data-photo]").forEach((button) => button.setAttribute("aria-pressed", String(chosen.has(Number(button.dataset.photo)))));
    document.querySelectorAll("[data-group]").forEach((place) => {
      const on = ticked.has(Number(place.dataset.group));
      place.classList.toggle("chosen", on);
      place.querySelector(".tick").checked = on;
    });
  }
  function questions() {
    const held = (number) => members.get(number).some((i) => sure[i]);
    const open = data.alike.filter(([a, b]) => members.has(a) && members.has(b) && !(held(a) && held(b)));
    byId("alike-section").hidden = !open.length;
    byId("alike-count").textContent = `${open.length} to answer.`;
    byId("alike").replaceChildren(...open.slice(0, asked).map(([a, b, score]) => {
      const half = (number) => {
        const photos = make("div", { className: "photos" }, ...members.get(number).slice(0, 3).map(photo));
        photos.querySelectorAll("button").forEach((button) => { button.tabIndex = -1; delete button.dataset.photo; });
        return make("div", {}, photos, make("p", {}, make("a", { href: `#group-${number}` }, title(number)), ` · ${members.get(number).length}`));
      };
      const answer = make("div", { className: "answer" },
        make("button", { type: "button", className: "yes" }, "One person"), make("button", { type: "button", className: "no" }, "Two people"),
        `alike by ${score.toFixed(2).replace("-", "\u2212")}`);
      return make("li", { dataset: { one: a, other: b } }, make("div", { className: "two" }, half(a), half(b)), answer);
    }));
    byId("alike-more").hidden = open.length <= asked;
  }
  function bars() {
    const confirmed = sure.reduce((sum, s) => sum + s, 0);
    byId("status").textContent = `${members.size.toLocaleString("en")} groups, ${confirmed.toLocaleString("en")} of ${photographs(paths.length)} confirmed${state === saved ? "" : ", not saved yet"}`;
    byId("undo").disabled = !history.length;
    const some = chosen.size > 0, several = ticked.size > 0;
    byId("selection").hidden = !some && !several;
    byId("selection-text").textContent = some ? `${photographs(chosen.size)} chosen` : `${ticked.size} group${ticked.size === 1 ? "" : "s"} chosen`;
    for (const id of ["part", "move", "target"]) byId(id).hidden = !some;
    byId("join").hidden = some;
    byId("join").disabled = ticked.size < 2;
    document.querySelectorAll(".here").forEach((button) => { button.hidden = !some; });
  }

  // ---- what a person does ----
  // Every change notes the state before it; a group that is touched is confirmed as it is left.
  function change(act, ...touched) {
    history.push({ group: group.slice(), sure: sure.slice(), names: new Map(names), last, state });
    state = states += 1;
    notice();
    act();
    chosen.clear();
    ticked.clear();
    gather();
    for (const number of touched.flat()) for (const i of members.get(number) || []) sure[i] = 1;
    for (const number of [...names.keys()]) if (!members.has(number)) names.delete(number);
    draw();
  }
  function undo() {
    const before = history.pop();
    if (!before) return;
    ({ group, sure, names, last, state } = before);
    chosen.clear();
    ticked.clear();
    notice();
    draw();
  }
  function rename(number, text) {
    const name = text.trim().replace(/\s+/g, " ");
    if (name === (names.get(number) || "")) return draw();
    const other = [...names].find(([n, has]) => n !== number && has === name && members.has(n));
    if (name && other) {
      draw();
      return notice(`${name} is group ${other[0]} already.`, "Join the two", () => join([other[0], number]));
    }
    change(() => (name ? names.set(number, name) : names.delete(number)), name ? [number] : []);
    flash(number);
  }
  function join(numbers) {
    const order = [...numbers].sort((a, b) => Boolean(names.get(b)) - Boolean(names.get(a)) || members.get(b).length - members.get(a).length || a - b);
    const into = order[0];
    change(() => group.forEach((number, i) => { if (numbers.includes(number)) group[i] = into; }), into);
    flash(into);
  }
  function move(photos, into) {
    const from = [...new Set(photos.map((i) => group[i]))];
    change(() => photos.forEach((i) => { group[i] = into; }), from, into);
    flash(into);
  }
  function part(photos) {
    const from = new Set(photos.map((i) => group[i]));
    if (from.size === 1 && members.get([...from][0]).length === photos.length) return notice("These are a whole group already.");
    const fresh = last + 1;
    change(() => { last = fresh; photos.forEach((i) => { group[i] = fresh; }); }, [...from], fresh);
    flash(fresh);
  }
  function groupCalled(text) {
    const wanted = text.trim().toLowerCase();
    const named = [...names].find(([number, name]) => name.toLowerCase() === wanted && members.has(number));
    if (named) return named[0];
    const number = /^(?:group\s+)?(\d+)$/.exec(wanted);
    return number && members.has(Number(number[1])) ? Number(number[1]) : null;
  }
  let act = null;
  function notice(text = "", button = "", then = null) {
    act = then;
    byId("notice").hidden = !text;
    byId("notice").firstElementChild.textContent = text;
    byId("notice").lastElementChild.textContent = button;
    byId("notice").lastElementChild.hidden = !button;
  }
  function flash(number) {
    const place = byId(`group-${number}`);
    if (!place) return;
    place.classList.add("flash");
    const box = place.getBoundingClientRect();
    if (box.bottom < 60 || box.top > innerHeight - 80) place.scrollIntoView({ block: "center" });
  }

  // ---- the csv ----
  function corrections() {
    const field = (text) => (/[",;\r\n\t]|^\s|\s$/.test(text) ? `"${text.replace(/"/g, '""')}"` : text);
    const lines = [];
    for (const number of [...members.keys()].sort((a, b) => a - b)) {
      for (const i of members.get(number)) if (sure[i]) lines.push(`${field(paths[i])},${number},${field(names.get(number) || "")}`);
    }
    return ["path,cluster,name", ...lines, ""].join("\r\n");
  }
  async function save() {
    const blob = new Blob([corrections()], { type: "text/csv" });
    if (window.showSaveFilePicker) {
      try {
        const file = await window.showSaveFilePicker({ suggestedName: "corrections.csv", types: [{ description: "csv", accept: { "text/csv": [".csv"] } }] });
        const stream = await file.createWritable();
        await stream.write(blob);
        await stream.close();
      } catch (error) {
        if (error.name !== "AbortError") notice(`Not saved: ${error.message}`);
        return;
      }
    } else {
      const link = make("a", { href: URL.createObjectURL(blob), download: "corrections.csv" });
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 60000);
    }
    saved = state;
    bars();
  }

  // ---- clicks and keys ----
  function pick(i, range) {
    if (range && anchor >= 0 && group[anchor] === group[i]) {
      const own = members.get(group[i]);
      const [from, to] = [own.indexOf(anchor), own.indexOf(i)].sort((a, b) => a - b);
      own.slice(from, to + 1).forEach((k) => chosen.add(k));
    } else if (!chosen.delete(i)) chosen.add(i);
    anchor = i;
    ticked.clear();
    press();
    bars();
  }
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button, .tick");
    if (!button) return;
    const place = button.closest("[data-group]");
    const number = place ? Number(place.dataset.group) : null;
    const pair = button.closest("[data-one]");
    if (button.dataset.photo !== undefined) pick(Number(button.dataset.photo), event.shiftKey);
    else if (button.classList.contains("tick")) {
      if (!ticked.delete(number)) ticked.add(number);
      chosen.clear();
      press();
      bars();
    } else if (button.classList.contains("here")) move([...chosen], number);
    else if (button.classList.contains("right")) change(() => {}, number);
    else if (button.classList.contains("more")) {
      opened.add(number);
      place.replaceWith(cardOf(number));
      bars();
    } else if (button.classList.contains("yes")) join([Number(pair.dataset.one), Number(pair.dataset.other)]);
    else if (button.classList.contains("no")) {
      const firsts = [pair.dataset.one, pair.dataset.other].map((n) => members.get(Number(n))[0]);
      change(() => firsts.forEach((i) => { sure[i] = 1; }));
    }
  });
  document.addEventListener("change", (event) => {
    if (event.target.classList.contains("name")) rename(Number(event.target.closest("[data-group]").dataset.group), event.target.value);
  });
  document.addEventListener("keydown", (event) => {
    const typing = event.target.matches("input:not([type=checkbox]), select");
    if (event.key === "Enter" && event.target.classList.contains("name")) event.target.blur();
    if (event.key === "Escape" && !typing) byId("clear").click();
    if ((event.ctrlKey || event.metaKey) && event.key === "z" && !typing) { event.preventDefault(); undo(); }
    if ((event.ctrlKey || event.metaKey) && event.key === "s") { event.preventDefault(); save(); }
  });
  byId("undo").addEventListener("click", undo);
  byId("save").addEventListener("click", save);
  byId("part").addEventListener("click", () => part([...chosen]));
  byId("join").addEventListener("click", () => join([...ticked]));
  byId("clear").addEventListener("click", () => { chosen.clear(); ticked.clear(); draw(); });
  byId("move").addEventListener("click", () => {
    const into = groupCalled(byId("target").value);
    if (into === null) return notice(`There is no group ${byId("target").value.trim() || "without a name"}: give a name or a number.`);
    byId("target").value = "";
    move([...chosen], into);
  });
  byId("alike-more").addEventListener("click", () => { asked += PAIRS; questions(); });
  byId("search").addEventListener("input", draw);
  byId("filter").addEventListener("change", draw);
  byId("notice").lastElementChild.addEventListener("click", () => { const then = act; notice(); if (then) then(); });
  window.addEventListener("beforeunload", (event) => { if (state !== saved) event.preventDefault(); });
  draw();
})();
