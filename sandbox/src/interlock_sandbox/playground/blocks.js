// Block Kit to elements, for messages and modals.

import { make, markdown, mrkdwn } from "./markup.js";

/**
 * Render blocks. `use(element, choice, node)` is called when a person uses one
 * of their elements.
 */
export function renderBlocks(blocks, names, use) {
  return blocks.map((block) => {
    const render = BLOCKS[block.type];
    const node = render ? render(block, names, use) : unknown(block.type);
    node.classList.add("block");
    node.dataset.block = block.block_id ?? "";
    return node;
  });
}

/** Read what was typed and chosen in a modal: block id → action id → value. */
export function readInputs(form) {
  const values = {};
  for (const field of form.querySelectorAll("[data-input]")) {
    values[field.dataset.input] = { [field.dataset.action]: field.value };
  }
  return values;
}

function textOf(text, names) {
  return text.type === "plain_text" ? text.text : mrkdwn(text.text, names);
}

function section(block, names, use) {
  const words = [];
  if (block.text) {
    words.push(make("div", { className: "words" }, textOf(block.text, names)));
  }
  if (block.fields) {
    const fields = block.fields.map((field) => make("div", {}, textOf(field, names)));
    words.push(make("div", { className: "fields" }, fields));
  }
  const accessory = block.accessory && renderElement(block.accessory, use);
  return make("div", { className: "section" }, make("div", { className: "grow" }, words), accessory);
}

function actions(block, _names, use) {
  const elements = block.elements.map((element) => renderElement(element, use));
  return make("div", { className: "actions" }, elements);
}

function context(block, names) {
  const parts = block.elements.map((element) =>
    make("span", {}, element.type === "image" ? element.alt_text : textOf(element, names)),
  );
  return make("div", { className: "context" }, parts);
}

function header(block) {
  return make("h3", { className: "header" }, block.text.text);
}

function markdownBlock(block, names) {
  return make("div", { className: "words" }, markdown(block.text, names));
}

function image(block) {
  // Pictures of other hosts are not loaded; their description stands for them.
  return make("p", { className: "picture" }, `Picture: ${block.alt_text}`);
}

function divider() {
  return make("hr");
}

function input(block) {
  const { element } = block;
  const id = `input-${block.block_id}`;
  const field = element.type === "plain_text_input" ? textField(element) : choices(element);
  field.id = id;
  field.required = !block.optional;
  field.dataset.input = block.block_id;
  field.dataset.action = element.action_id;
  const label = make("label", { htmlFor: id }, block.label.text);
  if (block.optional) {
    label.append(make("span", { className: "soft" }, " (optional)"));
  }
  const hint = block.hint && make("p", { className: "soft" }, block.hint.text);
  const trouble = make("p", { className: "trouble", hidden: true, role: "alert" });
  return make("div", { className: "input" }, label, field, hint, trouble);
}

function textField(element) {
  const field = make(element.multiline ? "textarea" : "input", {
    value: element.initial_value ?? "",
    placeholder: element.placeholder?.text ?? "",
  });
  if (element.multiline) {
    field.rows = 4;
  }
  return field;
}

function unknown(kind) {
  return make("p", { className: "picture" }, `A block of the type ${kind}`);
}

const BLOCKS = {
  section,
  actions,
  context,
  header,
  markdown: markdownBlock,
  image,
  divider,
  input,
};

function renderElement(element, use) {
  switch (element.type) {
    case "button":
      return button(element, use);
    case "static_select":
      return select(element, element.placeholder?.text ?? "Choose…", use);
    case "overflow":
      return select(element, "More…", use);
    default:
      return make("span", { className: "picture" }, `An element of the type ${element.type}`);
  }
}

function button(element, use) {
  const className = `button ${element.style ?? ""}`;
  const label = mrkdwn(element.text.text, { user: () => null, channel: () => null });
  const node = element.url
    ? make("a", { className, href: element.url, target: "_blank", rel: "noopener" }, label, outward())
    : make("button", { className, type: "button" }, label);
  if (element.accessibility_label) {
    node.setAttribute("aria-label", element.accessibility_label);
  }
  node.addEventListener("click", (event) => {
    if (node.ariaDisabled === "true" || !confirmed(element)) {
      event.preventDefault();
      return;
    }
    use(element, null, node);
  });
  return node;
}

function outward() {
  return make("span", { className: "outward", title: "Opens a new tab" }, " ↗");
}

function select(element, placeholder, use) {
  const node = choices(element, placeholder);
  node.setAttribute("aria-label", placeholder);
  node.addEventListener("change", () => {
    if (node.value && confirmed(element)) {
      use(element, node.value, node);
    }
  });
  return node;
}

function choices(element, placeholder = element.placeholder?.text ?? "Choose…") {
  const option = (each) => make("option", { value: each.value }, each.text.text);
  const listed = element.option_groups
    ? element.option_groups.map((group) =>
        make("optgroup", { label: group.label.text }, group.options.map(option)),
      )
    : element.options.map(option);
  const first = make("option", { value: "" }, placeholder);
  const node = make("select", {}, first, listed);
  node.value = element.initial_option?.value ?? "";
  return node;
}

function confirmed(element) {
  const question = element.confirm;
  if (!question) {
    return true;
  }
  return window.confirm(`${question.title?.text ?? ""}\n\n${question.text?.text ?? ""}`.trim());
}
