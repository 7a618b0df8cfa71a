// A mask over the picture it was answered for, as strongly as the visitor likes.

import { make } from "./common.js";
import { paint } from "./drawing.js";

export function overlay(prediction, sent) {
  const names = prediction.shares.map(({ label }) => label).join(", ");
  const mask = make("img", { className: "mask", src: prediction.mask, alt: `What the model sees where: ${names}` });
  const strength = make("input", { type: "range", min: 0, max: 100, value: 60 });
  const show = () => (mask.style.opacity = strength.value / 100);
  strength.addEventListener("input", show);
  show();
  const layers = make("div", { className: "layers" }, picture(sent.body), mask);
  return make("div", { className: "overlay" }, layers, make("label", {}, "Mask", strength));
}

// The picture that was sent: a file, or the pixels of an example.
export function picture(body) {
  if (typeof body === "string") {
    const canvas = make("canvas");
    paint(canvas, JSON.parse(body).image);
    canvas.setAttribute("aria-hidden", "true");
    return canvas;
  }
  const url = URL.createObjectURL(body);
  const view = make("img", { className: "picture", src: url, alt: "" });
  view.addEventListener("load", () => URL.revokeObjectURL(url));
  return view;
}
