// Versions, rules between them, and figures of the last minute, looked at again while the page is in view.

import { $, ask, figure, make, percent } from "./common.js";

const EVERY = 2000; // milliseconds
let shown = null; // name of the model, null for none
let timer = 0;

export function watch(name) {
  shown = name;
  $("live").hidden = !name;
  look();
}

document.addEventListener("visibilitychange", look);

export async function look() {
  clearTimeout(timer);
  if (!shown || document.hidden) return;
  const name = shown;
  try {
    const told = await ask(`/models/${encodeURIComponent(name)}/live`);
    if (name === shown) show(told);
  } catch {
    if (name === shown) $("rate").textContent = "Figures cannot be had now.";
  }
  if (name === shown) timer = setTimeout(look, EVERY);
}

const HEADS = ["Version", "Share", "Requests/s", "Errors/s", "Median time", "99 % within", "Inputs"];

const DRIFT = { stable: "as in training", waiting: "too few rows yet", unknown: "not judged" };

function show({ versions, history }) {
  const total = history.reduce((sum, count) => sum + count, 0);
  $("rate").textContent = `${total.toLocaleString("en")} request${total === 1 ? "" : "s"} in the last minute`;
  const most = Math.max(1, ...history);
  const points = history.map((count, second) => `${second},${(20 - (19 * count) / most).toFixed(1)}`);
  $("line").setAttribute("points", points.join(" "));
  const spans = (milliseconds) => (milliseconds === null ? "–" : `${milliseconds.toPrecision(2) > 99 ? Math.round(milliseconds) : Number(milliseconds.toPrecision(2))} ms`);
  const rows = versions.map((version) => {
    const roles = version.roles.flatMap((role) => [" ", make("span", { className: "role", textContent: role })]);
    const drift = version.drift;
    const inputs = make("td", { textContent: drift ? DRIFT[drift.state] ?? drift.state : "–" });
    if (drift && drift.state !== "stable") inputs.append(make("small", { textContent: drift.verdict }));
    if (drift && ["shifted", "drifted"].includes(drift.state)) inputs.className = "moved";
    const cells = [version.share === null ? "–" : percent(version.share), figure(version.requests ?? 0), figure(version.errors ?? 0), spans(version.p50_ms), spans(version.p99_ms)];
    const head = make("th", { scope: "row" }, version.version, ...roles);
    const line = make("tr", {}, head, ...cells.map((textContent) => make("td", { textContent })), inputs);
    [...line.children].forEach((cell, at) => (cell.dataset.head = HEADS[at]));
    return line;
  });
  $("versions").replaceChildren(...rows);
}
