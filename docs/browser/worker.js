// Loads an export folder, `fastgen export MODEL -o model --what sampler`, and draws with it, beside the page, which
// stays responsive.

import * as ort from "./ort/ort.wasm.min.mjs";

ort.env.wasm.wasmPaths = new URL("./ort/", import.meta.url).href;
ort.env.wasm.numThreads = 1; // so small a network gains nothing by more, which would need special headers of the server

const int64 = (values, dims) => new ort.Tensor("int64", values.map(BigInt), dims);
const float32 = (values, dims) => new ort.Tensor("float32", values, dims);

async function fetched(name) {
  const response = await fetch(new URL(`./model/${name}`, import.meta.url));
  if (!response.ok) throw new Error(`model/${name}: ${response.status} ${response.statusText}`);
  return response;
}

const json = async (name) => (await fetched(name)).json();

async function load() {
  const begun = performance.now();
  const [manifest, bytes] = await Promise.all([
    json("model.json"),
    fetched("sampler.onnx").then((response) => response.arrayBuffer()),
  ]);
  const session = await ort.InferenceSession.create(bytes, { executionProviders: ["wasm"], logSeverityLevel: 3 });
  self.postMessage({
    manifest,
    megabytes: bytes.byteLength / 1e6,
    seconds: (performance.now() - begun) / 1000,
  });
  return session;
}

// seed: decimal digits, beyond what a number of JavaScript can hold. table: a file of model/tables.
async function draw(session, { label, seed, table, guidance }) {
  if (BigInt(seed) >= 1n << 64n) throw new Error("a seed is a whole number from 0 to 2^64 - 1");
  const { rows, slot, noise_step, time, initial_scale } = await json(table);
  const begun = performance.now();
  const steps = rows.length;
  const results = await session.run({
    seeds: int64([BigInt.asIntN(64, BigInt(seed))], [1]),
    rows: float32(rows.flat(), [steps, rows[0].length]),
    slot: int64(slot, [steps]),
    noise_step: int64(noise_step, [steps]),
    time: float32(time, [steps]),
    initial_scale: float32([initial_scale], [1]),
    label: int64([label], [1]),
    guidance: float32([guidance], [1]),
    keep: int64([], [0]),
  });
  return { picture: results.images.data, seconds: (performance.now() - begun) / 1000 };
}

const loaded = load();
loaded.catch((error) => self.postMessage({ error: error.message }));
self.onmessage = async ({ data }) => {
  try {
    self.postMessage(await draw(await loaded, data));
  } catch (error) {
    self.postMessage({ error: error.message });
  }
};
