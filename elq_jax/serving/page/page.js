// The page of the service. It links a text once, at the lowest threshold, and shows the links that
// are above that of the slider. Whatever the user or the catalogue wrote is set as textContent.

const COLOURS = 8;
const HOVER_MS = 90; // before the candidates of a link under the pointer are shown
const LEAVE_MS = 250; // before they close, so that the pointer can get to them
const [GAP, LEAST_ROOM, MOST_ROOM] = [6, 220, 400]; // pixels around the candidates, and of their height
const SETTLE_MS = 300; // after the last move of the slider, before it is announced or sent

const $ = (id) => document.getElementById(id);

const state = {
  linker: null, // what page/linker.json says
  answer: null, // the last answer: {text, links, truncated_at}
  colours: new Map(), // number of the colour of each row
  request: null, // AbortController of the request that is under way
  open: null, // the span whose candidates are shown
  timers: {},
};

// ---------- Pure functions ----------

/** Returns where each code point of a text begins in UTF-16 units, and the end: "🎉a" -> [0, 2, 3]. */
export function codeUnits(text) {
  const places = [0];
  for (const character of text) places.push(places.at(-1) + character.length);
  return places;
}

/** Returns a text as one word of a POSIX shell: it's -> 'it'\''s'. */
export function shellWord(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}

/** Returns a probability or share as people read it: 0.957 -> "96%". */
export function percent(value) {
  if (value >= 0.995) return ">99%";
  if (value < 0.005) return "<1%";
  return `${Math.round(value * 100)}%`;
}

/** Returns the links that POST /link gives at a value of the slider, of those at the lowest one. */
export function linksAt(links, name, value) {
  return name === "min_probability"
    ? links.filter((link) => link.probability >= value)
    : links.filter((link) => link.score > value);
}

/**
 * Returns the message for an answer that is an error.
 *
 * status: HTTP status. answer: the service's own {error, id}. retryAfter: seconds, or null.
 */
export function errorMessage(status, { error, id }, retryAfter) {
  const messages = {
    413: "This text is too long for the service. Shorten it.",
    429: `The service has too much to do. Try again in ${retryAfter ?? "a few"} seconds.`,
    500: `The service failed at this text.${id ? ` Its log says why, under the id ${id}.` : ""}`,
    503: "The service is not ready yet. Try again in a few seconds.",
    504: "The service did not answer in time. Try again, or try a shorter text.",
  };
  if (messages[status]) return messages[status];
  if (status < 500 && error) return `The service does not take this text: ${error}.`;
  return `The service answered with the status ${status}.`;
}

// ---------- What the buttons copy ----------

function requestBody() {
  return { text: state.answer.text, [state.linker.slider.name]: sliderValue() };
}

function asJson() {
  return JSON.stringify({ ...state.answer, links: shownLinks() }, null, 2);
}

function asCurl() {
  const body = shellWord(JSON.stringify(requestBody()));
  return `curl ${shellWord(address("link"))} \\\n  -H 'Content-Type: application/json' \\\n  -d ${body}\n`;
}

function asPython() {
  const { text, ...threshold } = requestBody();
  const [[name, value]] = Object.entries(threshold);
  // A string of JSON is a string of Python.
  return `import json
import urllib.request

question = {"text": ${JSON.stringify(text)}, "${name}": ${value}}
request = urllib.request.Request(
    ${JSON.stringify(address("link"))},
    data=json.dumps(question).encode(),
    headers={"Content-Type": "application/json"},
)
with urllib.request.urlopen(request) as response:
    answer = json.load(response)
for link in answer["links"]:
    print(link["start"], link["end"], link["mention"], link["title"], link["score"])
`;
}

async function copy(kind) {
  const text = { json: asJson, curl: asCurl, python: asPython }[kind]();
  const name = { json: "JSON", curl: "a curl command", python: "a Python program" }[kind];
  try {
    if (!copyOldWay(text)) await navigator.clipboard.writeText(text);
    $("copied").textContent = "Copied";
    say(`Copied as ${name}.`);
  } catch {
    $("copied").textContent = "The browser does not allow copying";
    say("The browser does not allow copying.");
  }
  later("copied", 2500, () => ($("copied").textContent = ""));
}

/** Copies where navigator.clipboard is missing: on pages that came over plain HTTP. */
function copyOldWay(text) {
  if (navigator.clipboard) return false;
  const area = document.createElement("textarea");
  area.value = text;
  area.className = "unseen";
  document.body.append(area);
  area.select();
  const copied = document.execCommand("copy");
  area.remove();
  if (!copied) throw new Error("not copied");
  return true;
}

// ---------- Requests ----------

const address = (path) => new URL(path, document.baseURI).href;

/** Links the text of the box and shows the result, or says in words why there is none. */
async function link() {
  const text = $("text").value;
  if (!text.trim()) {
    fail("Type a text first, or choose an example.");
    $("text").setAttribute("aria-invalid", "true");
    $("text").focus();
    return;
  }
  $("text").removeAttribute("aria-invalid");
  if (!(await ask(text))) return;
  const behavior = matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth";
  $("result").scrollIntoView({ block: "nearest", behavior });
}

/** Links a text and shows the result; returns whether there is one. */
async function ask(text) {
  if (!state.linker && !(await describe())) return false;
  const { slider } = state.linker;
  const value = slider.filters ? slider.lowest : sliderValue();
  const answer = await post({ text, [slider.name]: value });
  if (!answer) return false;
  state.answer = answer;
  chooseColours();
  $("error").hidden = true;
  show();
  return true;
}

/** Sends one request and returns the answer; undefined where there is none, which is then said. */
async function post(body) {
  state.request?.abort();
  const request = (state.request = new AbortController());
  later("busy", SETTLE_MS, () => busy(true));
  try {
    const response = await fetch(address("link"), {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(body),
      signal: request.signal,
    });
    const answer = await response.json().catch(() => ({}));
    if (response.ok) return answer;
    fail(errorMessage(response.status, answer, response.headers.get("Retry-After")));
  } catch (error) {
    if (error.name === "AbortError") return undefined;
    fail("The service does not answer. Is it still running?");
  } finally {
    if (state.request === request) busy(false);
  }
  return undefined;
}

function busy(isBusy) {
  clearTimeout(state.timers.busy);
  $("form").setAttribute("aria-busy", String(isBusy));
}

function fail(message) {
  $("error").textContent = message;
  $("error").hidden = false;
  $("result").hidden = true;
  state.answer = null;
  closeCard();
}

const entities = new Map(); // promises of the catalogue's entries, by row

/** Returns the catalogue's entry of a row; one without a text where it cannot be had. */
function entity(row) {
  if (!entities.has(row)) {
    const answer = fetch(address(`entities/${row}`))
      .then((response) => (response.ok ? response.json() : Promise.reject(response.status)))
      .catch(() => {
        entities.delete(row);
        return { text: "" };
      });
    entities.set(row, answer);
  }
  return entities.get(row);
}

// ---------- The slider ----------

const sliderValue = () => Number($("threshold").value);

function shownLinks() {
  const { name, filters } = state.linker.slider;
  return filters ? linksAt(state.answer.links, name, sliderValue()) : state.answer.links;
}

function showValue() {
  const { name } = state.linker.slider;
  const value = sliderValue();
  const words = name === "min_probability" ? `${Math.round(value * 100)}%` : value.toFixed(1);
  $("threshold-value").textContent = words.replace("-", "−");
  $("threshold").setAttribute("aria-valuetext", words);
}

function moveSlider() {
  showValue();
  if (!state.answer) return;
  if (state.linker.slider.filters) show(false);
  else later("slider", SETTLE_MS, () => ask(state.answer.text));
}

// ---------- The result ----------

/** Gives entities their colours, the likeliest ones first, so that no colour changes later. */
function chooseColours() {
  state.colours.clear();
  for (const { row } of [...state.answer.links].sort((a, b) => b.score - a.score)) {
    if (row !== null && !state.colours.has(row)) state.colours.set(row, state.colours.size % COLOURS);
  }
}

/** Shows the links above the threshold, and says how many: at once, or when the slider rests. */
function show(isNew = true) {
  closeCard();
  const links = shownLinks();
  const numbers = new Map(); // of the entities, in the order of the text
  for (const { row } of links) {
    if (row !== null && !numbers.has(row)) numbers.set(row, numbers.size + 1);
  }
  $("linked").replaceChildren(...markedText(links, numbers));
  $("entities").replaceChildren(...[...numbers.keys()].map((row) => entityRow(row, links)));
  const note = noteOf(links);
  $("note").textContent = note;
  $("note").hidden = !note;
  $("result").hidden = false;
  const count = links.length === 1 ? "1 link" : `${links.length} links`;
  $("result-title").textContent = count;
  later("say", isNew ? 0 : SETTLE_MS, () => say(`${count}. ${note}`));
}

/**
 * Returns the nodes of the text, with its links marked; what was not read is pale.
 *
 * Some decoders of the original let links overlap; of these, the first is marked.
 */
function markedText(links, numbers) {
  const { text, truncated_at: cut } = state.answer;
  const units = codeUnits(text);
  const nodes = [];
  let place = 0;
  for (const link of links) {
    const [start, end] = [units[link.start], units[link.end]];
    if (start < place || start === end) continue; // it overlaps the one before
    nodes.push(text.slice(place, start), mark(link, text.slice(start, end), numbers.get(link.row)));
    place = end;
  }
  const read = cut === undefined ? text.length : Math.max(place, units[cut]);
  nodes.push(text.slice(place, read));
  if (read < text.length) nodes.push(element("span", "unread", text.slice(read)));
  return nodes;
}

function mark(link, mention, number) {
  const span = element("span", `mark ${colourOf(link.row)}`, mention);
  const attributes = {
    tabindex: "0",
    role: "button",
    "aria-label": `${mention}: ${link.title ?? "not in the catalogue"}, ${scoreInWords(link)}`,
    "aria-haspopup": "dialog",
    "aria-controls": "card",
    "aria-expanded": "false",
  };
  for (const [name, value] of Object.entries(attributes)) span.setAttribute(name, value);
  if (number) span.dataset.number = number;
  span.addEventListener("pointerenter", (event) => {
    if (event.pointerType === "mouse") later("card", HOVER_MS, () => openCard(span, link));
  });
  span.addEventListener("pointerleave", leave);
  span.addEventListener("focus", () => openCard(span, link));
  span.addEventListener("click", () => openCard(span, link));
  span.addEventListener("keydown", (event) => {
    if (!["Enter", " ", "ArrowDown"].includes(event.key)) return;
    event.preventDefault();
    openCard(span, link);
    $("card").focus();
  });
  return span;
}

function entityRow(row, links) {
  const own = links.filter((link) => link.row === row);
  const best = own.reduce((a, b) => (b.score > a.score ? b : a));
  const item = element("li", colourOf(row));
  const mentions = [...new Set(own.map((link) => `“${link.mention}”`))].join(", ");
  item.append(
    heading(best, element("span", "mentions", mentions)),
    score(best.probability, scoreText(best)),
    description(row),
  );
  return item;
}

function noteOf(links) {
  const { links: all, truncated_at: cut, text } = state.answer;
  const notes = [];
  if (!all.length && state.linker.slider.filters) {
    notes.push("No name of the catalogue was found in this text.");
  } else if (!links.length) {
    notes.push("No link is above this threshold. Move the slider to the left to see less certain ones.");
  }
  const overlaps = links.filter((link, i) => links.slice(0, i).some((other) => other.end > link.start));
  if (overlaps.length) notes.push("Links overlap; the text shows the first, and the list has all.");
  if (cut !== undefined) {
    const read = [...text].slice(0, cut).join("").trimEnd();
    const last = read.split(/\s+/).slice(-3).join(" ");
    notes.push(`The linker read up to “${last}”, and not the rest: the text is longer than it reads at once.`);
  }
  return notes.join(" ");
}

// ---------- The candidates of a link ----------

/** Shows the candidates of a link beside it. */
function openCard(span, link) {
  clearTimeout(state.timers.card);
  if (state.open === span) return;
  closeCard();
  state.open = span;
  span.setAttribute("aria-expanded", "true");
  $("card").className = colourOf(link.row);
  $("card-title").textContent = `“${link.mention}”`;
  $("card-note").textContent = noteOfCard(link);
  $("candidates").replaceChildren(...link.candidates.map((item) => candidate(item, link)));
  $("card").hidden = false;
  $("card").scrollTop = 0;
  place(span);
}

function noteOfCard(link) {
  const linked = link.title === null ? "not in the catalogue" : `linked to ${link.title}`;
  return `${linked}, ${scoreInWords(link)}`;
}

function candidate(item, link) {
  const row = element("li", colourOf(item.row));
  const share = Math.exp(item.score - link.mention_score); // p(entity | mention)
  row.append(heading(item), score(share, percent(share)), description(item.row));
  return row;
}

/** Puts the candidates under their link, or above it where there is hardly any room below. */
function place(span) {
  const card = $("card");
  const sheet = card.parentElement.getBoundingClientRect();
  const [first, last] = [span.getClientRects()[0], [...span.getClientRects()].at(-1)];
  const [above, below] = [first.top - 2 * GAP, window.innerHeight - last.bottom - 2 * GAP];
  const isAbove = below < LEAST_ROOM && above > below;
  card.style.maxHeight = `${Math.min(MOST_ROOM, Math.max(LEAST_ROOM, isAbove ? above : below))}px`;
  const top = isAbove ? first.top - GAP - card.offsetHeight : last.bottom + GAP;
  const left = Math.min(first.left - sheet.left, sheet.width - card.offsetWidth);
  card.style.left = `${Math.max(0, left)}px`;
  card.style.top = `${top - sheet.top}px`;
}

function closeCard() {
  clearTimeout(state.timers.card);
  state.open?.setAttribute("aria-expanded", "false");
  state.open = null;
  $("card").hidden = true;
}

/** Closes the candidates a moment after the pointer left, unless the keyboard is there. */
function leave() {
  later("card", LEAVE_MS, () => {
    const focused = document.activeElement;
    if (focused !== state.open && !$("card").contains(focused)) closeCard();
  });
}

function escape() {
  const span = state.open;
  const isInside = $("card").contains(document.activeElement);
  closeCard();
  if (!isInside) return;
  span.focus(); // which opens them again
  closeCard();
}

// ---------- Parts ----------

function element(name, className = "", text = "") {
  const node = document.createElement(name);
  if (className) node.className = className;
  if (text) node.textContent = text;
  return node;
}

const colourOf = (row) => (state.colours.has(row) ? `colour-${state.colours.get(row)}` : "no-colour");

/** Returns the line with the title of an entity, its Wikidata id as a link, and more. */
function heading(item, ...more) {
  const line = element("p", "entity-head");
  const title = element("span", "title", item.title);
  title.dir = "auto";
  line.append(title);
  if (item.wikidata_id) {
    const id = element("a", "id", item.wikidata_id);
    id.href = `https://www.wikidata.org/wiki/${encodeURIComponent(item.wikidata_id)}`;
    id.target = "_blank";
    id.rel = "noopener noreferrer";
    id.setAttribute("aria-label", `${item.wikidata_id} on Wikidata`);
    line.append(" ", id);
  }
  line.append(...more.flatMap((node) => [" ", node]));
  return line;
}

/** Returns a bar of a share, with its words beside it; without a share, the words alone. */
function score(share, words) {
  const line = element("p", "score");
  if (share !== null && share !== undefined) {
    const bar = element("span", "meter");
    const filled = element("span", "filled");
    filled.style.width = `${(100 * Math.min(1, share)).toFixed(1)}%`;
    bar.append(filled);
    bar.setAttribute("aria-hidden", "true");
    line.append(bar);
  }
  line.append(element("span", "number", words));
  return line;
}

const scoreText = (link) =>
  link.probability === null ? link.score.toFixed(2).replace("-", "−") : percent(link.probability);

const scoreInWords = (link) =>
  `${link.probability === null ? "log score" : "probability"} ${scoreText(link)}`;

/** Returns a paragraph that gets the catalogue's text of an entity when it is there. */
function description(row) {
  const paragraph = element("p", "description");
  paragraph.dir = "auto";
  entity(row).then(({ text }) => (paragraph.textContent = text));
  return paragraph;
}

function say(message) {
  $("status").textContent = message.trim();
}

function later(name, milliseconds, action) {
  clearTimeout(state.timers[name]);
  state.timers[name] = setTimeout(action, milliseconds);
}

// ---------- The beginning ----------

/** Asks the service about its linker; returns whether it answered. */
async function describe() {
  try {
    const response = await fetch(address("page/linker.json"));
    if (!response.ok) throw new Error(String(response.status));
    state.linker = await response.json();
  } catch {
    fail("The service does not answer. Is it still running?");
    return false;
  }
  const { entities: count, probability, slider, examples } = state.linker;
  $("about").textContent =
    `Finds the names in a text and links each to one of ${count.toLocaleString("en")} entities.`;
  $("threshold-name").textContent = probability ? "Probability at least" : "Log score above";
  const { lowest: min, highest: max, step, start: value } = slider;
  Object.assign($("threshold"), { min, max, step, value });
  showValue();
  $("examples").replaceChildren(...examples.map(example));
  $("examples-section").hidden = !examples.length;
  return true;
}

function example(text) {
  const item = element("li");
  const button = element("button", "", text);
  button.type = "button";
  button.addEventListener("click", () => {
    $("text").value = text;
    link();
  });
  item.append(button);
  return item;
}

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  link();
});
$("text").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  link();
});
$("threshold").addEventListener("input", moveSlider);
$("close").addEventListener("click", escape);
$("card").addEventListener("pointerenter", () => clearTimeout(state.timers.card));
$("card").addEventListener("pointerleave", leave);
for (const button of document.querySelectorAll("[data-copy]")) {
  button.addEventListener("click", () => copy(button.dataset.copy));
}
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && state.open) escape();
});
document.addEventListener("focusin", (event) => {
  if (state.open && !$("card").contains(event.target) && event.target !== state.open) closeCard();
});
document.addEventListener("pointerdown", (event) => {
  if (state.open && !$("card").contains(event.target) && !event.target.closest(".mark")) closeCard();
});
window.addEventListener("resize", () => state.open && place(state.open));

describe();
