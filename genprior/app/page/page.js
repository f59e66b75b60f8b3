// The form: opens a photo, asks for its restoration, follows it.

import { Painting } from "./paint.js";
import { View, fit } from "./view.js";

const $ = (id) => document.getElementById(id);
const WIDTHS = { gaussian: "Std", disk: "Radius", motion: "Length", uniform: "Side" };

let settings = null; // what the server offers
let photo = null; // {file, width, height, channels}
let work = null; // stops the restoration that is followed

const view = new View();
const painting = new Painting($("mask"), $("ring"), {
  width: () => brushWidth(),
  erasing: () => $("erase").checked,
  changed: () => refresh(),
});

/** The brush in the photo's pixels: of its shorter side, finer towards the small end. */
function brushWidth() {
  const share = ($("brush").value / 100) ** 2 * 0.6;
  return photo ? Math.max(1, share * Math.min(photo.width, photo.height)) : 1;
}

function fail(error) {
  $("error").textContent = error ? (error.message ?? String(error)) : "";
}

async function refuse(response) {
  if (response.ok) return;
  const said = await response.json().catch(() => ({}));
  throw new Error(said.error ?? `the server answered ${response.status}`);
}

async function begin() {
  const response = await fetch("settings");
  await refuse(response);
  settings = await response.json();
  const options = settings.priors.map(({ name, shape }) => {
    const size = shape && (shape[1] ? `${shape[1]}x${shape[2]}` : "any size");
    const colours = shape && (shape[0] === 1 ? ", grey" : "");
    return new Option(shape ? `${name} (${size}${colours})` : name, name);
  });
  $("prior").replaceChildren(...options);
  $("prior").value = settings.prior;
  const pixels = settings.pixels / 1e6;
  $("taken").textContent = `up to ${settings.file / 1e6} MB and ${pixels} million pixels`;
  refresh();
}

async function open(file) {
  fail(null);
  try {
    await begun;
    if (file.size > settings.file) {
      throw new Error(`the photo has more than ${settings.file / 1e6} MB`);
    }
    const response = await fetch("photo", { method: "POST", body: file });
    await refuse(response);
    const seen = await response.json();
    photo = { file, ...seen };
    const image = $("photo");
    image.src = `data:image/png;base64,${seen.view}`;
    image.alt = file.name;
    fit(image, photo.width, photo.height);
    const notes = seen.notes.length ? `: ${seen.notes.join("; ")}` : "";
    $("photo-about").textContent = `${file.name}, ${photo.width} x ${photo.height}${notes}`;
    $("painting").hidden = false;
    painting.open(photo.width, photo.height);
  } catch (error) {
    fail(error);
  }
  refresh();
}

function shape() {
  return settings?.priors.find(({ name }) => name === $("prior").value)?.shape;
}

function task() {
  return new FormData($("form")).get("task");
}

/** Show what goes with what is chosen. */
function refresh() {
  const kernel = $("kernel").value;
  const inpaint = task() === "inpaint";
  $("for-deblur").hidden = task() !== "deblur";
  $("for-superres").hidden = task() !== "superres";
  $("for-width").hidden = kernel === "auto";
  $("width-is").textContent = WIDTHS[kernel] ?? "";
  $("for-angle").hidden = kernel !== "motion";
  $("mask").classList.toggle("off", !inpaint);
  $("brushes").hidden = !inpaint;
  const fixed = shape()?.[1];
  $("for-fit").hidden = !fixed;
  $("for-longest").hidden = Boolean(fixed);
  if (fixed) $("fit-is").textContent = `Photo to ${shape()[1]}x${shape()[2]}:`;
  const simulated = $("simulate").checked && !inpaint;
  $("sigma").placeholder = simulated ? "0.05" : "estimated";
  $("sigma").required = simulated;
  $("start").disabled = !photo || Boolean(work) || (inpaint && painting.empty);
  if (!work) {
    const painted = photo && inpaint && painting.empty;
    $("status").textContent = painted ? "Paint what is missing, then restore." : "";
  }
}

function number(id) {
  return $(id).value === "" ? null : Number($(id).value);
}

async function base64(blob) {
  const url = await new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Error("the photo cannot be read: open it again"));
    reader.readAsDataURL(blob);
  });
  return url.slice(url.indexOf(",") + 1);
}

function kernel() {
  const kind = $("kernel").value;
  if (kind === "auto") return kind;
  return `${kind}:${$("width").value}` + (kind === "motion" ? `,${$("angle").value}` : "");
}

/** What is sent: the server knows nothing of this page between two requests. */
async function asked() {
  const chosen = task();
  const fixed = Boolean(shape()?.[1]);
  const simulate = $("simulate").checked;
  const mask = chosen === "inpaint" ? await painting.png() : null;
  if (mask) {
    URL.revokeObjectURL($("save-mask").href);
    $("save-mask").href = URL.createObjectURL(mask);
    $("save-mask").hidden = false;
  }
  const cut = simulate && chosen === "superres" ? "crop" : null;
  return {
    name: photo.file.name,
    photo: await base64(photo.file),
    mask: mask && (await base64(mask)),
    task: chosen,
    kernel: chosen === "deblur" ? kernel() : null,
    factor: chosen === "superres" ? Number($("factor").value) : null,
    sigma: $("sigma").value.trim() || null,
    simulate,
    fit: fixed ? $("fit").value : cut,
    longest: fixed ? null : number("longest"),
    channels: shape()?.[0] === 1 && photo.channels !== 1 ? 1 : null,
    prior: $("prior").value,
    samples: number("samples"),
    steps: number("steps"),
    seed: number("seed"),
  };
}

/** Lines of JSON as they come. */
async function* lines(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = [];
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const parts = value.split("\n");
    rest.push(parts[0]);
    for (const part of parts.slice(1)) {
      yield JSON.parse(rest.join(""));
      rest = [part];
    }
  }
}

async function restore() {
  fail(null);
  work = new AbortController();
  refresh();
  follow({ before: 0, said: [] });
  const pictures = new Map();
  let about = null;
  try {
    const body = JSON.stringify(await asked());
    const response = await fetch("restore", { method: "POST", body, signal: work.signal });
    await refuse(response);
    for await (const line of lines(response)) {
      if (line.error) throw new Error(line.error);
      if (line.picture) pictures.set(line.picture, png(line.png));
      else if (line.about) about = line.about;
      else follow(line);
    }
    if (!about) throw new Error("the server ended before the result came");
    await view.show(pictures, about);
    $("found").scrollIntoView({ block: "start" });
  } catch (error) {
    if (error.name !== "AbortError") fail(error);
  } finally {
    work = null;
    $("cancel").hidden = $("progress").hidden = true;
    refresh();
  }
}

function follow({ before, done, left, said }) {
  $("cancel").hidden = $("progress").hidden = false;
  const progress = $("progress");
  if (done) progress.value = done;
  else progress.removeAttribute("value");
  const words = [];
  if (before) words.push(before === 1 ? "1 restoration comes first" : `${before} come first`);
  else if (done == null) words.push(said.at(-1) ?? "Preparing");
  else words.push(`${Math.round(100 * done)} % done`);
  if (!before && left != null) words.push(`about ${time(left)} left`);
  $("status").textContent = words.join(", ");
}

function time(seconds) {
  if (seconds < 100) return `${Math.ceil(seconds)} s`;
  return seconds < 6000 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
}

function png(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  return new Blob([bytes], { type: "image/png" });
}

$("file").addEventListener("change", () => {
  if ($("file").files.length) open($("file").files[0]);
  $("file").value = ""; // the same file may be opened again
});
for (const kind of ["dragover", "dragleave", "drop"]) {
  $("drop").addEventListener(kind, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop" && event.dataTransfer.files.length) open(event.dataTransfer.files[0]);
  });
}
$("form").addEventListener("change", refresh);
$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  restore();
});
$("cancel").addEventListener("click", () => work?.abort());
$("undo").addEventListener("click", () => painting.undo());
$("clear").addEventListener("click", () => painting.clear());
$("brush").addEventListener("input", () => painting.showRing());
const begun = begin();
begun.catch(fail);
