// The console: asks the manager every other second how things are, and shows it.

import { Refusal, ask, token } from "./api.js";
import { byId, h, keyed, s, say } from "./dom.js";
import { Plot } from "./plot.js";
import { Drawer } from "./request.js";
import { Table } from "./table.js";
import { age, ago, count, counted, duration, listed, moment, setAge, setClock, span, tick } from "./words.js";

// How long after an answer the manager is asked again, and at most while it does not answer; in milliseconds.
const EVERY = 2_000;
const RARELY = 30_000;

// More signers than these are not drawn one by one.
const MAX_DRAWN = 16;

let overview = null;
// When it was answered last, by this machine's clock, and how often it was not since.
let answered = null;
let silences = 0;
let next = null;
let asking = false;

const plots = [
  new Plot(byId("throughput"), {
    title: "Requests ended",
    kind: "bars",
    whole: true,
    series: [
      { field: "completed", name: "Completed", look: "good" },
      { field: "failed", name: "Failed", look: "bad" },
    ],
    format: count,
    summary: (points, step) => {
      const sum = (field) => points.reduce((total, point) => total + point[field], 0);
      const over = span(points.length * step);
      return `In the last ${over}: ${count(sum("completed"))} completed, ${count(sum("failed"))} failed. A bar is ${span(step)}.`;
    },
    nothing: "This manager has finished no request since it started.",
    picked: choose,
  }),
  new Plot(byId("latency"), {
    title: "Latency",
    kind: "lines",
    whole: false,
    series: [
      { field: "p50", name: "p50", look: "p50" },
      { field: "p99", name: "p99", look: "p99" },
    ],
    format: duration,
    summary: (points) => {
      const slowest = points.reduce((worst, { p99 }) => Math.max(worst, p99 ?? 0), 0);
      return slowest > 0
        ? `From acceptance to signature: half took less than p50, all but one in a hundred less than p99. At worst p99 was ${duration(slowest)}.`
        : "Nothing was signed in this time.";
    },
    nothing: "This manager has finished no request since it started.",
    picked: choose,
  }),
];
const table = new Table();
const drawer = new Drawer({
  signers: () => (overview?.signers ?? []).map(({ signer }) => signer),
  closed: (id) => {
    if (requestOf(location.hash)) history.pushState(null, "", location.pathname + location.search);
    table.mark(null);
    table.focus(id);
  },
  refused: unknown,
});

// Both plots are read at the same time.
function choose(time) {
  for (const plot of plots) plot.choose(time);
}

// ---- Asking. ----

async function poll() {
  clearTimeout(next);
  // One question at a time, and none that nobody looks at.
  if (asking || document.hidden) return;
  asking = true;
  try {
    overview = await ask("overview");
  } catch (error) {
    failed(error);
    return;
  } finally {
    asking = false;
  }
  answered = Date.now();
  silences = 0;
  later(EVERY);
  notice(null);
  show();
}

function later(milliseconds) {
  clearTimeout(next);
  next = setTimeout(poll, milliseconds);
}

function failed(error) {
  stale(true);
  title("no answer");
  if (error instanceof Refusal && error.status === 401) {
    title("token wanted");
    notice("The manager wants a bearer token.", ["Enter a token", unknown]);
    unknown();
    return;
  }
  if (error instanceof Refusal && error.status === 403) {
    title("another token wanted");
    notice("This token lacks the scope read, which this page needs.", ["Use another token", () => prompt()]);
    return;
  }
  silences += 1;
  const pause = Math.max(Math.min(EVERY * 2 ** (silences - 1), RARELY), (error.retryAfter ?? 0) * 1000);
  const since = answered ? ` since ${moment(answered)}. Below is what it said then.` : ".";
  const is = error instanceof Refusal ? `The manager answers with an error (${error.message})` : "The manager does not answer";
  notice(`${is}${since}`, ["Try now", poll]);
  later(pause);
}

function notice(text, button) {
  byId("notice").hidden = text === null;
  if (text === null) return;
  say(byId("notice-text"), text);
  const [words, act] = button;
  say(byId("notice-button"), words);
  byId("notice-button").onclick = () => act();
  byId("notice-button").hidden = false;
}

// The last picture stays, greyed.
function stale(is) {
  document.body.classList.toggle("stale", is);
  byId("freshness").hidden = is;
}

// ---- The token. ----

// Asks for one, and says what is wrong with the one there is.
function prompt(wrong = "") {
  const dialog = byId("prompt");
  if (dialog.open) return;
  say(byId("prompt-error"), wrong);
  byId("prompt-token").value = "";
  dialog.showModal();
}

function unknown() {
  prompt(token.get() ? "The manager does not accept this token. It may have expired." : "");
}

byId("prompt-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const value = byId("prompt-token").value.trim().replace(/^Bearer\s+/i, "");
  if (!/^[\x21-\x7e]+$/.test(value)) {
    say(byId("prompt-error"), "This is not a token: expected three parts of letters and digits, joined by dots.");
    return;
  }
  byId("prompt-token").value = "";
  token.set(value);
  known();
  byId("prompt").close();
  poll();
  route();
});

byId("prompt-cancel").addEventListener("click", () => byId("prompt").close());

byId("forget").addEventListener("click", () => {
  token.forget();
  known();
  // What it had shown goes with it.
  location.reload();
});

function known() {
  byId("forget").hidden = token.get() === null;
}

// ---- Showing. ----

function show() {
  setClock(overview.now);
  stale(false);
  byId("picture").hidden = false;
  say(byId("cluster"), overview.cluster);
  const freshness = byId("freshness");
  freshness.title = overview.now;
  say(freshness, `${overview.version} · ${moment(Date.parse(overview.now))}`);
  state();
  signers();
  facts();
  for (const plot of plots) plot.show(overview.series.points, overview.series.step_seconds);
  table.show(overview.recent, overview.signers.map(({ signer }) => signer));
  tick();
}

function title(words) {
  document.title = `${overview?.cluster ?? "TSS"}: ${words}`;
}

// Whether it signs, and why not.
function state() {
  const { threshold, store, bus, status } = overview;
  const total = overview.signers.length;
  const able = overview.signers.filter(({ live, usable }) => live && usable).length;
  const missing = overview.signers.filter(({ live, usable }) => !(live && usable)).map(({ signer }) => signer);
  const faults = [];
  if (store !== "up") faults.push("the store is unreachable");
  if (bus !== "up") faults.push("the message bus is unreachable");
  const enough = `${able} of ${counted(total, "signer")} can sign, and ${threshold} are needed`;
  let look, headline, explanation;
  if (status !== "ok") {
    if (able < threshold || faults.length === 0) faults.push(enough);
    [look, headline] = ["bad", "Cannot sign"];
    const why = listed(faults);
    const meanwhile = store === "up" && bus === "up" ? "kept until they can be signed or their deadline passes" : "refused";
    explanation = `${why[0].toUpperCase()}${why.slice(1)}. Meanwhile new requests are ${meanwhile}.`;
  } else if (missing.length > 0) {
    look = "warn";
    headline = `Ready, without ${missing.length === 1 ? "signer" : "signers"} ${listed(missing)}`;
    const spare = able - threshold;
    explanation = `${enough}: ${spare > 0 ? `${count(spare)} more may fail` : "no other may fail"}. Store and bus are up.`;
  } else {
    [look, headline] = ["good", "Ready to sign"];
    explanation = `All ${counted(total, "signer")} are live, ${threshold} are needed. Store and bus are up.`;
  }
  byId("verdict").className = `verdict ${look}`;
  say(byId("headline"), headline);
  say(byId("explanation"), explanation);
  title(headline.toLowerCase());
}

function signers() {
  document.querySelector(".state").classList.toggle("many", overview.signers.length > 5);
  keyed(
    byId("signers"),
    overview.signers,
    ({ signer }) => signer,
    ({ signer }) => {
      const card = h("li");
      card.word = h("span", { class: "word" });
      card.heard = h("span", { class: "quiet heard" });
      card.append(h("span", { class: "lamp", "aria-hidden": "true" }), h("span", { class: "name" }, `Signer ${signer}`), card.word, card.heard);
      return card;
    },
    (card, { live, usable, heard_at }) => {
      card.className = live && usable ? "good" : live ? "warn" : "bad";
      say(card.word, live && usable ? "live" : live ? "has another key" : "silent");
      if (heard_at === null) {
        card.time = null;
        say(card.heard, "not heard yet");
      } else if (card.time) {
        setAge(card.time, heard_at);
      } else {
        card.time = age(heard_at, ago);
        card.heard.replaceChildren("heard ", card.time);
      }
    },
  );
  constellation();
}

// The signers on a circle, joined where they can sign together.
function constellation() {
  const drawing = byId("constellation");
  const members = overview.signers.slice(0, MAX_DRAWN);
  const radius = members.length > 8 ? 7 : 12;
  const nodes = members.map(({ signer, live, usable }, i) => {
    const angle = (2 * Math.PI * i) / members.length - Math.PI / 2;
    const good = live && usable;
    return { signer, good, look: good ? "good" : live ? "warn" : "bad", x: 60 + 44 * Math.cos(angle), y: 60 + 44 * Math.sin(angle) };
  });
  const joined = nodes.flatMap((from, i) => nodes.slice(i + 1).map((to) => [from, to]));
  const lines = joined
    .filter(([from, to]) => from.good && to.good && overview.status === "ok")
    .map(([from, to]) => s("line", { x1: from.x, y1: from.y, x2: to.x, y2: to.y }));
  const circles = nodes.map(({ x, y, look, signer }) =>
    s(
      "g",
      { class: look },
      s("circle", { cx: x, cy: y, r: radius }),
      radius > 8 ? s("text", { x, y: y + 4.5, "text-anchor": "middle" }, String(signer)) : null,
    ),
  );
  drawing.replaceChildren(...lines, ...circles);
}

function facts() {
  const { store, bus, keys, unfinished, active } = overview;
  const rows = [
    ["Store", store, store === "up" ? "good" : "bad"],
    ["Bus", bus, bus === "up" ? "good" : "bad"],
    ["Unfinished", count(unfinished)],
    ["Being signed", count(active)],
    [keys.length === 1 ? "Key" : "Keys", keys.join(", ") || "none on record"],
  ];
  keyed(
    byId("facts"),
    rows,
    ([term]) => term,
    () => h("div", {}, h("dt"), h("dd")),
    (row, [term, value, look]) => {
      row.className = look ?? "";
      say(row.firstChild, term);
      say(row.lastChild, value);
    },
  );
}

// ---- Which request is open: the hash says it, so that it can be linked. ----

function requestOf(hash) {
  const match = /^#\/requests\/([^/]+)$/.exec(hash);
  if (!match) return null;
  try {
    return decodeURIComponent(match[1]);
  } catch {
    return match[1];
  }
}

function route() {
  const id = requestOf(location.hash);
  if (id) {
    table.mark(id);
    drawer.open(id);
  } else {
    drawer.close();
  }
}

addEventListener("hashchange", route);
document.addEventListener("visibilitychange", () => {
  if (document.hidden) clearTimeout(next);
  else poll();
});
setInterval(() => {
  if (!document.hidden && !document.body.classList.contains("stale")) tick();
}, 1_000);

known();
route();
poll();
