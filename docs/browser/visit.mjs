// Opens the page in headless Chromium as a visitor would, draws, and prints what was seen as JSON.
//
//     node visit.mjs ADDRESS '[{"label": 3, "seed": "7"}]' [SCREENSHOT.png]
//
// CHROMIUM: the browser's path, /usr/bin/chromium if unset. Each choice may name label, seed, table and guidance.

import { chromium } from "playwright-core";

// What the page says once it says something else; what it says of a failure is an error here.
async function settled(page, busy) {
  const changed = (start) => !document.getElementById("status").textContent.startsWith(start);
  await page.waitForFunction(changed, busy, { timeout: 120_000 });
  const status = await page.textContent("#status");
  if (status.startsWith("It failed")) throw new Error(status);
  return status;
}

const [address, choices, screenshot] = process.argv.slice(2);
const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  args: [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
  ],
});
try {
  const page = await browser.newPage({ viewport: { width: 900, height: 800 } });
  const requests = [];
  const errors = [];
  page.on("request", (request) => requests.push(request.url()));
  page.on("pageerror", (error) => errors.push(String(error)));
  page.on("console", (message) => message.type() === "error" && errors.push(message.text()));
  await page.goto(address);
  const loaded = await settled(page, "Loading");
  const drawings = [];
  for (const choice of JSON.parse(choices)) {
    if (choice.seed !== undefined) await page.fill("#seed", choice.seed);
    if (choice.label !== undefined) await page.selectOption("#label", String(choice.label));
    if (choice.table !== undefined) await page.selectOption("#table", choice.table);
    if (choice.guidance !== undefined) await page.fill("#guidance", String(choice.guidance));
    await page.click("#draw");
    const status = await settled(page, "Drawing");
    const pixels = await page.evaluate(() => {
      const canvas = document.getElementById("picture");
      const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
      return Array.from({ length: data.length / 4 }, (_, i) => data[4 * i]);
    });
    drawings.push({ ...choice, pixels, status });
  }
  if (screenshot) await page.screenshot({ path: screenshot, fullPage: true });
  console.log(JSON.stringify({ loaded, drawings, requests, errors }));
} finally {
  await browser.close();
}
