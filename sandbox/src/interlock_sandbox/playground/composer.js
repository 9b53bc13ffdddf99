// Where a person writes: text, @names, /commands.

import { make } from "./markup.js";

const MAX_SUGGESTIONS = 6;

/**
 * A form for messages. `knows()` returns `{ people, commands, appName }`;
 * `send(text)` returns a promise, and the text stays until it is kept.
 */
export class Composer {
  constructor(form, { id, label, knows, send }) {
    this.knows = knows;
    this.send = send;
    this.text = make("textarea", {
      id,
      rows: 1,
      autocomplete: "off",
      "aria-label": label,
      "aria-autocomplete": "list",
      "aria-controls": `${id}-suggestions`,
    });
    this.list = make("ul", {
      id: `${id}-suggestions`,
      className: "suggestions",
      role: "listbox",
      hidden: true,
      "aria-label": "Suggestions",
    });
    this.mention = make("button", { type: "button", className: "quiet" }, "@");
    const submit = make("button", { className: "button primary" }, "Send");
    const hint = make("span", { className: "soft hint" }, "Enter sends, Shift+Enter breaks the line");
    const foot = make("div", { className: "composer-foot" }, this.mention, hint, submit);
    form.append(this.list, this.text, foot);
    this.choices = [];
    this.chosen = 0;
    form.addEventListener("submit", (event) => this.submit(event));
    this.text.addEventListener("input", () => this.suggest());
    this.text.addEventListener("keydown", (event) => this.press(event));
    this.text.addEventListener("blur", () => this.close());
    this.mention.addEventListener("click", () => this.insertMention());
    this.form = form;
  }

  describe(placeholder, appName) {
    this.text.placeholder = placeholder;
    this.mention.textContent = `@${appName}`;
    this.mention.setAttribute("aria-label", `Mention ${appName}`);
  }

  async submit(event) {
    event?.preventDefault();
    const text = this.text.value.trim();
    if (!text || this.busy) {
      return;
    }
    this.busy = true;
    try {
      if (await this.send(text)) {
        this.text.value = "";
      }
    } finally {
      this.busy = false;
      this.fit();
      this.text.focus();
    }
  }

  insertMention() {
    const { appName } = this.knows();
    const mention = `@${appName} `;
    this.text.value = this.text.value.startsWith(mention)
      ? this.text.value
      : mention + this.text.value;
    this.fit();
    this.text.focus();
    this.text.setSelectionRange(this.text.value.length, this.text.value.length);
  }

  press(event) {
    if (this.choices.length) {
      const steps = { ArrowDown: 1, ArrowUp: -1 };
      if (event.key in steps) {
        event.preventDefault();
        this.choose(this.chosen + steps[event.key]);
        return;
      }
      if (event.key === "Enter" || event.key === "Tab") {
        event.preventDefault();
        this.take(this.choices[this.chosen]);
        return;
      }
      if (event.key === "Escape") {
        event.preventDefault();
        event.stopPropagation();
        this.close();
        return;
      }
    }
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      this.submit();
    }
  }

  fit() {
    this.text.style.height = "auto";
    this.text.style.height = `${this.text.scrollHeight + 2}px`;
  }

  // Suggestions.

  suggest() {
    this.fit();
    const before = this.text.value.slice(0, this.text.selectionStart);
    const word = /(?:^|\s)@(?<typed>[\w.-]*)$/.exec(before)?.groups.typed;
    const command = /^\/(?<typed>\S*)$/.exec(before)?.groups.typed;
    if (word != null) {
      this.show(this.people(word.toLowerCase()));
    } else if (command != null) {
      this.show(this.commands(command.toLowerCase()));
    } else {
      this.close();
    }
  }

  people(typed) {
    return this.knows()
      .people.filter((each) => each.name.startsWith(typed) || each.realName.toLowerCase().startsWith(typed))
      .slice(0, MAX_SUGGESTIONS)
      .map((each) => ({
        label: each.realName,
        note: each.isBot ? "app" : each.title,
        text: `@${each.isBot ? each.realName : each.name} `,
        mark: /@[\w.-]*$/,
      }));
  }

  commands(typed) {
    return this.knows()
      .commands.filter((each) => each.slice(1).startsWith(typed))
      .map((each) => ({ label: each, note: "slash command", text: `${each} `, mark: /\/\S*$/ }));
  }

  show(choices) {
    this.choices = choices;
    this.list.replaceChildren(
      ...choices.map((each, number) => {
        const row = make("li", { id: `${this.list.id}-${number}`, role: "option" }, [
          make("span", {}, each.label),
          make("span", { className: "soft" }, each.note),
        ]);
        // The text must keep the focus, or its blur would close the list first.
        row.addEventListener("mousedown", (event) => event.preventDefault());
        row.addEventListener("click", () => this.take(each));
        return row;
      }),
    );
    this.list.hidden = !choices.length;
    if (choices.length) {
      this.choose(0);
    }
  }

  choose(number) {
    this.chosen = (number + this.choices.length) % this.choices.length;
    [...this.list.children].forEach((row, at) => {
      row.setAttribute("aria-selected", String(at === this.chosen));
    });
    this.text.setAttribute("aria-activedescendant", `${this.list.id}-${this.chosen}`);
  }

  take(choice) {
    const at = this.text.selectionStart;
    const before = this.text.value.slice(0, at).replace(choice.mark, choice.text);
    this.text.value = before + this.text.value.slice(at);
    this.text.setSelectionRange(before.length, before.length);
    this.close();
  }

  close() {
    this.choices = [];
    this.list.hidden = true;
    this.text.removeAttribute("aria-activedescendant");
  }
}
