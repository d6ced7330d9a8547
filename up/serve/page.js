// Images that are dropped, pasted or chosen are sent one by one; the server predicts what arrives together in one batch.
const model = JSON.parse(document.getElementById("metadata").textContent);
const [drop, choose, files, topk, results, state, clear] = ["drop", "choose", "files", "topk", "results", "status", "clear"].map((id) => document.getElementById(id));
const AT_A_TIME = 4, TRIES = 5, SMALL = 64; // requests, attempts while the queue is full, pixels
const waiting = [];
let running = 0, done = 0, failed = 0, round = 0;

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function describe() {
  const { width, height } = model.input;
  const facts = [["classes", model.classes.flat().length.toLocaleString("en")], ["input", `${width} × ${height}`]];
  facts.push(["task", model.task], ["precision", model.precision]);
  if (model.metrics) facts.push([model.metrics.metric, `${model.metrics.onnx.toFixed(2)} %`]);
  document.getElementById("facts").append(...facts.map(([name, value]) => element("li", {}, `${name} `, element("b", {}, value))));
  document.getElementById("curl").textContent = `curl -F image=@photo.jpg ${new URL("predict", location.href)}`;
}

function tell() {
  const left = waiting.length + running, text = [`${done + failed} ${done + failed === 1 ? "image" : "images"} predicted`];
  if (failed) text.push(`${failed} with an error`);
  if (left) text.push(`${left} to go`);
  state.textContent = results.childElementCount ? `${text.join(", ")}.` : "No images yet.";
  clear.hidden = !results.childElementCount;
}

function add(list) {
  const cards = [];
  for (const file of list) {
    const name = file.name || "pasted image", time = element("span"), body = element("div", {}, element("p", { class: "faint" }, "waiting …"));
    const image = element("img", { src: URL.createObjectURL(file), alt: name }), view = element("div", { class: "view" }, element("div", {}, image));
    image.addEventListener("error", () => view.replaceChildren("no preview in this browser"));
    image.addEventListener("load", () => image.classList.toggle("small", Math.max(image.naturalWidth, image.naturalHeight) <= SMALL));
    const caption = element("figcaption", {}, element("b", { title: name }, name), time);
    cards.push(element("li", {}, element("figure", {}, view, caption), body));
    waiting.push({ file, name, time, body, image, round });
  }
  results.prepend(...cards);
  next();
}

function next() {
  while (running < AT_A_TIME && waiting.length) {
    running += 1;
    predict(waiting.shift()).finally(() => { running -= 1; next(); });
  }
  tell();
}

async function predict(job) {
  const begun = performance.now();
  try {
    const answer = await ask(job), [result] = answer.results ?? [answer];
    if (result.error) throw result.error;
    if (job.round !== round) return;
    job.body.replaceChildren(...bars(result.predictions));
    if (model.answer === "boxes") outline(job.image, result.predictions);
    const whole = performance.now() - begun;
    job.time.textContent = `${answer.ms.toFixed(1)} ms`;
    job.time.title = `in the server; ${whole.toFixed(0)} ms with the way there and back`;
    done += 1;
  } catch (error) {
    if (job.round !== round) return;
    const what = error.what ?? "the server does not answer", fix = error.fix ?? "Is it still running?";
    job.body.replaceChildren(element("p", { class: "wrong", role: "alert" }, what, element("small", {}, fix)));
    failed += 1;
  }
}

async function ask({ file, name }) {
  const form = new FormData();
  form.append("image", file, name);
  for (let left = TRIES; ; left -= 1) {
    const response = await fetch(`predict?topk=${Math.max(1, Math.floor(topk.value))}`, { method: "POST", body: form });
    if (response.status !== 503 || left === 1) return response.json();
    await new Promise((go) => setTimeout(go, 1000 * response.headers.get("retry-after")));
  }
}

// A score, or the share of the image that a class covers; several heads have a list each.
function bars(predictions) {
  const heads = Array.isArray(predictions[0]) ? predictions : [predictions];
  return heads.map((head, number) => element("div", { class: "bars" }, heads.length > 1 ? element("h3", {}, model.heads[number]) : "", ...head.flatMap((each, rank) => {
    const share = each.score ?? each.share, bar = element("i"), mark = rank ? "" : " best";
    bar.style.width = `${100 * share}%`;
    const name = element("span", { class: `name${mark}` }, each.name + (each.present ? " ✓" : ""));
    return [name, element("span", { class: `bar${mark}` }, bar), element("span", { class: mark }, `${(100 * share).toFixed(1)} %`)];
  }), head.length ? "" : element("span", { class: "name" }, "nothing found")));
}

async function outline(image, boxes) {
  await image.decode();
  const space = "http://www.w3.org/2000/svg", { naturalWidth: width, naturalHeight: height } = image;
  const shape = (name, attributes, ...children) => {
    const made = document.createElementNS(space, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children);
    return made;
  };
  const size = Math.max(width, height) / 18;
  const drawn = [...boxes].reverse().flatMap(({ name, box: [left, top, right, bottom] }) => [
    shape("rect", { x: left, y: top, width: right - left, height: bottom - top }),
    shape("text", { x: left + size / 4, y: top + size, "font-size": size }, name),
  ]);
  image.after(shape("svg", { viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" }, ...drawn));
}

choose.addEventListener("click", () => files.click());
files.addEventListener("change", () => { add(files.files); files.value = ""; });
for (const name of ["dragenter", "dragover"]) addEventListener(name, (event) => { event.preventDefault(); drop.classList.add("over"); });
addEventListener("dragleave", (event) => { if (!event.relatedTarget) drop.classList.remove("over"); });
addEventListener("drop", (event) => { event.preventDefault(); drop.classList.remove("over"); add(event.dataTransfer.files); });
addEventListener("paste", (event) => add(event.clipboardData.files));
clear.addEventListener("click", () => {
  for (const image of results.querySelectorAll("img")) URL.revokeObjectURL(image.src);
  results.replaceChildren();
  waiting.length = done = failed = 0;
  round += 1;
  tell();
  choose.focus();
});
describe();
