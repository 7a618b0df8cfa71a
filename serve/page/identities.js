// What an embedding is good for: who of the enrolled it is nearest to, whether it is the same as the one before, and enrolling it.

import { ask, button, figure, make, tell } from "./common.js";
import { picture } from "./masks.js";

let before = null; // the last request of this model that was answered: {body, type, model}

// A pair as one request; null where one is a file and the other pixels, which no body holds together.
function pair(first, second) {
  const texts = [first, second].map(({ body }) => typeof body === "string");
  if (texts[0] !== texts[1]) return null;
  if (texts[0]) return { body: JSON.stringify({ image: [first, second].map(({ body }) => JSON.parse(body).image) }), type: "application/json" };
  const form = new FormData();
  for (const { body } of [first, second]) form.append("file", body, body.name ?? "picture");
  return { body: form, type: null }; // the browser says where the form's parts begin
}

const post = (path, { body, type }, method = "POST") => ask(path, { method, headers: type ? { "Content-Type": type } : {}, body });

// Fills `place` and returns the pair to explain, if there is one.
export async function identify(place, model, sent, length, bar) {
  const name = encodeURIComponent(model.name);
  const at = (verb) => `/${verb}/${name}?${new URLSearchParams({ version: sent.version })}`;
  const one = { body: sent.body, type: sent.type, model: model.name };
  const last = before?.model === model.name ? before : null;
  before = one;
  const compared = make("div");
  const matches = make("ol", { className: "bars" });
  const said = make("p", { className: "quiet", textContent: `${length} numbers say what this picture is like.` });
  place.replaceChildren(said, compared, matches, enrolment(name, sent, one));
  const both = last && pair(last, one);
  const [verdict, found] = await Promise.all([both && post(at("verify"), both), post(at("search"), one)]);
  if (verdict) compared.append(...comparison(verdict, last, one));
  const [known] = found.matches;
  said.textContent += known.length ? " Nearest of the enrolled:" : " Nobody is enrolled for this version yet.";
  matches.replaceChildren(...known.map(({ name, similarity, same }) => bar(same === false ? `${name}?` : name, Math.max(0, similarity), similarity.toFixed(3))));
  return verdict ? both : null;
}

function comparison({ similarity, threshold, same }, last, one) {
  const words = { true: "the same as the one before", false: "another than the one before", null: "compared with the one before" };
  const verdict = make("strong", { className: "same", textContent: words[same] });
  const limit = threshold === null ? "" : `, the threshold is ${figure(threshold)}`;
  const sides = make("div", { className: "sides" }, picture(last.body), picture(one.body));
  return [make("p", {}, verdict), make("p", { className: "quiet", textContent: `similarity ${similarity.toFixed(3)}${limit}` }), sides];
}

// Only a key of scope admin may; the server says so to others.
function enrolment(name, sent, one) {
  const who = make("input", { type: "text", required: true, maxLength: 128, autocomplete: "off" });
  const done = make("p", { className: "quiet", ariaLive: "polite" });
  const form = make("form", { className: "enrol" }, make("label", {}, "Enrol as", who), make("button", { type: "submit", textContent: "Enrol" }));
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const path = `/admin/gallery/${name}/${encodeURIComponent(who.value.trim())}?${new URLSearchParams({ version: sent.version })}`;
    try {
      const told = await post(path, one, "PUT");
      done.replaceChildren(`${told.name} has ${told.embeddings} embedding${told.embeddings === 1 ? "" : "s"} now; the picture was not kept. `, button("Forget", async () => {
        try {
          await ask(path, { method: "DELETE" });
          done.textContent = `${told.name} is forgotten.`;
        } catch (error) {
          tell(error.message);
        }
      }));
      tell(null);
    } catch (error) {
      tell(error.message);
    }
  });
  return make("div", {}, form, done);
}
