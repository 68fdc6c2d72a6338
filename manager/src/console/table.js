// The recent requests, newest first, and the choice of which of them.

import { byId, h, keyed, s, say } from "./dom.js";
import { age, count, duration, setAge } from "./words.js";

// The states of a request, as the manager names them, with their words.
const STATES = { Pending: "Pending", InProgress: "In progress", Completed: "Completed", Failed: "Failed" };

const MARKS = {
  Pending: "M8 3.2a4.8 4.8 0 1 0 0 9.6a4.8 4.8 0 1 0 0-9.6",
  InProgress: "M8 3.2a4.8 4.8 0 0 1 4.8 4.8",
  Completed: "M3.5 8.5l3 3l6-7",
  Failed: "M4 4l8 8m0-8l-8 8",
};

// A state as a mark and a word.
export function badge(state) {
  return h(
    "span",
    { class: `badge ${state}` },
    s("svg", { viewBox: "0 0 16 16", width: 14, height: 14, "aria-hidden": "true" }, s("path", { d: MARKS[state] ?? "" })),
    STATES[state] ?? state,
  );
}

// The quorum of an attempt: a dot for each signer of the cluster, those of the quorum filled, and their numbers.
export function quorum(members, signers) {
  if (!members) return h("span", { class: "quiet" }, "–");
  const dots = signers.length > 9 ? [] : signers.map((signer) => h("i", { class: members.includes(signer) ? "in" : "" }));
  return h("span", { class: "quorum" }, h("span", { class: "dots", "aria-hidden": "true" }, dots), members.join(", "));
}

// How long a request took, or null while it is unfinished.
export function took(request) {
  if (!request.finished_at) return null;
  return Math.max(0, Date.parse(request.finished_at) - Date.parse(request.created_at)) / 1000;
}

export class Table {
  constructor() {
    this.body = byId("rows");
    this.requests = [];
    this.signers = [];
    this.open = null;
    this.wanted = "All";
    this.counts = {};
    for (const [state, words] of [["All", "All"], ...Object.entries(STATES)]) this.choice(state, words);
    this.body.addEventListener("click", (event) => this.click(event));
    this.body.addEventListener("keydown", (event) => this.move(event));
  }

  choice(state, words) {
    this.counts[state] = h("span", { class: "count" });
    const input = h("input", {
      type: "radio",
      name: "status",
      value: state,
      checked: state === this.wanted,
      onchange: () => {
        this.wanted = state;
        this.draw();
      },
    });
    byId("filter").append(h("label", {}, input, h("span", {}, words, this.counts[state])));
  }

  show(requests, signers) {
    this.requests = requests;
    this.signers = signers;
    this.draw();
  }

  // Marks the request that is open.
  mark(id) {
    this.open = id;
    this.draw();
  }

  focus(id) {
    this.body.querySelector(`tr[data-key="${CSS.escape(id)}"] a`)?.focus();
  }

  draw() {
    for (const [state, element] of Object.entries(this.counts)) {
      const matching = this.requests.filter((request) => state === "All" || request.status === state);
      say(element, count(matching.length));
    }
    const shown = this.requests.filter(({ status }) => this.wanted === "All" || status === this.wanted);
    keyed(this.body, shown, ({ request_id }) => request_id, make, (row, request) => this.update(row, request));
    const nothing = byId("nothing");
    nothing.hidden = shown.length > 0;
    if (this.requests.length === 0) say(nothing, "There is no request yet. POST /sign makes one.");
    else say(nothing, `Of the last ${count(this.requests.length)} requests, none is ${STATES[this.wanted]?.toLowerCase()}.`);
  }

  update(row, request) {
    row.classList.toggle("open", request.request_id === this.open);
    setAge(row.age, request.created_at);
    // The rest of a finished request does not change any more.
    const version = JSON.stringify([request, this.signers]);
    if (row.version === version) return;
    row.version = version;
    const [status, , key, path, , lasted, attempts, members] = row.cells;
    status.replaceChildren(badge(request.status));
    status.title = request.reason ?? "";
    for (const [cell, text] of [[key, request.key], [path, request.path]]) {
      say(cell, text);
      cell.title = text; // whole, where it is cut off
    }
    const seconds = took(request);
    say(lasted, seconds === null ? "–" : duration(seconds));
    say(attempts, count(request.attempts));
    attempts.classList.toggle("many", request.attempts > 1);
    members.replaceChildren(quorum(request.quorum, this.signers));
  }

  // Anywhere in a row, unless text is being selected there.
  click(event) {
    const row = event.target.closest("tr");
    if (!row || event.target.closest("a") || !getSelection().isCollapsed) return;
    row.querySelector("a").click();
  }

  move(event) {
    const links = [...this.body.querySelectorAll("a")];
    const at = links.indexOf(document.activeElement);
    const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: links.length - 1 }[event.key];
    if (to === undefined || at < 0) return;
    event.preventDefault();
    links[Math.min(Math.max(to, 0), links.length - 1)].focus();
  }
}

function make(request) {
  const id = request.request_id;
  const link = h("a", { href: `#/requests/${id}`, title: id }, id.slice(0, 8));
  const row = h("tr", { role: "row" });
  row.age = age(request.created_at);
  const cell = (label, look, ...children) => h("td", { role: "cell", class: look, "data-label": label }, ...children);
  row.append(
    cell("Status", "status"),
    cell("Request", "id", link),
    cell("Key", "key"),
    cell("Path", "path"),
    cell("Age", "number age", row.age),
    cell("Duration", "number duration"),
    cell("Attempts", "number attempts"),
    cell("Quorum", "members"),
  );
  return row;
}
