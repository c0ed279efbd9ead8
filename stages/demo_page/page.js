"use strict";

const COLOURS = ["#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#f032e6"];
const element = (id) => document.getElementById(id);
let file = null; // what was dropped
let image = null; // the same, decoded
let shown = []; // {sentence, mask, map, share, visible, colour}
let lastClicked = null;

function say(text) {
  element("message").textContent = text;
}

function load(url) {
  return new Promise((resolve, reject) => {
    const picture = new Image();
    picture.onload = () => resolve(picture);
    picture.onerror = () => reject(new Error("this browser cannot read the image"));
    picture.src = url;
  });
}

async function segment(sentences) {
  say("Segmenting …");
  const query = new URLSearchParams(sentences.map((one) => ["sentence", one]));
  const headers = { "Content-Type": "application/octet-stream" };
  const answer = await fetch(`/segment?${query}`, { method: "POST", headers, body: file });
  const found = await answer.json();
  if (!answer.ok) throw new Error(found.error);
  return Promise.all(found.results.map(async (one) => (
    { ...one, mask: await load(one.mask), map: await load(one.map), visible: true })));
}

function paint() {
  const canvas = element("canvas");
  if (!image) return;
  const scale = Math.min(1, 1024 / Math.max(image.naturalWidth, image.naturalHeight));
  canvas.width = Math.round(image.naturalWidth * scale);
  canvas.height = Math.round(image.naturalHeight * scale);
  const context = canvas.getContext("2d");
  context.drawImage(image, 0, 0, canvas.width, canvas.height);
  const view = document.querySelector("input[name=view]:checked").value;
  const visible = shown.filter((one) => one.visible);
  if (view === "map" && lastClicked) {
    context.globalAlpha = 0.65;
    context.drawImage(lastClicked.map, 0, 0, canvas.width, canvas.height);
  } else if (view === "mask") {
    context.globalAlpha = 0.55;
    for (const one of visible) context.drawImage(tint(one, canvas), 0, 0);
  }
  context.globalAlpha = 1;
  const names = visible.map((one) => one.sentence).join("; ");
  canvas.setAttribute("aria-label", `The image, showing: ${view === "image" ? "no mask" : names || "no mask"}`);
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

function list() {
  element("sentences").replaceChildren(...shown.map((one) => {
    const item = document.createElement("li");
    const button = document.createElement("button");
    button.type = "button";
    const share = one.share ? `${(100 * one.share).toFixed(1)} % of the image` : "nothing found";
    button.textContent = `${one.sentence} (${share})`;
    button.style.setProperty("--colour", one.colour);
    button.setAttribute("aria-pressed", String(one.visible));
    button.onclick = () => {
      one.visible = !one.visible;
      lastClicked = one;
      button.setAttribute("aria-pressed", String(one.visible));
      paint();
    };
    item.append(button);
    return item;
  }));
}

async function attempt(action) {
  try {
    await action();
  } catch (error) {
    say(error.message);
  }
}

async function add(sentences) {
  const found = await segment(sentences);
  for (const one of found) one.colour = COLOURS[shown.push(one) % COLOURS.length];
  lastClicked = found.at(-1);
  say(`${shown.length} sentence${shown.length === 1 ? "" : "s"}.`);
  list();
  paint();
}

async function take(chosen) {
  if (!chosen) return;
  image = await load(URL.createObjectURL(chosen));
  file = chosen;
  const again = shown.map((one) => one.sentence);
  shown = [];
  lastClicked = null;
  list();
  paint();
  if (again.length) await add(again);
  else say("Now write what to segment.");
}

element("file").onchange = (event) => attempt(() => take(event.target.files[0]));
element("drop").ondragover = (event) => { event.preventDefault(); element("drop").classList.add("over"); };
element("drop").ondragleave = () => element("drop").classList.remove("over");
element("drop").ondrop = (event) => {
  event.preventDefault();
  element("drop").classList.remove("over");
  attempt(() => take(event.dataTransfer.files[0]));
};
element("view").onchange = paint;
element("form").onsubmit = (event) => {
  event.preventDefault();
  const sentence = element("sentence").value.trim();
  if (!file) say("Choose an image first.");
  else if (!sentence) say("Write what to segment.");
  else attempt(async () => { await add([sentence]); element("sentence").value = ""; });
};
