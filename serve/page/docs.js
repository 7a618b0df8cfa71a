// Reads /openapi.json and shows every route, with a form to send a request. Text is only ever set as text.
"use strict";

const byId = (id) => document.getElementById(id);
let api = {};

function make(tag, options = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(options)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

// text in which `code` stands between backticks, as nodes; a backtick alone stays one
function prose(text) {
  return (text || "").split(/`([^`]+)`/).map((part, index) => (index % 2 ? make("code", { textContent: part }) : part));
}

// indented JSON, with lists of plain values on one line
function pretty(value, indent = "") {
  if (value === null || typeof value !== "object") return JSON.stringify(value);
  const list = Array.isArray(value);
  const inner = `${indent}  `;
  const parts = Object.entries(value).map(([key, each]) => (list ? "" : `${JSON.stringify(key)}: `) + pretty(each, inner));
  if (list && value.every((each) => each === null || typeof each !== "object")) return `[${parts.join(", ")}]`;
  const [open, close] = list ? "[]" : "{}";
  return parts.length ? `${open}\n${inner}${parts.join(`,\n${inner}`)}\n${indent}${close}` : open + close;
}

function resolved(schema) {
  return schema && schema.$ref ? api.components.schemas[schema.$ref.split("/").pop()] : schema || {};
}

// one line for a schema: array of integer, "a" | "b", object
function kind(schema) {
  if (schema && schema.$ref) return schema.$ref.split("/").pop();
  if (!schema || !Object.keys(schema).length) return "anything";
  if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(" | ");
  for (const joint of ["oneOf", "anyOf"]) if (schema[joint]) return schema[joint].map(kind).join(" or ");
  if (schema.type === "array") return `list of ${kind(schema.items)}`;
  if (schema.contentMediaType) return `file of ${schema.contentMediaType}`;
  return [].concat(schema.type || "anything").join(" or ");
}

// an object's properties as nested lists
function shape(schema, depth = 0) {
  let inner = resolved(schema);
  while (inner.type === "array") inner = resolved(inner.items);
  if (!inner.properties || depth > 3) return null;
  const needed = inner.required || [];
  return make("ul", {}, ...Object.entries(inner.properties).map(([name, property]) => make("li", {},
    make("code", { textContent: name }), ` ${kind(property)}${needed.includes(name) ? "" : ", optional"}`,
    property.description ? make("span", { className: "quiet" }, " · ", ...prose(property.description)) : null,
    shape(property, depth + 1))));
}

function bodyText(title, content) {
  const parts = [make("h3", { textContent: title })];
  for (const [media, { schema }] of Object.entries(content || {})) {
    parts.push(make("p", {}, make("code", { textContent: media }), " ", ...prose(schema.description || kind(schema))), shape(schema) || "");
  }
  return parts;
}

function parameterTable(parameters) {
  if (!parameters.length) return null;
  return make("table", {}, make("thead", {}, make("tr", {}, ...["Parameter", "In", "Type", ""].map((text) => make("th", { scope: "col", textContent: text })))),
    make("tbody", {}, ...parameters.map((one) => make("tr", {},
      make("td", {}, make("code", { textContent: one.name }), one.required ? " *" : ""), make("td", { textContent: one.in }),
      make("td", { textContent: kind(one.schema) }), make("td", {}, ...prose(one.description))))));
}

// the form under "Try it"
function trial(path, method, operation) {
  const fields = (operation.parameters || []).filter((one) => one.in !== "header").map((one) => {
    const known = one.schema.enum || one.schema.examples || [];
    const id = `${operation.operationId}-${one.name}`;
    const input = make("input", { id, value: one.in === "path" ? known[0] || "" : "", placeholder: one.schema.default ?? "", required: Boolean(one.required) });
    const list = make("datalist", { id: `${id}-known` }, ...known.map((value) => make("option", { value })));
    input.setAttribute("list", list.id);
    return { one, input, label: make("label", {}, one.name, input, list) };
  });
  const content = operation.requestBody ? operation.requestBody.content : {};
  const media = Object.keys(content).filter((name) => name !== "application/octet-stream");
  const body = make("textarea", { spellcheck: false, "aria-label": "Body" });
  const file = make("input", { type: "file", "aria-label": "File" });
  const choice = make("select", { "aria-label": "Media type" }, ...media.map((name) => make("option", { textContent: name })));
  const examples = Object.values((content["application/json"] || {}).examples || {});
  const pick = make("select", { "aria-label": "Example" }, ...examples.map((one) => make("option", { textContent: one.summary ?? "example" })));
  const isFile = () => choice.value.startsWith("image/") || choice.value.startsWith("multipart/");
  const fill = () => {
    const example = examples[pick.selectedIndex];
    if (!example) return;
    body.value = pretty(example.value);
    const model = fields.find(({ one }) => one.name.split("_or_").includes("model"));
    if (model && example.summary) model.input.value = example.summary;
  };
  const change = () => {
    body.hidden = isFile();
    file.hidden = !isFile();
    pick.hidden = choice.value !== "application/json" || !examples.length;
  };
  pick.addEventListener("change", fill);
  choice.addEventListener("change", change);
  fill();
  change();

  const status = make("p", { role: "status" });
  const answer = make("pre", { hidden: true, tabIndex: 0, "aria-label": "Answer" });
  const send = make("button", { className: "send", textContent: "Send" });
  const form = make("form", {
    async onsubmit(event) {
      event.preventDefault();
      let url = path;
      const query = new URLSearchParams();
      for (const { one, input } of fields) {
        if (one.in === "path") url = url.replace(`{${one.name}}`, encodeURIComponent(input.value));
        else if (input.value) query.set(one.name, input.value);
      }
      if (query.size) url += `?${query}`;
      const options = { method, headers: {} };
      if (byId("key").value) options.headers.Authorization = `Bearer ${byId("key").value}`;
      if (media.length && isFile() && file.files[0]) {
        options.body = file.files[0];
        if (choice.value.startsWith("multipart/")) {
          options.body = new FormData();
          options.body.append("file", file.files[0]);
        } else options.headers["Content-Type"] = choice.value;
      } else if (media.length && !isFile() && body.value) {
        options.body = body.value;
        options.headers["Content-Type"] = choice.value;
      }
      send.disabled = true;
      const begun = performance.now();
      try {
        const response = await fetch(url, options);
        const text = await response.text();
        status.textContent = `${response.status} ${response.statusText} · ${Math.round(performance.now() - begun)} ms · ${response.headers.get("X-Request-Id") || ""}`;
        status.className = response.ok ? "" : "bad";
        const json = (response.headers.get("Content-Type") || "").startsWith("application/json");
        answer.textContent = json && text ? pretty(JSON.parse(text)) : text.slice(0, 20000);
        answer.hidden = !text;
      } catch (error) {
        status.textContent = `the server did not answer: ${error.message}`;
        status.className = "bad";
        answer.hidden = true;
      }
      send.disabled = false;
    },
  }, make("h3", { textContent: "Try it" }), make("div", { className: "fields" }, ...fields.map(({ label }) => label)));
  if (media.length) form.append(make("div", { className: "fields" }, choice, pick), body, file);
  form.append(make("p", {}, send), status, answer);
  return form;
}

function route(path, method, operation) {
  const details = make("details", { className: "route", id: operation.operationId },
    make("summary", {}, make("span", { className: "method", textContent: method.toUpperCase() }),
      make("code", { textContent: path }), make("span", { className: "quiet" }, ...prose(operation.summary))));
  details.dataset.text = `${method} ${path} ${operation.summary}`.replaceAll("`", "").toLowerCase();
  details.addEventListener("toggle", () => {
    if (!details.open || details.children.length > 1) return;
    const [code, good] = Object.entries(operation.responses)[0];
    const inner = make("div", {},
      operation.description ? make("p", {}, ...prose(operation.description)) : null,
      operation.security && !operation.security.some((one) => !Object.keys(one).length) ? make("p", { textContent: "Needs a key of scope admin." }) : null,
      parameterTable(operation.parameters || []),
      ...(operation.requestBody ? bodyText("Body", operation.requestBody.content) : []),
      ...bodyText(`Answer ${code}`, good.content), trial(path, method.toUpperCase(), operation));
    details.append(inner);
  });
  return details;
}

function filter() {
  const words = byId("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0;
  for (const section of document.querySelectorAll("main section")) {
    let some = false;
    for (const details of section.querySelectorAll("details.route")) {
      details.hidden = !words.every((word) => details.dataset.text.includes(word));
      some ||= !details.hidden;
      shown += !details.hidden;
    }
    section.hidden = !some;
  }
  byId("count").textContent = `${shown} routes`;
}

async function start() {
  const content = byId("content");
  try {
    const response = await fetch("/openapi.json");
    if (!response.ok) throw new Error(`${response.status} ${response.statusText}`);
    api = await response.json();
  } catch (error) {
    content.replaceChildren(make("p", { className: "bad", textContent: `The document could not be read: ${error.message}` }));
    return;
  }
  byId("version").textContent = api.info.version;
  byId("about").replaceChildren(...prose(api.info.description));
  content.replaceChildren(...api.tags.map((tag) => {
    const section = make("section", { "aria-label": tag.name }, make("h2", { textContent: tag.name }), make("p", { className: "quiet" }, ...prose(tag.description)));
    for (const [path, methods] of Object.entries(api.paths)) {
      for (const [method, operation] of Object.entries(methods)) {
        if (operation.tags.includes(tag.name)) section.append(route(path, method, operation));
      }
    }
    return section;
  }));
  byId("filter").addEventListener("input", filter);
  filter();
  const wanted = byId(decodeURIComponent(location.hash.slice(1)));
  if (wanted && wanted.matches("details")) {
    wanted.open = true;
    wanted.scrollIntoView();
  }
}

byId("search").addEventListener("submit", (event) => event.preventDefault());
document.addEventListener("keydown", (event) => {
  if (event.key !== "/" || event.target.matches("input, textarea, select")) return;
  event.preventDefault();
  byId("filter").focus();
});
start();
