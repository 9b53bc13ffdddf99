// The page: who you are, where you are, and what happens there.

import { act, ask, follow, Refused } from "./api.js";
import { Composer } from "./composer.js";
import { make } from "./markup.js";
import { avatar, isWhisper, MessageList, renderMessage } from "./messages.js";
import { Modal } from "./modal.js";

const TOAST_MS = 6000;
const STATUS_LIFE_MS = 120_000;
const SANDBOX = { id: "USLACKBOT", realName: "Sandbox", isBot: true };

const $ = (id) => document.getElementById(id);

class Playground {
  constructor() {
    this.state = null;
    this.here = { team: "", user: "", channel: "", thread: "" };
    this.messages = new Map();
    this.statuses = new Map();
    this.unread = new Set();
    this.feed = null;
    this.meanwhile = null;
    this.hands = {
      use: (message, element, choice, node) => this.use(message, element, choice, node),
      openThread: (ts) => this.openThread(ts, { focus: true }),
      stop: (message) => this.tell("stop-stream", { channel: message.channel, ts: message.ts }),
      dismiss: (message) => this.tell("dismiss", { channel: message.channel, ts: message.ts }),
    };
    this.room = new MessageList($("messages"), (message) => this.render(message, false));
    this.thread = new MessageList($("thread-messages"), (message) => this.render(message, true));
    this.modal = new Modal($("modal"), {
      act: (view, element, choice) => this.actInView(view, element, choice),
      submit: (view, values) => this.submitView(view, values),
      close: (view) => this.tell("close-view", { view: view.id }),
    });
    this.composer = this.makeComposer("main", "Write a message", () => null);
    this.replier = this.makeComposer("thread", "Reply in the thread", () => this.here.thread);
    this.wire();
  }

  makeComposer(name, label, thread) {
    return new Composer($(`${name}-composer`), {
      id: `${name}-text`,
      label,
      knows: () => this.suggestions(),
      send: (text) => this.send(text, thread()),
    });
  }

  wire() {
    $("workspace").addEventListener("change", (event) => this.enter({ team: event.target.value }));
    $("close-thread").addEventListener("click", () => this.closeThread());
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && this.here.thread && !$("modal").open) {
        this.closeThread();
      }
    });
  }

  // Going places.

  async start() {
    const wanted = new URLSearchParams(location.search);
    await this.loadState();
    await this.enter({
      team: wanted.get("team"),
      user: wanted.get("user"),
      channel: wanted.get("channel"),
    });
  }

  async loadState() {
    this.state = await ask("state");
    $("dashboard").href = this.state.dashboard_url;
  }

  /** Take a place; whatever is not given, or does not exist, is chosen. */
  async enter({ team, user, channel }) {
    const workspace = this.state.workspaces.find((each) => each.id === team) ?? this.state.workspaces[0];
    const people = workspace.users.filter((each) => !each.is_bot);
    const person = people.find((each) => each.id === user) ?? people[0];
    this.here = { team: workspace.id, user: person.id, channel: "", thread: "" };
    this.unread.clear();
    this.statuses.clear();
    this.feed?.end();
    const feed = follow(
      workspace.id,
      person.id,
      (event) => this.happen(event),
      (connected) => this.showConnection(connected),
    );
    this.feed = feed;
    this.drawSide();
    await feed.begun;
    if (this.feed !== feed) {
      return;
    }
    const places = this.places();
    await this.openChannel(
      (places.find((each) => each.id === channel) ?? places.find((each) => each.name === "help") ?? places[0]).id,
    );
    const { views } = await ask("views", { team: workspace.id, user: person.id });
    views.forEach((view) => this.modal.show(view, this.names()));
  }

  async openChannel(id) {
    this.here.channel = id;
    this.unread.delete(id);
    this.closeThread({ focus: false });
    history.replaceState(null, "", `?${new URLSearchParams(this.address())}`);
    this.drawSide();
    this.drawRoomHead();
    await this.loadMessages();
    this.room.toEnd();
  }

  address() {
    const { team, user, channel } = this.here;
    return { team, user, channel };
  }

  async loadMessages() {
    const { team, user, channel } = this.here;
    const meanwhile = [];
    this.meanwhile = meanwhile;
    const { messages, statuses } = await ask("messages", { team, user, channel });
    if (this.meanwhile !== meanwhile) {
      // A newer load is under way.
      return;
    }
    this.meanwhile = null;
    this.messages = new Map(messages.map((message) => [message.ts, message]));
    this.room.clear("Nobody has written here yet.");
    for (const message of messages.filter((each) => !isReply(each))) {
      this.room.put(message);
    }
    this.drawThread();
    statuses.forEach((status) => this.showStatus(status));
    // What was read may be older than what came while it was read.
    meanwhile.forEach((event) => this.happen(event));
  }

  openThread(ts, { focus = false } = {}) {
    this.here.thread = ts;
    $("thread").hidden = false;
    $("skip").href = "#thread-text";
    $("panes").classList.add("with-thread");
    this.drawThread();
    this.drawStatuses();
    this.thread.toEnd();
    if (focus) {
      this.replier.text.focus();
    }
  }

  closeThread({ focus = true } = {}) {
    if (!this.here.thread) {
      return;
    }
    const root = this.here.thread;
    this.here.thread = "";
    $("thread").hidden = true;
    $("skip").href = "#main-text";
    $("panes").classList.remove("with-thread");
    if (focus) {
      this.room.rows.get(root)?.node.focus();
    }
  }

  // What happens.

  happen(event) {
    if (event.type === "message" || event.type === "gone") {
      this.meanwhile?.push(event);
    }
    switch (event.type) {
      case "message":
        return this.receive(event.message);
      case "gone":
        return this.forget(event.channel, event.ts);
      case "status":
        return this.showStatus(event);
      case "view":
        return this.modal.show(event.view, this.names());
      case "view_closed":
        return this.modal.close(event.id);
      case "installation":
        return this.reloadState();
      case "reload":
        return this.loadMessages();
      default:
        return null;
    }
  }

  receive(message) {
    const isNew = !this.messages.has(message.ts);
    if (message.channel !== this.here.channel) {
      if (isNew && message.user !== this.here.user && this.places().some((each) => each.id === message.channel)) {
        this.unread.add(message.channel);
        this.drawSide();
      }
      return;
    }
    this.messages.set(message.ts, message);
    if (isReply(message)) {
      this.receiveReply(message, isNew);
    } else {
      this.room.put(message);
      if (message.ts === this.here.thread) {
        this.thread.put(message);
      }
    }
    if (message.user !== this.here.user) {
      this.clearStatus(message.channel, message.thread_ts ?? message.ts);
    }
  }

  receiveReply(message, isNew) {
    const root = this.messages.get(message.thread_ts);
    if (root && isNew) {
      this.room.put(root);
    }
    if (!this.here.thread && isNew && root?.user === this.here.user && message.user !== this.here.user) {
      // An answer to a question of this person: show it where it is written.
      this.openThread(message.thread_ts);
    }
    if (message.thread_ts === this.here.thread) {
      this.thread.put(message);
    }
  }

  forget(channel, ts) {
    const message = this.messages.get(ts);
    if (channel !== this.here.channel || !message) {
      return;
    }
    this.messages.delete(ts);
    this.room.drop(ts);
    this.thread.drop(ts);
    const root = isReply(message) && this.messages.get(message.thread_ts);
    if (root) {
      this.room.put(root);
    }
    if (ts === this.here.thread) {
      this.closeThread();
    }
  }

  async reloadState() {
    await this.loadState();
    this.drawSide();
    this.drawRoomHead();
    // Who wrote a message may only be known now.
    [this.room, this.thread].forEach((list) => list.redraw());
  }

  showConnection(connected) {
    const lost = $("connection").textContent !== "";
    $("connection").textContent = connected ? "" : "Reconnecting…";
    if (connected && lost) {
      this.reloadState();
      this.loadMessages();
    }
  }

  // Statuses: what the app says it is doing.

  showStatus({ channel, thread_ts: thread, status }) {
    if (!status) {
      this.clearStatus(channel, thread);
      return;
    }
    const timer = setTimeout(() => this.clearStatus(channel, thread), STATUS_LIFE_MS);
    clearTimeout(this.statuses.get(`${channel}/${thread}`)?.timer);
    this.statuses.set(`${channel}/${thread}`, { channel, thread, status, timer });
    const mine = this.messages.get(thread)?.user === this.here.user;
    if (channel === this.here.channel && mine && !this.here.thread) {
      this.openThread(thread);
    }
    this.drawStatuses();
  }

  clearStatus(channel, thread) {
    clearTimeout(this.statuses.get(`${channel}/${thread}`)?.timer);
    if (this.statuses.delete(`${channel}/${thread}`)) {
      this.drawStatuses();
    }
  }

  drawStatuses() {
    const found = this.statuses.get(`${this.here.channel}/${this.here.thread}`);
    $("thread-messages").querySelector(".status")?.remove();
    if (found) {
      const says = `${this.state.app.name} ${found.status}`;
      const row = make("li", { className: "status" }, make("span", { className: "pulse" }), says);
      $("thread-messages").append(row);
      this.thread.toEnd();
    }
  }

  // What a person does.

  /** Send what was written; true when the text may go. */
  async send(text, thread) {
    const [command, ...words] = text.split(" ");
    const isCommand = text.startsWith("/") && !text.startsWith("//");
    const done = isCommand
      ? await this.tell("command", { channel: this.here.channel, command, text: words.join(" ") })
      : await this.tell("post", { channel: this.here.channel, typed: text, thread_ts: thread });
    return done !== null;
  }

  async use(message, element, choice, node) {
    node.ariaDisabled = "true";
    const place = { channel: message.channel, ts: message.ts };
    const answer = await this.tell("click", { ...place, action_id: element.action_id, choice });
    node.ariaDisabled = "false";
    this.requireAnswer(answer);
  }

  async actInView(view, element, choice) {
    const asked = { view: view.id, action_id: element.action_id, choice };
    this.requireAnswer(await this.tell("act-in-view", asked));
  }

  async submitView(view, values) {
    const answer = await this.tell("submit-view", { view: view.id, values });
    this.requireAnswer(answer);
    const said = answer?.body ? JSON.parse(answer.body) : {};
    if (said.response_action === "errors") {
      this.modal.complain(said.errors);
    }
  }

  requireAnswer(answer) {
    if (answer && !answer.accepted) {
      const why = answer.status ? `answered with status ${answer.status}` : "did not answer in time";
      this.toast(`${this.state.app.name} ${why}.`);
    }
  }

  /** Ask the stand-in to do something as this person; null when it would not. */
  async tell(path, body) {
    const { team, user } = this.here;
    try {
      return await act(path, { team, user, ...body });
    } catch (problem) {
      this.toast(problem instanceof Refused ? sentence(problem.message) : "The sandbox does not answer.");
      return null;
    }
  }

  toast(text) {
    $("toast").textContent = text;
    $("toast").hidden = false;
    clearTimeout(this.toasting);
    this.toasting = setTimeout(() => {
      $("toast").hidden = true;
    }, TOAST_MS);
  }

  // Drawing.

  workspace() {
    return this.state.workspaces.find((each) => each.id === this.here.team);
  }

  places() {
    return this.workspace().channels.filter((each) => each.members.includes(this.here.user));
  }

  bot() {
    const { installation, users } = this.workspace();
    return installation && users.find((each) => each.id === installation.bot_user);
  }

  names() {
    const { users: members, strangers, channels } = this.workspace();
    // People of other companies are met in shared channels only.
    const users = [...members, ...strangers];
    const user = (id) => users.find((each) => each.id === id);
    return {
      me: this.here.user,
      user: (id) => user(id)?.real_name ?? null,
      channel: (id) => channels.find((each) => each.id === id)?.name ?? null,
      author: (id) => {
        const found = user(id);
        if (!found) {
          return id === SANDBOX.id ? SANDBOX : { id, realName: id, isBot: false, tone: 0 };
        }
        return { id, realName: found.real_name, isBot: found.is_bot, tone: users.indexOf(found) };
      },
    };
  }

  suggestions() {
    const people = this.workspace()
      .users.filter((each) => !each.is_bot || this.bot()?.id === each.id)
      .map((each) => ({ name: each.name, realName: each.real_name, isBot: each.is_bot, title: each.title }))
      .sort((one, other) => Number(other.isBot) - Number(one.isBot));
    return { people, commands: this.state.slash_commands, appName: this.state.app.name };
  }

  render(message, inThread) {
    const replies = [...this.messages.values()].filter(
      (each) => isReply(each) && each.thread_ts === message.ts,
    ).length;
    return renderMessage(message, { names: this.names(), hands: this.hands, replies, inThread });
  }

  drawThread() {
    if (!this.here.thread) {
      return;
    }
    this.thread.clear();
    for (const message of this.messages.values()) {
      if (message.ts === this.here.thread || message.thread_ts === this.here.thread) {
        this.thread.put(message);
      }
    }
  }

  drawSide() {
    const { workspaces } = this.state;
    $("workspace").replaceChildren(
      ...workspaces.map((each) => make("option", { value: each.id }, each.name)),
    );
    $("workspace").value = this.here.team;
    const channels = this.places().filter((each) => !each.is_im);
    $("channels").replaceChildren(...channels.map((each) => this.placeRow(each.id, `# ${each.name}`)));
    $("apps").replaceChildren(this.appRow());
    this.drawPeople();
  }

  placeRow(id, label) {
    const button = make("button", { type: "button" }, label);
    button.classList.toggle("unread", this.unread.has(id));
    if (id === this.here.channel) {
      button.setAttribute("aria-current", "page");
    }
    if (this.unread.has(id)) {
      button.append(make("span", { className: "unseen" }, ", new messages"));
    }
    button.addEventListener("click", () => this.openChannel(id));
    return make("li", {}, button);
  }

  appRow() {
    const { name } = this.state.app;
    const talk = this.places().find((each) => each.is_im && each.members.includes(this.bot()?.id));
    if (talk) {
      return this.placeRow(talk.id, name);
    }
    if (!this.bot()) {
      return make("li", { className: "absent" }, `${name} is not here yet`);
    }
    const button = make("button", { type: "button" }, name);
    button.addEventListener("click", async () => {
      const opened = await this.tell("open-dm", {});
      if (opened) {
        await this.loadState();
        await this.openChannel(opened.channel);
      }
    });
    return make("li", {}, button);
  }

  drawPeople() {
    const people = this.workspace().users.filter((each) => !each.is_bot);
    const had = document.activeElement?.name === "person";
    $("people").replaceChildren(
      ...people.map((person, tone) => {
        const input = make("input", {
          type: "radio",
          name: "person",
          value: person.id,
          checked: person.id === this.here.user,
        });
        input.addEventListener("change", () => this.enter({ ...this.address(), user: person.id }));
        const face = avatar({ realName: person.real_name, isBot: false, tone });
        const words = make("span", {}, person.real_name, make("small", {}, person.title));
        return make("label", { className: "person" }, input, face, words);
      }),
    );
    if (had) {
      $("people").querySelector(":checked").focus();
    }
  }

  drawRoomHead() {
    const place = this.workspace().channels.find((each) => each.id === this.here.channel);
    const title = place.is_im ? this.state.app.name : `# ${place.name}`;
    $("room-name").textContent = title;
    $("room-purpose").textContent = place.is_im ? "Direct messages with the app" : place.purpose;
    document.title = `${title} – ${this.workspace().name} – Sandbox chat`;
    const appName = this.state.app.name;
    this.composer.describe(`Write to ${title}`, appName);
    this.replier.describe("Reply…", appName);
    this.drawNotice(place);
  }

  drawNotice(place) {
    const notice = $("notice");
    const { name } = this.state.app;
    const team = this.workspace().name;
    const bot = this.bot();
    notice.hidden = Boolean(bot && place.members.includes(bot.id));
    if (!bot) {
      notice.replaceChildren(
        make("div", {}, [
          make("h2", {}, `${name} is not in ${team} yet`),
          make("p", {}, "An owner or administrator installs it from the dashboard. Then mention it here, and it answers."),
        ]),
        make("a", { className: "button primary", href: this.state.dashboard_url }, "Open the dashboard"),
      );
    } else {
      const invite = make("button", { type: "button", className: "button" }, `Invite ${name}`);
      invite.addEventListener("click", () => this.tell("invite", { channel: place.id }));
      const words = make("p", {}, `${name} is not in #${place.name}, so it does not read what you write here.`);
      notice.replaceChildren(make("div", {}, words), invite);
    }
  }
}

function isReply(message) {
  return message.thread_ts != null && message.thread_ts !== message.ts;
}

function sentence(code) {
  const words = code.replaceAll("_", " ");
  return `${words.charAt(0).toUpperCase()}${words.slice(1)}.`;
}

new Playground().start();
