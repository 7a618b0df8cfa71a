// The input by kind of model. Each form calls one of the given functions: json(row), file(file), rows(file) or clear(hint).

import { $, button, make, tell } from "./common.js";
import { drawingBoard, paint } from "./drawing.js";

let onPaste = null; // what to do with a picture that is pasted
let stopCamera = () => {};

document.addEventListener("paste", (event) => {
  const file = [...(event.clipboardData?.files ?? [])].find(({ type }) => type.startsWith("image/"));
  if (!file || !onPaste) return;
  event.preventDefault();
  onPaste(file);
});

export function showInput(model, examples, on) {
  onPaste = null;
  stopCamera();
  if (model.kind === "table") return table(model, examples, on);
  if (model.kind === "text") return text(model, examples, on);
  if (model.kind === "audio") return recording(model, examples, on);
  if (model.kind === "series") return series(model, examples, on);
  if (model.kind !== "image") {
    $("input").replaceChildren(make("p", { textContent: "This kind of model has no form here; use the v2 protocol." }));
    return on.clear();
  }
  const [, height, width, channels] = model.inputs[0].shape;
  const drawn = channels === 1 && height > 0 && height === width && height <= 64 && model.task === "image-classification";
  if (drawn) drawing(examples, height, width, on);
  else picture(examples, on);
}

export function put(...elements) {
  $("input").replaceChildren(...elements);
}

export function buttons(...elements) {
  return make("div", { className: "buttons" }, ...elements.filter(Boolean));
}

export function examplesButton(examples, textContent, use) {
  let next = 0;
  return examples.length ? button(textContent, () => use(examples[next++ % examples.length])) : null;
}

function fileButton(textContent, accept, onFile) {
  const input = make("input", { type: "file", accept });
  input.addEventListener("change", () => {
    if (input.files.length) onFile(input.files[0]);
    input.value = ""; // the same file can be chosen again
  });
  return make("label", { className: "file" }, textContent, input);
}

function droppable(place, onFile) {
  const over = (is) => place.classList.toggle("over", is);
  place.addEventListener("dragover", (event) => {
    event.preventDefault();
    over(true);
  });
  place.addEventListener("dragleave", () => over(false));
  place.addEventListener("drop", (event) => {
    event.preventDefault();
    over(false);
    if (event.dataTransfer.files.length) onFile(event.dataTransfer.files[0]);
  });
}

export function save(name, text, type) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  make("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

// ---- rows

function table(model, examples, on) {
  const form = make("form", { noValidate: true });
  const cells = make("div", { className: "cells" });
  const fields = new Map();
  for (const port of model.inputs) {
    for (const column of port.columns) {
      const choices = port.dtype === "BYTES" && model.choices[column];
      const field = choices
        ? make("select", {}, ...["", ...choices].map((value) => make("option", { value, textContent: value || "(missing)" })))
        : make("input", { type: port.dtype === "BYTES" ? "text" : "number", step: "any", placeholder: "missing", autocomplete: "off" });
      field.name = column;
      fields.set(column, field);
      cells.append(make("label", {}, column.replaceAll("_", " "), field));
    }
  }
  const submit = () => {
    const row = {};
    for (const [column, field] of fields) {
      field.removeAttribute("aria-invalid");
      if (field.validity.badInput) {
        field.setAttribute("aria-invalid", "true");
        field.focus();
        return tell(`Column “${column}” is not a number; correct it or leave it empty.`);
      }
      if (field.value !== "") row[column] = field.type === "number" ? Number(field.value) : field.value;
    }
    on.json(row);
  };
  const fill = (row) => {
    for (const [column, field] of fields) field.value = row[column] ?? "";
  };
  const hint = "Fill in what you know; the rest counts as missing.";
  const another = examplesButton(examples, "Another example", (row) => {
    fill(row);
    submit();
  });
  const empty = button("Clear", () => {
    fill({});
    on.clear(hint);
  });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    submit();
  });
  form.append(cells, buttons(make("button", { type: "submit", className: "strong", textContent: "Predict" }), another, empty));
  const quoted = (value) => (/[",\n]/.test(value ?? "") ? `"${String(value).replaceAll('"', '""')}"` : (value ?? ""));
  const template = button("Get a template", () => {
    const lines = [[...fields.keys()], ...examples.map((row) => [...fields.keys()].map((column) => row[column]))];
    save(`${model.name}.csv`, lines.map((line) => line.map(quoted).join(",") + "\n").join(""), "text/csv");
  });
  put(form, many(on, template));
  if (another) another.click();
  else on.clear(hint);
}

// A place for a CSV file of many rows.
function many(on, ...more) {
  const place = make("div", { className: "drop small" }, make("p", { textContent: "Many rows? Drop a CSV file here; its first line names the columns." }));
  place.append(buttons(fileButton("Choose a CSV file", ".csv,.tsv,text/csv", on.rows), ...more));
  droppable(place, on.rows);
  return place;
}

// ---- text

function text(model, examples, on) {
  const name = model.inputs[0].name;
  const area = make("textarea", { rows: 5, name, placeholder: "Type or paste a text" });
  const form = make("form", {}, make("label", { className: "wide" }, "Text", area));
  const hint = "Write something.";
  const submit = () => (area.value.trim() ? on.json({ [name]: area.value }) : on.clear(hint));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    submit();
  });
  area.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) submit();
  });
  const another = examplesButton(examples, "Use an example", (row) => {
    area.value = row[name];
    submit();
  });
  form.append(buttons(make("button", { type: "submit", className: "strong", textContent: "Predict" }), another));
  put(form, many(on));
  on.clear(hint);
}

// ---- recordings

function recording(model, examples, on) {
  const name = model.inputs[0].name;
  const place = make("div", { className: "drop" }, make("p", { textContent: "Drop a recording here, or choose one: WAV or FLAC." }));
  const hear = (file) => {
    const url = URL.createObjectURL(file);
    const player = make("audio", { controls: true, src: url });
    player.setAttribute("aria-label", `Your recording ${file.name}`);
    player.addEventListener("error", () => player.replaceWith(make("p", { textContent: `${file.name} cannot be played here.` })));
    return player;
  };
  const onFile = (file) => {
    place.replaceChildren(hear(file));
    on.sound(file);
    amplitudes(file).then((wave) => place.prepend(waveform(wave)), () => {});
  };
  droppable(place, onFile);
  const onExample = (row) => {
    place.replaceChildren(waveform(row[name]));
    on.json(row);
  };
  const example = examplesButton(examples, "Use an example", onExample);
  put(place, buttons(fileButton("Choose a recording", ".wav,.flac,audio/*", onFile), example));
  on.clear("Give the model a recording.");
}

async function amplitudes(file) {
  const context = new OfflineAudioContext(1, 1, 8000);
  return (await context.decodeAudioData(await file.arrayBuffer())).getChannelData(0);
}

// Lowest and highest amplitude of each column of pixels.
function waveform(wave) {
  const [width, height] = [600, 120];
  const canvas = make("canvas", { className: "wave", width, height });
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", "Amplitude of the recording over time");
  const brush = canvas.getContext("2d");
  const most = wave.reduce((high, value) => Math.max(high, Math.abs(value)), 1e-6);
  brush.fillStyle = getComputedStyle(document.body).color;
  for (let column = 0; column < width; column++) {
    const part = wave.slice(Math.floor((column * wave.length) / width), Math.max(1, Math.ceil(((column + 1) * wave.length) / width)));
    const [low, high] = part.reduce(([least, top], value) => [Math.min(least, value), Math.max(top, value)], [0, 0]);
    const [from, to] = [high, low].map((value) => ((1 - value / most) * height) / 2);
    brush.fillRect(column, from, 1, Math.max(1, to - from));
  }
  return canvas;
}

// ---- series

function series(model, examples, on) {
  const [{ name, columns, shape }] = model.inputs;
  const area = make("textarea", { rows: 8, name, placeholder: "1.5\n1.7\n…", spellcheck: false });
  const lines = make("div");
  const form = make("form", {}, make("label", { className: "wide" }, `A line for each step: ${columns.join(", ")}`, area), lines);
  const hint = `Paste a series of ${model.task === "forecasting" ? "at least" : "at most"} ${shape[1]} steps, or drop a CSV file.`;
  const steps = () => area.value.trim().split("\n").map((line) => line.split(/[,;\t]/).map((cell) => (cell.trim() === "" ? null : Number(cell))));
  const submit = () => {
    if (!area.value.trim()) return on.clear(hint);
    const rows = steps();
    const wrong = rows.findIndex((row) => row.length !== columns.length || row.some(Number.isNaN));
    if (wrong >= 0) return tell(`Line ${wrong + 1} is not ${columns.length} number${columns.length > 1 ? "s with commas between" : ""}; correct it.`);
    lines.replaceChildren(curves(rows));
    on.json({ [name]: rows });
  };
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    submit();
  });
  const another = examplesButton(examples, "Use an example", (row) => {
    area.value = row[name].map((step) => [step].flat().map((value) => value ?? "").join(", ")).join("\n");
    submit();
  });
  const rows = (file) => {
    lines.replaceChildren();
    on.rows(file);
  };
  const place = make("div", { className: "drop small" }, make("p", { textContent: "A CSV file? Drop it here; its first line names the columns, the others are the steps." }));
  place.append(buttons(fileButton("Choose a CSV file", ".csv,.tsv,text/csv", rows)));
  droppable(place, rows);
  form.append(buttons(make("button", { type: "submit", className: "strong", textContent: "Predict" }), another));
  put(form, place);
  on.clear(hint);
}

// A line for each column, each in a height of its own values.
function curves(rows) {
  const [width, height, room] = [600, 120, 6];
  const canvas = make("canvas", { className: "wave", width, height });
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `The series over ${rows.length} steps`);
  const brush = canvas.getContext("2d");
  brush.strokeStyle = getComputedStyle(document.body).color;
  brush.lineWidth = 2;
  rows[0].forEach((_, column) => {
    const known = rows.map((row, step) => [step, row[column]]).filter(([, value]) => value !== null);
    const [low, high] = known.reduce(([least, most], [, value]) => [Math.min(least, value), Math.max(most, value)], [Infinity, -Infinity]);
    brush.globalAlpha = 1 / (1 + column / 2);
    brush.beginPath();
    for (const [step, value] of known) {
      const across = room + (step / Math.max(1, rows.length - 1)) * (width - 2 * room);
      brush.lineTo(across, height - room - ((value - low) / (high - low || 1)) * (height - 2 * room));
    }
    brush.stroke();
  });
  return canvas;
}

// ---- pictures

function picture(examples, on) {
  const place = make("div", { className: "drop" }, make("p", { textContent: "Drop or paste a picture here, or choose one." }));
  const onFile = (file) => {
    stopCamera();
    const url = URL.createObjectURL(file);
    const view = make("img", { className: "preview", alt: `Your picture ${file.name}`, src: url });
    view.addEventListener("load", () => URL.revokeObjectURL(url));
    view.addEventListener("error", () => view.replaceWith(make("p", { textContent: `${file.name} cannot be shown here.` })));
    place.replaceChildren(view);
    on.file(file);
  };
  const onExample = ({ image }) => {
    stopCamera();
    const canvas = make("canvas", { className: "preview" });
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", "Example picture");
    paint(canvas, image);
    place.replaceChildren(canvas);
    on.json({ image });
  };
  droppable(place, onFile);
  onPaste = onFile;
  const example = examplesButton(examples, "Use an example", onExample);
  put(place, buttons(fileButton("Choose a picture", "image/*", onFile), cameraButton(place, onFile), example));
  on.clear("Give the model a picture.");
}

function drawing(examples, height, width, on) {
  const { board, place, buttons: own, show } = drawingBoard(
    examples,
    height,
    width,
    (image) => on.json({ image }),
    () => on.clear("Draw something; the answer follows each stroke."),
  );
  const onFile = (file) => {
    createImageBitmap(file).then((bitmap) => show(bitmap), () => {});
    on.file(file);
  };
  const example = examplesButton(examples, "Use an example", ({ image }) => {
    const small = make("canvas");
    paint(small, image);
    show(small, image);
    on.json({ image });
  });
  droppable(board, onFile);
  onPaste = onFile;
  put(place, buttons(...own, example, fileButton("Choose a picture", "image/*", onFile)));
}

// Browsers give the camera to pages from this machine or over HTTPS only.
function cameraButton(place, onFile) {
  if (!navigator.mediaDevices?.getUserMedia) return null;
  return button("Use the camera", async () => {
    stopCamera();
    let stream;
    try {
      stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
    } catch (error) {
      const reason = error.name === "NotAllowedError" ? "the browser does not allow it" : "none was found, or it is in use";
      return tell(`The camera cannot be used: ${reason}. Choose a picture instead.`);
    }
    tell(null);
    const video = make("video", { className: "preview", autoplay: true, muted: true, playsInline: true, srcObject: stream });
    video.setAttribute("aria-label", "What the camera sees");
    const before = [...place.childNodes];
    stopCamera = () => {
      stream.getTracks().forEach((track) => track.stop());
      place.replaceChildren(...before);
      stopCamera = () => {};
    };
    const take = button("Take the picture", () => {
      const canvas = make("canvas", { width: video.videoWidth, height: video.videoHeight });
      canvas.getContext("2d").drawImage(video, 0, 0);
      canvas.toBlob((blob) => onFile(new File([blob], "camera.jpg", { type: "image/jpeg" })), "image/jpeg", 0.92);
    }, { className: "strong", disabled: true });
    video.addEventListener("loadeddata", () => (take.disabled = false));
    place.replaceChildren(video, buttons(take, button("Stop the camera", () => stopCamera())));
    take.focus();
  });
}
