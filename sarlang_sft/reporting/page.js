"use strict";

const { runs, tasks, images, entries } = JSON.parse(document.getElementById("content").textContent);
const AT_ONCE = 12; // images drawn before the reader scrolls on
const COLOURS = 6; // of runs, in page.css
const SHORT = 60; // characters of an answer that stands beside others

const list = document.getElementById("list");
const form = document.querySelector(".filters");
const found = document.getElementById("found");
const more = document.getElementById("more");
const plain = runs.flatMap((run, number) => (run.plain ? [number] : []));

function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

// What can be shown: every choice by its name in the address, with its words and its test of an entry.
const right = (entry, run) => entry.answers[run]?.right === true;
const wrong = (entry, run) => entry.answers[run]?.right === false;
const choices = { all: ["everything", () => true] };
if (plain.length > 1) {
  choices.changed = [
    "changed between runs",
    (entry) => plain.some((run) => right(entry, run)) && plain.some((run) => wrong(entry, run)),
  ];
  choices.differs = [
    "answered differently",
    (entry) => new Set(plain.flatMap((run) => entry.answers[run] ?? []).map((one) => (one.text || [null])[0])).size > 1,
  ];
  for (const later of plain.slice(1)) {
    const [one, two] = [runs[plain[0]].name, runs[later].name];
    choices[`gained-${later}`] = [`${one} ✗ → ${two} ✓`, (entry) => wrong(entry, plain[0]) && right(entry, later)];
    choices[`lost-${later}`] = [`${one} ✓ → ${two} ✗`, (entry) => right(entry, plain[0]) && wrong(entry, later)];
  }
}
runs.forEach((run, number) => {
  choices[`right-${number}`] = [`${run.name}: right`, (entry) => right(entry, number)];
  choices[`wrong-${number}`] = [`${run.name}: wrong`, (entry) => wrong(entry, number)];
  choices[`silent-${number}`] = [`${run.name}: no answer`, (entry) => entry.answers[number]?.text === null];
});

for (const name of ["", ...tasks]) form.elements.task.append(new Option(name || "all", name));
for (const [name, [words, test]] of Object.entries(choices)) {
  if (name === "all" || entries.some(test)) form.elements.show.append(new Option(words, name));
}

function haystack(entry) {
  entry.words ??= [
    entry.question[0],
    entry.truth[0],
    ...entry.answers.map((answer) => (answer?.text ? answer.text[0] : "")),
    ...images[entry.image].names,
  ]
    .join("\n")
    .toLowerCase();
  return entry.words;
}

let matching = []; // images with their entries that pass the filter
let drawn = 0;

function filter() {
  const task = tasks.indexOf(form.elements.task.value);
  const test = choices[form.elements.show.value || "all"][1];
  const words = form.elements.text.value.trim().toLowerCase();
  const byImage = new Map();
  let count = 0;
  for (const entry of entries) {
    if ((task >= 0 && entry.task !== task) || !test(entry) || (words && !haystack(entry).includes(words))) continue;
    if (!byImage.has(entry.image)) byImage.set(entry.image, []);
    byImage.get(entry.image).push(entry);
    count += 1;
  }
  matching = [...byImage].sort((one, two) => one[0] - two[0]);
  drawn = 0;
  list.replaceChildren();
  draw();
  const say = (number) => number.toLocaleString("en");
  found.textContent = count
    ? `${say(count)} of ${say(entries.length)} questions and captions, on ${say(matching.length)} of ${say(images.length)} images`
    : "Nothing matches: clear the filter or choose less.";
}

function draw() {
  for (const [image, members] of matching.slice(drawn, drawn + AT_ONCE)) list.append(card(image, members));
  drawn = Math.min(drawn + AT_ONCE, matching.length);
  more.hidden = drawn >= matching.length;
}

function card(number, members) {
  const article = make("article", "entry");
  const names = images[number].names;
  const pictures = make("div", "pictures");
  images[number].pictures.forEach((picture, place) => {
    const boxes = place === 0 ? members.flatMap(outlines) : [];
    pictures.append(picture.src ? view(picture, names[place], boxes) : make("p", "unreadable", picture.problem));
  });
  const asked = make("ol", "asked");
  for (const entry of members) asked.append(item(entry, pictures));
  article.append(make("h3", "", names.join(", ") || "text without image"), pictures, asked);
  return article;
}

// What is drawn for a question: the boxes that it names or that are its truth, and dashed those that runs answered.
function outlines(entry) {
  const named = entry.boxes.flatMap((points) => [[entry, points, "under"], [entry, points, "over"]]);
  const guessed = plain.flatMap((run, place) =>
    (entry.answers[run]?.boxes || []).map((points) => [entry, points, `guess run-${place % COLOURS}`]));
  return [...named, ...guessed];
}

function view(picture, name, boxes) {
  const figure = make("figure", "view");
  const img = make("img");
  const [width, height] = picture.size;
  Object.assign(img, { src: picture.src, alt: name, width, height, decoding: "async" });
  figure.append(img);
  if (boxes.length) {
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.setAttribute("preserveAspectRatio", "none");
    svg.setAttribute("aria-hidden", "true");
    for (const [entry, points, kind] of boxes) {
      const polygon = document.createElementNS(svg.namespaceURI, "polygon");
      polygon.setAttribute("points", points.map((point) => point.join(",")).join(" "));
      polygon.setAttribute("class", kind);
      polygon.dataset.entry = entries.indexOf(entry);
      svg.append(polygon);
    }
    figure.append(svg);
  }
  return figure;
}

function item(entry, pictures) {
  const line = make("li");
  line.tabIndex = -1;
  const question = make("p", "question");
  question.append(make("span", "task", tasks[entry.task]), ...withLength(entry.question));
  const said = make("dl", "said");
  said.append(answer("truth", entry.truth, "truth"));
  entry.answers.forEach((given, run) => {
    if (given === null) return; // the run was not asked for captions, or for nothing else
    const { text, right: verdict, sure } = given;
    const kind = verdict === null ? "" : verdict ? "is-right" : "is-wrong";
    const one = answer(runs[run].name, text, kind);
    if (kind) {
      const sign = make("span", "verdict", verdict ? "✓" : "✗");
      sign.setAttribute("aria-hidden", "true");
      one.prepend(sign, make("span", "unseen", verdict ? "right: " : "wrong: "));
    }
    if (sure !== null) one.title = `confidence ${sure}`;
    said.append(one);
  });
  line.append(question, said);
  if (entry.boxes.length) {
    const number = String(entries.indexOf(entry));
    const light = (on) => {
      for (const polygon of pictures.querySelectorAll("polygon")) {
        polygon.classList.toggle("active", on && polygon.dataset.entry === number);
      }
    };
    for (const event of ["mouseenter", "focus"]) line.addEventListener(event, () => light(true));
    for (const event of ["mouseleave", "blur"]) line.addEventListener(event, () => light(false));
  }
  return line;
}

function answer(name, text, kind) {
  const one = make("div", kind);
  const words = make("dd", "", undefined);
  if (text === null) words.append(make("span", "none", "no answer"));
  else if (!text[0].trim()) words.append(make("span", "none", "empty"));
  else words.append(...withLength(text));
  words.dir = "auto";
  if (text !== null && text[1] > SHORT) one.classList.add("long");
  one.append(make("dt", "", `${name}:`), words);
  return one;
}

function withLength([text, length]) {
  const cut = length > 2000; // characters are counted before what does not print is written out
  return cut ? [text, make("span", "clipped", ` … (${length.toLocaleString("en")} characters)`)] : [text];
}

// The address keeps the filter, so that a link leads to what one sees.
function remember() {
  const kept = new URLSearchParams();
  for (const name of ["task", "show", "text"]) {
    const value = form.elements[name].value;
    if (value && value !== "all") kept.set(name, value);
  }
  history.replaceState(null, "", `#${String(kept) || "gallery"}`);
}

function recall() {
  const kept = new URLSearchParams(location.hash.slice(1));
  if (![...kept.keys()].some((name) => ["task", "show", "text"].includes(name))) return false;
  form.elements.task.value = tasks.includes(kept.get("task")) ? kept.get("task") : "";
  const options = [...form.elements.show.options].map((option) => option.value);
  form.elements.show.value = options.includes(kept.get("show")) ? kept.get("show") : "all";
  form.elements.text.value = kept.get("text") || "";
  return true;
}

let waiting = 0;
function changed() {
  clearTimeout(waiting);
  waiting = setTimeout(() => {
    filter();
    remember();
  }, 120);
}
form.addEventListener("input", changed);
form.addEventListener("reset", changed);
form.addEventListener("submit", (event) => event.preventDefault());
addEventListener("hashchange", () => {
  if (recall()) filter();
});
more.addEventListener("click", draw);
new IntersectionObserver((seen) => {
  if (seen[0].isIntersecting) draw();
}, { rootMargin: "1200px" }).observe(more);

// Keys: / to the search, j and k everywhere but in fields, arrows inside the gallery.
function step(by) {
  const lines = () => [...list.querySelectorAll("li")];
  const here = document.activeElement.closest("#list li");
  let next = here ? lines().indexOf(here) + by : 0;
  if (next >= lines().length) draw();
  next = Math.max(0, Math.min(next, lines().length - 1));
  const line = lines()[next];
  if (!line) return;
  line.focus({ preventScroll: true });
  line.scrollIntoView({ block: "center" });
}
addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.matches("input, select")) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  const inside = event.target.closest("#list, #gallery");
  const by = { j: 1, k: -1, ...(inside && { ArrowDown: 1, ArrowUp: -1 }) }[event.key];
  if (by) step(by);
  else if (event.key === "/") form.elements.text.focus();
  else return;
  event.preventDefault();
});

// Matrices of the chosen runs; of many runs at first only the last that sees its images.
const boxes = [...document.querySelectorAll("#which input")];
function matrices() {
  const shown = new Set(boxes.filter((box) => box.checked).map((box) => box.value));
  for (const matrix of document.querySelectorAll(".matrix[data-run]")) matrix.hidden = !shown.has(matrix.dataset.run);
}
for (const box of boxes) {
  box.checked = plain.includes(Number(box.value)) || plain.length === 0;
  box.addEventListener("change", matrices);
}
matrices();

const recalled = recall();
filter();
if (recalled) document.getElementById("gallery").scrollIntoView();
