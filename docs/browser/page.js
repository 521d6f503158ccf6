// The page: what the visitor chooses, and the picture that the worker draws.

const element = (id) => document.getElementById(id);
const worker = new Worker(new URL("./worker.js", import.meta.url), { type: "module" });
let loaded = false;

worker.onerror = (event) => fail(event.message || "the worker could not be started");
worker.onmessage = ({ data }) => {
  if (data.error) fail(data.error);
  else if (data.manifest) ready(data);
  else drawn(data);
};

// manifest: model.json of the export.
function ready({ manifest, seconds, megabytes }) {
  const { files, classes, defaults, shape } = manifest;
  for (let label = 0; label < classes; label++) element("label").append(new Option(label, label));
  for (const table of Object.keys(files).filter((name) => name.startsWith("tables/"))) {
    const [, solver, steps] = table.match(/^tables\/(.+)-(\d+)\.json$/);
    const chosen = solver === defaults.solver && Number(steps) === defaults.steps;
    element("table").append(new Option(`${solver}, ${steps} steps`, table, chosen, chosen));
  }
  element("guidance").value = defaults.guidance_scale;
  [element("picture").height, element("picture").width] = shape.slice(1);
  loaded = true;
  element("draw").disabled = false;
  showGuidance();
  say(`Model of ${megabytes.toFixed(1)} MB loaded in ${seconds.toFixed(1)} s.`);
}

function draw() {
  element("draw").disabled = true;
  say("Drawing…");
  worker.postMessage({
    label: Number(element("label").value),
    seed: element("seed").value,
    table: element("table").value,
    guidance: Number(element("guidance").value),
  });
}

// picture: numbers in [-1, 1], of one channel (grey) or three, row by row.
function drawn({ picture, seconds }) {
  const { width, height } = element("picture");
  const image = new ImageData(width, height);
  const pixels = width * height;
  const channels = picture.length / pixels;
  for (let i = 0; i < pixels; i++) {
    for (let color = 0; color < 3; color++) {
      const value = picture[(color % channels) * pixels + i];
      image.data[4 * i + color] = Math.round((value + 1) * 127.5);
    }
    image.data[4 * i + 3] = 255;
  }
  element("picture").getContext("2d").putImageData(image, 0, 0);
  element("draw").disabled = false;
  say(`Drawn in ${seconds.toFixed(2)} s.`);
}

function say(text) {
  element("status").textContent = text;
}

function fail(message) {
  say(`It failed: ${message}`);
  element("draw").disabled = !loaded;
}

function showGuidance() {
  element("shown-guidance").value = Number(element("guidance").value).toFixed(1);
}

element("form").addEventListener("submit", (event) => {
  event.preventDefault();
  draw();
});
element("random").addEventListener("click", () => {
  element("seed").value = crypto.getRandomValues(new Uint32Array(1))[0];
});
element("guidance").addEventListener("input", showGuidance);
