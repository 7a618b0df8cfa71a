// The form of a model that writes texts or paints pictures of them, and the text as it comes.

import { button, make } from "./common.js";
import { buttons, examplesButton, put } from "./inputs.js";

const SHOWN = 400; // characters of what was sent that stand before its continuation

const SETTINGS = [
  { name: "max_tokens", label: "Tokens at most", value: 64, min: 1, step: 1 },
  { name: "temperature", label: "Temperature", min: 0, max: 100, step: "any", title: "0 takes the likeliest token each time, 1 draws as the model says" },
  { name: "top_p", label: "Top p", value: 1, min: 0, max: 1, step: "any", title: "draws among the likeliest tokens of so much probability" },
  { name: "seed", label: "Seed", value: "", min: 0, step: 1, placeholder: "random" },
];

const WORDS = {
  answer: { placeholder: "Type or paste a text", hint: "Write something.", start: "Write", temperature: 0 },
  continuation: { placeholder: "Once upon a time", hint: "Write how it begins.", start: "Continue", temperature: 0.8 },
  picture: { placeholder: "What the picture is to show", hint: "Write what is to be painted.", start: "Paint", temperature: 1 },
};

// Calls `on.write({text, parameters, signal, ended})`; `ended` is to be called when nothing more comes.
export function showWriting(model, examples, on) {
  const name = model.inputs[0].name;
  const words = WORDS[model.writes];
  const paints = model.writes === "picture";
  const area = make("textarea", { rows: paints ? 2 : 6, name, placeholder: words.placeholder });
  const cells = make("div", { className: "cells" });
  const fields = SETTINGS.filter(({ name }) => !paints || name !== "max_tokens").map(({ name, label, ...rest }) => {
    const field = make("input", { type: "number", name, autocomplete: "off", ...rest });
    if (name === "temperature") field.value = words.temperature;
    if (name === "max_tokens" && model.length) {
      field.max = model.length;
      field.value = Math.min(field.value, model.length);
    }
    cells.append(make("label", {}, label, field));
    return field;
  });
  const until = make("input", { type: "text", name: "stop", autocomplete: "off", placeholder: "nothing" });
  if (!paints) cells.append(make("label", {}, "Stop at", until));
  const { hint } = words;
  let going = null;
  const start = make("button", { type: "submit", className: "strong", textContent: words.start });
  const stop = button("Stop", () => going?.abort(), { hidden: true });
  const form = make("form", {}, make("label", { className: "wide" }, "Text", area), make("details", {}, make("summary", { textContent: "Settings" }), cells));
  const submit = () => {
    if (!area.value.trim()) return on.clear(hint);
    going?.abort();
    const mine = (going = new AbortController());
    const given = fields.filter(({ value }) => value !== "").map(({ name, value }) => [name, Number(value)]);
    if (until.value) given.push(["stop", until.value]);
    stop.hidden = false;
    const ended = () => {
      if (going !== mine) return;
      const focused = document.activeElement === stop;
      stop.hidden = true;
      if (focused) start.focus(); // a button that goes takes the focus with it
    };
    on.write({ text: area.value, parameters: Object.fromEntries(given), signal: mine.signal, ended });
  };
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    submit();
  });
  area.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });
  const another = examplesButton(examples, "Use an example", (row) => {
    area.value = row[name];
    submit();
  });
  form.append(buttons(start, stop, another));
  put(form);
  on.clear(hint);
  return () => going?.abort();
}

// What was sent, quiet, and what follows it; `add` more of it.
export function story(model, text) {
  const before = model.writes === "answer" ? "" : text.length > SHOWN ? `… ${text.slice(-SHOWN)}` : text;
  const written = make("span");
  const element = make("p", { className: "story going", ariaBusy: "true" }, make("span", { className: "before", textContent: before }), written);
  return {
    element,
    add(more) {
      const low = element.scrollHeight - element.scrollTop - element.clientHeight < 20;
      written.append(more);
      if (low) element.scrollTop = element.scrollHeight; // whoever scrolled up to read is left there
    },
    end() {
      element.classList.remove("going");
      element.ariaBusy = "false";
    },
  };
}
