// What is missing, painted as strokes over the photo.

const COLOUR = "rgb(235 0 120)";

/** Paints on a canvas of the photo's size; strokes are kept, so that they can be undone. */
export class Painting {
  constructor(canvas, ring, controls) {
    this.canvas = canvas;
    this.ring = ring;
    this.controls = controls; // {width(): photo pixels, erasing(): bool, changed()}
    this.strokes = [];
    this.at = null;
    canvas.addEventListener("pointerdown", (event) => this.#down(event));
    canvas.addEventListener("pointermove", (event) => this.#move(event));
    canvas.addEventListener("pointerup", () => this.#up());
    canvas.addEventListener("pointercancel", () => this.#up());
    canvas.addEventListener("pointerleave", () => (ring.hidden = true));
    canvas.addEventListener("blur", () => (ring.hidden = true));
    canvas.addEventListener("keydown", (event) => this.#key(event));
  }

  open(width, height) {
    this.canvas.width = width;
    this.canvas.height = height;
    this.at = [width / 2, height / 2];
    this.clear();
  }

  clear() {
    this.strokes = [];
    this.#redraw();
  }

  undo() {
    this.strokes.pop();
    this.#redraw();
  }

  get empty() {
    return !this.strokes.some((stroke) => !stroke.erase);
  }

  /** A PNG of two colours, white where the photo was measured. */
  async png() {
    const { width, height } = this.canvas;
    const out = new OffscreenCanvas(width, height);
    const context = out.getContext("2d");
    const drawn = this.canvas.getContext("2d").getImageData(0, 0, width, height);
    for (let i = 0; i < drawn.data.length; i += 4) {
      const white = drawn.data[i + 3] < 128 ? 255 : 0; // edges are drawn soft
      drawn.data.fill(white, i, i + 3);
      drawn.data[i + 3] = 255;
    }
    context.putImageData(drawn, 0, 0);
    return out.convertToBlob({ type: "image/png" });
  }

  showRing() {
    if (!this.at) return;
    const [x, y] = this.at;
    const { width, height } = this.canvas;
    const size = (this.controls.width() / width) * this.canvas.clientWidth;
    Object.assign(this.ring.style, {
      left: `${(100 * x) / width}%`,
      top: `${(100 * y) / height}%`,
      width: `${size}px`,
      height: `${size}px`,
    });
    this.ring.hidden = false;
  }

  #place(event) {
    const box = this.canvas.getBoundingClientRect();
    return [
      ((event.clientX - box.left) / box.width) * this.canvas.width,
      ((event.clientY - box.top) / box.height) * this.canvas.height,
    ];
  }

  #down(event) {
    if (event.button !== 0) return;
    this.canvas.setPointerCapture(event.pointerId);
    this.at = this.#place(event);
    this.#begin(this.at);
  }

  #move(event) {
    const events = event.getCoalescedEvents?.() ?? [];
    for (const each of events.length ? events : [event]) {
      this.at = this.#place(each);
      if (this.drawing) this.#extend(this.at);
    }
    this.showRing();
  }

  #up() {
    this.drawing = null;
    this.controls.changed();
  }

  #key(event) {
    const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    const { width, height } = this.canvas;
    if (event.key in steps) {
      const far = Math.max(1, this.controls.width() / 3);
      const [x, y] = steps[event.key];
      this.at = [
        Math.min(width, Math.max(0, this.at[0] + far * x)),
        Math.min(height, Math.max(0, this.at[1] + far * y)),
      ];
    } else if (event.key === " ") {
      this.#begin(this.at);
      this.#up();
    } else {
      return;
    }
    event.preventDefault();
    this.showRing();
  }

  #begin(point) {
    const { width, erasing } = this.controls;
    this.drawing = { erase: erasing(), width: width(), points: [point] };
    this.strokes.push(this.drawing);
    this.#segment(this.drawing, point, point);
  }

  #extend(point) {
    const { points } = this.drawing;
    this.#segment(this.drawing, points.at(-1), point);
    points.push(point);
  }

  #segment(stroke, from, to) {
    const context = this.canvas.getContext("2d", { willReadFrequently: true });
    context.globalCompositeOperation = stroke.erase ? "destination-out" : "source-over";
    context.strokeStyle = COLOUR;
    context.lineWidth = stroke.width;
    context.lineCap = "round";
    context.beginPath();
    context.moveTo(...from);
    context.lineTo(to[0] + 0.001, to[1]); // a line of no length is not drawn
    context.stroke();
  }

  #redraw() {
    const context = this.canvas.getContext("2d", { willReadFrequently: true });
    context.clearRect(0, 0, this.canvas.width, this.canvas.height);
    for (const stroke of this.strokes) {
      this.#segment(stroke, stroke.points[0], stroke.points[0]);
      for (let i = 1; i < stroke.points.length; i++) {
        this.#segment(stroke, stroke.points[i - 1], stroke.points[i]);
      }
    }
    this.controls.changed();
  }
}
