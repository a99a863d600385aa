// Numbers, sizes and times as people read them.

const COUNT = new Intl.NumberFormat("en");
const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];

export const count = (n) => COUNT.format(n);

/** "3 chunks", "1 chunk". */
export const many = (n, noun) => `${count(n)} ${noun}${n === 1 ? "" : "s"}`;

export function bytes(n) {
  if (n === null || n === undefined) return "unknown";
  let power = 0;
  while (n >= 1024 && power < UNITS.length - 1) {
    n /= 1024;
    power += 1;
  }
  return `${n < 10 && power > 0 ? n.toFixed(1) : Math.round(n)} ${UNITS[power]}`;
}

export function milliseconds(ms) {
  if (ms < 10) return `${ms.toFixed(1)} ms`;
  return ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(2)} s`;
}

export function duration(seconds) {
  if (seconds < 90) return `${Math.max(1, Math.round(seconds))} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
}

export const percent = (part, whole) =>
  whole > 0 ? `${Number(((100 * part) / whole).toFixed(1))} %` : "–";

/** Clock time today, date and time before. */
export function moment(seconds) {
  const at = new Date(1000 * seconds);
  const today = new Date().toDateString() === at.toDateString();
  return today ? at.toLocaleTimeString() : at.toLocaleString();
}

const MISSES = {
  absent: "in no tier",
  corrupt: "damaged in the store, dropped",
  slower: "reading it is slower than computing",
  error: "the tier failed",
  no_room: "no room beside passages in use",
};

/** A reason for a miss in words; the word of the API where we have none. */
export const reason = (miss) => MISSES[miss] ?? miss;
