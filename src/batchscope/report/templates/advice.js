"use strict";
// What would be best on other devices, at another price, for another objective? Computed from the posterior's draws:
// seconds to goal of batch size B on N devices = examples / (examples per step) x seconds per step of B on N devices.
// Those were timed or are predicted from a pass over several devices; without one they are taken to be the seconds of
// B / N examples on one, communication free. Plain numbers first, then words, then a small drawing.
const sorted = (values) => Float64Array.from(values).sort();

// Linear between the order statistics, as numpy's quantile.
const quantile = (ordered, q) => {
  const at = q * (ordered.length - 1), k = Math.floor(at);
  return ordered[k] + (at - k) * (ordered[Math.min(k + 1, ordered.length - 1)] - ordered[k]);
};

const ends = (logs) => {
  const ordered = sorted(logs);
  return [0.05, 0.5, 0.95].map((q) => Math.exp(quantile(ordered, q)));
};

// Log seconds of a step of `size` examples in one draw: log against log between the timed sizes, constant below the
// smallest, proportional above the largest.
const logStep = (timed, logs, size) => {
  const last = timed.length - 1;
  if (size <= timed[0]) return logs[0];
  if (size >= timed[last]) return logs[last] + Math.log(size / timed[last]);
  const k = timed.findIndex((t) => t >= size);
  const share = Math.log(size / timed[k - 1]) / Math.log(timed[k] / timed[k - 1]);
  return logs[k - 1] + share * (logs[k] - logs[k - 1]);
};

// Standard normal deviates of a draw's seconds at each candidate: how far it lies from the middle of all draws.
const deviates = (rows) => {
  const middle = rows[0].map((_, c) => rows.reduce((sum, row) => sum + row[c], 0) / rows.length);
  const spread = rows[0].map((_, c) => Math.sqrt(rows.reduce((sum, row) => sum + (row[c] - middle[c]) ** 2, 0) / rows.length));
  return rows.map((row) => row.map((v, c) => (spread[c] > 0 ? (v - middle[c]) / spread[c] : 0)));
};

// All candidates that give every device an example: their objective's draws, interval, P(best), P(good); the best one.
const decide = (data, devices, price, objective) => {
  const money = Math.log((price || 1) * devices / 3600);
  const known = data.steps && data.steps[devices];
  if (known && !data.deviates) data.deviates = deviates(data.logSeconds);
  const stepOn = (c, d) => {
    const row = d % data.logSeconds.length;
    if (known && known.log[c]) return known.log[c][0] + known.log[c][1] * data.deviates[row][c];
    return logStep(data.timed, data.logSeconds[row], data.candidates[c].size / devices);
  };
  const logTime = (c, d) => data.logExamples[d][c] - Math.log(data.candidates[c].effective) + stepOn(c, d);
  const options = data.candidates.map((c, index) => ({ ...c, index })).filter((c) => c.size >= devices);
  if (!options.length) return { options, best: null };
  for (const option of options) {
    option.time = data.logExamples.map((_, d) => logTime(option.index, d));
    option.values = objective === "examples" ? data.logExamples.map((row) => row[option.index])
      : option.time.map((t) => t + (objective === "cost" ? money : 0));
    option.seconds = ends(option.time);
    option.cost = option.seconds.map((s) => s * Math.exp(money));
    // What is compared is charged for the chance that a run is lost; what is said of times is of runs that are not.
    option.compared = option.values.map((v, d) => v + (data.logCharge[d] ? data.logCharge[d][option.index] : 0));
    option.mean = option.compared.reduce((sum, v) => sum + v, 0) / option.compared.length;
    option.pBest = option.pGood = 0;
  }
  data.logExamples.forEach((_, d) => {
    const least = Math.min(...options.map((o) => o.compared[d]));
    options.find((o) => o.compared[d] === least).pBest += 1 / data.logExamples.length;
    for (const o of options) if (o.compared[d] <= least + Math.log1p(data.band)) o.pGood += 1 / data.logExamples.length;
  });
  for (const option of options) option.interval = ends(option.values);
  const best = options.reduce((a, b) => (b.mean < a.mean ? b : a), options[0]);
  return { options, best };
};

// Draws of the objective of one option over that of another: a ratio with its interval.
const over = (a, b) => ends(a.values.map((v, d) => v - b.values[d]));

// ---- words ----

const count = (value) => Math.round(value).toLocaleString("en-US");
const digits = (value, n = 3) => {
  const rounded = Number(value.toPrecision(n)), size = Math.abs(rounded);
  if (size >= 1e9 || (size > 0 && size < 1e-4)) return rounded.toExponential(n - 1);
  if (size >= 1e6) return `${Number((rounded / 1e6).toPrecision(n))}M`;
  return size === 0 ? "0" : rounded.toLocaleString("en-US", { minimumSignificantDigits: n, maximumSignificantDigits: n });
};
const UNITS = [[1, "ms", 1e-3], [120, "s", 1], [7200, "min", 60], [172800, "h", 3600], [Infinity, "days", 86400]];
const LONG = { ms: "milliseconds", s: "seconds", min: "minutes", h: "hours", days: "days" };
const unitOf = (seconds) => UNITS.find(([below]) => seconds < below);
const spelled = ([low, middle, high], scale = 1, unit = "") =>
  `${digits(middle / scale)}${unit && ` ${unit}`} [${digits(low / scale)}–${digits(high / scale)}]`;
const duration = (interval) => {
  const [, unit, scale] = unitOf(interval[1]);
  return spelled(interval, scale, unit);
};
const chance = (p) => (p >= 0.995 ? "more than 99 %" : p < 0.005 ? "less than 1 %" : `${Math.round(100 * p)} %`);
const many = (n, word) => `${count(n)} ${word}${n === 1 ? "" : "s"}`;
const AS = { time: "as long", cost: "as much", examples: "as many examples" };

// How the batch is divided: as recommended on the devices that were asked for, else the fewest equal parts that fit.
const divided = (data, option, devices) => {
  const here = Math.ceil(option.size / devices);
  const parts = devices === option.devices ? option.parts : data.ceiling ? Math.ceil(here / data.ceiling) : 1;
  const micro = devices === option.devices ? option.micro : Math.ceil(here / parts);
  const each = devices === 1 ? "" : `${count(here)} on each, `;
  return parts === 1 ? `${each}in one pass` : `${each}accumulated over ${parts} micro-batches of ${count(micro)}`;
};

// What an option takes: time and price, or ratios to the reference where no run to the goal stands behind the draws.
const takes = (data, option, reference, price, devices) => {
  if (reference) {
    const ratio = ends(option.time.map((t, d) => t - reference.time[d]));
    return `${spelled(ratio)} times the time of batch size ${count(reference.size)} on one device`;
  }
  const money = price ? `${spelled(option.cost)} at ${price} for a device for an hour`
    : `${spelled(option.cost)} device hours`;
  return `${duration(option.seconds)} to the goal, ${money}`;
};

const RATIOS = { time: "time to goal", cost: "cost", examples: "examples to goal" };
const AIMS = { time: "least time", cost: "least cost", examples: "fewest examples" };

const sentencesOf = (data, found, reference, devices, price, objective) => {
  const { best, options } = found, chosen = options.find((o) => o.index === data.chosen);
  const lines = [
    ["best", `Batch size ${count(best.size)}, learning rate ${best.rate}, on ${many(devices, "device")}`],
    ["", `${divided(data, best, devices)}; ${AIMS[objective]} with probability ${chance(best.pBest)}; ` +
      `${takes(data, best, reference, price, devices)}${best.extrapolated ? "; extrapolated: it was not run" : ""}.`],
  ];
  if (!chosen) {
    lines.push(["", `The recommendation above has fewer examples in a batch than there are devices.`]);
  } else if (chosen === best) {
    lines.push(["", "This is the batch size recommended above."]);
  } else {
    lines.push(["", `The recommendation above, batch size ${count(chosen.size)}, would take ` +
      `${spelled(over(chosen, best))} times ${AS[objective]}; best with probability ${chance(chosen.pBest)}.`]);
  }
  if (!(data.objective in AIMS)) lines.push(["", `The advice above is for least ${data.objective}, which is not computed here.`]);
  if (data.steps && data.steps[devices] && !data.steps[devices].timed) {
    lines.push(["bound", `Steps on ${many(devices, "device")} are predicted from those that were timed, averaging included.`]);
  } else if (!data.steps && devices > 1) {
    lines.push(["bound", "A lower bound: communication is not counted, and was not measured."]);
  }
  return lines;
};

// ---- the drawing ----

const SVG = "http://www.w3.org/2000/svg";
const shape = (parent, name, attributes, text = "") => {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.textContent = text;
  parent.append(node);
  return node;
};

const ticksOf = (low, high) => {
  const ticks = [], steps = Math.log10(high / low) < 3 ? [1, 2, 5] : [1];
  for (let k = Math.floor(Math.log10(low)); k <= Math.log10(high); k += 1)
    for (const m of steps) if (m * 10 ** k >= low && m * 10 ** k <= high) ticks.push(m * 10 ** k);
  return ticks;
};

const shortly = (value) => (value >= 1e6 ? digits(value) : value >= 1e4 ? `${Number((value / 1000).toPrecision(3)).toLocaleString("en-US")}k`
  : Number(value.toPrecision(3)).toLocaleString("en-US", { maximumSignificantDigits: 3 }));

const drawn = (svg, data, found, scale, title) => {
  const wide = svg.clientWidth || 640, box = { left: 62, right: wide - 10, top: 14, bottom: 212 };
  const { options, best } = found;
  const values = options.flatMap((o) => o.interval.map((v) => v / scale));
  const least = Math.min(...values), most = Math.max(...values), pad = 1.15 * (most / least) ** 0.12;
  const low = least / pad, high = most * pad;
  const sizes = data.candidates.map((c) => c.size), span = Math.log(sizes[sizes.length - 1] / sizes[0]) || 1;
  const x = (size) => box.left + 26 + (box.right - box.left - 52) * (Math.log(size / sizes[0]) / span);
  const y = (value) => box.bottom - (box.bottom - box.top) * (Math.log(value / low) / Math.log(high / low));
  svg.replaceChildren();
  svg.setAttribute("viewBox", `0 0 ${wide} 260`);
  for (const tick of ticksOf(low, high)) {
    shape(svg, "line", { x1: box.left, x2: box.right, y1: y(tick), y2: y(tick), stroke: "#e8e8e8" });
    shape(svg, "text", { x: box.left - 7, y: y(tick) + 4, "text-anchor": "end" }, shortly(tick));
  }
  const room = Math.max(1, Math.ceil((sizes.length * 46) / (box.right - box.left)));
  sizes.forEach((size, k) => {
    if (k % room === 0) shape(svg, "text", { x: x(size), y: box.bottom + 18, "text-anchor": "middle" }, count(size));
  });
  shape(svg, "line", { x1: box.left, x2: box.right, y1: box.bottom, y2: box.bottom, stroke: "#777" });
  shape(svg, "text", { x: (box.left + box.right) / 2, y: box.bottom + 40, "text-anchor": "middle" }, "batch size (examples)");
  shape(svg, "text", { x: 14, y: (box.top + box.bottom) / 2, "text-anchor": "middle",
    transform: `rotate(-90 14 ${(box.top + box.bottom) / 2})` }, title);
  for (const o of options) {
    const [bottom, middle, top] = o.interval.map((v) => y(v / scale)), at = x(o.size), good = o.pGood > data.doubt;
    const group = shape(svg, "g", { "data-size": o.size });
    shape(group, "title", {}, `${count(o.size)}: ${spelled(o.interval, scale)}, best with probability ${chance(o.pBest)}`);
    shape(group, "line", { x1: at, x2: at, y1: bottom, y2: top, stroke: "#0072b2", "stroke-width": 2 });
    shape(group, "circle", { cx: at, cy: middle, r: 5, fill: good ? "#0072b2" : "#fff", stroke: "#0072b2", "stroke-width": 1.8 });
    if (o.index === data.chosen)
      shape(group, "circle", { cx: at, cy: middle, r: 11, fill: "none", stroke: "#009e73", "stroke-width": 2.6 });
    if (o === best) {
      shape(group, "rect", { class: "moved", x: at - 16, y: middle - 16, width: 32, height: 32, fill: "none", stroke: "#d55e00", "stroke-width": 2.4 });
    }
  }
  svg.setAttribute("aria-label", `${title} by batch size: ` + options.map((o) =>
    `${count(o.size)}: ${spelled(o.interval, scale)}, best with probability ${chance(o.pBest)}`).join("; "));
};

// ---- the controls ----

const control = (data) => {
  const get = (id) => document.getElementById(id);
  const [slider, price, objective] = ["devices", "price", "objective"].map(get);
  const asked = () => {
    slider.value = data.counts.indexOf(data.devices);
    price.value = data.price ?? "";
    objective.value = data.objective in AIMS ? data.objective : "time";
  };
  const alone = data.reference === null ? null : data.candidates[data.reference].size;
  const move = () => {
    const devices = data.counts[Number(slider.value)], paid = Number(price.value) > 0 ? Number(price.value) : null;
    get("devices-shown").value = count(devices);
    slider.setAttribute("aria-valuetext", many(devices, "device"));
    const shown = get("moved");
    shown.replaceChildren();
    const say = ([kind, text]) => {
      const line = document.createElement("p");
      line.className = kind;
      line.textContent = text ? text[0].toUpperCase() + text.slice(1) : "";
      shown.append(line);
    };
    const found = decide(data, devices, paid, objective.value);
    if (!found.best) {
      say(["best", `No batch size that was compared gives each of ${count(devices)} devices an example`]);
      get("moved-figure").replaceChildren();
      get("moved-figure").setAttribute("aria-label", "nothing to draw");
      return;
    }
    const reference = alone === null ? null
      : decide(data, 1, paid, objective.value).options.find((o) => o.size === alone);
    sentencesOf(data, found, reference, devices, paid, objective.value).forEach(say);
    const unit = unitOf(found.best.seconds[1]);
    const scale = reference ? reference.interval[1] : objective.value === "time" ? unit[2] : 1;
    const titles = { time: `${LONG[unit[1]]} to goal`, cost: paid ? "cost" : "device hours", examples: "examples to goal" };
    drawn(get("moved-figure"), data, found, scale, reference ? `${RATIOS[objective.value]} (ratio)` : titles[objective.value]);
  };
  asked();
  for (const input of [slider, price, objective]) input.addEventListener("input", move);
  get("reset").addEventListener("click", () => { asked(); move(); });
  get("draws").textContent = `From ${count(data.logExamples.length)} draws of the posterior.`;
  addEventListener("resize", move);
  get("controls").hidden = false;
  move();
};

const copied = (button, pre) => {
  const said = (text) => { button.textContent = text; setTimeout(() => { button.textContent = "Copy"; }, 2000); };
  const selected = () => {
    const range = document.createRange();
    range.selectNodeContents(pre);
    getSelection().removeAllRanges();
    getSelection().addRange(range);
    return document.execCommand("copy");
  };
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(pre.textContent);
      said("Copied");
    } catch {
      said(selected() ? "Copied" : "Selected: copy it");
    }
  });
};

const embedded = document.getElementById("advice");
if (embedded) control(JSON.parse(embedded.textContent));
const button = document.getElementById("copy");
if (button) copied(button, document.getElementById("snippet"));
