"""Slack's rules for Block Kit, as far as the app's messages and modals need them.

Stricter than Slack where that finds mistakes early: an unknown block type or
element is refused.
"""

import copy
import secrets
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

MAX_BLOCKS = 50
MAX_VIEW_BLOCKS = 100
MAX_LABEL = 2000
MAX_INITIAL_VALUE = 3000
MAX_SECTION_TEXT = 3000
MAX_FIELDS = 10
MAX_FIELD_TEXT = 2000
MAX_HEADER_TEXT = 150
MAX_MARKDOWN_TOTAL = 12_000
MAX_ID = 255
MAX_ACTIONS = 25
MAX_CONTEXT = 10
MAX_BUTTON_TEXT = 75
MAX_BUTTON_VALUE = 2000
MAX_URL = 3000
MAX_OPTIONS = 100
MAX_OPTION_TEXT = 75
MAX_OPTION_VALUE = 150
MAX_PLACEHOLDER = 150

Reader = Callable[[dict[str, Any], str], None]


class InvalidBlocks(Exception):
    """The blocks break a rule; the text says which and where."""


def check_blocks(blocks: Any) -> list[dict[str, Any]]:
    """Return a message's blocks as Slack keeps them: with ids where they had none.

    Raises:
        InvalidBlocks: Slack would refuse them.
    """
    _check(blocks, _BLOCKS, MAX_BLOCKS)
    written = sum(len(block["text"]) for block in blocks if block["type"] == "markdown")
    if written > MAX_MARKDOWN_TOTAL:
        raise InvalidBlocks(f"markdown blocks hold more than {MAX_MARKDOWN_TOTAL} characters")
    return _with_ids(blocks)


def check_view_blocks(blocks: Any) -> list[dict[str, Any]]:
    """Return a modal's blocks as Slack keeps them: with ids where they had none.

    Raises:
        InvalidBlocks: Slack would refuse them.
    """
    _check(blocks, _VIEW_BLOCKS, MAX_VIEW_BLOCKS)
    return _with_ids(blocks)


def elements_of(block: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the parts of a block that a person can use."""
    candidates = (*block.get("elements", ()), block.get("accessory"), block.get("element"))
    return [
        each for each in candidates if isinstance(each, dict) and each.get("type") in _INTERACTIVE
    ]


def options_of(element: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the choices of a select or an overflow menu."""
    groups = element.get("option_groups") or [{"options": element.get("options")}]
    listed = (group.get("options") for group in groups if isinstance(group, dict))
    return [option for options in listed if isinstance(options, list) for option in options]


def _check(blocks: Any, known: dict[str, Reader], longest: int) -> None:
    if not isinstance(blocks, list) or not all(isinstance(block, dict) for block in blocks):
        raise InvalidBlocks("blocks must be a list of objects")
    if len(blocks) > longest:
        raise InvalidBlocks(f"no more than {longest} items allowed")
    seen: set[str] = set()
    for number, block in enumerate(blocks):
        where = f"/blocks/{number}"
        _check_id(block, "block_id", where, seen)
        reader = known.get(str(block.get("type")))
        if reader is None:
            raise InvalidBlocks(f"unsupported type {where}/type")
        reader(block, where)


def _with_ids(blocks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    kept = copy.deepcopy(blocks)
    for block in kept:
        block.setdefault("block_id", secrets.token_urlsafe(4))
        for element in elements_of(block):
            element.setdefault("action_id", secrets.token_urlsafe(4))
    return kept


def _section(block: dict[str, Any], where: str) -> None:
    text, fields = block.get("text"), block.get("fields")
    if text is None and not fields:
        raise InvalidBlocks(f"missing text or fields {where}")
    if text is not None:
        _check_text(text, f"{where}/text", MAX_SECTION_TEXT)
    for number, entry in enumerate(_list(fields or [], f"{where}/fields", MAX_FIELDS)):
        _check_text(entry, f"{where}/fields/{number}", MAX_FIELD_TEXT)
    if "accessory" in block:
        _check_element(block["accessory"], f"{where}/accessory", set())


def _actions(block: dict[str, Any], where: str) -> None:
    elements = _list(block.get("elements"), f"{where}/elements", MAX_ACTIONS)
    if not elements:
        raise InvalidBlocks(f"no elements {where}/elements")
    seen: set[str] = set()
    for number, element in enumerate(elements):
        _check_element(element, f"{where}/elements/{number}", seen)


def _context(block: dict[str, Any], where: str) -> None:
    elements = _list(block.get("elements"), f"{where}/elements", MAX_CONTEXT)
    if not elements:
        raise InvalidBlocks(f"no elements {where}/elements")
    for number, element in enumerate(elements):
        if not isinstance(element, dict):
            raise InvalidBlocks(f"must be an object {where}/elements/{number}")
        if element.get("type") == "image":
            _image(element, f"{where}/elements/{number}")
        else:
            _check_text(element, f"{where}/elements/{number}", MAX_SECTION_TEXT)


def _header(block: dict[str, Any], where: str) -> None:
    _check_text(block.get("text"), f"{where}/text", MAX_HEADER_TEXT, plain=True)


def _markdown(block: dict[str, Any], where: str) -> None:
    if not isinstance(block.get("text"), str) or not block["text"]:
        raise InvalidBlocks(f"missing text {where}/text")


def _image(block: dict[str, Any], where: str) -> None:
    _check_url(block.get("image_url"), f"{where}/image_url")
    _string(block.get("alt_text"), f"{where}/alt_text", MAX_FIELD_TEXT)


def _input(block: dict[str, Any], where: str) -> None:
    _check_text(block.get("label"), f"{where}/label", MAX_LABEL, plain=True)
    if "hint" in block:
        _check_text(block["hint"], f"{where}/hint", MAX_LABEL, plain=True)
    _check_element(block.get("element"), f"{where}/element", set(), _INPUTS)


def _nothing(_block: dict[str, Any], _where: str) -> None:
    """Accept a block without content of its own."""


def _button(element: dict[str, Any], where: str) -> None:
    _check_text(element.get("text"), f"{where}/text", MAX_BUTTON_TEXT, plain=True)
    if "value" in element:
        _string(element["value"], f"{where}/value", MAX_BUTTON_VALUE)
    if "url" in element:
        _check_url(element["url"], f"{where}/url")
    if element.get("style", "primary") not in {"primary", "danger"}:
        raise InvalidBlocks(f"unknown style {where}/style")


def _static_select(element: dict[str, Any], where: str) -> None:
    if "placeholder" in element:
        _check_text(element["placeholder"], f"{where}/placeholder", MAX_PLACEHOLDER, plain=True)
    chosen, groups = element.get("initial_option"), element.get("option_groups")
    if chosen is not None and chosen not in options_of(element):
        raise InvalidBlocks(f"is none of the options {where}/initial_option")
    if (groups is None) == (element.get("options") is None):
        raise InvalidBlocks(f"either options or option_groups {where}")
    if groups is None:
        _check_options(element["options"], f"{where}/options")
        return
    for number, group in enumerate(_list(groups, f"{where}/option_groups", MAX_OPTIONS)):
        inside = f"{where}/option_groups/{number}"
        if not isinstance(group, dict):
            raise InvalidBlocks(f"must be an object {inside}")
        _check_text(group.get("label"), f"{inside}/label", MAX_OPTION_TEXT, plain=True)
        _check_options(group.get("options"), f"{inside}/options")


def _plain_text_input(element: dict[str, Any], where: str) -> None:
    if "placeholder" in element:
        _check_text(element["placeholder"], f"{where}/placeholder", MAX_PLACEHOLDER, plain=True)
    if element.get("initial_value"):
        _string(element["initial_value"], f"{where}/initial_value", MAX_INITIAL_VALUE)


def _overflow(element: dict[str, Any], where: str) -> None:
    _check_options(element.get("options"), f"{where}/options")


def _check_options(options: Any, where: str) -> None:
    listed = _list(options, where, MAX_OPTIONS)
    if not listed:
        raise InvalidBlocks(f"no options {where}")
    for number, option in enumerate(listed):
        if not isinstance(option, dict):
            raise InvalidBlocks(f"must be an object {where}/{number}")
        _check_text(option.get("text"), f"{where}/{number}/text", MAX_OPTION_TEXT)
        _string(option.get("value"), f"{where}/{number}/value", MAX_OPTION_VALUE)


def _check_element(
    element: Any, where: str, seen: set[str], known: dict[str, Reader] | None = None
) -> None:
    if not isinstance(element, dict):
        raise InvalidBlocks(f"must be an object {where}")
    reader = (known or _ELEMENTS).get(str(element.get("type")))
    if reader is None:
        raise InvalidBlocks(f"unsupported type {where}/type")
    _check_id(element, "action_id", where, seen)
    reader(element, where)


def _check_id(holder: dict[str, Any], name: str, where: str, seen: set[str]) -> None:
    value = holder.get(name)
    if value is None:
        return
    _string(value, f"{where}/{name}", MAX_ID)
    if value in seen:
        raise InvalidBlocks(f"{name} is used twice {where}/{name}")
    seen.add(value)


def _check_text(text: Any, where: str, longest: int, *, plain: bool = False) -> None:
    if not isinstance(text, dict):
        raise InvalidBlocks(f"must be a text object {where}")
    allowed = {"plain_text"} if plain else {"plain_text", "mrkdwn"}
    if text.get("type") not in allowed:
        raise InvalidBlocks(f"unknown text type {where}/type")
    _string(text.get("text"), f"{where}/text", longest)


def _string(value: Any, where: str, longest: int) -> None:
    if not isinstance(value, str) or not value:
        raise InvalidBlocks(f"must be a text of at least one character {where}")
    if len(value) > longest:
        raise InvalidBlocks(f"must be less than {longest + 1} characters {where}")


def _list(value: Any, where: str, longest: int) -> list[Any]:
    if not isinstance(value, list):
        raise InvalidBlocks(f"must be a list {where}")
    if len(value) > longest:
        raise InvalidBlocks(f"no more than {longest} items allowed {where}")
    return value


def _check_url(value: Any, where: str) -> None:
    _string(value, where, MAX_URL)
    try:
        parts = urlsplit(value)
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in {"http", "https"} or not parts.netloc:
        raise InvalidBlocks(f"must be an http or https URL {where}")


_BLOCKS: dict[str, Reader] = {
    "section": _section,
    "actions": _actions,
    "context": _context,
    "header": _header,
    "markdown": _markdown,
    "image": _image,
    "divider": _nothing,
}
_ELEMENTS: dict[str, Reader] = {
    "button": _button,
    "static_select": _static_select,
    "overflow": _overflow,
}
_INPUTS: dict[str, Reader] = {
    "plain_text_input": _plain_text_input,
    "static_select": _static_select,
}
_INTERACTIVE = _ELEMENTS.keys() | _INPUTS.keys()
_VIEW_BLOCKS: dict[str, Reader] = {
    **{kind: reader for kind, reader in _BLOCKS.items() if kind != "markdown"},
    "input": _input,
}
