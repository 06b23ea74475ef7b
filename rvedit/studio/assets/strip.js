// The strip of frames with two handles. The value is what `strip_of` returns; moving a handle triggers 'range', in
// frames: seconds would not be exact, least of all at a variable rate.
const strip = element.querySelector(".rv-strip");

function handle(label, value, steps) {
  const input = document.createElement("input");
  Object.assign(input, { type: "range", min: 0, max: steps, step: 1, value });
  input.setAttribute("aria-label", label);
  return input;
}

function render() {
  const clip = props.value || {};
  strip.hidden = !clip.frames;
  strip.replaceChildren();
  if (!clip.frames) return;
  const film = document.createElement("div"), text = document.createElement("p");
  film.className = "rv-film";
  text.className = "rv-facts";
  for (const source of clip.frames) film.append(Object.assign(document.createElement("img"), { src: source, alt: "" }));
  strip.append(film, text);
  const size = `${clip.width}×${clip.height}`;
  text.textContent = clip.num_frames > 1 ? `${clip.num_frames} frames, ${clip.seconds.toFixed(2)} s, ${size}` : `picture, ${size}`;
  if (clip.num_frames < 2) return;

  const steps = clip.num_frames;
  const shades = ["left", "right"].map((side) => Object.assign(document.createElement("span"), { className: `rv-shade is-${side}` }));
  const from = handle("From", 0, steps), to = handle("To", steps, steps);
  film.append(...shades, from, to);

  function move(moved) {
    const first = Number(from.value), last = Number(to.value);
    if (first >= last) moved === from ? (from.value = last - 1) : (to.value = first + 1);
    shades[0].style.width = `${(100 * from.value) / steps}%`;
    shades[1].style.width = `${100 - (100 * to.value) / steps}%`;
    const isAll = Number(from.value) === 0 && Number(to.value) === steps;
    const range = isAll ? "" : `, edited: ${from.value}f to ${to.value}f`;
    text.textContent = `${clip.num_frames} frames, ${clip.seconds.toFixed(2)} s, ${size}${range}`;
  }
  for (const input of [from, to]) {
    input.addEventListener("input", () => move(input));
    input.addEventListener("change", () => trigger("range", {
      start: Number(from.value) === 0 ? "" : `${from.value}f`,
      stop: Number(to.value) === steps ? "" : `${to.value}f`,
    }));
  }
}

watch("value", render);
render();
