// The page's behaviour. Data come as calls of `gallery.run`, `.layer` and `.units`; text
// only ever reaches the page as text.
"use strict";

(() => {
  const GRID = 112; // most pixels per side of a picture in the grid
  const CELL = 72; // least width of a cell: its numbers need room
  const PANE = 128; // and in a block of three columns on a unit's page
  const OUTCOMES = ["not optimized", "leads its layer", "does not lead its layer", "no gradient reaches it"];
  const ENDS = ["–", "leads", "does not", "no gradient"];
  const SORTS = {
    number: { title: "Number", text: (layer, i) => (layer.max ? short(layer.max[i]) : ENDS[layer.outcome[i]]) },
    max: { title: "Maximum", of: "max", text: (layer, i) => short(layer.max[i]) },
    selectivity: { title: "Selectivity", of: "selectivity", text: (layer, i) => fixed(layer.selectivity[i]) },
    active: { title: "Share active", of: "active", text: (layer, i) => percent(layer.active[i]) },
    ratio: { title: "Ratio to the best photograph", of: "ratio", text: (layer, i) => times(layer.ratio[i]) },
    outcome: { title: "Outcome", rank: [3, 0, 1, 2], text: (layer, i) => ENDS[layer.outcome[i]] },
  };

  const FOUND = 60; // results of a search that are shown

  let run = { classes: [], layers: [], listed: {}, strips: {} };
  let searched = null;
  let whole = null;
  let quiz = null;
  const layers = new Map();
  const chunks = new Map();
  const flows = new Map();
  const state = { alias: "", unit: null, sort: "number", filter: "", face: "", find: null, scroll: new Map() };

  window.gallery = {
    run(facts) { run = facts; },
    layer(facts) {
      const ratio = facts.faces.find((face) => face.ratios)?.ratios;
      layers.set(facts.alias, { ...facts, ...(ratio && { ratio }), dead: new Set(facts.dead) });
    },
    units(alias, number, facts) { chunks.set(`${alias} ${number}`, facts); },
    flow(alias, number, about, facts) { flows.set(`${alias} ${number}`, { about, facts }); },
    search(facts) { searched = facts; },
    photographs(facts) { whole = facts; },
    quiz(facts) { quiz = facts; },
  };

  // light and dark

  const remembered = (value) => {
    try {
      if (value) localStorage.setItem("cnnvis-theme", value);
      return localStorage.getItem("cnnvis-theme");
    } catch {
      return value; // if a page on disk has no storage
    }
  };
  const isDark = () => (document.documentElement.dataset.theme
    ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  const theme = remembered();
  if (theme === "dark" || theme === "light") document.documentElement.dataset.theme = theme;

  // words and numbers

  const known = (value) => value !== null && value !== undefined;
  const short = (value) => { // three digits, including trailing zeros
    if (!known(value)) return "–";
    const text = value.toPrecision(3);
    return (value === 0 || text.includes("e") ? String(Number(text)) : text).replace("-", "−");
  };
  const fixed = (value) => (known(value) ? value.toFixed(2) : "–");
  const percent = (value) => (known(value) ? `${Number((100 * value).toPrecision(2))}\u00a0%` : "–");
  const times = (value) => (known(value) ? `${value.toFixed(value < 9.95 ? 2 : 0).replace("-", "−")} ×` : "–");
  const asTimes = (value) => (known(value) ? `${times(value).replace(" ×", "")} times the value of the best photograph` : "");
  const many = (count, noun) => `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;
  const padded = (unit) => String(unit).padStart(4, "0");
  const className = (label) => run.classes[label] || (label >= 0 ? `class ${label}` : "");
  const paneName = ({ kind, name }) => ({
    optimized: `optimized, style ${name}`, patches: "patches", projections: `${name} projections`, lowest: "lowest patches", intervals: "weaker images",
  })[kind];

  // elements

  const make = (tag, attributes = {}, ...children) => {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (known(value) && value !== false) node.setAttribute(name, value);
    }
    node.append(...children.filter((child) => known(child) && child !== ""));
    return node;
  };
  const drawn = (tag, attributes) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    return node;
  };
  const byId = (id) => document.getElementById(id);
  const say = (text) => { byId("said").textContent = text; };

  // pictures: one place of a sheet as the background of an element

  const crop = (node, url, [left, top, width, height], [high, wide]) => {
    const share = (offset, room) => (room > 0 ? `${(100 * offset) / room}%` : "0%");
    node.style.backgroundImage = `url("${url}")`;
    node.style.backgroundSize = `${(100 * wide) / width}% ${(100 * high) / height}%`;
    node.style.backgroundPosition = `${share(left, wide - width)} ${share(top, high - height)}`;
  };
  const enlarged = ([height, width], most) => Math.max(1, Math.floor(most / Math.max(height, width)));
  const observer = (rootMargin) => {
    const seen = new IntersectionObserver((entries) => {
      for (const { target, isIntersecting } of entries) {
        if (isIntersecting) {
          seen.unobserve(target);
          reveals(target);
        }
      }
    }, { rootMargin });
    return (node, show) => { node.show = show; node.dataset.waiting = ""; seen.observe(node); };
  };
  const reveals = (node) => {
    delete node.dataset.waiting;
    node.show();
  };
  const whenSeen = observer("400px 0px");
  const whenNearlySeen = observer("80px 0px");

  const room = (tile) => tile.map((side) => Math.ceil(side / run.block) * run.block); // of a picture in a file
  const stripOf = (folder, alias, name, tile, count, rows, nodes) => { // some units, in one file
    const cell = room(tile);
    const size = [rows * cell[0], count * cell[1]];
    const all = Array.from({ length: count * rows }, (_, i) => {
      const picture = make("span", { class: `crop${Math.max(...tile) < 40 ? " sharp" : ""}` });
      const place = [Math.floor(i / rows) * cell[1], (i % rows) * cell[0], tile[1], tile[0]];
      picture.fill = () => crop(picture, `${alias}/${name}.${run.strips[alias].suffix}`, place, size);
      return picture;
    });
    folder.append(...nodes(all));
    whenNearlySeen(folder, () => all.forEach((picture) => picture.fill()));
    return folder;
  };
  const fillStrips = (alias) => { // on the first page, and beside the layer's name
    const { rows, tile, nav, units, labels, ratios } = run.strips[alias];
    const link = document.querySelector(`[data-layer="${alias}"]`);
    const beside = make("span", { class: "thumbs", "aria-hidden": "true" });
    link.append(stripOf(beside, alias, "nav", nav, Math.min(run.beside, units.length), 1, (pictures) => pictures));
    const strip = make("div", { class: `strip${rows > 1 ? " paired" : ""}` });
    byId(`about-${alias}`).parentNode.after(stripOf(strip, alias, "strip", tile, units.length, rows, (pictures) => units.map((unit, at) => {
      const name = `${alias}/${padded(unit)}`;
      const [first, ...others] = pictures.slice(at * rows, (at + 1) * rows);
      first.setAttribute("role", "img");
      first.setAttribute("aria-label", [name, labels?.[at], asTimes(ratios?.[at])].filter(Boolean).join(", "));
      for (const other of others) other.setAttribute("aria-hidden", "true");
      const under = [labels?.[at] || String(unit), known(ratios?.[at]) && times(ratios[at])].filter(Boolean).join(" · ");
      return make("a", { href: `#${name}`, title: asTimes(ratios?.[at]) || null }, first, ...others, make("bdi", { "aria-hidden": "true" }, under));
    })));
  };

  const faceOf = (layer) => {
    const wanted = layer.faces.findIndex((face) => paneName(face) === state.face);
    return wanted < 0 ? layer.usual : wanted;
  };
  const facePicture = (layer, position, number) => {
    const face = layer.faces[number];
    const unit = [`${layer.alias}/${padded(layer.units[position])}`, layer.labels?.[position]].filter(Boolean).join(", ");
    if (!face) return make("span", { class: "crop", role: "img", "aria-label": `${unit}, no picture` });
    const lacks = face.missing.has(position);
    const crossed = face.kind === "optimized" ? layer.outcome[position] === 3 : layer.dead.has(position) && lacks;
    const node = make("span", {
      class: `crop${enlarged(face.tile, GRID) > 1 ? " sharp" : ""}${lacks ? " missing" : ""}${lacks && crossed ? " crossed" : ""}`,
      role: "img",
      "aria-label": [unit, lacks ? "no picture" : paneName(face), asTimes(face.ratios?.[position]), crossed && "dead"].filter(Boolean).join(", "),
    });
    if (lacks) return node;
    const chunk = Math.floor(position / layer.chunk);
    const [at, count] = [position % layer.chunk, Math.min(layer.chunk, layer.units.length - chunk * layer.chunk)];
    const [high, wide] = face.cell;
    const place = [(at % layer.columns) * wide, Math.floor(at / layer.columns) * high, face.tile[1], face.tile[0]];
    const size = [Math.ceil(count / layer.columns) * high, Math.min(layer.columns, count) * wide];
    const url = `${layer.alias}/grid${number}_${String(chunk).padStart(3, "0")}.${face.suffix}`;
    node.fill = () => crop(node, url, place, size);
    return node;
  };

  const listedAt = (alias, unit) => { // the place of a unit in its layer; -1 if it is not shown
    const { units } = run.listed[alias] ?? { units: 0 };
    return typeof units === "number" ? (unit < units ? unit : -1) : units.indexOf(unit);
  };
  const iconOf = (alias, position, name) => {
    const { tile, suffix, units } = run.listed[alias];
    const node = make("span", { class: "crop", role: "img", "aria-label": name });
    if (!tile) return node;
    const cell = room(tile);
    node.classList.toggle("sharp", Math.max(...tile) < 40);
    const [number, at] = [Math.floor(position / run.chunk), position % run.chunk];
    const all = typeof units === "number" ? units : units.length;
    const count = Math.min(run.chunk, all - number * run.chunk);
    const place = [(at % run.columns) * cell[1], Math.floor(at / run.columns) * cell[0], tile[1], tile[0]];
    const size = [Math.ceil(count / run.columns) * cell[0], Math.min(run.columns, count) * cell[1]];
    const url = `${alias}/icons_${String(number).padStart(3, "0")}.${suffix}`;
    node.style.setProperty("--shape", `${tile[1]} / ${tile[0]}`);
    whenSeen(node, () => crop(node, url, place, size));
    return node;
  };
  const fold = (text) => text.toLowerCase().normalize("NFD").replace(/[\u0300-\u036f]/g, "");

  // data loaded when needed

  const loading = new Map();
  const load = (source) => {
    if (!loading.has(source)) {
      loading.set(source, new Promise((done, fail) => {
        const script = make("script", { src: source });
        script.onload = done;
        script.onerror = () => { loading.delete(source); fail(new Error(source)); };
        document.head.append(script);
      }));
    }
    return loading.get(source);
  };
  const layerOf = async (alias) => {
    if (!layers.has(alias)) {
      await load(`${alias}/layer.js`);
      const layer = layers.get(alias);
      for (const face of layer.faces) face.missing = new Set(face.lacks);
      layer.at = new Map(layer.units.map((unit, position) => [unit, position]));
    }
    return layers.get(alias);
  };
  const unitOf = async (layer, position) => {
    const number = Math.floor(position / layer.chunk);
    const key = `${layer.alias} ${number}`;
    if (!chunks.has(key)) await load(`${layer.alias}/units_${String(number).padStart(3, "0")}.js`);
    return chunks.get(key)[position % layer.chunk];
  };

  const flowOf = async (layer, position) => { // null if the gallery was made without weights
    if (!run.flowing.includes(layer.alias)) return null;
    const number = Math.floor(position / layer.chunk);
    const key = `${layer.alias} ${number}`;
    if (!flows.has(key)) await load(`${layer.alias}/flow_${String(number).padStart(3, "0")}.js`);
    const { about, facts } = flows.get(key);
    return { about, ...facts[position % layer.chunk] };
  };

  // which units, in which order

  const kept = (layer) => {
    const text = state.filter.trim().toLowerCase();
    const every = layer.units.map((_, position) => position);
    if (!text) return every;
    const labels = new Set();
    run.classes.forEach((name, label) => { if (name.toLowerCase().includes(text)) labels.add(label); });
    return every.filter((position) => (layer.classes?.[position] ?? []).some((label) => labels.has(label))
      || layer.labels?.[position].toLowerCase().includes(text) || String(layer.units[position]) === text);
  };
  const sorted = (layer, positions) => {
    const { of, rank } = SORTS[state.sort];
    if (rank) return positions.sort((a, b) => rank[layer.outcome[a]] - rank[layer.outcome[b]] || a - b);
    const values = of && layer[of];
    const value = (position) => values[position] ?? -Infinity;
    return values ? positions.sort((a, b) => (value(b) === value(a) ? a - b : value(b) - value(a))) : positions;
  };
  const ordered = (layer) => {
    const wanted = `${state.sort} ${state.filter}`;
    if (layer.wanted !== wanted) {
      layer.wanted = wanted;
      layer.order = sorted(layer, kept(layer));
    }
    return layer.order;
  };

  // a layer

  const tileOf = (layer, position) => {
    const unit = layer.units[position];
    const under = make("span", { class: "under" }, make("span", { class: "number" }, String(unit)), make("bdi"));
    const called = layer.labels?.[position];
    const node = make("a", { href: `#${layer.alias}/${padded(unit)}`, tabindex: -1, title: called },
      facePicture(layer, position, faceOf(layer)), called && make("bdi", { class: "called" }, called), under);
    node.position = position;
    return node;
  };
  const showTiles = (layer) => {
    const grid = byId("grid");
    const order = ordered(layer);
    if (layer.shownFace !== faceOf(layer)) {
      layer.tiles = layer.units.map((_, position) => tileOf(layer, position));
      layer.shownFace = faceOf(layer);
    }
    const shownRatios = state.sort === "number" && layer.faces[faceOf(layer)]?.ratios;
    const value = shownRatios ? (_, position) => times(shownRatios[position]) : SORTS[state.sort].text;
    for (const position of order) {
      layer.tiles[position].lastChild.lastChild.textContent = value(layer, position);
    }
    grid.replaceChildren(...order.map((position) => layer.tiles[position]));
    for (const tile of grid.children) {
      const picture = tile.firstChild;
      if (picture.fill) whenSeen(tile, () => { picture.fill(); picture.fill = null; });
    }
    const first = order.includes(layer.last) ? layer.last : order[0];
    if (known(first)) layer.tiles[first].tabIndex = 0;
    const found = order.length === layer.units.length ? many(order.length, "unit")
      : `${order.length.toLocaleString("en")} of ${many(layer.units.length, "unit")}`;
    byId("found").textContent = `${found}, with ${order.length === 1 ? "its" : "their"} ${told(layer, order)}`;
    byId("none").hidden = order.length > 0;
    byId("none").textContent = `No unit here is known to respond to “${state.filter}”.`;
    say(found);
  };

  const told = (layer, order) => {
    if (state.sort !== "number") return SORTS[state.sort].title.toLowerCase();
    if (layer.faces[faceOf(layer)]?.ratios) return SORTS.ratio.title.toLowerCase();
    return layer.max ? "maximum" : "outcome";
  };

  const choice = (title, options, value, change) => {
    const select = make("select", { "aria-label": title });
    for (const [key, text] of options) select.append(make("option", { value: key }, text));
    select.value = value;
    select.addEventListener("change", () => { change(select.value); keepAddress(); });
    return make("label", {}, title, select);
  };
  const filterField = (layer) => {
    const field = make("input", {
      type: "search", id: "filter", list: "classes", placeholder: "class, name, number", autocomplete: "off",
      "aria-label": "Filter by class or name", spellcheck: "false",
    });
    field.value = state.filter;
    let waiting = 0;
    field.addEventListener("input", () => {
      clearTimeout(waiting);
      waiting = setTimeout(() => { state.filter = field.value; keepAddress(); showTiles(layer); }, 80);
    });
    const names = make("datalist", { id: "classes" });
    for (const name of run.classes) names.append(make("option", { value: name }));
    return make("label", {}, "Filter", field, names);
  };

  const showLayer = (layer) => {
    const place = byId("layer");
    if (!SORTS[state.sort].rank && SORTS[state.sort].of && !layer[SORTS[state.sort].of]) state.sort = "number";
    const sorts = Object.entries(SORTS).filter(([, { of }]) => !of || layer[of]);
    const redo = () => showTiles(layer);
    const tools = make("div", { class: "tools", role: "group", "aria-label": "Sort and filter" },
      choice("Sort", sorts.map(([key, { title }]) => [key, title]), state.sort, (key) => { state.sort = key; redo(); }),
      layer.faces.length > 1 && choice("Show", layer.faces.map((face) => [paneName(face), paneName(face)]),
        paneName(layer.faces[faceOf(layer)]), (name) => { state.face = name; sizeGrid(layer); redo(); }) || "",
      filterField(layer),
      make("span", { class: "found", id: "found" }));
    place.replaceChildren(
      make("div", { class: "heading" }, make("h2", { tabindex: -1 }, layer.alias), make("p", {}, aboutLayer(layer))),
      tools,
      make("div", { class: "grid", id: "grid" }),
      make("p", { class: "nothing", id: "none", hidden: "" }));
    sizeGrid(layer);
    showTiles(layer);
  };
  const hasMap = (layer) => layer.map[0] * layer.map[1] > 1;
  const aboutLayer = (layer) => {
    const [height, width] = layer.field;
    const map = hasMap(layer) ? ` in a map of ${layer.map[0]} × ${layer.map[1]}` : "";
    return `${many(layer.units.length, "unit")} that see ${height} × ${width} pixels${map}`;
  };
  const sizeGrid = (layer) => {
    const tile = layer.faces[faceOf(layer)]?.tile ?? [GRID, GRID];
    const scale = enlarged(tile, GRID);
    const sizes = { "--wide": tile[1] * scale, "--high": tile[0] * scale, "--cell": Math.max(CELL, tile[1] * scale) };
    for (const [name, size] of Object.entries(sizes)) byId("grid").style.setProperty(name, `${size}px`);
  };

  // search over all layers

  const nearness = (text, name) => { // how well a name answers: 0 if it does not
    const at = name.indexOf(text);
    if (at < 0) return 0;
    if (name.length === text.length) return 1;
    return at === 0 ? 0.8 : /[^a-z0-9]/.test(name[at - 1]) ? 0.7 : 0.4;
  };
  const findUnits = (typed) => {
    const text = fold(typed).trim();
    if (!text) return [];
    const address = /^([a-z]+\d+)[\s/]+(\d+)$/.exec(text);
    const number = /^\d+$/.test(text) ? Number(text) : null;
    const classes = run.classes.map((name) => nearness(text, fold(name)));
    const found = [];
    run.layers.forEach((alias, depth) => {
      const { labels, classes: seen, k } = searched[alias];
      const { units } = run.listed[alias];
      const count = typeof units === "number" ? units : units.length;
      if (alias.startsWith(text)) found.push({ alias, unit: null, score: 100 + nearness(text, alias), depth, why: many(count, "unit") });
      if (address || known(number)) {
        const unit = known(number) ? number : Number(address[2]);
        const position = known(number) || address[1] === alias ? listedAt(alias, unit) : -1;
        if (position >= 0) found.push({ alias, unit, position, score: 50, depth, why: labels?.[position] ?? "" });
        return;
      }
      for (let position = 0; position < count; position += 1) {
        let [score, why] = [0, ""];
        if (labels?.[position]) [score, why] = [10 * nearness(text, fold(labels[position])), labels[position]];
        for (let i = 0; i < (seen?.[position].length ?? 0); i += 3) {
          const [label, often, rank] = seen[position].slice(i, i + 3);
          const here = classes[label] * (often + 0.5 / (rank + 1)) / k; // equal ones by the strongest image
          if (here > score) [score, why] = [here, `${often} of ${k} ${run.classes[label]}`];
        }
        if (score > 0) found.push({ alias, unit: typeof units === "number" ? position : units[position], position, score, depth, why });
      }
    });
    return found.sort((a, b) => b.score - a.score || b.depth - a.depth || a.unit - b.unit);
  };
  const showFound = () => {
    const found = findUnits(byId("find").value);
    const rows = found.slice(0, FOUND).map(({ alias, unit, position, why }) => {
      const name = unit === null ? alias : `${alias}/${padded(unit)}`;
      return make("li", {}, make("a", { href: `#${name}` },
        unit === null ? make("span", { class: "crop missing" }) : iconOf(alias, position, name),
        make("span", { class: "number" }, name), make("bdi", {}, why)));
    });
    byId("results").replaceChildren(...rows);
    const text = found.length > FOUND ? `The best ${FOUND} of ${found.length.toLocaleString("en")}.`
      : found.length ? many(found.length, "result") : byId("find").value.trim() ? "Nothing has that name." : "";
    byId("results-told").textContent = text;
  };
  const search = async (text) => {
    const dialog = byId("search");
    if (!dialog.open) dialog.showModal();
    if (byId("find").value !== text) byId("find").value = text;
    state.find = text;
    keepAddress();
    if (!searched) await load("search.js").catch(() => {});
    if (searched) showFound();
    else byId("results-told").textContent = "search.js cannot be read. Make the gallery again.";
  };
  const prepareSearch = () => {
    const dialog = byId("search");
    byId("open-search").addEventListener("click", () => search(""));
    byId("find").addEventListener("input", () => search(byId("find").value));
    dialog.addEventListener("close", () => { state.find = null; keepAddress(); });
    dialog.addEventListener("click", (event) => {
      if (event.target === dialog) dialog.close();
      if (event.target.closest?.("a")) state.find = null; // the address that it leads to has none
    });
    dialog.addEventListener("keydown", (event) => {
      event.stopPropagation(); // keys in it are not the page's
      const links = [...byId("results").querySelectorAll("a")];
      const here = links.indexOf(document.activeElement);
      if (event.key === "Escape") dialog.close(); // which would empty the field first
      else if (event.key === "Enter" && here < 0) links[0]?.click();
      else if (event.key === "ArrowDown") links[Math.min(here + 1, links.length - 1)]?.focus();
      else if (event.key === "ArrowUp") (here > 0 ? links[here - 1] : byId("find")).focus();
      else return;
      event.preventDefault();
    });
  };

  // a unit

  const sheetOf = (layer, position) => { // the file of a unit's pictures: its address, size, and where they begin
    const { suffix, units, size: [height, width] } = layer.sheet;
    const chunk = Math.floor(position / layer.chunk) * layer.chunk;
    const first = chunk + Math.floor((position - chunk) / units) * units;
    const last = Math.min(first + units, chunk + layer.chunk, layer.units.length) - 1;
    const url = `${layer.alias}/${padded(layer.units[first])}.${suffix}`;
    return { url, size: [(last + 1 - first) * height, width], top: (position - first) * height, first, last };
  };
  const blockOf = (layer, position, unit, pane, flow) => {
    const columns = pane.kind === "intervals" ? 4 : Math.ceil(Math.sqrt(pane.count));
    const most = (3 * PANE) / Math.min(3, columns); // few pictures are larger
    const scale = enlarged(pane.tile, most);
    const block = make("div", { class: "block" });
    block.style.setProperty("--columns", columns);
    block.style.setProperty("--wide", `${Math.min(most, pane.tile[1] * scale)}px`);
    block.style.setProperty("--shape", `${pane.tile[1]} / ${pane.tile[0]}`);
    const { url, size, top } = sheetOf(layer, position);
    const pictures = [];
    for (let i = 0; i < pane.count; i += 1) {
      const { name, text, note, mark } = aboutPicture(layer, position, unit, pane, i);
      if (name === null) continue;
      const picture = make("span", { class: `crop${scale > 1 ? " sharp" : ""}`, role: "img", "aria-label": name, title: note });
      const place = [i * pane.cell[1], top + pane.top, pane.tile[1], pane.tile[0]];
      whenSeen(picture, () => crop(picture, url, place, size));
      const button = make("button", { type: "button", class: "zoom" }, picture);
      const stood = { patches: unit.top, projections: unit.top, lowest: unit.lowest }[pane.kind]?.[i]; // its place in an image
      const map = pane.kind !== "lowest" && stood && flow?.maps?.[i];
      const found = isPart(stood, layer) ? stood : null;
      const reduced = pane.kind !== "projections" && Math.max(...pane.tile) < Math.max(...pane.size);
      const fine = reduced && stood ? { found: stood, pane } : null;
      const nth = pictures.push({ url, place, size, name, text: note, found, fine, map: map && found && [layer, map] }) - 1;
      button.addEventListener("click", () => zoom(pictures, nth));
      if (map) button.append(maskOf(layer, map, stood.slice(4)));
      const cell = make("div", { "data-rank": mark }, button, make("bdi", { class: "text", title: note }, text));
      block.append(cell);
    }
    return block.children.length ? block : null;
  };
  const isPart = (found, layer) => found && (hasMap(layer) || found[6] - found[4] < layer.field[0] || found[7] - found[5] < layer.field[1]);
  const zoom = (pictures, first) => {
    let at = first;
    const stage = make("div", { class: "stage" });
    const [before, after, closing] = ["← previous", "next →", "Close"].map((text) => make("button", { type: "button" }, text));
    const note = make("bdi");
    const dialog = make("dialog", {}, stage, make("p", {}, note, make("span", { class: "keyed" }, before, after, closing)));
    const enlarge = ({ url, place, size, name, text, found, fine, map }) => {
      const most = Math.min(innerWidth * 0.9, innerHeight * 0.78, found ? innerWidth * 0.42 : Infinity, 800);
      const [height, width] = fine?.pane.size ?? [place[3], place[2]];
      const scale = Math.max(width, height) > most ? most / Math.max(width, height) : enlarged([height, width], most);
      const picture = make("span", { class: `crop${scale > 1 ? " sharp" : ""}`, role: "img", "aria-label": name });
      picture.style.setProperty("--wide", `${width * scale}px`);
      picture.style.setProperty("--shape", `${width} / ${height}`);
      crop(picture, url, place, size);
      if (fine) refine(picture, fine);
      stage.replaceChildren(picture, ...(found ? [wholeOf(found, map)] : []));
      dialog.setAttribute("aria-label", name);
      note.textContent = text;
      [before.disabled, after.disabled] = [at === 0, at === pictures.length - 1];
      say(name);
    };
    const step = (by) => {
      if (!pictures[at + by]) return;
      at += by;
      enlarge(pictures[at]);
    };
    before.addEventListener("click", () => step(-1));
    after.addEventListener("click", () => step(1));
    closing.addEventListener("click", () => dialog.close());
    dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
    dialog.addEventListener("close", () => dialog.remove());
    dialog.addEventListener("keydown", (event) => {
      event.stopPropagation();
      if (event.key === "ArrowLeft") step(-1);
      if (event.key === "ArrowRight") step(1);
    });
    document.body.append(dialog);
    enlarge(pictures[at]);
    dialog.showModal();
  };
  const maskOf = (layer, [wide, letters], window) => { // dark where the unit is low; over a window
    const levels = letters.replace(/[g-y]/g, (letter) => "0".repeat(letter.charCodeAt(0) - 101));
    const high = levels.length / wide;
    const canvas = make("canvas", { class: "mask", width: wide, height: high, "aria-hidden": "true" });
    const paint = canvas.getContext("2d");
    const pixels = paint.createImageData(wide, high);
    [...levels].forEach((level, i) => { pixels.data[4 * i + 3] = 225 * (1 - parseInt(level, 16) / 15); });
    paint.putImageData(pixels, 0, 0);
    const [top, left, bottom, right] = layer.covers;
    const place = (at, from, to) => `${(100 * (at - from)) / (to - from)}%`;
    Object.assign(canvas.style, {
      top: place(top, window[0], window[2]), left: place(left, window[1], window[3]),
      height: place(window[0] + bottom - top, window[0], window[2]),
      width: place(window[1] + right - left, window[1], window[3]),
    });
    return canvas;
  };
  const showPhotograph = async (node, image) => { // in a node; returns its size
      await load("photographs/photographs.js");
      const { images, size, tile, cell, sheet, columns } = whole;
      const position = images.indexOf(image);
      if (position < 0) throw new Error("a photograph");
      const number = Math.floor(position / sheet);
      const at = position % sheet;
      const count = Math.min(sheet, images.length - number * sheet);
      const place = [(at % columns) * cell[1], Math.floor(at / columns) * cell[0], tile[1], tile[0]];
      const sides = [Math.ceil(count / columns) * cell[0], Math.min(columns, count) * cell[1]];
      node.style.setProperty("--shape", `${size[1]} / ${size[0]}`);
      crop(node, `photographs/${String(number).padStart(4, "0")}.jpg`, place, sides);
      return size;
  };
  const refine = async (picture, { found: [, , , image, ...box], pane }) => { // a patch, from the whole photograph
    const inside = make("span", { class: "crop", "aria-hidden": "true" });
    const size = await showPhotograph(inside, image).catch(() => null);
    const [top, left, bottom, right] = box;
    if (!size || (whole.tile[0] * (bottom - top)) / size[0] <= pane.tile[0]) return; // no finer
    const share = (pixels, all) => `${(100 * pixels) / all}%`;
    Object.assign(inside.style, { position: "absolute", top: share(-top, bottom - top), left: share(-left, right - left),
      height: share(size[0], bottom - top), width: share(size[1], right - left) });
    Object.assign(picture.style, { position: "relative", overflow: "hidden", backgroundImage: "none" });
    picture.append(inside);
  };
  const wholeOf = ([, , file, image, ...box], map) => { // the photograph, with the window in a frame
    const node = make("span", { class: "crop whole", role: "img", "aria-label": `the whole photograph ${file}` });
    showPhotograph(node, image).then((size) => {
      const frame = make("span", { class: "frame" });
      const [top, left, bottom, right] = box;
      const share = (pixels, all) => `${(100 * pixels) / all}%`;
      Object.assign(frame.style, { top: share(top, size[0]), left: share(left, size[1]),
        height: share(bottom - top, size[0]), width: share(right - left, size[1]) });
      node.append(frame);
      if (map) node.append(maskOf(...map, [0, 0, ...size]));
    }).catch(() => node.remove()); // made without them
    return node;
  };
  const aboutPicture = (layer, position, unit, pane, i) => {
    const title = `${layer.alias}/${padded(layer.units[position])}`;
    if (pane.kind === "optimized") {
      const found = unit.runs?.[pane.name]?.[i];
      if (!found) return { name: null };
      const best = unit.runs[pane.name][0][1]; // of which the ratio is known
      const ratio = known(unit.ratios?.[pane.name]) && best ? (unit.ratios[pane.name] * found[1]) / best : null;
      const reaches = known(ratio) ? `, ${asTimes(ratio)}` : "";
      return {
        name: `${title}, optimized, style ${pane.name}, run ${found[0] + 1}`,
        text: known(ratio) ? `${short(found[1])} · ${times(ratio)}` : short(found[1]),
        note: `run ${found[0] + 1}: ${short(found[1])} after ${found[3]} steps${reaches}, ${OUTCOMES[found[4]]}`,
      };
    }
    if (pane.kind === "intervals") {
      const [interval, shown] = unit.intervals?.[Math.floor(i / 2)] ?? ["", []];
      const weaker = shown[i % 2];
      if (!weaker) return { name: null };
      return { name: `${title}, ${interval}, ${className(weaker[1]) || weaker[2]}`, text: i % 2 ? short(weaker[0]) : `${interval}: ${short(weaker[0])}`, note: `${interval}: ${weaker[2]}: ${short(weaker[0])}` };
    }
    const found = (pane.kind === "lowest" ? unit.lowest : unit.top)?.[i];
    if (!found) return { name: null };
    const called = className(found[1]);
    const note = `${found[2]}: ${short(found[0])}`;
    if (pane.kind === "lowest") return { name: `${title}, lowest patch ${i + 1}${called ? `, ${called}` : ""}`, text: short(found[0]), note };
    if (pane.kind === "patches") {
      return { name: `${title}, patch ${i + 1}${called ? `, ${called}` : ""}`, text: called || found[2], note, mark: i };
    }
    return { name: `${title}, ${pane.name} projection ${i + 1}`, text: short(found[0]), note, mark: i };
  };
  const paneTitle = (pane) => ({
    optimized: ["Optimized", `style ${pane.name}`],
    patches: ["Strongest in images", `${pane.size[0]} × ${pane.size[1]} pixels`],
    projections: ["What caused it", pane.name],
    lowest: ["Lowest in images", `${pane.size[0]} × ${pane.size[1]} pixels`],
    intervals: ["Over its whole range", "weaker images of the sample"],
  })[pane.kind];

  const section = (title, ...children) => make("section", {}, make("h3", {}, title), ...children);
  const list = (pairs) => {
    const found = make("dl");
    for (const [term, value] of pairs) found.append(make("dt", {}, term), make("dd", {}, value));
    return found;
  };
  const numbers = (unit) => {
    if (!unit.stats) return null;
    const { max, mean, std, active, selectivity } = unit.stats;
    const favourite = className(unit.stats.class);
    const values = [["maximum", short(max)], ["mean", short(mean)], ["standard deviation", short(std)],
      ["share above 0", percent(active)], ["class selectivity", fixed(selectivity)]];
    return section("Over all images", helpOf(HELP.selectivity), list(values),
      favourite && make("p", { class: "end" }, "Highest mean for ", make("bdi", {}, favourite), ".") || "",
      unit.stats.dead && make("p", { class: "end" }, "Never above 0: a dead unit.") || "");
  };
  const ascents = (unit) => {
    const styles = Object.entries(unit.runs ?? {}).filter(([, runs]) => runs.length);
    if (!styles.length) return null;
    const table = make("table", {}, make("tr", {}, ...["style", "best", "× best photograph", "at step"].map((t) => make("th", { scope: "col" }, t))));
    for (const [style, [[, value, , step]]] of styles) {
      const ratio = times(unit.ratios?.[style]).replace(" ×", "");
      table.append(make("tr", {}, make("td", {}, style), make("td", {}, short(value)), make("td", {}, ratio), make("td", {}, String(step))));
    }
    const ends = styles.map(([style, runs]) => `style ${style} ${OUTCOMES[runs[0][4]]}`);
    const words = new Set(styles.map(([, runs]) => runs[0][4]));
    const end = words.size === 1 ? `On its best image it ${OUTCOMES[styles[0][1][0][4]]}.` : `On their best images: ${ends.join("; ")}.`;
    return section("Optimized", helpOf(HELP.optimized), table, make("p", { class: "end" }, words.has(3) && words.size === 1 ? "No gradient reached the image: nothing that feeds the unit is active." : end));
  };
  const named = (unit) => {
    if (!unit.named && !unit.scores) return null;
    const number = (text) => short(text === "" || text === "nan" ? null : Number(text));
    const parts = [];
    if (unit.named) {
      const { name, area, error, chance, best, score, clip } = unit.named;
      const found = clip ? ["its soft-WPMI", score] : ["area under its ROC curve", area];
      parts.push(list([["name", make("bdi", {}, name)], [clip ? "best word" : "best class", make("bdi", {}, best)],
        [found[0], `${number(found[1])} ± ${number(error)}`], ["as large by chance", number(chance)],
        ...(clip ? [["by", make("bdi", {}, clip)]] : [])]));
    }
    if (unit.scores) {
      const table = make("table", {}, make("tr", {}, ...["explanation", "score", "±", "control"].map((t) => make("th", { scope: "col" }, t))));
      for (const [explanation, ...rest] of unit.scores) table.append(make("tr", {}, make("td", {}, explanation), ...rest.map((text) => make("td", {}, number(text)))));
      parts.push(table);
    }
    const about = unit.named?.clip ? HELP.word : HELP.name;
    const title = unit.scores ? (unit.named ? "Name and score" : "Score") : "Name";
    return section(title, helpOf(unit.scores ? `${about} ${HELP.score}` : about), ...parts);
  };
  const breakdown = (unit) => {
    if (!unit.breakdown?.length) return null;
    const bars = make("ul", { class: "bars" });
    for (const [label, mean, count] of unit.breakdown) {
      const bar = make("span");
      bar.style.width = `${(100 * mean) / unit.breakdown[0][1]}%`;
      bars.append(make("li", { title: `${className(label)}: ${short(mean)} on average over ${count} images` }, make("bdi", {}, className(label)), make("span", { class: "bar" }, bar), make("span", { class: "many" }, short(mean))));
    }
    return section("Classes over the sample", helpOf(HELP.breakdown), bars);
  };
  const barsOf = ([low, high, counts], said) => { // a picture and the scale below it
    const most = Math.log1p(Math.max(...counts));
    const picture = drawn("svg", { class: "histogram", viewBox: `0 0 ${counts.length} 100`, preserveAspectRatio: "none", role: "img" });
    picture.setAttribute("aria-label", `histogram of ${said[0]} from ${short(low)} to ${short(high)}; ${said.slice(1).join("; ")}`);
    counts.forEach((count, i) => {
      const height = (100 * Math.log1p(count)) / most;
      const middle = low + ((i + 0.5) * (high - low)) / counts.length;
      if (count) picture.append(drawn("rect", { class: middle > 0 ? "bar on" : "bar", x: i + 0.06, y: 100 - height, width: 0.88, height }));
    });
    picture.append(drawn("line", { class: "axis", x1: 0, x2: counts.length, y1: 100, y2: 100 }));
    if (low < 0 && high > 0) {
      const zero = (counts.length * -low) / (high - low);
      picture.append(drawn("line", { class: "zero", x1: zero, x2: zero, y1: 0, y2: 100 }));
    }
    return [picture, make("p", { class: "scale" }, make("span", {}, short(low)), make("span", {}, short(high)))];
  };
  const maxima = (unit) => (unit.maxima ? section("Largest value per image", helpOf(HELP.maxima),
    ...barsOf(unit.maxima, ["largest values per image"]), make("p", { class: "end" }, "Counts of the sample's images, on a logarithmic scale.")) : null);
  const histogram = (unit) => {
    if (!unit.bars) return null;
    const quantiles = (unit.quantiles ?? []).map(([share, value]) => `${percent(share)} are below ${short(value)}`);
    return section("Histogram", helpOf(HELP.histogram), ...barsOf(unit.bars, ["activations", ...quantiles]), make("p", { class: "end" }, `Counts of up to 8 places per image, on a logarithmic scale. ${quantiles.length ? `${quantiles.join(", ")}.` : ""}`));
  };
  const classes = (unit, layer) => {
    if (!unit.classes?.length) return null;
    const bars = make("ul", { class: "bars" });
    for (const [label, count] of unit.classes.slice(0, 9)) {
      const bar = make("span");
      bar.style.width = `${(100 * count) / Math.max(1, layer.k)}%`;
      bars.append(make("li", {}, make("bdi", { title: className(label) }, className(label)), make("span", { class: "bar" }, bar), make("span", { class: "many" }, String(count))));
    }
    const rest = unit.classes.length - 9;
    return section(`Classes of its ${layer.k} strongest images`, helpOf(HELP.classes), bars, rest > 0 ? make("p", { class: "end" }, `and ${many(rest, "more class").replace("classs", "classes")}`) : "");
  };
  const neighbours = (unit, layer) => {
    if (!unit.near?.length) return null;
    const near = make("div", { class: "near" });
    for (const [other, shared] of unit.near) {
      const name = layer.labels?.[layer.at.get(other)] || "";
      near.append(make("a", { href: `#${layer.alias}/${padded(other)}`, title: name },
        iconOf(layer.alias, layer.at.get(other), [`${layer.alias}/${padded(other)}`, name].filter(Boolean).join(", ")),
        make("span", { class: "under" }, make("span", { class: "number" }, String(other)), name && make("bdi", {}, name), make("span", {}, `${shared} of ${layer.k}`))));
    }
    return section("Shares top images with", helpOf(HELP.shares), near);
  };

  // where it comes from and leads to

  const kernelOf = (wide, letters) => { // red adds, blue takes away
    const high = letters.length / wide;
    const size = Math.max(2, Math.floor(24 / Math.max(wide, high)));
    const picture = drawn("svg", { class: "kernel", viewBox: `0 0 ${wide} ${high}`, width: wide * size, height: high * size, "aria-hidden": "true" });
    [...letters].forEach((letter, i) => {
      const level = (letter.charCodeAt(0) - 106) / 9;
      picture.append(drawn("rect", { class: level > 0 ? "adds" : "takes", x: i % wide, y: Math.floor(i / wide), width: 1.02, height: 1.02, opacity: Math.abs(level).toFixed(2) }));
    });
    return picture;
  };
  const connections = (title, help, rows, text) => {
    if (!rows?.length) return null;
    const lists = [rows.filter((row) => row[2] > 0), rows.filter((row) => row[2] < 0)].filter((each) => each.length);
    return make("div", { class: "connected" }, make("h4", {}, title, helpOf(help)), make("div", { class: "signs" },
      ...lists.map((each) => make("ul", {}, ...each.map(([alias, unit, value, wide, letters]) => {
        const name = `${alias}/${padded(unit)}`;
        return make("li", {}, make("a", { href: `#${name}` }, iconOf(alias, listedAt(alias, unit), name),
          make("span", {}, make("span", { class: "number" }, name), make("span", { class: value > 0 ? "adds" : "takes" }, text(value))),
          letters ? kernelOf(wide, letters) : ""));
      })))));
  };
  const signed = (value) => `${value > 0 ? "+" : ""}${short(value)}`;
  const shareOf = (value) => `${value > 0 ? "+" : "−"}${percent(Math.abs(value))}`;
  const connected = (flow) => {
    if (!flow) return null;
    const { about } = flow;
    const lists = [
      connections("Fed by, in its top images", HELP.parts, flow.parts, signed),
      connections("Fed by, by weight", HELP.weights, flow.weights, shareOf),
      connections("Feeds", HELP.feeds, flow.to, shareOf),
    ].filter(known);
    const notes = [];
    if (about.first) notes.push("The layer sees the image itself.");
    else if (!about.wired) notes.push("What feeds this layer cannot be told unit by unit: channels are mixed on the way.");
    if (about.others?.length) notes.push(`The same channels are also written by ${about.others.join(", ")}.`);
    if (about.unknown) notes.push(`${many(about.unknown, "input")} of the layer could not be followed.`);
    if (about.wired && about.images && !flow.traced) notes.push("None of its images was run through the network.");
    return lists.length + notes.length === 0 ? null : section("Where it comes from", ...lists, notes.length ? make("p", { class: "end" }, notes.join(" ")) : "");
  };

  // one sentence for each term

  const HELP = {
    parts: "What each unit of the layer before adds to this unit's value at its strongest places, on average: weight times what reaches it. All of them and the bias sum to the value.",
    weights: "Share of all its weights, summed over the kernel (drawn: red adds, blue takes away), with the scale of a batch normalisation between and all rectifiers open.",
    breakdown: "Mean of the unit's largest value in each image, values below 0 counted as 0, over the images of a class in the sample; classes with one image are left out.",
    word: "The word of a list that fits the unit's strongest images best, by CLIP; chance is the share of shuffled images whose best word fits as well.",
    name: "The class that the unit's values separate best from all other images; chance is the share of shuffled images whose best class is separated as well.",
    score: "How well pictures tell two images apart by the unit's value: 0.5 for chance, 1 at best; the control has the values shuffled.",
    selectivity: "(a − b) / (a + b): a is the mean over the images of the class that activates it most, b that of the other classes; 1 for a unit of a single class.",
    shares: "Units of this layer whose strongest images are most often the same, and how many they share with this one.",
    classes: "How many of its strongest images are of each class.",
    "of optimized": "The image that raises the unit's value most, by gradient ascent in this style; below it its value, and how many times that of the best photograph this is.",
    "of patches": "Where the unit's value is largest, one place per image; what is outside the image is grey.",
    "of projections": "What in each patch the unit responds to: its value, led back to the image by this method.",
    "of lowest": "Where the unit's value is lowest, one place per image.",
    "of intervals": "Images of the sample whose largest value is lower: what the unit responds to less.",
    maxima: "How often each value is the unit's largest in an image of the sample; bars above 0 are in colour.",
    histogram: "How often each value occurs, over up to 8 places of each image; bars above 0 are in colour.",
    optimized: "The largest value of its optimized images, and how many times the value of the best photograph that is.",
    feeds: "Units of later layers in whose weights this unit has the largest share, of either sign.",
  };
  const helpOf = (text) => {
    const button = make("button", { type: "button", class: "help", "aria-label": "What is this?", "aria-expanded": "false" }, "?");
    const told = make("span", { class: "told", hidden: "" }, text);
    button.addEventListener("click", () => {
      told.hidden = !told.hidden;
      button.setAttribute("aria-expanded", String(!told.hidden));
    });
    const both = document.createDocumentFragment();
    both.append(" ", button, told);
    return both;
  };

  const sentence = (unit, layer, position) => {
    const parts = [];
    const [first] = unit.classes ?? [];
    if (unit.stats?.dead) parts.push("Never above 0 in any image.");
    else if (first?.[1] === 1 && unit.classes.length > 1) {
      parts.push(`Its ${layer.k} strongest images are of ${unit.classes.length} classes.`);
    } else if (first) {
      const called = make("bdi", {}, className(first[0]));
      parts.push(`${first[1] === layer.k ? "All" : first[1]} of its ${layer.k} strongest images show `, make("i", {}, called), ".");
    }
    if (known(unit.stats?.active) && !unit.stats.dead) parts.push(` Above 0 in ${percent(unit.stats.active)} of all ${hasMap(layer) ? "places" : "images"}.`);
    if (unit.ties) parts.push(` ${unit.ties} of its strongest places have the same value as another; these are in the order of the images.`);
    const best = Object.entries(unit.ratios ?? {}).sort((a, b) => b[1] - a[1])[0];
    if (best) parts.push(` Its image in style ${best[0]} reaches ${asTimes(best[1])}.`);
    if (layer.outcome[position]) parts.push(` In its optimized image it ${OUTCOMES[layer.outcome[position]]}.`.replace("it no gradient reaches it", "no gradient reaches it"));
    return parts;
  };

  const save = (blob, name) => {
    const url = URL.createObjectURL(blob);
    make("a", { href: url, download: name }).click();
    setTimeout(() => URL.revokeObjectURL(url), 10000);
  };
  const downloading = (layer, position) => { // a unit's pictures; on a disk, where pages may not read, all in their file
    const { url, top, first, last } = sheetOf(layer, position);
    const [from, to, own] = [first, last, position].map((at) => padded(layer.units[at]));
    const several = last > first;
    const link = make("a", {
      href: url, download: `${layer.alias}-${from}${several ? `-${to}` : ""}.${layer.sheet.suffix}`,
      title: several ? `from a web server this unit's pictures, from a disk those of ${layer.alias}/${from} to ${to}` : null,
    }, "download");
    link.addEventListener("click", async (event) => {
      if (!several || location.protocol === "file:") return;
      event.preventDefault();
      const image = new Image();
      image.src = url;
      await image.decode();
      const [height, width] = layer.sheet.size;
      const canvas = make("canvas", { width, height });
      canvas.getContext("2d").drawImage(image, 0, -top);
      canvas.toBlob((blob) => save(blob, `${layer.alias}-${own}.png`), "image/png");
    });
    return link;
  };
  const copying = () => { // the page's address, with the view
    const button = make("button", { type: "button", class: "plain" }, "copy link");
    button.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(location.href);
        button.textContent = "copied";
      } catch { // a page that may not write to the clipboard
        button.textContent = "copy it from the address bar";
      }
      say(button.textContent);
    });
    return button;
  };
  const showUnit = async (layer, position) => {
    const unit = await unitOf(layer, position);
    const flow = await flowOf(layer, position);
    if (state.alias !== layer.alias || state.unit !== layer.units[position]) return; // the page has moved on meanwhile
    const order = ordered(layer).includes(position) ? ordered(layer) : layer.units.map((_, i) => i);
    const here = order.indexOf(position);
    const step = (text, other, rel) => (known(other)
      ? make("a", { href: `#${layer.alias}/${padded(layer.units[other])}`, rel }, text) : "");
    const number = padded(layer.units[position]);
    const head = make("div", { class: "unit-head" },
      make("h2", { tabindex: -1 }, make("a", { href: `#${layer.alias}` }, layer.alias), make("span", { class: "slash" }, "/"), number,
        layer.labels?.[position] ? " " : "", layer.labels?.[position] ? make("bdi", {}, layer.labels[position]) : ""),
      make("nav", { class: "steps", "aria-label": "Units" }, step("← previous", order[here - 1], "prev"),
        make("span", {}, `${here + 1} of ${order.length.toLocaleString("en")}`), step("next →", order[here + 1], "next"),
        layer.sheet.panes.length ? downloading(layer, position) : "", copying(), make("a", { href: `#${layer.alias}` }, "close ×")));
    const panes = make("div", { class: "panes" });
    for (const pane of layer.sheet.panes) {
      const block = blockOf(layer, position, unit, pane, flow);
      const [title, note] = paneTitle(pane);
      if (block) panes.append(make("figure", { class: "pane" }, make("figcaption", {}, title, " ", make("span", {}, note), helpOf(HELP[`of ${pane.kind}`])), block));
    }
    const count = panes.children.length;
    if (count && count < 3) panes.classList.add(count === 1 ? "one" : "two"); // there is room for larger ones
    if (!count) panes.append(make("p", { class: "nothing" }, "There is no picture of this unit."));
    const facts = make("aside", { class: "facts", "aria-label": "Numbers" },
      ...[classes(unit, layer), breakdown(unit), named(unit), neighbours(unit, layer), histogram(unit), maxima(unit), ascents(unit), numbers(unit)].filter(known));
    const circuit = connected(flow);
    if (circuit) circuit.classList.add("circuit");
    byId("unit").replaceChildren(head, make("p", { class: "said" }, ...sentence(unit, layer, position)),
      panes, ...(circuit ? [circuit] : []), facts);
    layer.last = position;
    say(`${layer.alias}/${number}`);
  };
  const mark = (event) => {
    const rank = event.type === "mouseover" ? event.target.closest("[data-rank]")?.dataset.rank : undefined;
    for (const cell of byId("unit").querySelectorAll("[data-rank]")) {
      cell.classList.toggle("same", known(rank) && cell.dataset.rank === rank);
    }
  };

  // the quiz: answers stay in the browser

  const stored = (name, value) => {
    try {
      if (known(value)) localStorage.setItem(name, value);
      return localStorage.getItem(name);
    } catch {
      return null; // a page on disk may have no storage: answers last until it is left
    }
  };
  const answers = () => {
    if (!quiz.answers) {
      let found = [];
      try { found = JSON.parse(stored(`cnnvis-quiz ${quiz.key}`) ?? "[]"); } catch { /* not ours */ }
      const sides = Array.isArray(found) ? found : [];
      quiz.answers = sides.slice(0, quiz.questions.length).map((side) => (side === "left" ? "left" : "right"));
    }
    return quiz.answers;
  };
  const keepAnswers = (given) => {
    quiz.answers = given;
    stored(`cnnvis-quiz ${quiz.key}`, JSON.stringify(given));
    go();
  };
  const answer = (side) => {
    if (quiz && answers().length < quiz.questions.length) keepAnswers([...answers(), side]);
  };
  const table = () => { // a TSV of what was answered
    const rows = [["unit", "explanation", "left", "right", "chosen", "right_answer"]];
    answers().forEach((chosen, i) => {
      const [alias, unit, pane, , , right, ...names] = quiz.questions[i];
      const { kind, name } = layers.get(alias).sheet.panes[pane];
      rows.push([`${alias}/${padded(unit)}`, [kind, name].filter(Boolean).join(" "), ...names, chosen, right]);
    });
    return rows.map((row) => `${row.map((text) => text.replace(/[\u0000-\u001f]/g, " ")).join("\t")}\n`).join("");
  };
  const downloadTable = async () => {
    for (const [alias] of quiz.questions.slice(0, answers().length)) await layerOf(alias);
    save(new Blob([table()], { type: "text/tab-separated-values" }), "quiz.tsv");
  };
  const quizTools = () => {
    const given = answers().length;
    const saving = make("button", { type: "button", disabled: given === 0 && "" }, "Download answers (TSV)");
    saving.addEventListener("click", downloadTable);
    const back = make("button", { type: "button", disabled: given === 0 && "" }, "Take the last one back");
    back.addEventListener("click", () => keepAnswers(answers().slice(0, -1)));
    const anew = make("button", { type: "button", disabled: given === 0 && "" }, "Start anew");
    anew.addEventListener("click", () => keepAnswers([]));
    return make("p", { class: "quiz-tools" }, saving, back, anew);
  };
  const result = () => {
    const right = answers().filter((chosen, i) => chosen === quiz.questions[i][5]).length;
    const text = `${right} of ${answers().length} are right; chance is half of them.`;
    byId("quiz").replaceChildren(make("h2", { tabindex: -1 }, "Quiz"), make("p", { class: "lede" }, text), quizTools());
    say(text);
  };
  const showQuiz = async () => {
    const at = answers().length;
    if (at === quiz.questions.length) { result(); return; }
    const [alias, number, paneNumber, left, right] = quiz.questions[at];
    const layer = await layerOf(alias);
    const position = layer.at.get(number);
    const unit = await unitOf(layer, position);
    if (!state.quiz || answers().length !== at) return; // the page has moved on while loading
    const pane = layer.sheet.panes[paneNumber];
    const choices = make("div", { class: "choices" });
    for (const [side, image, text] of [["left", left, "← left"], ["right", right, "right →"]]) {
      const picture = make("span", { class: "crop", role: "img", "aria-label": `the ${side} photograph` });
      const button = make("button", { type: "button" }, picture, make("span", {}, text));
      button.addEventListener("click", () => answer(side));
      choices.append(button);
      showPhotograph(picture, image).then((size) => {
        picture.style.setProperty("--shape", `${size[1]} / ${size[0]}`);
      }).catch(() => { picture.textContent = "cannot be read"; });
    }
    const shown = { optimized: `the images that it prefers, style ${pane.name}`, patches: "its strongest places in images" }[pane.kind];
    byId("quiz").replaceChildren(
      make("h2", { tabindex: -1 }, "Quiz"),
      make("p", {}, `Question ${at + 1} of ${quiz.questions.length}. A unit of ${alias}, and ${shown}. Which of the two photographs drives it more?`),
      make("div", { class: "asked" }, blockOf(layer, position, unit, pane, null) ?? "", choices), quizTools());
    say(`Question ${at + 1} of ${quiz.questions.length}`);
  };

  // from an address to the page

  const USUAL = { sort: "number", show: "", filter: "", find: null };
  const view = () => ({ sort: state.sort, show: state.face, filter: state.filter, find: state.find });
  const keepAddress = () => { // what is chosen is in the address: it can be reloaded and shared
    const asked = new URLSearchParams();
    for (const [name, value] of Object.entries(view())) if (value !== USUAL[name]) asked.set(name, value);
    const wanted = `#${location.hash.slice(1).split("?")[0]}${asked.size ? `?${asked}` : ""}`;
    if (wanted !== (location.hash || "#")) history.replaceState(null, "", wanted);
  };
  const takeView = (text) => {
    const asked = { ...USUAL, ...Object.fromEntries(new URLSearchParams(text)) };
    state.sort = Object.hasOwn(SORTS, asked.sort) ? asked.sort : USUAL.sort;
    [state.face, state.filter, state.find] = [asked.show, asked.filter, asked.find];
  };
  const address = () => {
    const [path, ...asked] = location.hash.slice(1).split("?");
    if (asked.length) takeView(asked.join("?"));
    let text = "";
    try { text = decodeURIComponent(path); } catch { /* no address of ours */ }
    const [alias, unit] = text.split("/");
    state.quiz = text === "quiz" && run.quiz;
    if (!run.layers.includes(alias)) return { alias: "", unit: null };
    return { alias, unit: /^\d+$/.test(unit ?? "") ? Number(unit) : null };
  };
  const reveal = (id) => {
    for (const name of ["overview", "layer", "unit", "quiz"]) byId(name).hidden = name !== id;
  };
  const titled = (text) => { document.title = [text, document.body.dataset.title].filter(Boolean).join(" · "); };

  const go = async () => {
    const before = { alias: state.alias, unit: state.unit };
    if (!before.unit && before.unit !== 0) state.scroll.set(before.alias, scrollY);
    Object.assign(state, address());
    keepAddress();
    for (const link of document.querySelectorAll("[data-layer]")) {
      link.removeAttribute("aria-current");
      if (link.dataset.layer !== state.alias) continue;
      link.setAttribute("aria-current", "page");
      const [side, own] = [link.closest(".side"), link.getBoundingClientRect()];
      side.scrollTop += Math.min(0, own.top - 12) + Math.max(0, own.bottom + 12 - side.clientHeight);
      const row = link.closest("ol"); // on narrow pages it is scrolled sideways
      row.scrollLeft = link.offsetLeft - row.offsetLeft - row.clientWidth / 2;
    }
    if (known(state.find)) search(state.find);
    else byId("search").close();
    try {
      await show(before);
    } catch (error) {
      reveal("layer");
      byId("layer").replaceChildren(make("p", { class: "nothing" }, `${error.message} cannot be read. Make the gallery again.`));
    }
  };
  const show = async (before) => {
    const { alias, unit } = state;
    if (state.quiz) {
      await load("quiz.js");
      if (!state.quiz) return;
      await showQuiz();
      reveal("quiz");
      titled("Quiz");
      scrollTo(0, 0);
      byId("quiz").querySelector("h2")?.focus({ preventScroll: true });
      return;
    }
    if (!alias) {
      reveal("overview");
      titled("");
      scrollTo(0, state.scroll.get("") ?? 0);
      return;
    }
    const layer = await layerOf(alias);
    if (state.alias !== alias || state.unit !== unit) return; // the page has moved on while loading
    const position = layer.at.get(unit);
    if (unit === null || position === undefined) {
      reveal("layer");
      titled(alias);
      showLayer(layer);
      const back = before.alias === alias;
      scrollTo(0, back ? state.scroll.get(alias) ?? 0 : 0);
      if (back && known(layer.last)) layer.tiles[layer.last].focus({ preventScroll: state.scroll.has(alias) });
      if (unit !== null) byId("found").textContent = `There is no unit ${unit} here.`;
      return;
    }
    await showUnit(layer, position);
    if (state.alias !== alias || state.unit !== unit) return;
    reveal("unit");
    titled(`${alias}/${padded(unit)}`);
    scrollTo(0, 0);
    byId("unit").querySelector("h2").focus({ preventScroll: true });
  };

  // keys

  const neighbour = (by) => {
    const layer = layers.get(state.alias);
    const order = ordered(layer);
    const here = order.indexOf(layer.at.get(state.unit));
    const next = here < 0 ? order[0] : order[here + by];
    if (known(next)) location.hash = `#${layer.alias}/${padded(layer.units[next])}`;
  };
  const stepLayer = (by) => {
    const here = run.layers.indexOf(state.alias);
    const next = run.layers[here < 0 ? (by > 0 ? 0 : run.layers.length - 1) : here + by];
    if (next) location.hash = `#${next}`;
  };
  const stepTile = (key) => {
    const tiles = [...byId("grid").children];
    if (!tiles.length) return;
    const columns = getComputedStyle(byId("grid")).gridTemplateColumns.split(" ").length;
    const by = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[key];
    const current = tiles.indexOf(document.activeElement);
    const next = current < 0 ? tiles.find((tile) => tile.tabIndex === 0) : tiles[current + by];
    if (!next) return;
    for (const tile of tiles) if (tile.tabIndex === 0) tile.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  };
  const stepStrip = (key) => {
    const rows = [...document.querySelectorAll("#overview .layer")].map((row) => [...row.querySelectorAll("a")]);
    const row = rows.findIndex((links) => links.includes(document.activeElement));
    if (row < 0) { rows[0]?.[0]?.focus(); return; }
    const column = rows[row].indexOf(document.activeElement);
    const to = { ArrowLeft: [row, column - 1], ArrowRight: [row, column + 1], ArrowUp: [row - 1, column], ArrowDown: [row + 1, column] }[key];
    const links = rows[to[0]];
    links?.[Math.min(to[1], links.length - 1)]?.focus();
  };
  const close = () => {
    const field = byId("filter");
    if (document.activeElement === field && field.value) {
      field.value = "";
      field.dispatchEvent(new Event("input"));
    } else if (state.quiz) location.hash = "#";
    else if (state.unit !== null) location.hash = `#${state.alias}`;
    else if (state.alias && document.activeElement !== field) location.hash = "#";
    else document.activeElement?.blur();
  };
  const press = (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
    const { key } = event;
    const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
    if (key === "Escape") { close(); event.preventDefault(); return; }
    if (typing) return;
    if (key === "[" || key === "]") stepLayer(key === "[" ? -1 : 1);
    else if (key === "/") search("");
    else if (key === "f" && byId("filter")?.checkVisibility()) byId("filter").focus();
    else if (state.quiz && (key === "ArrowLeft" || key === "ArrowRight")) {
      if (!event.repeat) answer(key === "ArrowLeft" ? "left" : "right");
    } else if (state.quiz && key.startsWith("Arrow")) return; // they scroll
    else if (key.startsWith("Arrow")) {
      if (state.unit !== null && layers.get(state.alias)?.at.has(state.unit)) {
        if (key === "ArrowUp" || key === "ArrowDown") return; // they scroll
        neighbour(key === "ArrowLeft" ? -1 : 1);
      } else if (state.alias) stepTile(key);
      else stepStrip(key);
    } else return;
    event.preventDefault();
  };

  // start

  document.addEventListener("DOMContentLoaded", () => {
    const toggle = byId("theme");
    const name = () => { toggle.textContent = isDark() ? "Light" : "Dark"; };
    toggle.addEventListener("click", () => {
      document.documentElement.dataset.theme = isDark() ? "light" : "dark";
      remembered(document.documentElement.dataset.theme);
      name();
    });
    name();
    prepareSearch();
    if (address().alias || state.quiz) reveal("layer"); // the strips of the first page are not needed
    Object.keys(run.strips).forEach(fillStrips);
    byId("skip").addEventListener("click", () => byId("main").focus());
    byId("unit").addEventListener("mouseover", mark);
    byId("unit").addEventListener("mouseleave", mark);
    document.addEventListener("keydown", press);
    addEventListener("beforeprint", () => document.querySelectorAll("section:not([hidden]) [data-waiting]").forEach(reveals));
    addEventListener("hashchange", go);
    history.scrollRestoration = "manual";
    go();
  });
})();
