// Boxes over the picture they were answered for, with their labels and scores.

import { make } from "./common.js";
import { picture } from "./masks.js";

export function boxed(prediction, sent) {
  const { boxes, height, width } = prediction;
  const frames = boxes.map(({ label, score, box: [left, top, right, bottom], colour }) => {
    const frame = make("div", { className: "box" }, make("span", { textContent: `${label} ${score.toFixed(2)}` }));
    const part = (from, to, whole) => [Math.max(0, from) / whole, Math.min(whole, to) / whole].map((share) => 100 * share);
    const [[west, east], [north, south]] = [part(left, right, width), part(top, bottom, height)];
    Object.assign(frame.style, { left: `${west}%`, top: `${north}%`, width: `${east - west}%`, height: `${south - north}%` });
    frame.style.setProperty("--shade", colour);
    if (north < 12) frame.classList.add("low"); // its label would stand above the picture
    return frame;
  });
  const names = boxes.map(({ label }) => label).join(", ") || "nothing";
  const layers = make("div", { className: "layers", role: "img", ariaLabel: `What the model found: ${names}` }, picture(sent.body), ...frames);
  return make("div", { className: "overlay" }, layers);
}

export function counted(boxes) {
  const counts = new Map();
  for (const { label } of boxes) counts.set(label, (counts.get(label) ?? 0) + 1);
  return [...counts].map(([label, count]) => (count > 1 ? `${count} × ${label}` : label)).join(", ") || "nothing";
}
