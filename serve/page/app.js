// The page: choose a model, give it something by its kind, read the answer and its explanation.

import { $, ask, button, figure, key, listen, make, percent, tell } from "./common.js";
import { save, showInput } from "./inputs.js";
import { boxed, counted } from "./boxes.js";
import { overlay } from "./masks.js";
import { identify } from "./identities.js";
import { look, watch } from "./live.js";
import { showWriting, story } from "./writing.js";

const FEW = 8; // models, up to which each has a button

let models = [];
let model = null; // the chosen entry of /models
let sent = null; // the last request that was answered: {body, type, command, version}
let leave = () => {}; // ends what the form of a model has under way
let turn = 0; // counts requests, so that a late answer to an old one is dropped

const route = (verb, parameters) => {
  const given = Object.entries(parameters).filter(([, value]) => value);
  return `/${verb}/${encodeURIComponent(model.name)}?${new URLSearchParams(given)}`;
};
const send = (path, { body, type }) => ask(path, { method: "POST", headers: type ? { "Content-Type": type } : {}, body });

// ---- one row

async function predict(body, type, command) {
  const mine = ++turn;
  const started = performance.now();
  sent = { body, type, command };
  $("bars").classList.add("stale");
  $("explain").disabled = $("look").disabled = true;
  $("explanation").replaceChildren();
  try {
    const answer = await send(route("predict", { version: $("version").value, top: 10 }), sent);
    if (mine !== turn) return;
    tell(null);
    show(answer, performance.now() - started);
  } catch (error) {
    if (mine !== turn) return;
    const again = sent;
    clearAnswer("No answer.");
    sent = again; // for another try with a key or another version
    tell(error.message);
  }
}

// How the picture of an explanation can be read here: as wide as its place, letters as large as the page's.
function seen() {
  const inches = $("explanation").clientWidth / 96; // as CSS counts them
  return { theme: matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light", width: Math.min(20, Math.max(4, inches)).toFixed(1) };
}

async function explain(how = {}) {
  const mine = turn;
  $("explain").disabled = $("look").disabled = true;
  $("explanation").replaceChildren(make("p", { className: "quiet", textContent: "Explaining … the first time can take half a minute." }));
  try {
    const why = await send(route("explain", { version: sent.version, ...seen(), ...how }), sent.pair ?? sent);
    if (mine === turn) showExplanation(why);
  } catch (error) {
    if (mine === turn) $("explanation").replaceChildren(make("p", { className: "problem", role: "alert", textContent: error.message }));
  }
  if (mine === turn) $("explain").disabled = $("look").disabled = false;
}

// ---- a text that is written

const ENDS = { length: "There is no room for more", end: "The model ended it", stop: "It came to where it was to stop" };

async function write({ text, parameters, signal, ended }) {
  clearAnswer();
  const mine = turn;
  const version = $("version").value;
  const path = `/v2/models/${encodeURIComponent(model.name)}${version ? `/versions/${encodeURIComponent(version)}` : ""}/generate_stream`;
  const body = JSON.stringify({ text_input: text, parameters });
  const shown = story(model, text);
  $("overlay").replaceChildren(shown.element);
  const started = performance.now();
  let [first, last, pieces] = [0, null, 0];
  const finish = (verdict) => {
    shown.end();
    ended();
    if (mine !== turn) return;
    $("verdict").className = "quiet";
    $("verdict").textContent = verdict;
    if (!last) return;
    const seconds = (performance.now() - first) / 1000;
    const pace = pieces > 1 && seconds > 0 ? `, then ${figure((pieces - 1) / seconds)} pieces a second` : "";
    $("timing").textContent = `first words after ${(first - started).toFixed(0)} ms${pace}, by version ${last.model_version}`;
    $("command").textContent = curl(path, `-N -d ${quoted(body)}`);
    $("curl").hidden = false;
    notes(last.notes ?? []);
    reveal();
    look();
  };
  try {
    await listen(path, { method: "POST", headers: { "Content-Type": "application/json" }, body, signal }, (told) => {
      first ||= performance.now();
      last = told;
      pieces++;
      if (mine === turn) shown.add(told.text_output);
    });
    if (mine === turn) tell(null);
    const reason = last?.tokens === parameters.max_tokens && last.finish_reason === "length" ? "As long as asked" : ENDS[last?.finish_reason];
    finish(reason ? `${reason}: ${last.tokens} token${last.tokens === 1 ? "" : "s"}.` : "It broke off.");
  } catch (error) {
    finish(error.name === "AbortError" ? "Stopped." : last ? "It broke off." : "No answer.");
    if (error.name !== "AbortError" && mine === turn) tell(error.message);
  }
}

// ---- a picture that is painted

async function paint({ text, parameters, signal, ended }) {
  clearAnswer("Painting …");
  const mine = turn;
  const asked = Object.fromEntries(Object.entries(parameters).map(([name, value]) => [name, String(value)])); // 0 is said, too
  const body = JSON.stringify({ [model.inputs[0].name]: text });
  const path = route("predict", { version: $("version").value, ...asked });
  const started = performance.now();
  let verdict = "Stopped.";
  try {
    const answer = await ask(path, { method: "POST", headers: { "Content-Type": "application/json" }, body, signal });
    if (mine !== turn) return;
    tell(null);
    const [{ image }] = answer.predictions;
    const layers = make("div", { className: "layers" }, make("img", { src: image, alt: text }));
    $("overlay").replaceChildren(make("div", { className: "overlay" }, layers));
    verdict = "";
    notes(answer.notes);
    $("timing").textContent = `painted by version ${answer.version} in ${(performance.now() - started).toFixed(0)} ms`;
    $("command").textContent = curl(path, `-H 'Accept: image/png' -H 'Content-Type: application/json' -d ${quoted(body)} -o picture.png`);
    $("curl").hidden = false;
    reveal();
    look();
  } catch (error) {
    if (mine === turn && error.name !== "AbortError") {
      verdict = "No answer.";
      tell(error.message);
    }
  } finally {
    ended();
    if (mine === turn) $("verdict").textContent = verdict;
  }
}

// ---- many rows

async function runJob(file) {
  clearAnswer();
  const mine = ++turn;
  let at = null;
  const stop = () => at && ask(at, { method: "DELETE" }).catch(() => {});
  const progress = make("progress", { max: 1, value: 0 });
  progress.setAttribute("aria-label", "Rows answered");
  const done = make("p", { className: "quiet", textContent: `Sending ${file.name} …` });
  const cancel = button("Cancel", () => {
    turn++;
    stop();
    clearAnswer("Cancelled.");
  });
  $("job").replaceChildren(progress, done, cancel);
  try {
    // a file is tab-separated, semicolons or commas alike: the server finds out
    const taken = await send(route("jobs", { version: $("version").value, top: 3 }), { body: file, type: "text/csv" });
    at = `/jobs/${taken.id}`;
    let told = taken;
    while (mine === turn && (told.state === "queued" || told.state === "running")) {
      progress.value = told.progress;
      done.textContent = `${told.done.toLocaleString("en")} of ${told.rows.toLocaleString("en")} rows`;
      await new Promise((resolve) => setTimeout(resolve, 300));
      told = await ask(at);
    }
    if (mine !== turn) return stop();
    if (told.state !== "done") throw new Error(`The job failed: ${told.error.message}.`);
    tell(null);
    showRows(told, at, file.name);
  } catch (error) {
    if (mine !== turn) return;
    clearAnswer("No answer.");
    tell(error.message);
  }
}

function showRows(told, at, name) {
  const rows = told.predictions;
  $("verdict").className = "";
  $("verdict").replaceChildren(make("strong", { textContent: rows.length.toLocaleString("en") }), ` row${rows.length === 1 ? "" : "s"} answered`);
  let few;
  if ("value" in rows[0]) {
    const values = rows.map(({ value }) => value);
    const [least, most] = values.reduce(([low, high], value) => [Math.min(low, value), Math.max(high, value)], [Infinity, -Infinity]);
    const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
    few = [["lowest", least], ["mean", mean], ["highest", most]].flatMap(([label, value]) => [make("dt", { textContent: label }), make("dd", { textContent: figure(value) })]);
    $("job").replaceChildren(make("dl", {}, ...few));
  } else {
    const counts = new Map();
    for (const { label } of rows) counts.set(label, (counts.get(label) ?? 0) + 1);
    const ranked = [...counts].sort(([, one], [, other]) => other - one).slice(0, 10);
    $("bars").replaceChildren(...ranked.map(([label, count]) => bar(label, count / rows.length, count.toLocaleString("en"))));
    $("job").replaceChildren();
  }
  notes(told.notes);
  $("timing").textContent = `answered by version ${told.version} in ${figure(told.seconds)} s`;
  const download = button("Download the answers", async () => {
    try {
      save(name.replace(/\.[^.]*$/, "") + "-answers.csv", await ask(at, { headers: { Accept: "text/csv" } }), "text/csv");
    } catch (error) {
      tell(error.message);
    }
  }, { className: "strong" });
  $("job").append(make("div", { className: "buttons" }, download));
}

// ---- the answer

function clearAnswer(hint = "") {
  turn++;
  $("verdict").className = "quiet";
  $("verdict").textContent = hint;
  for (const id of ["overlay", "bars", "notes", "explanation", "job"]) $(id).replaceChildren();
  $("timing").textContent = "";
  $("explain").hidden = $("look").hidden = $("curl").hidden = true;
  sent = null;
}

function notes(list) {
  $("notes").replaceChildren(...list.map((note) => make("li", { textContent: note })));
}

function show(answer, milliseconds) {
  const [first] = answer.predictions;
  sent.version = answer.version;
  $("verdict").className = "";
  $("job").replaceChildren();
  $("bars").classList.remove("stale");
  $("overlay").replaceChildren(...("mask" in first ? [overlay(first, sent)] : []));
  if ("embedding" in first) {
    identified(first);
  } else if ("boxes" in first) {
    $("overlay").replaceChildren(boxed(first, sent));
    $("verdict").replaceChildren(make("strong", { textContent: counted(first.boxes) }), ` found`);
    $("bars").replaceChildren(...first.boxes.map(({ label, score, colour }) => bar(label, score, percent(score), colour)));
  } else if ("shares" in first) {
    const found = first.shares.find(({ label }) => label === first.label);
    $("verdict").replaceChildren(make("strong", { textContent: first.label }), ` covers ${percent(found.share)} of the picture`);
    $("bars").replaceChildren(...first.shares.map(({ label, share, colour }) => bar(label, share, percent(share), colour)));
  } else if ("confidence" in first) {
    $("verdict").replaceChildren(make("strong", { textContent: first.text || "nothing" }), ` understood, ${percent(first.confidence)} sure`);
    $("bars").replaceChildren(...first.words.map(({ word, start, confidence }) => bar(`${word} at ${start.toFixed(2)} s`, confidence, percent(confidence))));
  } else if ("forecast" in first) {
    const [low, high] = [Math.min(0, ...first.forecast), Math.max(0, ...first.forecast)];
    $("verdict").replaceChildren(make("strong", { textContent: figure(first.forecast[0]) }), ` ${first.target} at the next step`);
    $("bars").replaceChildren(...first.forecast.map((value, step) => bar(`+${step + 1}`, (value - low) / (high - low || 1), figure(value))));
  } else if ("value" in first) {
    $("verdict").replaceChildren(make("strong", { textContent: figure(first.value) }), ` ${first.target}`);
    $("bars").replaceChildren();
  } else {
    $("verdict").replaceChildren(make("strong", { textContent: first.label }), ` with ${percent(first.probability)}`);
    $("bars").replaceChildren(...first.top.map(({ label, probability }) => bar(label, probability, percent(probability))));
  }
  notes(answer.notes);
  $("timing").textContent = `answered by version ${answer.version} in ${milliseconds.toFixed(0)} ms`;
  $("command").textContent = sent.command;
  $("explain").disabled = $("look").disabled = $("curl").hidden = false;
  $("explain").hidden = "embedding" in first || "confidence" in first; // of which a pair is explained, once there is one
  $("look").hidden = !model.maps;
  reveal();
  look();
}

async function identified({ length }) {
  const mine = turn;
  $("verdict").replaceChildren(make("strong", { textContent: "Embedded" }));
  $("bars").replaceChildren();
  try {
    const pair = await identify($("overlay"), model, sent, length, bar);
    if (mine !== turn) return;
    sent.pair = pair;
    $("explain").hidden = !pair;
  } catch (error) {
    if (mine === turn) tell(error.message);
  }
}

// A long form may have moved the answer out of view; whoever draws is left alone.
function reveal() {
  const asker = document.activeElement;
  if (!$("input").contains(asker) || asker.matches(".board")) return;
  for (const part of ["timing", "verdict"]) $(part).scrollIntoView({ block: "nearest" });
}

function bar(label, share, said, colour = "") {
  const fill = make("div");
  fill.style.width = `${100 * share}%`;
  fill.style.background = colour && label === "background" ? "var(--bar)" : colour;
  return make("li", {}, make("span", { className: "label", textContent: label }), make("span", { className: "track" }, fill), make("span", { className: "share", textContent: said }));
}

function showExplanation(why) {
  const alone = (value) => (Array.isArray(value) ? value.flat(9)[0] : value);
  const found = why.faithfulness ?? {};
  const against = (what) => [what, `${figure(found[what])}, in random orders ${figure(found[`${what}_random`])}`];
  const facts = [
    ["method", why.method],
    ...(why.base ? [["starts from", figure(alone(why.base))]] : []),
    ["arrives at", figure(alone(why.prediction))],
    ...(typeof why.additivity_error === "number" ? [["sum is off by", figure(why.additivity_error)]] : []),
    ...["deletion", "insertion"].filter((what) => typeof found[what] === "number").map(against),
    ...(typeof why.stability === "number" ? [["stability", figure(why.stability)]] : []),
    ["took", `${figure(why.seconds)} s`],
  ];
  const parts = why.names?.length ? why.names[0] : (why.columns ?? []);
  const named = parts
    .map((part, at) => [part, why.attributions[0][at]])
    .filter(([, share]) => typeof share === "number")
    .sort(([, one], [, other]) => Math.abs(other) - Math.abs(one))
    .slice(0, 5)
    .map(([part, share]) => `${part} ${share < 0 ? "−" : "+"}${figure(Math.abs(share))}`);
  const alt = `What spoke for and against the answer, by ${why.method}${named.length ? `: ${named.join(", ")}` : ""}`;
  const notes = [];
  if (why.complete === false) notes.push("The time limit ended it: this is the best so far.");
  if (typeof found.deletion === "number") notes.push("Taking out the parts named first should lower the answer more than random orders do (deletion).");
  $("explanation").replaceChildren(
    make("img", { src: why.picture, alt }),
    make("dl", {}, ...facts.flatMap(([name, value]) => [make("dt", { textContent: name }), make("dd", { textContent: value })])),
    ...notes.map((textContent) => make("p", { className: "quiet", textContent })),
  );
}

// ---- the input

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
const curl = (path, rest) => `curl ${quoted(location.origin + path)} ${key.get() ? "-H 'Authorization: Bearer <key>' " : ""}${rest}`;
const command = (rest) => curl(`/predict/${encodeURIComponent(model.name)}`, rest);

const on = {
  clear: clearAnswer,
  rows: runJob,
  write: (asked) => (model.writes === "picture" ? paint : write)(asked),
  json(row) {
    const body = JSON.stringify(row);
    predict(body, "application/json", command(`-H 'Content-Type: application/json' -d ${quoted(body)}`));
  },
  sound(file) {
    predict(file, file.type.startsWith("audio/") ? file.type : "application/octet-stream", command(`-F ${quoted(`audio=@${file.name}`)}`));
  },
  file(file) {
    predict(file, file.type.startsWith("image/") ? file.type : "application/octet-stream", command(`-F ${quoted(`image=@${file.name}`)}`));
  },
};

// ---- choosing a model

const isReady = ({ versions }) => versions.some(({ state }) => state === "READY");

async function choose(entry) {
  leave();
  leave = () => {};
  model = entry;
  for (const each of $("models").querySelectorAll("button")) {
    each.setAttribute("aria-current", String(each.textContent === entry.name));
    if (each.textContent === entry.name) each.scrollIntoView({ block: "nearest", inline: "nearest" });
  }
  const ready = entry.versions.filter(({ state }) => state === "READY");
  const refused = entry.versions.filter(({ reason }) => reason);
  $("main").hidden = false;
  $("name").textContent = entry.name;
  document.title = `${entry.name} · try a model`;
  const automatic = make("option", { value: "", textContent: "chosen by the server" });
  $("version").replaceChildren(automatic, ...ready.map(({ version }) => make("option", { value: version, textContent: version })));
  $("version").parentElement.hidden = !ready.length;
  $("refused").hidden = !refused.length;
  $("refused").replaceChildren(...refused.map(({ version, reason }) => make("li", { textContent: `Version ${version} is not served: ${reason}` })));
  document.querySelector(".columns").hidden = !ready.length;
  tell(null);
  showFacts();
  history.replaceState(null, "", `#${encodeURIComponent(entry.name)}`);
  clearAnswer();
  watch(ready.length ? entry.name : null);
  if (!ready.length) return;
  const examples = await ask(`/models/${encodeURIComponent(entry.name)}/examples`).catch(() => []);
  if (model !== entry) return;
  if (entry.writes) leave = showWriting(entry, examples, on);
  else showInput(entry, examples, on);
}

function showFacts() {
  const wanted = $("version").value || model.version;
  const version = model.versions.find(({ version }) => version === wanted);
  if (!version) return ($("facts").textContent = "");
  const size = version.bytes >= 1e6 ? `${figure(version.bytes / 1e6)} MB` : `${figure(version.bytes / 1e3)} kB`;
  const score = version.score === null ? "" : `${model.metric} ${figure(version.score)}`;
  const data = model.training.name ? `trained on ${model.training.name}` : "";
  $("facts").textContent = [model.architecture, model.task.replaceAll("-", " "), data, score, version.precision, size].filter(Boolean).join(" · ");
}

function picker() {
  const byName = (wanted) => models.find(({ name }) => name === wanted);
  if (models.length > FEW) {
    const list = make("select", {}, ...models.map(({ name }) => make("option", { value: name, textContent: name })));
    list.addEventListener("change", () => choose(byName(list.value)));
    list.setAttribute("aria-label", "Model");
    return [list];
  }
  return models.map((entry) => button(entry.name, () => choose(entry), { className: isReady(entry) ? "" : "out" }));
}

async function start() {
  $("forget").hidden = !key.get();
  try {
    models = await ask("/models");
    tell(null);
    if (!models.length) return tell("This server has no models. Export one into its store and start it again.");
    models.sort((one, other) => isReady(other) - isReady(one));
    $("models").replaceChildren(...picker());
    const asked = decodeURIComponent(location.hash.slice(1));
    const first = models.find(({ name }) => name === asked) ?? models[0];
    const list = $("models").querySelector("select");
    if (list) list.value = first.name;
    await choose(first);
  } catch (error) {
    tell(error.message);
  }
}

$("explain").addEventListener("click", () => explain());
$("look").addEventListener("click", () => explain({ method: "cam", quality: "false" })); // a map that the model itself gives
$("version").addEventListener("change", () => {
  showFacts();
  if (sent) predict(sent.body, sent.type, sent.command);
});
$("key").addEventListener("submit", async (event) => {
  event.preventDefault();
  key.set($("token").value.trim());
  $("token").value = "";
  $("key").hidden = true;
  await start();
  if ($("key").hidden) $("main").focus();
});
$("forget").addEventListener("click", () => {
  key.set(null);
  location.reload();
});
start();
