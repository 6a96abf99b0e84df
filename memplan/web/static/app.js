// Live answers, sections that load when they are looked at, copy buttons. Every page works without this file.

const form = document.getElementById("recipe");
const announce = document.getElementById("announce");
const DELAY_MS = 300;

let timer = 0;
let running = null;

/** The form's inputs that hold something, in their order. */
function queryOf(form) {
  const said = [...new FormData(form)].filter(([, text]) => typeof text === "string" && text.trim());
  return new URLSearchParams(said).toString();
}

/** Whether an input's text makes sense while it is typed: numbers and choices do, half a name does not. */
function isWhole(input) {
  if (input.tagName === "SELECT" || input.inputMode === "numeric" || !input.value.trim()) return true;
  const known = input.list?.options ?? [];
  return [...known].some((option) => option.value.toLowerCase() === input.value.trim().toLowerCase());
}

async function fetchHtml(url, signal) {
  const answer = await fetch(url, { signal, headers: { Accept: "text/html" } });
  const type = answer.headers.get("content-type") ?? "";
  if (!type.startsWith("text/html")) throw new Error(`no page at ${url}`);
  return answer.text();
}

/** The messages of an answer beside their fields, as the server writes them. */
function showMistakes(box) {
  for (const place of form.querySelectorAll(".field-error")) place.remove();
  for (const input of form.querySelectorAll("[aria-invalid]")) {
    input.removeAttribute("aria-invalid");
    describe(input, "");
  }
  for (const entry of box.querySelectorAll("[data-field]")) {
    const input = document.getElementById(`f-${entry.dataset.field}`);
    if (!input) continue;
    const place = document.createElement("p");
    place.className = "field-error";
    place.id = `error-${input.name}`;
    place.textContent = entry.dataset.message;
    input.after(place);
    input.setAttribute("aria-invalid", "true");
    describe(input, place.id);
    input.closest("details")?.setAttribute("open", "");
  }
}

function describe(input, error) {
  const ids = [error, document.getElementById(`hint-${input.name}`)?.id].filter(Boolean);
  if (ids.length) input.setAttribute("aria-describedby", ids.join(" "));
  else input.removeAttribute("aria-describedby");
}

/** Put a new answer in place of the old one; the form, the focus and the scroll position stay. */
function replaceAnswer(html) {
  const old = document.getElementById("answer");
  const open = new Set([...old.querySelectorAll("details[open] > summary")].map((summary) => summary.textContent));
  const template = document.createElement("template");
  template.innerHTML = html;
  const fresh = template.content.getElementById("answer");
  if (!fresh) throw new Error("no answer");
  for (const summary of fresh.querySelectorAll("details > summary")) {
    const details = summary.parentElement;
    if (!details.name && open.has(summary.textContent)) details.open = true;
  }
  old.replaceWith(fresh);
  showMistakes(fresh);
  enhance(fresh);
  const words = fresh.querySelector("#verdict, #mistakes-title")?.textContent.trim() ?? "";
  announce.textContent = words;
  showStrip(fresh);
  const isWrong = Boolean(fresh.querySelector("#mistakes"));
  const query = isWrong ? queryOf(form) : fresh.dataset.query;
  history.replaceState(null, "", location.pathname + (query && `?${query}`));
  document.title = fresh.dataset.title;
}

async function update() {
  running?.abort();
  const mine = (running = new AbortController());
  const box = document.getElementById("answer");
  box.classList.add("stale");
  box.setAttribute("aria-busy", "true");
  try {
    const html = await fetchHtml(`${form.dataset.answer}?${queryOf(form)}`, mine.signal);
    if (!mine.signal.aborted) replaceAnswer(html);
  } catch (error) {
    if (error.name === "AbortError") return;
    box.classList.remove("stale");
    box.removeAttribute("aria-busy");
    announce.textContent = "No answer; press Estimate to try again.";
  }
}

/** A line with the verdict, for screens where the answer stands below the form. */
function showStrip(box) {
  document.querySelector(".strip")?.remove();
  const verdict = box.querySelector(".verdict");
  if (!verdict) return;
  const strip = document.createElement("a");
  strip.className = `strip strip--${verdict.dataset.fits}`;
  strip.href = "#verdict";
  strip.append(verdict.querySelector(".icon").cloneNode(true), box.querySelector("#verdict strong").textContent.trim());
  const size = document.createElement("span");
  size.textContent = verdict.dataset.short;
  strip.append(size);
  form.closest(".desk-form").append(strip);
}

async function load(section) {
  const body = section.querySelector(".later-body");
  section.setAttribute("aria-busy", "true");
  try {
    body.innerHTML = await fetchHtml(section.dataset.src);
    section.classList.add("loaded");
    const current = body.querySelector("tr.current");
    const region = current?.closest(".scroll");
    if (region) region.scrollTop = current.offsetTop - region.clientHeight / 2;
  } catch {
    // the link stays
  }
  section.removeAttribute("aria-busy");
}

const watcher = new IntersectionObserver(
  (entries) => {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      watcher.unobserve(target);
      load(target);
    }
  },
  { rootMargin: "400px" },
);

function enhance(root) {
  for (const section of root.querySelectorAll(".later[data-src]")) {
    if (section.dataset.eager) load(section);
    else watcher.observe(section);
  }
  for (const button of root.querySelectorAll("[data-copy]")) button.hidden = !navigator.clipboard;
}

document.addEventListener("click", async ({ target }) => {
  const button = target.closest?.("[data-copy]");
  if (!button) return;
  const text = document.getElementById(button.dataset.copy).textContent;
  try {
    await navigator.clipboard.writeText(button.dataset.absolute ? new URL(text, location).href : text);
    button.textContent = "Copied";
  } catch {
    button.textContent = "Select and copy";
  }
  setTimeout(() => (button.textContent = "Copy"), 1500);
});

if (form) {
  const soon = () => {
    clearTimeout(timer);
    timer = setTimeout(update, DELAY_MS);
  };
  form.addEventListener("input", ({ target }) => {
    document.getElementById("paste-state").value = queryOf(form);
    if (isWhole(target)) soon();
  });
  form.addEventListener("change", ({ target }) => {
    if (!isWhole(target)) soon();
  });
  // A short address: what is empty is not said. The model stays, so that its absence is noticed.
  form.addEventListener("formdata", ({ formData }) => {
    for (const [name, text] of [...formData]) if (!String(text).trim() && name !== "model") formData.delete(name);
  });
  form.addEventListener("submit", () => clearTimeout(timer));
  showStrip(document.getElementById("answer"));
  const mistakes = document.getElementById("mistakes");
  if (mistakes) mistakes.focus();
}
enhance(document);
