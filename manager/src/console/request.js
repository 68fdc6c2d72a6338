// One request in a drawer: what it is, what has happened to it, and what happens next, as it happens.

import { Refusal, ask, follow } from "./api.js";
import { byId, h, say } from "./dom.js";
import { badge, quorum, took } from "./table.js";
import { age, ago, count, counted, duration, listed, span, time } from "./words.js";

const UUID = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/i;

// How long to wait before a stream that broke is opened again, in milliseconds.
const PAUSE = 2_000;

export class Drawer {
  // `closed` is called when the reader closes it, `refused` when the manager asks for another token.
  constructor({ signers, closed, refused }) {
    this.dialog = byId("request");
    this.body = byId("request-body");
    this.signers = signers;
    this.refused = refused;
    this.following = null;
    this.dialog.addEventListener("close", () => {
      if (this.dialog.open) return; // again, meanwhile
      this.stop();
      closed(this.id);
    });
    byId("request-close").addEventListener("click", () => this.dialog.close());
    // A click beside it.
    this.dialog.addEventListener("click", (event) => {
      const { left, top, bottom } = this.dialog.getBoundingClientRect();
      if (event.clientX < left || event.clientY < top || event.clientY > bottom) this.dialog.close();
    });
  }

  open(id) {
    this.stop();
    this.id = id;
    this.parts = null;
    this.body.replaceChildren(h("p", { class: "quiet" }, "Asking the manager …"));
    if (!this.dialog.open) this.dialog.showModal();
    byId("request-title").focus();
    if (!UUID.test(id)) return this.tell(id, 400);
    this.following = new AbortController();
    this.watch(id, this.following.signal);
  }

  close() {
    if (this.dialog.open) this.dialog.close();
  }

  stop() {
    this.following?.abort();
    this.following = null;
  }

  // Shows the request until it is finished or the drawer is closed.
  async watch(id, signal) {
    while (!signal.aborted) {
      try {
        if (await this.load(id, signal)) return;
        for await (const _ of follow(`requests/${id}/events`, signal)) {
          if (await this.load(id, signal)) return;
        }
      } catch (error) {
        if (signal.aborted) return;
        if (error instanceof Refusal && error.status < 500 && error.status !== 429) return this.tell(id, error.status, error.message);
        this.lost();
      }
      await new Promise((resolve) => setTimeout(resolve, PAUSE));
    }
  }

  // Whether it is finished.
  async load(id, signal) {
    const request = await ask(`requests/${id}`, signal);
    const finished = request.finished_at !== null;
    if (!signal.aborted) this.show(request, finished);
    return finished;
  }

  tell(id, status, message) {
    const words = {
      400: "This is not the id of a request: expected a UUID.",
      401: "The manager wants a token before it shows this request.",
      403: "This token may not see this request: that takes the scope read, or sign for what the token's subject asked for itself.",
      404: "The manager knows no request of this id. It may have been forgotten since, or be another cluster's.",
    };
    this.body.replaceChildren(
      h("p", { class: "mono whole-id" }, id),
      h("p", { class: "problem", role: "alert" }, words[status] ?? `The manager refuses: ${message}`),
    );
    if (status === 401) this.refused();
  }

  // The last that is known stays.
  lost() {
    const words = "The manager does not answer. Trying again …";
    if (this.parts) say(this.parts.following, words);
    else this.body.replaceChildren(h("p", { class: "problem", role: "alert" }, words));
  }

  // What does not change is made once: it may have the focus, or be selected.
  show(request, finished) {
    if (!this.parts) {
      this.parts = {
        outcome: h("div", { role: "status" }),
        reason: h("p", { class: "problem", hidden: true }),
        timeline: h("ol", { class: "timeline" }),
        following: h("p", { class: "following quiet" }),
        facts: facts(request),
      };
      const { outcome, reason, timeline, following, facts: details } = this.parts;
      this.body.replaceChildren(
        h("p", { class: "mono whole-id" }, request.request_id, copy(request.request_id, "Copy the request's id")),
        outcome,
        reason,
        h("h3", {}, "Timeline"),
        timeline,
        following,
        h("h3", {}, "Details"),
        details,
      );
    }
    const { outcome, reason, timeline, following, facts: details } = this.parts;
    outcome.replaceChildren(h("p", { class: "outcome" }, badge(request.status), h("span", {}, sentence(request))));
    reason.hidden = !request.reason;
    say(reason, request.reason ?? "");
    timeline.replaceChildren(...entries(request, this.signers(), finished));
    say(following, "Followed live.");
    following.hidden = finished;
    if (finished) {
      details.querySelector(".remaining").remove();
      details.append(fact("Finished", time(request.finished_at)));
    }
  }
}

function sentence(request) {
  const seconds = took(request);
  switch (request.status) {
    case "Completed":
      return `Signed by ${listed(request.quorum ?? [])} in ${duration(seconds)}, at attempt ${count(request.attempts)}.`;
    case "Failed":
      return `No signature: given up after ${duration(seconds)} and ${counted(request.attempts, "attempt")}.`;
    case "InProgress":
      return request.quorum ? `Signers ${listed(request.quorum)} are signing it.` : "It is being signed.";
    default:
      return "It waits to be signed.";
  }
}

// From its acceptance to its end, or to what it waits for.
function entries(request, signers, finished) {
  const began = Date.parse(request.created_at);
  const happened = request.timeline.map((event) => {
    const what = {
      accepted: ["Accepted"],
      attempt: [`Attempt ${count(event.attempt ?? 0)}`, quorum(event.quorum, signers)],
      completed: ["Completed"],
      failed: ["Failed"],
    }[event.event] ?? [event.event];
    const after = (Date.parse(event.at) - began) / 1000;
    return entry(event.event, what, [
      time(event.at),
      h("span", { class: "after" }, after > 0 ? `+${duration(after)}` : ""),
    ]);
  });
  if (finished) return happened;
  const awaited = request.quorum ? `Waiting for ${listed(request.quorum)}` : "Waiting for enough signers";
  const since = request.timeline.at(-1)?.at ?? request.created_at;
  return [...happened, entry("next", [awaited], [age(since, (seconds) => `for ${span(seconds)}`)])];
}

function entry(look, what, at) {
  return h("li", { class: look }, h("span", { class: "what" }, what), h("span", { class: "at" }, at));
}

function facts(request) {
  const remaining = age(request.deadline, (seconds) => (seconds < 0 ? ` (in ${span(-seconds)})` : " (has passed)"));
  remaining.className = "remaining";
  return h(
    "dl",
    { class: "details" },
    fact("Key", request.key),
    fact("Path", h("span", { class: "mono" }, request.path)),
    fact("Hash", request.hash),
    fact("Digest", h("span", { class: "mono" }, request.digest), copy(request.digest, "Copy the digest")),
    fact("Accepted", time(request.created_at), age(request.created_at, (seconds) => ` (${ago(seconds)})`)),
    fact("Deadline", time(request.deadline), remaining),
  );
}

function fact(term, ...value) {
  return h("div", {}, h("dt", {}, term), h("dd", {}, value));
}

// A browser gives the clipboard to safe origins alone.
function copy(text, label) {
  if (!navigator.clipboard) return null;
  const button = h("button", { type: "button", class: "copy", "aria-label": label }, "Copy");
  button.addEventListener("click", async () => {
    const done = await navigator.clipboard.writeText(text).then(() => "Copied", () => "Cannot copy");
    say(button, done);
    setTimeout(() => say(button, "Copy"), 1_500);
  });
  return button;
}
