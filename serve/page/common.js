// What every part of the page uses: elements, figures and the way to the server.

export const $ = (id) => document.getElementById(id);

export const make = (tag, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};

export const button = (textContent, action, properties = {}) => {
  const element = make("button", { type: "button", textContent, ...properties });
  element.addEventListener("click", action);
  return element;
};

// Never "100 %" or "0 %" of what is not quite so.
export function percent(share) {
  if (share > 0.9995 && share < 1) return "> 99.9 %";
  if (share > 0 && share < 0.0005) return "< 0.1 %";
  return `${(100 * share).toFixed(share === 0 || share === 1 ? 0 : 1)} %`;
}

export function figure(value) {
  if (value === null || value === undefined) return "–";
  if (value !== 0 && Math.abs(value) < 1e-3) return value.toExponential(1);
  return value.toLocaleString("en", { maximumSignificantDigits: 4 });
}

export function tell(problem) {
  $("problem").textContent = problem ?? "";
  $("problem").hidden = !problem;
}

// The key lives in this tab only and is gone when it closes.
export const key = {
  get: () => sessionStorage.getItem("key"),
  set: (value) => (value ? sessionStorage.setItem("key", value) : sessionStorage.removeItem("key")),
};

async function reach(path, options) {
  const headers = { ...options.headers, ...(key.get() && { Authorization: `Bearer ${key.get()}` }) };
  try {
    return await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server cannot be reached. Is it still running?");
  }
}

// Fetches; a refusal becomes an Error that says why in the server's words.
export async function ask(path, options = {}) {
  const response = await reach(path, options);
  if (response.status === 204) return null;
  const text = await response.text();
  if (response.ok && !response.headers.get("Content-Type").startsWith("application/json")) return text;
  let body = null;
  try {
    body = JSON.parse(text);
  } catch {} // an answer of something in between, such as a proxy
  if (response.ok && body !== null) return body;
  throw refusal(response, body);
}

function refusal({ status }, body) {
  $("key").hidden = status !== 401;
  const reason = body?.error?.message ?? body?.error ?? `the server answered with status ${status}`;
  return Object.assign(new Error(reason.charAt(0).toUpperCase() + reason.slice(1) + "."), { status });
}

// Fetches server-sent events and hands on the JSON of each as it comes; a refusal, and an event of one, becomes an Error as above.
export async function listen(path, options, heard) {
  const response = await reach(path, options);
  if (!response.ok) throw refusal(response, await response.json().catch(() => null));
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const events = (held + value).split("\n\n");
    held = events.pop();
    for (const event of events) {
      const told = JSON.parse(event.slice("data: ".length));
      if (told.error) throw refusal(response, told);
      heard(told);
    }
  }
}
