// Which words two texts share: a longest common subsequence.

const LIMIT_PIECES = 3000;
const PIECE = /\s+|[\p{L}\p{N}_]+|[^\s\p{L}\p{N}_]/gu; // space, a word, or a sign

/** Runs `{kind: "same" | "removed" | "added", text}` that lead from `before` to `after`. */
export function difference(before, after) {
  const a = before.match(PIECE) ?? [];
  const b = after.match(PIECE) ?? [];
  let head = 0;
  while (head < a.length && head < b.length && a[head] === b[head]) head += 1;
  let tail = 0;
  const shorter = Math.min(a.length, b.length) - head;
  while (tail < shorter && a[a.length - 1 - tail] === b[b.length - 1 - tail]) tail += 1;
  return joined([
    ...a.slice(0, head).map(same),
    ...between(a.slice(head, a.length - tail), b.slice(head, b.length - tail)),
    ...a.slice(a.length - tail).map(same),
  ]);
}

const same = (text) => ({ kind: "same", text });
const removed = (text) => ({ kind: "removed", text });
const added = (text) => ({ kind: "added", text });

function between(a, b) {
  if (a.length > LIMIT_PIECES || b.length > LIMIT_PIECES) {
    return [...a.map(removed), ...b.map(added)]; // a table of millions is not worth it
  }
  const width = b.length + 1;
  const common = new Uint16Array((a.length + 1) * width); // of a[i..] and b[j..]
  for (let i = a.length - 1; i >= 0; i -= 1) {
    for (let j = b.length - 1; j >= 0; j -= 1) {
      common[i * width + j] =
        a[i] === b[j]
          ? common[(i + 1) * width + j + 1] + 1
          : Math.max(common[(i + 1) * width + j], common[i * width + j + 1]);
    }
  }
  const runs = [];
  let i = 0;
  let j = 0;
  while (i < a.length || j < b.length) {
    if (i < a.length && j < b.length && a[i] === b[j]) {
      runs.push(same(a[i]));
      i += 1;
      j += 1;
    } else if (j === b.length || (i < a.length && common[(i + 1) * width + j] >= common[i * width + j + 1])) {
      runs.push(removed(a[i]));
      i += 1;
    } else {
      runs.push(added(b[j]));
      j += 1;
    }
  }
  return runs;
}

/** Neighbours joined; a mere space between two changes is part of the change. */
function joined(runs) {
  const found = [];
  let gone = "";
  let come = "";
  const settle = () => {
    if (gone) found.push(removed(gone));
    if (come) found.push(added(come));
    gone = come = "";
  };
  for (const [index, { kind, text }] of runs.entries()) {
    const next = runs[index + 1]?.kind ?? "same";
    const isJoint = kind === "same" && !text.trim() && (gone || come) && next !== "same";
    if (kind === "removed" || isJoint) gone += text;
    if (kind === "added" || isJoint) come += text;
    if (kind !== "same" || isJoint) continue;
    settle();
    if (found.at(-1)?.kind === "same") found.at(-1).text += text;
    else found.push(same(text));
  }
  settle();
  return found;
}
