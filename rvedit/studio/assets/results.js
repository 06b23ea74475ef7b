// Results: a viewer with a slider between source and edit, and the list of jobs. Runs once; `element` is the
// component, `server` has Python's functions. All text of users is set as textContent.
const find = (selector) => element.querySelector(selector);
const stage = find(".rv-stage"), controls = find(".rv-controls"), about = find(".rv-about");
const queue = find(".rv-queue"), none = find(".rv-none"), play = find(".rv-play"), time = find(".rv-time");
const MAX_PANES = 4;
let jobs = [], chosen = null, known = null, compared = [], split = 0.5, playing = true, shown = "", panes = [];

function make(tag, properties, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children.filter((child) => child !== null));
  return node;
}

function words(job) {
  return job.instructions.join(" → ");
}

function facts(job) {
  const size = job.num_frames ? `${job.num_frames} frame${job.num_frames > 1 ? "s" : ""}, ${job.width}×${job.height}` : null;
  const range = job.start || job.stop ? `${job.start || "start"} to ${job.stop || "end"}` : null;
  const seconds = job.seconds ? `${job.seconds.toFixed(1)} s` : null;
  const place = job.files.mask ? "mask" : job.region;
  return [job.name, job.model, `seed ${job.seed}`, place, range, size, seconds].filter(Boolean).join(" · ");
}

function status(job) {
  const at = job.progress;
  if (job.state === "failed") return job.error;
  if (job.state === "done") return "No view could be made: download the edit.";
  if (!at) return job.state;
  if (at.stage !== "editing") return at.stage;
  const instruction = at.instructions > 1 ? `instruction ${at.instruction} of ${at.instructions}, ` : "";
  const left = at.share < 1 ? `, about ${Math.ceil(at.seconds_left)} s left` : ", finishing";
  return `${instruction}window ${at.window} of ${at.windows}, step ${at.step} of ${at.steps}${left}`;
}

// The viewer.

function makePane(job, isOne) {
  if (!job.files.view) return makeWaiting(job);
  const video = make("video", { src: job.files.view, muted: true, loop: job.num_frames > 1, playsInline: true, preload: "auto" });
  const canvas = make("canvas", { className: "rv-canvas", width: job.width, height: job.height });
  const range = make("input", { type: "range", className: "rv-split", min: 0, max: 1000, value: 1000 * split });
  range.setAttribute("aria-label", "Between source and edit");
  range.addEventListener("input", () => setSplit(range.value / 1000));
  const frame = make("div", { className: "rv-frame" }, canvas,
    make("span", { className: "rv-tag rv-before", textContent: "source" }),
    make("span", { className: "rv-tag rv-after", textContent: "edit" }),
    make("span", { className: "rv-line" }), range);
  frame.style.aspectRatio = `${job.width} / ${job.height}`;
  frame.style.setProperty("--ratio", job.width / job.height);
  if (playing && job.num_frames > 1) video.play().catch(() => {});
  const caption = isOne ? null : make("figcaption", { textContent: `${words(job)} · seed ${job.seed}` });
  return { job, video, canvas, node: make("figure", { className: "rv-pane" }, frame, caption) };
}

function makeWaiting(job) {
  const image = make("img", { className: "rv-preview", alt: "", hidden: true });
  const text = make("p", { className: "rv-wait" });
  const node = make("figure", { className: "rv-pane" }, make("div", { className: "rv-waiting" }, image, text));
  return { job, image, text, node };
}

function setSplit(value) {
  split = value;
  stage.style.setProperty("--split", `${100 * split}%`);
  for (const range of stage.querySelectorAll(".rv-split")) range.value = 1000 * split;
}

function draw() {
  if (!element.isConnected) return;
  const [leader] = panes.filter((pane) => pane.video);
  for (const { video, canvas } of panes) {
    if (!video || video.readyState < 2) continue;
    if (video !== leader.video && !video.seeking && Math.abs(video.currentTime - leader.video.currentTime) > 0.1
        && leader.video.currentTime < video.duration) video.currentTime = leader.video.currentTime;
    const width = video.videoWidth / 2, height = video.videoHeight, left = Math.round(split * width);
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    const context = canvas.getContext("2d");
    context.drawImage(video, width, 0, width, height, 0, 0, width, height);
    if (left > 0) context.drawImage(video, 0, 0, left, height, 0, 0, left, height);
  }
  if (leader && leader.video.duration) {
    const { currentTime, duration } = leader.video;
    if (document.activeElement !== time) time.value = (1000 * currentTime) / duration;
    find(".rv-clock").textContent = `${currentTime.toFixed(1)} / ${duration.toFixed(1)} s`;
  }
  requestAnimationFrame(draw);
}

function setPlaying(value) {
  playing = value;
  play.classList.toggle("is-paused", !playing);
  play.setAttribute("aria-label", playing ? "Pause" : "Play");
  for (const { video, job } of panes) if (video && job.num_frames > 1) playing ? video.play().catch(() => {}) : video.pause();
}

play.addEventListener("click", () => setPlaying(!playing));
time.addEventListener("input", () => {
  setPlaying(false);
  for (const { video } of panes) if (video) video.currentTime = (video.duration * time.value) / 1000;
});

function show() {
  const many = compared.map((id) => jobs.find((job) => job.id === id)).filter(Boolean);
  const one = jobs.find((job) => job.id === chosen);
  const visible = many.length > 1 ? many : one ? [one] : [];
  const key = visible.map((job) => `${job.id}:${job.state === "done"}`).join() || "none";
  if (key !== shown) {
    shown = key;
    for (const { video } of panes) if (video) video.removeAttribute("src");
    panes = visible.map((job) => makePane(job, visible.length === 1));
    stage.replaceChildren(...panes.map((pane) => pane.node));
    if (!visible.length) stage.append(make("p", { className: "rv-empty", textContent: "Drop a clip, write what to change, and press Edit." }));
    stage.dataset.panes = visible.length;
    controls.hidden = !visible.some((job) => job.files.view && job.num_frames > 1);
    about.replaceChildren(...(visible.length === 1 ? describe(visible[0]) : []));
    setSplit(split);
  }
  for (const [index, pane] of panes.entries()) if (pane.text) wait(pane, visible[index]);
}

function wait(pane, job) {
  pane.text.textContent = status(job);
  pane.node.classList.toggle("is-failed", job.state === "failed");
  pane.image.hidden = !job.files.preview;
  const at = job.progress || {};
  const source = job.files.preview ? `${job.files.preview}?${at.instruction}-${at.window}-${at.step}` : "";
  if (source && pane.image.getAttribute("src") !== source) pane.image.src = source;
}

function describe(job) {
  const copy = make("button", { type: "button", className: "rv-small", textContent: "Copy" });
  const command = make("code", { textContent: job.command });
  copy.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(job.command);
      copy.textContent = "Copied";
    } catch {  // needs https or this machine's own address
      getSelection().selectAllChildren(command);
    }
  });
  const save = job.files.output
    ? make("a", { className: "rv-download", href: `${job.files.output}?save=1`, textContent: `Download ${job.download_name}` })
    : null;
  if (save) save.setAttribute("download", job.download_name);
  const inputs = ["mask", "reference"].filter((kind) => job.files[kind])
    .map((kind) => make("a", { href: job.files[kind], target: "_blank", textContent: kind }));
  return [
    make("div", { className: "rv-title" }, make("h2", { textContent: words(job) }), save),
    make("p", { className: "rv-facts" }, facts(job), ...inputs.flatMap((link) => [" · ", link])),
    make("div", { className: "rv-command" }, command, copy),
  ];
}

// The list.

const rows = new Map();

function makeRow(job) {
  const title = make("span", { className: "rv-words" }), line = make("span", { className: "rv-status" });
  const pick = make("button", { type: "button", className: "rv-pick" }, title, line);
  const bar = make("span", { className: "rv-bar" }, make("span"));
  const cancel = make("button", { type: "button", className: "rv-small rv-cancel", textContent: "Cancel" });
  const again = make("button", { type: "button", className: "rv-small rv-again", textContent: "Another seed" });
  const box = make("input", { type: "checkbox" });
  const compare = make("label", { className: "rv-small rv-compare" }, box, "Compare");
  const node = make("li", { className: "rv-job" }, pick, make("div", { className: "rv-actions" }, compare, again, cancel), bar);
  node.dataset.id = job.id;
  pick.addEventListener("click", () => { chosen = job.id; compared = []; render(); });
  cancel.addEventListener("click", () => server.cancel(job.id).then(poll));
  again.addEventListener("click", () => server.again(job.id).then(poll));
  box.addEventListener("change", () => {
    if (box.checked) compared = [...compared, job.id].slice(-MAX_PANES);
    else compared = compared.filter((id) => id !== job.id);
    render();
  });
  return { node, title, line, bar, cancel, again, compare, box };
}

function update(row, job) {
  const isOpen = job.state === "queued" || job.state === "running";
  row.node.dataset.state = job.state;
  row.node.classList.toggle("is-chosen", compared.length < 2 ? job.id === chosen : compared.includes(job.id));
  row.title.textContent = words(job);
  row.line.textContent = job.state === "done" ? facts(job) : `${job.name} · ${status(job)}`;
  row.bar.hidden = job.state !== "running";
  row.bar.firstChild.style.width = `${100 * ((job.progress && job.progress.share) || 0)}%`;
  row.cancel.hidden = !isOpen;
  row.again.hidden = isOpen;
  row.compare.hidden = job.state !== "done";
  row.box.checked = compared.includes(job.id);
}

function render() {
  none.hidden = jobs.length > 0;
  for (const job of jobs) {
    if (!rows.has(job.id)) {
      rows.set(job.id, makeRow(job));
      queue.prepend(rows.get(job.id).node);  // the newest first
    }
    update(rows.get(job.id), job);
  }
  for (const [id, row] of rows) if (!jobs.some((job) => job.id === id)) { row.node.remove(); rows.delete(id); }
  show();
}

let timer = null;

async function poll() {
  clearTimeout(timer);
  try {
    jobs = await server.jobs(null);
    const fresh = jobs.filter((job) => known && !known.has(job.id));
    if (fresh.length || chosen === null) { chosen = jobs.length ? jobs[jobs.length - 1].id : null; compared = []; }
    known = new Set(jobs.map((job) => job.id));
    element.classList.remove("is-offline");
    render();
  } catch {
    element.classList.add("is-offline");  // the server is being started anew, perhaps
  }
  const isBusy = jobs.some((job) => job.state === "queued" || job.state === "running");
  if (element.isConnected) timer = setTimeout(poll, isBusy ? 500 : 1500);
}

poll();
requestAnimationFrame(draw);
