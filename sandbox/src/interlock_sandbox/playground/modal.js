// An app's modal as a dialog.

import { readInputs, renderBlocks } from "./blocks.js";
import { make } from "./markup.js";

/** Show an app's views in one dialog; `hands` holds `act`, `submit`, `close`. */
export class Modal {
  constructor(dialog, hands) {
    this.dialog = dialog;
    this.hands = hands;
    this.view = null;
    dialog.addEventListener("cancel", (event) => {
      event.preventDefault();
      this.hands.close(this.view);
    });
  }

  show(view, names) {
    this.view = view;
    const use = (element, choice) => this.hands.act(view, element, choice);
    const cancel = make("button", { type: "button", className: "button" }, view.close?.text ?? "Cancel");
    cancel.addEventListener("click", () => this.hands.close(view));
    const submit = view.submit && make("button", { className: "button primary" }, view.submit.text);
    const form = make("form", { method: "dialog" }, [
      make("h2", { id: "modal-title" }, view.title.text),
      make("div", { className: "modal-body" }, renderBlocks(view.blocks, names, use)),
      make("div", { className: "modal-foot" }, cancel, submit),
    ]);
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.hands.submit(view, readInputs(form));
    });
    this.restore(form, view.state.values);
    this.dialog.replaceChildren(form);
    if (!this.dialog.open) {
      this.dialog.showModal();
    }
  }

  /** Say below each input what the app found wrong with it. */
  complain(errors) {
    for (const block of this.dialog.querySelectorAll("[data-block]")) {
      const trouble = block.querySelector(".trouble");
      if (trouble) {
        trouble.textContent = errors[block.dataset.block] ?? "";
        trouble.hidden = !trouble.textContent;
      }
    }
  }

  close(id) {
    if (this.view?.id === id) {
      this.view = null;
      this.dialog.close();
    }
  }

  restore(form, values) {
    for (const field of form.querySelectorAll("[data-input]")) {
      const kept = values[field.dataset.input]?.[field.dataset.action];
      const value = kept?.value ?? kept?.selected_option?.value;
      if (value) {
        field.value = value;
      }
    }
    // Selects outside inputs keep their choice too, while the app changes the rest.
    for (const select of form.querySelectorAll("[data-block] select:not([data-input])")) {
      const block = select.closest("[data-block]").dataset.block;
      const kept = Object.values(values[block] ?? {})[0];
      if (kept?.selected_option) {
        select.value = kept.selected_option.value;
      }
    }
  }
}
