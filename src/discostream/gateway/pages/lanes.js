// Attempts as bars over time, one under the other.

import { element } from "./dom.js";
import { look } from "./looks.js";

/**
 * Draw lanes into a list, in place, so that bars grow and nothing jumps.
 * A lane is `who` it is about and what is `said` of it, its `parts` from one second to another, each with a `kind` that
 * says how it is filled (and another endpoint's name in `who`, if it is another's), and `marks` at a second.
 */
export function drawLanes(list, lanes, axis_s) {
  while (list.childElementCount > lanes.length) list.lastElementChild.remove();
  while (list.childElementCount < lanes.length) list.append(emptyLane());
  const at = (second) => `${(100 * second) / axis_s}%`;
  lanes.forEach((lane, index) => drawLane(list.children[index], lane, at));
}

function emptyLane() {
  return element("li", {}, ...["who", "track", "said"].map((className) => element("span", { className })));
}

function drawLane(row, { who, said, parts, marks = [], racing = false, plain = false }, at) {
  const [name, track, words] = row.children;
  row.className = (plain ? "plain" : look(who)) + (racing ? " racing" : "");
  if (name.textContent !== who) name.textContent = who;
  if (words.textContent !== said) words.textContent = said;
  const drawn = [...parts.map(asBar), ...marks.map(asMark)];
  while (track.childElementCount > drawn.length) track.lastElementChild.remove();
  while (track.childElementCount < drawn.length) track.append(element("span"));
  drawn.forEach(({ className, from, to, text }, index) => {
    const bar = track.children[index];
    bar.className = className;
    bar.textContent = text;
    bar.style.setProperty("--from", at(from));
    bar.style.setProperty("--long", at(to - from));
  });
}

const asBar = ({ kind = "", who, from, to }) => ({ className: `bar ${kind}${who ? ` ${look(who)}` : ""}`, from, to, text: "" });
const asMark = ({ sign, at, kind = "" }) => ({ className: `sign ${kind}`, from: at, to: at, text: sign });
