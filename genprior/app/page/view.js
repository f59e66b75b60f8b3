// What was found: pictures, the spread over them, a pixel's values, and what can be saved.

const $ = (id) => document.getElementById(id);
const TITLES = { mean: "Mean", measurement: "Measured", std: "Standard deviation" };
const STD = 0.5; // what white stands for in std.png
const LEAST = 640; // pixels of the screen that a small picture is enlarged to

function title(name) {
  return TITLES[name] ?? name.replace("sample_", "Sample ");
}

function element(name, text, attributes = {}) {
  const made = document.createElement(name);
  made.textContent = text;
  Object.assign(made, attributes);
  return made;
}

/** Show an image as large as there is room for; of few pixels, each is shown. */
export function fit(image, width, height) {
  const longest = Math.max(width, height);
  image.style.setProperty("--wide", `${(width / longest) * Math.max(longest, LEAST)}px`);
  image.style.setProperty("--shape", width / height);
  image.classList.toggle("pixels", 4 * longest < LEAST);
}

/** Numbers of one pixel of a picture, each in [0, 1]. */
class Picture {
  static async of(blob) {
    const made = new Picture();
    made.url = URL.createObjectURL(blob);
    made.bitmap = await createImageBitmap(blob, { colorSpaceConversion: "none" });
    made.one = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
    return made;
  }

  at(x, y) {
    this.one.drawImage(this.bitmap, x, y, 1, 1, 0, 0, 1, 1);
    return [...this.one.getImageData(0, 0, 1, 1).data.slice(0, 3)].map((value) => value / 255);
  }

  pixels() {
    const { width, height } = this.bitmap;
    const context = new OffscreenCanvas(width, height).getContext("2d");
    context.drawImage(this.bitmap, 0, 0);
    return context.getImageData(0, 0, width, height);
  }

  close() {
    URL.revokeObjectURL(this.url);
    this.bitmap.close();
  }
}

/** The section of the page that shows a result. */
export class View {
  constructor() {
    this.pictures = new Map();
    this.at = null;
    const spread = $("spread");
    spread.addEventListener("pointermove", (event) => this.#point(event));
    spread.addEventListener("pointerdown", (event) => this.#point(event));
    spread.addEventListener("keydown", (event) => this.#key(event));
    $("overlay").addEventListener("change", () => this.#spread());
    $("copy").addEventListener("click", () => this.#copy());
  }

  /** Show a result: name -> PNG, and what is said of it. */
  async show(blobs, about) {
    for (const picture of this.pictures.values()) picture.close();
    this.pictures = new Map();
    for (const [name, blob] of blobs) this.pictures.set(name, await Picture.of(blob));
    this.samples = [...this.pictures.keys()].filter((name) => name.startsWith("sample_"));
    $("found").hidden = false;
    $("overlay").disabled = !this.pictures.has("std");
    this.#tabs();
    this.choose("mean");
    this.#spread();
    this.#pixel(null);
    this.#report(about);
    this.#saves(about.name);
  }

  choose(name) {
    const { url } = this.pictures.get(name);
    const image = $("result");
    image.src = url;
    image.alt = title(name);
    const mean = this.pictures.get("mean").bitmap;
    fit(image, mean.width, mean.height);
    for (const button of $("tabs").children) {
      button.setAttribute("aria-pressed", String(button.value === name));
    }
  }

  #tabs() {
    const names = [...this.pictures.keys()].filter((name) => name !== "std");
    $("tabs").replaceChildren(
      ...names.map((name) =>
        element("button", title(name), {
          type: "button",
          value: name,
          onclick: () => this.choose(name),
        }),
      ),
    );
  }

  #spread() {
    const canvas = $("spread");
    const { width, height } = this.pictures.get("mean").bitmap;
    canvas.width = width;
    canvas.height = height;
    canvas.classList.toggle("pixels", $("result").classList.contains("pixels"));
    const shown = $("overlay").checked && this.pictures.has("std");
    $("scale").hidden = !shown;
    if (!shown) return;
    const image = this.pictures.get("std").pixels();
    const values = new Float32Array(image.data.length / 4);
    for (let i = 0; i < values.length; i++) {
      const [r, g, b] = image.data.subarray(4 * i, 4 * i + 3);
      values[i] = ((r + g + b) / 3 / 255) * STD;
    }
    const most = values.reduce((a, b) => Math.max(a, b), 1e-6);
    values.forEach((value, i) => image.data.set([255, 80, 0, 204 * (value / most)], 4 * i));
    canvas.getContext("2d").putImageData(image, 0, 0);
    $("most").textContent = most.toFixed(3);
  }

  #point(event) {
    const canvas = $("spread");
    const box = canvas.getBoundingClientRect();
    const x = Math.floor(((event.clientX - box.left) / box.width) * canvas.width);
    const y = Math.floor(((event.clientY - box.top) / box.height) * canvas.height);
    this.#pixel([x, y]);
  }

  #key(event) {
    const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    if (!(event.key in steps)) return;
    event.preventDefault();
    const canvas = $("spread");
    const [x, y] = this.at ?? [canvas.width >> 1, canvas.height >> 1];
    this.#pixel([x + steps[event.key][0], y + steps[event.key][1]]);
  }

  #pixel(place) {
    const { width, height } = $("spread");
    $("cross").hidden = !place;
    this.at = place;
    if (!place) return;
    const x = Math.min(width - 1, Math.max(0, place[0]));
    const y = Math.min(height - 1, Math.max(0, place[1]));
    this.at = [x, y];
    $("cross").style.left = `${(100 * (x + 0.5)) / width}%`;
    $("cross").style.top = `${(100 * (y + 0.5)) / height}%`;
    const table = document.createElement("table");
    const row = (name, values, swatch) => {
      const line = table.insertRow();
      line.append(element("th", name, { scope: "row" }));
      for (const value of values) line.insertCell().textContent = value.toFixed(3);
      if (swatch) {
        const box = document.createElement("i");
        box.style.background = `rgb(${values.map((value) => 255 * value).join(" ")})`;
        line.insertCell().append(box);
      }
    };
    const mean = this.pictures.get("mean").at(x, y);
    row("mean", mean, true);
    const std = this.pictures.get("std")?.at(x, y);
    if (std) row("std", std.map((value) => value * STD), false);
    const samples = this.samples.map((name) => this.pictures.get(name).at(x, y));
    samples.forEach((values, i) => row(`${i + 1}`, values, true));
    $("pixel").replaceChildren(
      element("h3", `Row ${y}, column ${x}`),
      strip(samples, mean),
      table,
    );
  }

  #report(about) {
    const lines = [
      ["Prior", about.prior],
      ["Solver", `${about.solver.split("(")[0]}, ${about.samples} sample(s)`],
      ["Time", `${about.seconds.toFixed(1)} s, ${about.forwards} forwards a sample`],
    ];
    const said = (key, digits, unit) => {
      if (about[key] != null) lines.push([unit[0], about[key].toFixed(digits) + unit[1]]);
    };
    const sigma = about.sigma == null ? "" : ` (sigma ${about.sigma}, ${about.noise_from})`;
    said("residual_in_sigma", 3, ["Residual", ` sigma${sigma}`]);
    said("psnr_mean", 2, ["PSNR", " dB of the mean"]);
    said("r_hat", 2, ["R-hat", ""]);
    if (about.kernel) lines.push(["Blur", about.kernel]);
    if (about.kept) lines.push(["Kept", "measured pixels as they were"]);
    if (!about.converged) lines.push(["Not converged", "do not trust this result"]);
    $("report").replaceChildren(
      ...lines.flatMap(([name, text]) => [element("dt", name), element("dd", text)]),
    );
    $("notes").replaceChildren(...about.notes.map((note) => element("li", note)));
    $("command").textContent = about.command;
    $("copied").textContent = "";
  }

  #saves() {
    const links = [...this.pictures].map(([name, { url }]) =>
      element("a", `${name}.png`, { href: url, download: `${name}.png` }),
    );
    $("saves").replaceChildren(...links);
  }

  async #copy() {
    getSelection().selectAllChildren($("command"));
    await navigator.clipboard?.writeText($("command").textContent); // of this machine alone
    $("copied").textContent = navigator.clipboard ? "copied" : "chosen: Ctrl-C copies it";
  }
}

/** Dots of each sample from 0 to 1, a line a colour; the mean is a bar. */
function strip(samples, mean) {
  const name = "http://www.w3.org/2000/svg";
  const grey = [mean, ...samples].every((c) => c[0] === c[1] && c[1] === c[2]);
  const colours = grey ? ["currentColor"] : ["#d33", "#2a2", "#36f"];
  const svg = document.createElementNS(name, "svg");
  svg.setAttribute("viewBox", `-6 0 332 ${14 * colours.length + 16}`);
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", "The samples' values from 0 to 1");
  const add = (kind, attributes) => {
    const made = document.createElementNS(name, kind);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    svg.append(made);
    return made;
  };
  colours.forEach((fill, c) => {
    const y = 14 * c + 8;
    add("line", { x1: 0, x2: 320, y1: y, y2: y, stroke: "currentColor", opacity: 0.3 });
    for (const values of samples) {
      add("circle", { cx: 320 * values[c], cy: y, r: 4, fill, opacity: 0.6 });
    }
    const x = 320 * mean[c];
    add("line", { x1: x, x2: x, y1: y - 6, y2: y + 6, stroke: "currentColor", "stroke-width": 2 });
  });
  for (const [x, text] of [[0, "0"], [320, "1"]]) {
    const place = { x, y: 14 * colours.length + 13, "font-size": 10, "text-anchor": "middle" };
    add("text", { ...place, fill: "currentColor" }).textContent = text;
  }
  return svg;
}
