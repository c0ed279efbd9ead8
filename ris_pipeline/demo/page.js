"use strict";

const COLOURS = ["#e6194b", "#4363d8", "#3cb44b", "#f58231", "#911eb4", "#008080", "#9a6324", "#f032e6"];
const SIDE = 1024; // of what is shown; larger images are scaled down
const AT_ONCE = 20; // sentences of one request
const element = (id) => document.getElementById(id);
let file = null; // what was dropped
let image = null; // the same, decoded
let shown = []; // {sentence, mask, map, share, visible, colour}
let chosen = null; // the one of them whose map is shown

function say(text) {
  element("message").textContent = text;
}

function load(url, name) {
  return new Promise((resolve, reject) => {
    const picture = new Image();
    picture.onload = () => resolve(picture);
    picture.onerror = () => reject(new Error(`${name}: not an image that this browser can read. Choose a PNG, JPEG or WebP.`));
    picture.src = url;
  });
}

async function post(path, body) {
  const headers = { "Content-Type": "application/octet-stream" };
  let answer;
  try {
    answer = await fetch(path, { method: "POST", headers, body });
  } catch {
    throw new Error("No answer: the image cannot be read any more, or ris demo has ended.");
  }
  if (answer.ok) return answer;
  const { error } = await answer.json().catch(() => ({}));
  throw new Error(error ?? `It failed (${answer.status}); the terminal of ris demo says why.`);
}

// What the program reads: this browser turns photographs as their EXIF data say, --raw-orientation does not.
async function show(candidate) {
  const isRaw = document.body.dataset.orientation === "raw";
  const picture = isRaw ? await (await post("/picture", candidate)).blob() : candidate;
  return load(URL.createObjectURL(picture), candidate.name);
}

async function ask(sentences) {
  const query = new URLSearchParams(sentences.map((one) => ["sentence", one]));
  const found = await (await post(`/segment?${query}`, file)).json();
  const results = await Promise.all(found.results.map(async (one) => (
    { ...one, mask: await load(one.mask, "mask"), map: await load(one.map, "map"), visible: true })));
  return { results, remark: found.remark };
}

function currentView() {
  return document.querySelector("input[name=view]:checked").value;
}

// The image with a map, or with masks, on a canvas of at most `side` pixels.
function paint(canvas, side, { map = null, masks = [] }) {
  const scale = Math.min(1, side / Math.max(image.naturalWidth, image.naturalHeight));
  canvas.width = Math.max(1, Math.round(image.naturalWidth * scale));
  canvas.height = Math.max(1, Math.round(image.naturalHeight * scale));
  const context = canvas.getContext("2d");
  context.drawImage(image, 0, 0, canvas.width, canvas.height);
  if (map) {
    context.globalAlpha = 0.65;
    context.drawImage(map, 0, 0, canvas.width, canvas.height);
  }
  context.globalAlpha = 0.55;
  for (const one of masks) context.drawImage(tint(one, canvas), 0, 0);
}

function tint(one, canvas) {
  const layer = new OffscreenCanvas(canvas.width, canvas.height);
  const context = layer.getContext("2d");
  context.drawImage(one.mask, 0, 0, canvas.width, canvas.height);
  context.globalCompositeOperation = "source-in";
  context.fillStyle = one.colour;
  context.fillRect(0, 0, canvas.width, canvas.height);
  return layer;
}

function update() {
  const isMap = currentView() === "map";
  const on = shown.filter((one) => (isMap ? one === chosen : one.visible));
  paint(element("canvas"), SIDE, isMap ? { map: chosen?.map } : { masks: on });
  const names = on.map((one) => one.sentence).join("; ");
  const what = names ? `the ${isMap ? "map" : "masks"} of: ${names}` : "nothing on it";
  element("canvas").setAttribute("aria-label", `The image with ${what}`);
  element("hint").textContent = isMap ? "Click one to see its map." : "Click to show or hide its mask.";
  shown.forEach((one) => one.button.setAttribute("aria-pressed", String(on.includes(one))));
}

function click(one) {
  if (currentView() === "mask") one.visible = !one.visible;
  chosen = one;
  update();
}

function build(one) {
  const item = document.createElement("li");
  one.button = document.createElement("button");
  one.button.type = "button";
  one.button.style.setProperty("--colour", one.colour);
  one.button.onclick = () => click(one);
  const [sentence, share, pair] = ["sentence", "share", "pair"].map((name) => {
    const span = document.createElement("span");
    span.className = name;
    return span;
  });
  sentence.textContent = one.sentence;
  share.textContent = one.share ? `mask: ${(100 * one.share).toFixed(1)} % of the image` : "no mask: nothing found";
  for (const layers of [{ masks: [one] }, { map: one.map }]) {
    const canvas = document.createElement("canvas");
    canvas.setAttribute("aria-hidden", "true");
    paint(canvas, SIDE / 2, layers);
    pair.append(canvas);
  }
  one.button.append(sentence, share, pair);
  item.append(one.button);
  return item;
}

async function attempt(action) {
  try {
    await action();
  } catch (error) {
    say(error.message);
  }
}

async function add(sentences) {
  const asked = file;
  say("Segmenting …");
  const { results: found, remark } = await ask(sentences);
  if (asked !== file) return; // another image has come meanwhile
  for (const one of found) {
    one.colour = COLOURS[shown.length % COLOURS.length];
    shown.push(one);
    element("sentences").append(build(one));
  }
  chosen = found.at(-1);
  element("results").hidden = false;
  say(remark || "Done. Write another sentence to compare.");
  update();
}

async function take(candidate) {
  if (!candidate) return;
  image = await show(candidate);
  file = candidate;
  const again = shown.map((one) => one.sentence);
  shown = [];
  chosen = null;
  element("sentences").replaceChildren();
  element("results").hidden = true;
  element("picture").hidden = false;
  document.querySelector("main").classList.add("ready");
  update();
  if (!again.length) say("Now write what to segment.");
  for (let first = 0; first < again.length; first += AT_ONCE) await add(again.slice(first, first + AT_ONCE));
}

element("file").onchange = (event) => attempt(() => take(event.target.files[0]));
document.ondragover = (event) => { event.preventDefault(); document.body.classList.add("over"); };
document.ondragleave = () => document.body.classList.remove("over");
document.ondrop = (event) => {
  event.preventDefault();
  document.body.classList.remove("over");
  attempt(() => take(event.dataTransfer.files[0]));
};
element("view").onchange = update;
element("form").onsubmit = (event) => {
  event.preventDefault();
  const sentence = element("sentence").value.trim();
  if (!file) say("Choose an image first.");
  else if (!sentence) say("Write what to segment.");
  else attempt(async () => { await add([sentence]); element("sentence").value = ""; });
};
