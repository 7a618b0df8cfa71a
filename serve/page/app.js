// The page: choose a model, give it something by its kind, read the answer and its explanation.

const $ = (id) => document.getElementById(id);
const make = (tag, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};

let model = null; // the chosen entry of /models
let sent = null; // the last request that was answered: {body, type, command}
let turn = 0; // counts requests, so that a late answer to an old one is dropped

// ---- talking to the server

async function ask(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Error("The server cannot be reached. Is it still running?");
  }
  const body = await response.json().catch(() => null);
  if (response.ok && body !== null) return body;
  const reason = body?.error?.message ?? body?.error ?? `the server answered with status ${response.status}`;
  throw new Error(reason.charAt(0).toUpperCase() + reason.slice(1) + ".");
}

function route(verb) {
  return `/${verb}/${encodeURIComponent(model.name)}?version=${encodeURIComponent($("version").value)}`;
}

function tell(problem) {
  $("problem").textContent = problem ?? "";
  $("problem").hidden = !problem;
}

async function predict(body, type, command) {
  const mine = ++turn;
  const started = performance.now();
  sent = { body, type, command };
  $("bars").classList.add("stale");
  $("explain").disabled = true;
  $("explanation").replaceChildren();
  try {
    const answer = await ask(route("predict") + "&top=10", { method: "POST", headers: { "Content-Type": type }, body });
    if (mine !== turn) return;
    tell(null);
    show(answer, performance.now() - started);
  } catch (error) {
    if (mine !== turn) return;
    clearAnswer();
    tell(error.message);
  }
}

async function explain() {
  const mine = turn;
  const { body, type } = sent;
  $("explain").disabled = true;
  $("explanation").replaceChildren(make("p", { className: "quiet", textContent: "Explaining … the first time can take half a minute." }));
  try {
    const why = await ask(route("explain"), { method: "POST", headers: { "Content-Type": type }, body });
    if (mine === turn) showExplanation(why);
  } catch (error) {
    if (mine === turn) $("explanation").replaceChildren(make("p", { className: "problem", role: "alert", textContent: error.message }));
  }
  if (mine === turn) $("explain").disabled = false;
}

// ---- the answer

const percent = (share) => `${(100 * share).toFixed(share > 0.9995 || share < 0.0005 ? 0 : 1)} %`;

function figure(value) {
  if (value === null || value === undefined) return "–";
  if (value !== 0 && Math.abs(value) < 1e-3) return value.toExponential(1);
  return value.toLocaleString("en", { maximumSignificantDigits: 4 });
}

function clearAnswer(hint = "") {
  $("verdict").className = "quiet";
  $("verdict").textContent = hint;
  for (const id of ["bars", "notes", "explanation"]) $(id).replaceChildren();
  $("timing").textContent = "";
  $("explain").disabled = true;
  $("curl").hidden = true;
  sent = null;
}

function show(answer, milliseconds) {
  const [first] = answer.predictions;
  $("verdict").className = "";
  $("bars").classList.remove("stale");
  if ("value" in first) {
    $("verdict").replaceChildren(make("strong", { textContent: figure(first.value) }), ` ${first.target}`);
    $("bars").replaceChildren();
  } else {
    $("verdict").replaceChildren(make("strong", { textContent: first.label }), ` with ${percent(first.probability)}`);
    $("bars").replaceChildren(...first.top.map(bar));
  }
  $("notes").replaceChildren(...answer.notes.map((note) => make("li", { textContent: note })));
  $("timing").textContent = `answered by version ${answer.version} in ${milliseconds.toFixed(0)} ms`;
  $("explain").disabled = false;
  $("command").textContent = sent.command;
  $("curl").hidden = false;
}

function bar({ label, probability }) {
  const fill = make("div");
  fill.style.width = `${100 * probability}%`;
  return make(
    "li",
    {},
    make("span", { className: "label", textContent: label }),
    make("span", { className: "track" }, fill),
    make("span", { className: "share", textContent: percent(probability) }),
  );
}

function showExplanation(why) {
  const alone = (value) => (Array.isArray(value) ? value.flat(9)[0] : value);
  const facts = [
    ["method", why.method],
    ["starts from", figure(alone(why.base))],
    ["arrives at", figure(alone(why.prediction))],
    ["sum is off by", figure(alone(why.additivity_error))],
    ["took", `${figure(why.seconds)} s`],
  ];
  $("explanation").replaceChildren(
    make("img", { src: why.picture, alt: `What spoke for and against the answer, by ${why.method}` }),
    make("dl", {}, ...facts.flatMap(([name, value]) => [make("dt", { textContent: name }), make("dd", { textContent: value })])),
  );
}

// ---- the input, by kind of model

const address = () => `${location.origin}/predict/${encodeURIComponent(model.name)}`;
const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

function predictJson(value) {
  const body = JSON.stringify(value);
  predict(body, "application/json", `curl ${address()} -H 'Content-Type: application/json' -d ${quoted(body)}`);
}

function predictFile(file) {
  const command = `curl ${address()} -F ${quoted(`image=@${file.name}`)}`;
  predict(file, file.type.startsWith("image/") ? file.type : "application/octet-stream", command);
}

function tableForm(examples) {
  const form = make("form", { noValidate: true });
  const cells = make("div", { className: "cells" });
  const fields = new Map();
  for (const port of model.inputs) {
    for (const column of port.columns) {
      let field;
      if (port.dtype === "BYTES" && model.choices[column]) {
        const options = ["", ...model.choices[column]].map((value) => make("option", { value, textContent: value || "(missing)" }));
        field = make("select", {}, ...options);
      } else if (port.dtype === "BYTES") {
        field = make("input", { type: "text", placeholder: "missing" });
      } else {
        field = make("input", { type: "number", step: "any", inputMode: "decimal", placeholder: "missing" });
      }
      field.name = column;
      fields.set(column, field);
      cells.append(make("label", {}, column.replaceAll("_", " "), field));
    }
  }
  const submit = () => {
    const row = {};
    for (const [column, field] of fields) {
      if (field.validity.badInput) {
        tell(`Column “${column}” is not a number; correct it or leave it empty.`);
        field.focus();
        return;
      }
      if (field.value !== "") row[column] = field.type === "number" ? Number(field.value) : field.value;
    }
    predictJson(row);
  };
  const fill = (row) => {
    for (const [column, field] of fields) field.value = row[column] ?? "";
  };
  let next = 0;
  const another = make("button", { type: "button", textContent: "Another example" });
  another.addEventListener("click", () => {
    fill(examples[next++ % examples.length]);
    submit();
  });
  another.hidden = !examples.length;
  const empty = make("button", { type: "button", textContent: "Clear" });
  empty.addEventListener("click", () => {
    fill({});
    clearAnswer("Fill in what you know; the rest counts as missing.");
  });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    submit();
  });
  form.append(cells, make("div", { className: "buttons" }, make("button", { type: "submit", className: "strong", textContent: "Predict" }), another, empty));
  $("input").replaceChildren(form);
  if (examples.length) another.click();
  else clearAnswer("Fill in what you know; the rest counts as missing.");
}

function fileInput(onFile, text) {
  const input = make("input", { type: "file", accept: "image/*" });
  input.addEventListener("change", () => {
    if (input.files.length) onFile(input.files[0]);
    input.value = ""; // the same file can be chosen again
  });
  return make("label", { className: "file" }, text, input);
}

function droppable(place, onFile) {
  place.addEventListener("dragover", (event) => {
    event.preventDefault();
    place.classList.add("over");
  });
  place.addEventListener("dragleave", () => place.classList.remove("over"));
  place.addEventListener("drop", (event) => {
    event.preventDefault();
    place.classList.remove("over");
    if (event.dataTransfer.files.length) onFile(event.dataTransfer.files[0]);
  });
}

function exampleButton(examples, onPixels) {
  let next = 0;
  const button = make("button", { type: "button", textContent: "Use an example" });
  button.hidden = !examples.length;
  button.addEventListener("click", () => onPixels(examples[next++ % examples.length].image));
  return button;
}

function paint(canvas, pixels) {
  const [height, width] = [pixels.length, pixels[0].length];
  canvas.width = width;
  canvas.height = height;
  const image = new ImageData(width, height);
  pixels.flat().forEach((pixel, at) => {
    const [red, green, blue] = pixel.length >= 3 ? pixel : [pixel[0], pixel[0], pixel[0]];
    image.data.set([red, green, blue, pixel[3] ?? 255], 4 * at);
  });
  canvas.getContext("2d").putImageData(image, 0, 0);
}

function filePicker(examples) {
  const place = make("div", { className: "drop" }, make("p", { textContent: "Drop a picture here, or choose one." }));
  const onFile = (file) => {
    const reader = new FileReader();
    reader.addEventListener("load", () => {
      const picture = make("img", { className: "preview", alt: `Your picture ${file.name}`, src: reader.result });
      picture.addEventListener("error", () => picture.remove());
      place.replaceChildren(picture);
    });
    reader.readAsDataURL(file);
    predictFile(file);
  };
  const onPixels = (pixels) => {
    const canvas = make("canvas", { className: "preview" });
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", "Example picture");
    paint(canvas, pixels);
    place.replaceChildren(canvas);
    predictJson({ image: pixels });
  };
  droppable(place, onFile);
  $("input").replaceChildren(place, make("div", { className: "buttons" }, fileInput(onFile, "Choose a picture"), exampleButton(examples, onPixels)));
  clearAnswer("Give the model a picture.");
}

// ---- drawing

// How the data set's own strokes look, so that a drawing can be made to look the same.
function strokeStyle(examples) {
  const style = { dark: true, fill: 0.9, brush: 0.13 }; // brush and fill as shares of the picture's height
  const pictures = examples.map(({ image }) => image.map((row) => row.map((pixel) => pixel[0])));
  if (!pictures.length) return style;
  const border = pictures.flatMap((rows) => [...rows[0], ...rows.at(-1), ...rows.flatMap((row) => [row[0], row.at(-1)])]);
  style.dark = border.reduce((sum, value) => sum + value, 0) / border.length < 128;
  let ink = 0;
  let extent = 0;
  for (const rows of pictures) {
    const strength = rows.map((row) => row.map((value) => (style.dark ? value : 255 - value) / 255));
    const marked = strength.flatMap((row, y) => (row.some((value) => value > 0.2) ? [y] : []));
    ink += strength.flat().reduce((sum, value) => sum + value, 0) / strength.flat().length;
    extent += marked.length ? (marked.at(-1) - marked[0] + 1) / rows.length : style.fill;
  }
  style.fill = extent / pictures.length;
  // Ink is pen times length. Counting a digit's line as 1.5 times its height recognised 47 of 48 test drawings, 2.2 times 43.
  style.brush = Math.min(0.2, Math.max(0.06, ink / pictures.length / (1.5 * style.fill)));
  return style;
}

// Strokes, moved to the middle and scaled to fill the frame with a pen of the data set's width, as pixels.
function rasterise(strokes, height, width, style) {
  const fine = 16; // drawn this many times finer, then averaged over each pixel's area
  const canvas = make("canvas", { width: width * fine, height: height * fine });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "#000";
  context.fillRect(0, 0, canvas.width, canvas.height);
  const pen = style.brush * canvas.height;
  const xs = strokes.flat().map(([x]) => x);
  const ys = strokes.flat().map(([, y]) => y);
  const [left, right, top, bottom] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
  const room = (size) => Math.max(1, style.fill * size - pen);
  const scale = Math.min(room(canvas.width) / Math.max(right - left, 1e-6), room(canvas.height) / Math.max(bottom - top, 1e-6), canvas.height / 0.25);
  trace(context, strokes, pen, ([x, y]) => [canvas.width / 2 + (x - (left + right) / 2) * scale, canvas.height / 2 + (y - (top + bottom) / 2) * scale]);
  const drawn = context.getImageData(0, 0, canvas.width, canvas.height).data;
  const pixels = [];
  for (let row = 0; row < height; row++) {
    pixels.push([]);
    for (let column = 0; column < width; column++) {
      let sum = 0;
      for (let y = row * fine; y < (row + 1) * fine; y++) {
        for (let x = column * fine; x < (column + 1) * fine; x++) sum += drawn[4 * (y * canvas.width + x)];
      }
      const value = Math.round(sum / fine ** 2);
      pixels[row].push([style.dark ? value : 255 - value]);
    }
  }
  return pixels;
}

function trace(context, strokes, pen, place) {
  Object.assign(context, { strokeStyle: "#fff", lineWidth: pen, lineCap: "round", lineJoin: "round" });
  for (const stroke of strokes) {
    const [first, ...rest] = stroke.map(place);
    context.beginPath();
    context.moveTo(...first);
    for (const point of rest.length ? rest : [first]) context.lineTo(...point);
    context.stroke();
  }
}

function drawingBoard(examples, height, width) {
  const style = strokeStyle(examples);
  const board = make("canvas", { className: "board", width: 480, height: 480 });
  board.setAttribute("role", "img");
  board.setAttribute("aria-label", "Drawing board; with a keyboard, use an example or a file instead");
  const seen = make("canvas", { className: "seen" });
  seen.setAttribute("role", "img");
  seen.setAttribute("aria-label", `The ${width} by ${height} pixels that the model sees`);
  const context = board.getContext("2d");
  const figureOfSeen = make("figure", {}, seen, make("figcaption", { textContent: "what the model sees" }));
  let strokes = []; // each a list of [x, y] in 0 … 1
  let current = null;

  const redraw = () => {
    figureOfSeen.hidden = false;
    context.fillStyle = "#000";
    context.fillRect(0, 0, board.width, board.height);
    if (!strokes.length) {
      Object.assign(context, { fillStyle: "#8a9592", font: "28px system-ui, sans-serif", textAlign: "center" });
      context.fillText("Draw here", board.width / 2, board.height / 2 + 10);
    }
    trace(context, strokes, 0.075 * board.width, ([x, y]) => [x * board.width, y * board.height]);
  };
  const blank = () => paint(seen, Array.from({ length: height }, () => Array.from({ length: width }, () => [style.dark ? 0 : 255])));
  const send = () => {
    const pixels = rasterise(strokes, height, width, style);
    paint(seen, pixels);
    predictJson({ image: pixels });
  };
  const clear = () => {
    turn++;
    strokes = [];
    redraw();
    blank();
    clearAnswer("Draw something; the answer follows each stroke.");
  };
  const point = (event) => {
    const box = board.getBoundingClientRect();
    return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
  };
  board.addEventListener("pointerdown", (event) => {
    if (!event.isPrimary || event.button !== 0) return;
    board.setPointerCapture(event.pointerId);
    current = [point(event)];
    strokes.push(current);
    redraw();
  });
  board.addEventListener("pointermove", (event) => {
    if (!current || !event.isPrimary) return;
    const steps = event.getCoalescedEvents?.() ?? [];
    current.push(...(steps.length ? steps : [event]).map(point));
    redraw();
  });
  for (const end of ["pointerup", "pointercancel"]) {
    board.addEventListener(end, (event) => {
      if (!current || !event.isPrimary) return;
      current = null;
      send();
    });
  }

  const showPixels = (pixels) => {
    strokes = [];
    redraw();
    const small = make("canvas");
    paint(small, pixels);
    context.imageSmoothingEnabled = false;
    context.drawImage(small, 0, 0, board.width, board.height);
    paint(seen, pixels);
    predictJson({ image: pixels });
  };
  const onFile = (file) => {
    strokes = [];
    redraw();
    figureOfSeen.hidden = true; // the server scales a file, so its pixels are not known here
    createImageBitmap(file).then((picture) => context.drawImage(picture, 0, 0, board.width, board.height)).catch(() => {});
    predictFile(file);
  };
  const undo = () => {
    strokes.pop();
    if (!strokes.length) return clear();
    redraw();
    send();
  };
  const button = (textContent, action) => {
    const element = make("button", { type: "button", textContent });
    element.addEventListener("click", action);
    return element;
  };
  droppable(board, onFile);
  $("input").replaceChildren(
    make("div", { className: "draw" }, board, figureOfSeen),
    make("div", { className: "buttons" }, button("Clear", clear), button("Undo", undo), exampleButton(examples, showPixels), fileInput(onFile, "Choose a picture")),
  );
  clear();
}

// ---- choosing a model

async function choose(entry) {
  model = entry;
  turn++;
  for (const button of $("models").children) button.setAttribute("aria-current", String(button.textContent === entry.name));
  const ready = entry.versions.filter((version) => version.state === "READY");
  const refused = entry.versions.filter((version) => version.state !== "READY");
  $("main").hidden = false;
  $("name").textContent = entry.name;
  $("version").replaceChildren(...ready.map(({ version }, at) => make("option", { value: version, textContent: at ? version : `${version} (latest)` })));
  $("version").parentElement.hidden = !ready.length;
  $("refused").hidden = !refused.length;
  $("refused").replaceChildren(...refused.map(({ version, reason }) => make("li", { textContent: `Version ${version} is not served: ${reason}` })));
  document.querySelector(".columns").hidden = !ready.length;
  tell(null);
  showFacts();
  location.replace(`#${encodeURIComponent(entry.name)}`);
  if (!ready.length) return;
  const examples = await ask(`/models/${encodeURIComponent(entry.name)}/examples`).catch(() => []);
  if (model !== entry) return;
  if (entry.kind === "table") return tableForm(examples);
  if (entry.kind !== "image") {
    $("input").replaceChildren(make("p", { textContent: "This kind of model has no form here; use the v2 protocol." }));
    return clearAnswer();
  }
  const [, height, width, channels] = entry.inputs[0].shape;
  if (channels === 1 && height > 0 && height === width && height <= 64) drawingBoard(examples, height, width);
  else filePicker(examples);
}

function showFacts() {
  const version = model.versions.find(({ version }) => version === $("version").value);
  if (!version) return ($("facts").textContent = "");
  const size = version.bytes >= 1e6 ? `${figure(version.bytes / 1e6)} MB` : `${figure(version.bytes / 1e3)} kB`;
  const score = version.score === null ? "" : `${model.metric} ${figure(version.score)}`;
  const data = model.training.name ? `trained on ${model.training.name}` : "";
  $("facts").textContent = [model.architecture, model.task.replace("-", " "), data, score, version.precision, size].filter(Boolean).join(" · ");
}

async function start() {
  try {
    const models = await ask("/models");
    if (!models.length) return tell("This server has no models. Export one into its store and start it again.");
    const isReady = ({ versions }) => versions.some(({ state }) => state === "READY");
    models.sort((one, other) => isReady(other) - isReady(one));
    $("models").replaceChildren(
      ...models.map((entry) => {
        const button = make("button", { type: "button", textContent: entry.name, className: isReady(entry) ? "" : "out" });
        button.addEventListener("click", () => choose(entry));
        return button;
      }),
    );
    const asked = decodeURIComponent(location.hash.slice(1));
    await choose(models.find(({ name }) => name === asked) ?? models[0]);
  } catch (error) {
    tell(error.message);
  }
}

$("explain").addEventListener("click", explain);
$("version").addEventListener("change", () => {
  showFacts();
  if (sent) predict(sent.body, sent.type, sent.command);
});
start();
