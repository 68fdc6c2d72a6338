// Times, durations and lists in words, as the reader writes them.

import { h, say } from "./dom.js";

const clock = new Intl.DateTimeFormat(undefined, { timeStyle: "medium" });
const dayAndClock = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });
const hourAndMinute = new Intl.DateTimeFormat(undefined, { hour: "numeric", minute: "2-digit" });
const integer = new Intl.NumberFormat();

// How far the manager's clock is ahead of this machine's, in milliseconds. Ages are by the manager's.
let ahead = 0;

export function setClock(rfc3339) {
  ahead = Date.parse(rfc3339) - Date.now();
}

export function now() {
  return Date.now() + ahead;
}

export function count(number) {
  return integer.format(number);
}

// `1 request`, `2 requests`.
export function counted(number, noun) {
  return `${count(number)} ${noun}${number === 1 ? "" : "s"}`;
}

// `1`, `1 and 3`, `1, 2 and 3`.
export function listed(items) {
  if (items.length < 2) return items.join("");
  return `${items.slice(0, -1).join(", ")} and ${items.at(-1)}`;
}

// Between a number and its unit no line ends.

// A duration in seconds with two or three digits that matter.
export function duration(seconds) {
  const milliseconds = seconds * 1000;
  if (milliseconds < 9.95) return `${round(milliseconds, 1)}\u00a0ms`;
  if (milliseconds < 999.5) return `${round(milliseconds, 0)}\u00a0ms`;
  if (seconds < 9.995) return `${round(seconds, 2)}\u00a0s`;
  if (seconds < 59.95) return `${round(seconds, 1)}\u00a0s`;
  return span(seconds);
}

function round(number, digits) {
  return number.toLocaleString(undefined, { maximumFractionDigits: digits });
}

// A duration in seconds, coarsely: `42 s`, `3 min`, `2 h`, `5 d`.
export function span(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  if (whole < 60) return `${whole}\u00a0s`;
  if (whole < 3600) return `${Math.floor(whole / 60)}\u00a0min`;
  if (whole < 172_800) return `${Math.floor(whole / 3600)}\u00a0h`;
  return `${integer.format(Math.floor(whole / 86_400))}\u00a0d`;
}

export function ago(seconds) {
  return seconds < 1 ? "just now" : `${span(seconds)} ago`;
}

// A time of day, with the day where it is not today.
export function moment(milliseconds) {
  const date = new Date(milliseconds);
  const today = date.toDateString() === new Date().toDateString();
  return (today ? clock : dayAndClock).format(date);
}

export function timeOfDay(milliseconds, withSeconds) {
  return (withSeconds ? clock : hourAndMinute).format(new Date(milliseconds));
}

// A time as the reader writes it; as the manager wrote it in the title.
export function time(rfc3339) {
  return h("time", { datetime: rfc3339, title: rfc3339 }, moment(Date.parse(rfc3339)));
}

// How long ago a time is: `words` makes a text of the seconds. `tick` keeps it true.
export function age(rfc3339, words = span) {
  const element = h("time", { "data-age": "" });
  element.words = words;
  return setAge(element, rfc3339);
}

export function setAge(element, rfc3339) {
  if (element.dateTime !== rfc3339) {
    element.dateTime = rfc3339;
    element.title = rfc3339;
  }
  say(element, element.words((now() - Date.parse(rfc3339)) / 1000));
  return element;
}

// Brings all ages up to date.
export function tick() {
  for (const element of document.querySelectorAll("time[data-age]")) setAge(element, element.dateTime);
}
