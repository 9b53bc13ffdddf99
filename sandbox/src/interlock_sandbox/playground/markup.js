// Text to elements. Nothing here ever parses HTML: text stays text.

const EMOJI = {
  "+1": "👍", "-1": "👎", bulb: "💡", bell: "🔔", tada: "🎉", eyes: "👀", hourglass: "⌛",
  hourglass_flowing_sand: "⏳", information_source: "ℹ️", key: "🔑", link: "🔗", lock: "🔒",
  unlock: "🔓", mag: "🔍", memo: "📝", no_entry: "⛔", octagonal_sign: "🛑", robot_face: "🤖",
  rocket: "🚀", shield: "🛡️", smile: "😄", sparkles: "✨", speech_balloon: "💬",
  thinking_face: "🤔", thumbsup: "👍", warning: "⚠️", wave: "👋", white_check_mark: "✅",
  heavy_check_mark: "✔️", wrench: "🔧", x: "❌", zap: "⚡",
};

/** Make an element: `make("p", { className: "soft" }, "text", child)`. */
export function make(name, properties = {}, ...children) {
  const element = document.createElement(name);
  for (const [property, value] of Object.entries(properties)) {
    if (property in element) {
      element[property] = value;
    } else {
      element.setAttribute(property, value);
    }
  }
  element.append(...children.flat(Infinity).filter((child) => child != null && child !== false));
  return element;
}

export function emoji(name) {
  return EMOJI[name] ?? null;
}

function link(url, label) {
  return make("a", { href: url, target: "_blank", rel: "noopener noreferrer" }, label);
}

function decode(text) {
  return text.replaceAll("&lt;", "<").replaceAll("&gt;", ">").replaceAll("&amp;", "&");
}

function withBreaks(text) {
  return text.split("\n").flatMap((line, number) => (number ? [make("br"), line] : [line]));
}

// One token of an inline language: the text before it, then what it means.
function inline(text, pattern, meaning, leaf) {
  const nodes = [];
  let rest = text;
  for (;;) {
    const match = pattern.exec(rest);
    if (!match) {
      nodes.push(...leaf(rest));
      return nodes;
    }
    if (match.index) {
      nodes.push(...leaf(rest.slice(0, match.index)));
    }
    nodes.push(...meaning(match.groups, match[0]));
    rest = rest.slice(match.index + match[0].length);
  }
}

// Slack's own mark-up ------------------------------------------------------

const MRKDWN = new RegExp(
  [
    "```\\n?(?<pre>[\\s\\S]+?)```",
    "`(?<code>[^`\\n]+)`",
    "<(?<angle>[^<>\\n]+)>",
    "(?<![\\w*])\\*(?<bold>\\S(?:[^*\\n]*\\S)?)\\*(?![\\w*])",
    "(?<![\\w_])_(?<italic>\\S(?:[^_\\n]*\\S)?)_(?![\\w_])",
    "(?<![\\w~])~(?<strike>\\S(?:[^~\\n]*\\S)?)~(?![\\w~])",
    ":(?<emoji>[a-z0-9_+-]+):",
  ].join("|"),
);

/** Render Slack's mark-up; `names` knows what ids are called. */
export function mrkdwn(text, names) {
  const fragment = new DocumentFragment();
  let quoted = [];
  const flush = () => {
    if (quoted.length) {
      fragment.append(make("blockquote", {}, mrkdwnInline(quoted.join("\n"), names)));
      quoted = [];
    }
  };
  let plain = [];
  const flushPlain = () => {
    if (plain.length) {
      fragment.append(...mrkdwnInline(plain.join("\n"), names));
      plain = [];
    }
  };
  for (const line of text.split("\n")) {
    const quote = /^(?:&gt;|>) ?(?<said>.*)$/.exec(line);
    if (quote) {
      flushPlain();
      quoted.push(quote.groups.said);
    } else {
      flush();
      plain.push(line);
    }
  }
  flush();
  flushPlain();
  return fragment;
}

function mrkdwnInline(text, names) {
  const again = (inner) => mrkdwnInline(inner, names);
  return inline(
    text,
    MRKDWN,
    (found, whole) => {
      if (found.pre != null) return [make("pre", {}, decode(found.pre))];
      if (found.code != null) return [make("code", {}, decode(found.code))];
      if (found.angle != null) return [angle(found.angle, names) ?? decode(whole)];
      if (found.bold != null) return [make("strong", {}, again(found.bold))];
      if (found.italic != null) return [make("em", {}, again(found.italic))];
      if (found.strike != null) return [make("s", {}, again(found.strike))];
      return [emoji(found.emoji) ?? whole];
    },
    (plain) => withBreaks(decode(plain)),
  );
}

function angle(inside, names) {
  const [target, label] = inside.split("|", 2);
  if (target.startsWith("@")) return mention(target.slice(1), names);
  if (target.startsWith("#")) return make("span", { className: "mention" }, `#${names.channel(target.slice(1)) ?? label}`);
  if (target.startsWith("!")) return make("span", { className: "mention" }, `@${label ?? target.slice(1)}`);
  return /^(https?|mailto):/.test(target) ? link(decode(target), decode(label ?? target)) : null;
}

function mention(id, names) {
  const mine = names.me === id;
  return make("span", { className: mine ? "mention me" : "mention" }, `@${names.user(id) ?? id}`);
}

// Markdown -----------------------------------------------------------------

const MARKDOWN = new RegExp(
  [
    "\\\\(?<escaped>[\\\\`*_{}\\[\\]()#+\\-.!~|<>])",
    "(?<ticks>`+)(?<code>[\\s\\S]*?[^`])\\k<ticks>(?!`)",
    "\\[(?<label>[^\\]\\n]*)\\]\\((?<url>https?://[^\\s)]+)\\)",
    "<(?<angle>[@#!][^<>\\n]+|https?://[^\\s<>]+)>",
    "(?<bare>https?://[^\\s<>()]*[^\\s<>().,!?;:'\"])",
    "\\*\\*(?<bold>\\S(?:[\\s\\S]*?\\S)?)\\*\\*(?!\\*)",
    "__(?<bold2>\\S(?:[\\s\\S]*?\\S)?)__",
    "~~(?<strike>\\S(?:[\\s\\S]*?\\S)?)~~",
    "(?<![\\w*])\\*(?<italic>[^\\s*](?:[^*\\n]*[^\\s*])?)\\*(?!\\*)",
    "(?<![\\w_])_(?<italic2>[^\\s_](?:[^_\\n]*[^\\s_])?)_(?![\\w_])",
    ":(?<emoji>[a-z0-9_+-]+):",
  ].join("|"),
);

/** Render Markdown, the part of it that agents write. */
export function markdown(text, names) {
  const fragment = new DocumentFragment();
  fragment.append(...markdownBlocks(text.replaceAll("\r\n", "\n").split("\n"), names));
  return fragment;
}

function markdownInline(text, names) {
  const again = (inner) => markdownInline(inner, names);
  return inline(
    text,
    MARKDOWN,
    (found, whole) => {
      if (found.escaped != null) return [found.escaped];
      if (found.code != null) return [make("code", {}, found.code.trim())];
      if (found.url != null) return [link(found.url, found.label || found.url)];
      if (found.angle != null) return [angle(found.angle, names) ?? whole];
      if (found.bare != null) return [link(found.bare, found.bare)];
      const bold = found.bold ?? found.bold2;
      if (bold != null) return [make("strong", {}, again(bold))];
      if (found.strike != null) return [make("s", {}, again(found.strike))];
      const italic = found.italic ?? found.italic2;
      if (italic != null) return [make("em", {}, again(italic))];
      return [emoji(found.emoji) ?? whole];
    },
    // Agents escape what Slack would take for a mention; readers see the character.
    (plain) => withBreaks(decode(plain)),
  );
}

const FENCE = /^\s*(?<fence>```+|~~~+)/;
const HEADING = /^(?<marks>#{1,6})\s+(?<title>.*?)\s*#*$/;
const RULE = /^\s*(?:-{3,}|\*{3,}|_{3,})\s*$/;
const ITEM = /^(?<indent>\s*)(?<mark>[-*+]|\d{1,9}[.)])\s+(?<said>.*)$/;
const TABLE_RULE = /^\s*\|?\s*:?-{2,}:?\s*(?:\|\s*:?-{2,}:?\s*)*\|?\s*$/;

function markdownBlocks(lines, names) {
  const nodes = [];
  let at = 0;
  while (at < lines.length) {
    const line = lines[at];
    let end = at + 1;
    if (!line.trim()) {
      at = end;
      continue;
    }
    const fence = FENCE.exec(line)?.groups.fence;
    const heading = HEADING.exec(line)?.groups;
    if (fence) {
      while (end < lines.length && !lines[end].trim().startsWith(fence)) end += 1;
      nodes.push(make("pre", {}, lines.slice(at + 1, end).join("\n")));
      end += 1;
    } else if (heading) {
      const level = Math.min(heading.marks.length + 2, 6);
      nodes.push(make(`h${level}`, {}, markdownInline(heading.title, names)));
    } else if (RULE.test(line)) {
      nodes.push(make("hr"));
    } else if (/^\s*>/.test(line)) {
      while (end < lines.length && /^\s*>/.test(lines[end])) end += 1;
      const inside = lines.slice(at, end).map((each) => each.replace(/^\s*> ?/, ""));
      nodes.push(make("blockquote", {}, markdownBlocks(inside, names)));
    } else if (ITEM.test(line)) {
      end = listEnd(lines, at);
      nodes.push(list(lines.slice(at, end), names));
    } else if (line.includes("|") && TABLE_RULE.test(lines[at + 1] ?? "")) {
      end = at + 2;
      while (end < lines.length && lines[end].includes("|")) end += 1;
      nodes.push(table(lines[at], lines.slice(at + 2, end), names));
    } else {
      while (end < lines.length && startsNothing(lines[end])) end += 1;
      nodes.push(make("p", {}, markdownInline(lines.slice(at, end).join("\n"), names)));
    }
    at = end;
  }
  return nodes;
}

function startsNothing(line) {
  return line.trim() && ![FENCE, HEADING, RULE, ITEM, /^\s*>/].some((each) => each.test(line));
}

function listEnd(lines, start) {
  let end = start + 1;
  while (end < lines.length) {
    const line = lines[end];
    const goesOn = ITEM.test(line) || /^\s{2,}\S/.test(line);
    const gap = !line.trim() && (ITEM.test(lines[end + 1] ?? "") || /^\s{2,}\S/.test(lines[end + 1] ?? ""));
    if (!goesOn && !gap) break;
    end += 1;
  }
  return end;
}

function list(lines, names) {
  const first = ITEM.exec(lines[0]).groups;
  const base = first.indent.length;
  const items = [];
  for (const line of lines) {
    const item = ITEM.exec(line)?.groups;
    if (item && item.indent.length <= base) {
      items.push([item.said]);
    } else if (items.length) {
      items.at(-1).push(line.replace(new RegExp(`^\\s{0,${base + 3}}`), ""));
    }
  }
  const ordered = /\d/.test(first.mark);
  const rows = items.map((item) => make("li", {}, unwrapped(markdownBlocks(item, names))));
  return make(ordered ? "ol" : "ul", ordered ? { start: parseInt(first.mark, 10) } : {}, rows);
}

// A list item's first paragraph needs no element of its own.
function unwrapped(nodes) {
  return nodes[0]?.tagName === "P" ? [...nodes[0].childNodes, ...nodes.slice(1)] : nodes;
}

function table(head, rows, names) {
  const cells = (line) => line.trim().replace(/^\||\|$/g, "").split(/(?<!\\)\|/);
  const row = (line, kind) =>
    make("tr", {}, cells(line).map((cell) => make(kind, {}, markdownInline(cell.trim(), names))));
  const made = make(
    "table",
    {},
    make("thead", {}, row(head, "th")),
    make("tbody", {}, rows.map((line) => row(line, "td"))),
  );
  return make("div", { className: "table" }, made);
}
