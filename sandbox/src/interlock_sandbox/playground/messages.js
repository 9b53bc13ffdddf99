// One message, and lists of messages that keep their place.

import { renderBlocks } from "./blocks.js";
import { emoji, make, markdown, mrkdwn } from "./markup.js";

// Messages of one person that follow each other this closely are one turn.
const TURN_S = 300;
const TONES = 6;
// Nearer than this to the end, a list follows what is added to it.
const NEAR_END_PX = 120;

/** A list of messages in a box that scrolls; each message is one element, found again by its ts. */
export class MessageList {
  constructor(element, render) {
    this.element = element;
    this.box = element.parentElement;
    this.render = render;
    this.rows = new Map();
  }

  clear(why = "") {
    this.rows.clear();
    this.element.replaceChildren();
    if (why) {
      this.element.append(make("li", { className: "empty" }, why));
    }
  }

  /** Show a message, at its place or in its old one's. */
  put(message) {
    const follows = this.isNearEnd();
    const old = this.rows.get(message.ts)?.node;
    const node = this.render(message);
    node.dataset.ts = message.ts;
    this.rows.set(message.ts, { message, node });
    if (old) {
      const hadFocus = old.contains(document.activeElement);
      old.replaceWith(node);
      if (hadFocus) {
        node.focus({ preventScroll: true });
      }
    } else {
      this.element.querySelector(".empty")?.remove();
      this.place(node);
    }
    this.markTurns();
    if (follows) {
      this.toEnd();
    }
  }

  redraw() {
    [...this.rows.values()].forEach(({ message }) => this.put(message));
  }

  drop(ts) {
    this.rows.get(ts)?.node.remove();
    this.rows.delete(ts);
    this.markTurns();
  }

  toEnd() {
    this.box.scrollTop = this.box.scrollHeight;
  }

  isNearEnd() {
    const { scrollHeight, scrollTop, clientHeight } = this.box;
    return scrollHeight - scrollTop - clientHeight < NEAR_END_PX;
  }

  place(node) {
    const later = [...this.element.querySelectorAll(".message")].find(
      (each) => Number(each.dataset.ts) > Number(node.dataset.ts),
    );
    if (later) {
      later.before(node);
    } else {
      const status = this.element.querySelector(".status");
      status ? status.before(node) : this.element.append(node);
    }
  }

  markTurns() {
    let before = null;
    for (const node of this.element.querySelectorAll(".message")) {
      const { message } = this.rows.get(node.dataset.ts);
      const goesOn =
        before &&
        before.user === message.user &&
        !isWhisper(before) &&
        !isWhisper(message) &&
        Number(message.ts) - Number(before.ts) < TURN_S;
      node.classList.toggle("goes-on", Boolean(goesOn));
      before = message;
    }
  }
}

export function isWhisper(message) {
  return message.sandbox?.ephemeral_to != null;
}

/**
 * Render one message.
 *
 * `names` knows what ids are called; `hands` holds what a person may do:
 * `use`, `openThread`, `stop`, `dismiss`.
 */
export function renderMessage(message, { names, hands, replies = 0, inThread = false }) {
  const author = names.author(message.user);
  const streaming = message.sandbox?.streaming;
  const node = make(
    "li",
    { className: "message", tabIndex: -1 },
    avatar(author),
    make("div", { className: "said" }, [
      byline(author, message),
      isWhisper(message) && whisperLabel(message, hands),
      tasks(message.sandbox?.tasks ?? []),
      content(message, names, hands),
      files(message.files ?? []),
      streaming === "open" && streamFoot(message, author, hands),
      streaming === "stopped" && make("p", { className: "soft" }, "Stopped."),
      reactions(message.reactions ?? [], names),
      !inThread && !isWhisper(message) && threadLink(message, replies, hands),
    ]),
  );
  node.classList.toggle("whisper", isWhisper(message));
  node.classList.toggle("by-app", author.isBot);
  node.classList.toggle("streaming", streaming === "open");
  node.ariaBusy = String(streaming === "open");
  return node;
}

export function avatar(author) {
  const initials = author.isBot ? "" : author.realName.slice(0, 1);
  const kind = author.isBot ? "app" : `tone-${author.tone % TONES}`;
  return make("span", { className: `avatar ${kind}`, ariaHidden: "true" }, initials);
}

function byline(author, message) {
  const at = new Date(Number(message.ts) * 1000);
  const clock = at.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
  return make("p", { className: "byline" }, [
    make("strong", {}, author.realName),
    author.isBot && make("span", { className: "badge" }, "app"),
    make("time", { dateTime: at.toISOString() }, clock),
    message.edited && make("span", { className: "soft" }, "(edited)"),
  ]);
}

function whisperLabel(message, hands) {
  const dismiss = make("button", { type: "button", className: "quiet" }, "Dismiss");
  dismiss.addEventListener("click", () => hands.dismiss(message));
  return make("p", { className: "whisper-label" }, make("span", {}, "Only visible to you"), dismiss);
}

function content(message, names, hands) {
  const blocks = message.blocks ?? [];
  const use = (element, choice, node) => hands.use(message, element, choice, node);
  const rendered = renderBlocks(blocks, names, use);
  // With blocks, the text is for notifications only; a stream's text is the answer itself.
  if (message.text && (!blocks.length || message.sandbox?.markdown)) {
    const text = message.sandbox?.markdown
      ? markdown(message.text, names)
      : mrkdwn(message.text, names);
    rendered.unshift(make("div", { className: "words block" }, text));
  }
  return rendered;
}

function files(listed) {
  if (!listed.length) {
    return null;
  }
  const rows = listed.map((file) => make("li", {}, `${file.title} (${file.size} bytes)`));
  return make("ul", { className: "files" }, rows);
}

const TASK_MARKS = { pending: "○", in_progress: "◐", complete: "●", error: "✕" };

function tasks(listed) {
  if (!listed.length) {
    return null;
  }
  const rows = listed.map((task) =>
    make("li", { className: `task ${task.status ?? "plan"}` }, [
      make("span", { ariaHidden: "true" }, TASK_MARKS[task.status] ?? "☰"),
      make("span", {}, task.title),
      task.status && make("span", { className: "unseen" }, task.status.replace("_", " ")),
    ]),
  );
  return make("ul", { className: "tasks" }, rows);
}

function streamFoot(message, author, hands) {
  const stop = make("button", { type: "button", className: "quiet" }, "Stop");
  stop.addEventListener("click", () => hands.stop(message));
  const says = make("span", { className: "soft" }, `${author.realName} is answering`);
  return make("p", { className: "stream-foot" }, make("span", { className: "pulse" }), says, stop);
}

function reactions(listed, names) {
  if (!listed.length) {
    return null;
  }
  const chips = listed.map((each) => {
    const who = each.users.map((user) => names.user(user) ?? user).join(", ");
    return make("li", { title: who }, `${emoji(each.name) ?? `:${each.name}:`} ${each.count}`);
  });
  return make("ul", { className: "reactions" }, chips);
}

function threadLink(message, replies, hands) {
  const words = replies === 1 ? "1 reply" : `${replies} replies`;
  const link = make(
    "button",
    { type: "button", className: replies ? "thread-link" : "reply-link" },
    replies ? words : "Reply in thread",
  );
  link.addEventListener("click", () => hands.openThread(message.ts));
  return link;
}
