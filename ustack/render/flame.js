// SPDX-License-Identifier: MIT
// Draws the tree that the page carries and answers keys, pointer and search.
// Owns all interaction; must not fetch anything, nor turn a name from the data into markup.
"use strict";
(() => {
  const ROW = 20;
  const MIN = 0.6; // pixels; what is narrower is drawn as one block per caller
  const LONGEST_PRINT = 12000; // pixels of a canvas, which browsers limit
  const byId = (id) => document.getElementById(id);
  const data = JSON.parse(byId("data").textContent);
  const [functionOf, depthOf, valueOf, spotOf, spotsOf] = data.nodes;
  const KIND = 0, LABEL = 1, MODULE = 2, FILE = 3;
  const count = functionOf.length;
  const total = valueOf[0];
  const canvas = byId("graph"), scroll = byId("scroll"), tip = byId("tip"), search = byId("search");
  const pen = canvas.getContext("2d");
  const dark = matchMedia("(prefers-color-scheme: dark)");

  // ---- the tree: nodes come callers first, so a subtree is a range -------------------------

  const parentOf = new Int32Array(count).fill(-1);
  const endOf = new Int32Array(count); // the first node after the subtree
  const deepest = new Int32Array(count); // depth of the subtree's last row
  const leftOf = new Float64Array(count);
  const ownOf = Float64Array.from(valueOf);
  {
    const open = [];
    const close = () => {
      const [node] = open.splice(-1);
      if (open.length) {
        const caller = open[open.length - 1];
        deepest[caller] = Math.max(deepest[caller], deepest[node]);
      }
      return node;
    };
    const filled = new Float64Array(count);
    for (let node = 0; node < count; node++) {
      while (open.length > depthOf[node]) endOf[close()] = node;
      deepest[node] = depthOf[node];
      if (open.length) {
        const caller = open[open.length - 1];
        parentOf[node] = caller;
        leftOf[node] = leftOf[caller] + filled[caller];
        filled[caller] += valueOf[node];
        ownOf[caller] -= valueOf[node];
      }
      open.push(node);
    }
    while (open.length) endOf[close()] = count;
  }

  const text = (node, part) => data.strings[data.functions[functionOf[node]][part]];
  const kindOf = (node) => data.kinds[data.functions[functionOf[node]][KIND]];
  const visible = (string) => string.replace(/[\p{C}\u2028\u2029]/gu, (one) =>
    "\\u{" + one.codePointAt(0).toString(16) + "}");
  const number = (value) => value.toLocaleString("en-US");
  const percent = (part, whole) => (whole ? (100 * part / whole).toFixed(1) : "0.0") + " %";

  function time(ns) {
    for (const [step, unit] of [[1e9, "s"], [1e6, "ms"], [1e3, "us"]]) {
      if (ns >= step) return (ns / step).toFixed(2) + " " + unit;
    }
    return ns + " ns";
  }

  function amount(value) {
    if (data.unit === "ns") return time(value);
    const samples = number(value) + (value === 1 ? " sample" : " samples");
    return data.period ? samples + " (about " + time(value * data.period) + ")" : samples;
  }

  function place(node) {
    const module = text(node, MODULE), spots = spotsOf[node];
    if (kindOf(node)[4]) {
      const more = spots > 1 ? " and " + number(spots - 1) + " more addresses" : "";
      return (module ? module + " " : "") + (spots ? spotOf[node] + more : "");
    }
    const file = text(node, FILE);
    if (!file) return module;
    const most = spots > 1 ? " (the busiest of " + number(spots) + " lines)" : "";
    return file + (spots ? ":" + spotOf[node] + most : "") + (module ? ", " + module : "");
  }

  function shares(node) {
    const caller = parentOf[node];
    return amount(valueOf[node]) + ", " + percent(valueOf[node], total) + " of all"
      + (caller > 0 ? ", " + percent(valueOf[node], valueOf[caller]) + " of its caller" : "")
      + "; itself " + percent(ownOf[node], total);
  }

  // ---- state -----------------------------------------------------------------------------

  let focus = 0; // the node that has the whole width
  let selected = -1;
  let icicle = false;
  let matches = null; // per function, while something is searched
  let rows = []; // per depth, what was drawn: {node, x, width}, from left to right
  let printing = false;

  // ---- drawing ---------------------------------------------------------------------------

  const shades = new Map();

  // Neighbours of one kind differ a little, by their name: the same name looks the same everywhere.
  function shade(node) {
    const isDark = dark.matches && !printing;
    const key = functionOf[node] * 2 + Number(isDark);
    if (!shades.has(key)) {
      let hash = 7;
      for (const one of text(node, LABEL).slice(0, 200)) hash = (hash * 31 + one.codePointAt(0)) | 0;
      const hex = kindOf(node)[isDark ? 3 : 2];
      const lift = ((hash >>> 3) % 17) / 17 * 0.16;
      const mixed = [1, 3, 5].map((at) => {
        const part = parseInt(hex.slice(at, at + 2), 16);
        return Math.round(isDark ? part * (1 - lift * 1.4) : part + (255 - part) * lift * 1.8);
      });
      shades.set(key, "rgb(" + mixed.join(" ") + ")");
    }
    return shades.get(key);
  }

  function stripes(colour) {
    const tile = document.createElement("canvas");
    tile.width = tile.height = 8;
    const brush = tile.getContext("2d");
    brush.strokeStyle = colour;
    brush.lineWidth = 1.6;
    for (const shift of [-8, 0, 8]) {
      brush.beginPath();
      brush.moveTo(shift - 1, 9);
      brush.lineTo(shift + 9, -1);
      brush.stroke();
    }
    return pen.createPattern(tile, "repeat");
  }

  function fitted(label, width, letter) {
    const start = visible(label.slice(0, 400));
    const room = Math.floor(width / letter);
    if (/^[ -~]*$/.test(start)) {
      if (start.length <= room) return start;
      return room > 2 ? start.slice(0, room - 1) + "\u2026" : "";
    }
    if (room > 2 && pen.measureText(start).width <= width) return start;
    const letters = Array.from(start);
    let low = 0, high = letters.length;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      const wide = pen.measureText(letters.slice(0, middle).join("") + "\u2026").width;
      if (wide <= width) low = middle; else high = middle - 1;
    }
    return low > 1 ? letters.slice(0, low).join("") + "\u2026" : "";
  }

  function height() {
    return (deepest[focus] + 1) * ROW;
  }

  function top(depth) {
    return icicle ? depth * ROW : height() - (depth + 1) * ROW;
  }

  // Calls box(node, x, width, rest) for all that is wide enough; rest: node and its smaller
  // siblings together. Children are sorted by size, so the first narrow one ends a row.
  function layOut(width, box) {
    for (let node = parentOf[focus]; node >= 0; node = parentOf[node]) box(node, 0, width, false);
    const scale = width / (valueOf[focus] || 1);
    const pending = [focus];
    while (pending.length) {
      const node = pending.pop();
      box(node, (leftOf[node] - leftOf[focus]) * scale, valueOf[node] * scale, false);
      const row = [];
      for (let child = node + 1; child < endOf[node]; child = endOf[child]) {
        if (valueOf[child] * scale >= MIN) {
          row.push(child);
          continue;
        }
        const right = leftOf[node] + valueOf[node] - ownOf[node];
        const rest = (right - leftOf[child]) * scale;
        if (rest >= MIN) box(child, (leftOf[child] - leftOf[focus]) * scale, rest, true);
        break;
      }
      while (row.length) pending.push(row.pop());
    }
  }

  function draw() {
    const width = printing ? 1500 : scroll.clientWidth;
    const shown = printing ? Math.min(height(), LONGEST_PRINT) : scroll.clientHeight;
    const dense = printing ? 2 : window.devicePixelRatio || 1;
    byId("space").style.height = height() + "px";
    canvas.style.width = printing ? "" : width + "px"; // paper has a width of its own
    canvas.style.height = printing ? "" : shown + "px";
    canvas.width = Math.round(width * dense);
    canvas.height = Math.round(shown * dense);
    pen.setTransform(dense, 0, 0, dense, 0, 0);
    const shift = printing ? Math.max(0, icicle ? 0 : height() - shown) : scroll.scrollTop;
    const isDark = dark.matches && !printing;
    const ink = isDark ? "#eef1f6" : "#1b1f27";
    const match = isDark ? "#a32585" : "#b4218f";
    const lines = stripes(isDark ? "#ffffff3a" : "#0000002e");
    pen.font = "12px ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace";
    pen.textBaseline = "middle";
    const letter = pen.measureText("M").width;
    rows = [];
    layOut(width, (node, x, wide, rest) => {
      const depth = depthOf[node];
      (rows[depth] = rows[depth] || []).push({ node, x, width: wide, rest });
      const y = top(depth) - shift;
      if (y <= -ROW || y >= shown) return;
      const found = matches && matches[functionOf[node]] && !rest;
      const gap = wide > 2 ? 1 : 0;
      pen.globalAlpha = (depth < depthOf[focus] ? 0.55 : 1) * (matches && !found ? 0.42 : 1);
      pen.fillStyle = rest ? (isDark ? "#3a4250" : "#dfe4ec") : found ? match : shade(node);
      pen.fillRect(x, y, wide - gap, ROW - 1);
      if (kindOf(node)[4] && !rest && wide > 2) {
        pen.fillStyle = lines;
        pen.fillRect(x, y, wide - gap, ROW - 1);
      }
      if (wide > 26 && !rest) {
        pen.globalAlpha = matches && !found ? 0.6 : 1;
        pen.fillStyle = found ? "#ffffff" : ink;
        pen.fillText(fitted(text(node, LABEL), wide - 9, letter), x + 4, y + ROW / 2);
      }
      if (node === selected && !printing) {
        pen.globalAlpha = 1;
        pen.strokeStyle = isDark ? "#ffffff" : "#0b0d12";
        pen.lineWidth = 2;
        pen.strokeRect(x + 1, y + 1, Math.max(wide - gap - 2, 1), ROW - 3);
      }
    });
    pen.globalAlpha = 1;
    if (!total) {
      pen.fillStyle = ink;
      pen.fillText("no samples", 6, ROW * 2);
    }
  }

  let asked = false;
  function redraw() {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => {
      asked = false;
      draw();
    });
  }

  // ---- zoom, selection, search -----------------------------------------------------------

  function reveal(node) {
    const y = top(depthOf[node]), shown = scroll.clientHeight;
    if (y < scroll.scrollTop) scroll.scrollTop = y - ROW;
    else if (y + ROW > scroll.scrollTop + shown) scroll.scrollTop = y + 2 * ROW - shown;
  }

  function zoom(node) {
    focus = node;
    byId("reset").disabled = node === 0;
    byId("focus").textContent = node === 0 ? ""
      : "Zoomed into " + visible(text(node, LABEL).slice(0, 300)) + ", "
        + percent(valueOf[node], total);
    byId("space").style.height = height() + "px";
    const y = top(depthOf[node]);
    scroll.scrollTop = icicle ? y - 2 * ROW : y + 3 * ROW - scroll.clientHeight;
    draw();
  }

  function select(node) {
    selected = node;
    const words = node < 0 ? [] : [
      visible(text(node, LABEL).slice(0, 300)), shares(node), visible(place(node).slice(0, 300)),
      kindOf(node)[1]];
    byId("status").textContent = words.filter(Boolean).join(" \u2013 ");
    if (node >= 0) reveal(node);
    redraw();
  }

  function find(words) {
    const wanted = words.trim().toLowerCase();
    matches = wanted ? data.functions.map((row) => [LABEL, FILE, MODULE].some((part) =>
      data.strings[row[part]].toLowerCase().includes(wanted))) : null;
    let value = 0;
    // The root is the profile, not a function: it never matches.
    for (let node = 1; matches && node < count;) {
      if (matches[functionOf[node]]) value += valueOf[node];
      node = matches[functionOf[node]] ? endOf[node] : node + 1;
    }
    if (matches) matches[functionOf[0]] = false;
    byId("matched").textContent = matches ? percent(value, total) + " matched" : "";
    redraw();
  }

  function reset() {
    search.value = "";
    find("");
    zoom(0);
  }

  function flip() {
    icicle = !icicle;
    byId("flip").setAttribute("aria-pressed", String(icicle));
    byId("flip").textContent = icicle ? "Flame" : "Icicle";
    zoom(focus);
  }

  // ---- pointer and keys ------------------------------------------------------------------

  function at(event) {
    const frame = canvas.getBoundingClientRect();
    const y = event.clientY - frame.top + scroll.scrollTop;
    const x = event.clientX - frame.left;
    const line = Math.floor(y / ROW);
    const depth = icicle ? line : deepest[focus] - line;
    return (rows[depth] || []).find((box) => x >= box.x && x < box.x + Math.max(box.width, 1));
  }

  function show(box, event) {
    tip.hidden = !box;
    if (!box) return;
    const { node } = box;
    const parts = box.rest
      ? ["b", "smaller functions", "span", "zoom into their caller to see them"]
      : ["b", visible(text(node, LABEL).slice(0, 2000)), "span", visible(place(node)), "div",
        shares(node), "span", kindOf(node)[1]];
    tip.replaceChildren();
    for (let part = 0; part < parts.length; part += 2) {
      if (!parts[part + 1]) continue;
      const line = document.createElement(parts[part]);
      line.textContent = parts[part + 1];
      tip.append(line);
    }
    const right = event.clientX + 16, below = event.clientY + 18;
    const x = Math.min(right, innerWidth - tip.offsetWidth - 8);
    const y = below + tip.offsetHeight > innerHeight - 8
      ? event.clientY - tip.offsetHeight - 12 : below;
    tip.style.left = Math.max(4, x) + "px";
    tip.style.top = Math.max(4, y) + "px";
  }

  canvas.addEventListener("pointermove", (event) => show(at(event), event));
  canvas.addEventListener("pointerleave", () => show(null));
  canvas.addEventListener("click", (event) => {
    const box = at(event);
    if (!box) return;
    zoom(box.rest ? parentOf[box.node] : box.node);
    select(focus);
    show(null);
  });
  scroll.addEventListener("scroll", () => {
    show(null);
    redraw();
  });

  function move(key) {
    if (selected < 0) return select(focus);
    const outward = icicle ? "ArrowDown" : "ArrowUp";
    const row = rows[depthOf[selected]] || [];
    const here = row.findIndex((box) => box.node === selected);
    let box;
    if (key === "ArrowLeft") box = row[here - 1];
    else if (key === "ArrowRight") box = row[here + 1];
    else if (key === outward) {
      box = (rows[depthOf[selected] + 1] || []).find((one) => one.node > selected
        && one.node < endOf[selected]);
    } else box = { node: parentOf[selected] };
    if (box && box.node >= 0 && !box.rest) select(box.node);
  }

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const typing = event.target === search;
    if (event.key === "Escape") {
      if (typing && search.value) {
        search.value = "";
        find("");
      } else {
        reset();
        canvas.focus({ preventScroll: true });
      }
    } else if (typing) {
      if (event.key !== "Enter") return;
      canvas.focus({ preventScroll: true });
    } else if (event.key === "/") search.focus();
    else if (event.key === "i") flip();
    else if (event.target !== canvas) return;
    else if (event.key.startsWith("Arrow")) move(event.key);
    else if (event.key === "Enter" && selected >= 0) zoom(selected);
    else return;
    event.preventDefault();
  });
  search.addEventListener("input", () => find(search.value));
  byId("reset").addEventListener("click", reset);
  byId("flip").addEventListener("click", flip);

  // ---- what stands around the graph ------------------------------------------------------

  function legend() {
    byId("legend").replaceChildren(...data.kinds.flatMap(([key, label, light, night, hatched, value]) => {
      if (value === null || key === "process") return [];
      const item = document.createElement("li"), box = document.createElement("i");
      const part = document.createElement("span");
      box.style.backgroundColor = dark.matches && !printing ? night : light;
      box.className = hatched ? "hatched" : "";
      part.textContent = percent(value, total);
      item.title = part.textContent + " of the samples "
        + (key === "cut" ? "have callers that are missing" : "end in it");
      item.append(box, label + " ", part);
      return [item];
    }));
  }

  function facts() {
    const lost = data.lost && number(data.lost) + " lost";
    const started = data.started !== null
      && new Date(data.started).toISOString().replace("T", " ").slice(0, 19) + " UTC";
    const lasted = data.duration && (data.duration / 1e9).toFixed(1) + " s";
    const words = [amount(total), lasted, visible(data.event), started, lost];
    byId("facts").textContent = words.filter(Boolean).join(" \u00b7 ");
    canvas.setAttribute("aria-label", "Flame graph of " + amount(total) + ", "
      + number(count - 1) + " boxes");
  }

  // Own and total per function; one that calls itself counts once per stack.
  function topFunctions() {
    const own = new Float64Array(data.functions.length), whole = Float64Array.from(own);
    const open = [], active = new Int32Array(own.length);
    for (let node = 1; node < count; node++) {
      while (open.length && endOf[open[open.length - 1]] <= node) active[functionOf[open.pop()]]--;
      const called = functionOf[node];
      own[called] += ownOf[node];
      if (!active[called]) whole[called] += valueOf[node];
      active[called]++;
      open.push(node);
    }
    const order = Array.from(own.keys()).filter((one) =>
      whole[one] && data.kinds[data.functions[one][KIND]][0] !== "process");
    order.sort((a, b) => own[b] - own[a] || whole[b] - whole[a]);
    const body = document.querySelector("#top tbody");
    for (const called of order.slice(0, 100)) {
      const [kind, label, module, file] = data.functions[called];
      const cells = [percent(own[called], total), percent(whole[called], total),
        data.kinds[kind][1], ""];
      const row = body.insertRow();
      for (const cell of cells) row.insertCell().textContent = cell;
      const button = document.createElement("button"), where = document.createElement("span");
      button.type = "button";
      button.textContent = visible(data.strings[label].slice(0, 500));
      button.title = "Search for it";
      button.addEventListener("click", () => {
        search.value = data.strings[label];
        find(search.value);
      });
      where.textContent = visible(data.strings[file] || data.strings[module]);
      row.lastChild.append(button, where);
    }
  }

  byId("top").addEventListener("toggle", topFunctions, { once: true });
  new ResizeObserver(redraw).observe(scroll);
  dark.addEventListener("change", () => {
    legend();
    redraw();
  });
  const print = (on) => () => {
    printing = on;
    legend();
    draw();
  };
  addEventListener("beforeprint", print(true));
  addEventListener("afterprint", print(false));

  legend();
  facts();
  zoom(0);
})();
