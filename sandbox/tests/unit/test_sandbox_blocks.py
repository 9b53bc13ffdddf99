"""Block Kit as the Slack stand-in reads it."""

from typing import Any

import pytest

from interlock_sandbox.slack.blocks import (
    MAX_BLOCKS,
    MAX_MARKDOWN_TOTAL,
    MAX_SECTION_TEXT,
    InvalidBlocks,
    check_blocks,
    check_view_blocks,
    elements_of,
    options_of,
)

PLAIN = {"type": "plain_text", "text": "Words"}
OPTION = {"text": PLAIN, "value": "one"}
BUTTON = {"type": "button", "text": PLAIN, "action_id": "go"}
SELECT = {"type": "static_select", "options": [OPTION], "action_id": "pick"}


def _section(text: str) -> dict[str, Any]:
    return {"type": "section", "text": {"type": "mrkdwn", "text": text}}


def test_blocks_and_elements_without_ids_get_some() -> None:
    """An app that names nothing still gets ids back in interactions."""
    button = {"type": "button", "text": PLAIN}
    [block] = check_blocks([{"type": "actions", "elements": [button]}])
    assert block["block_id"]
    assert block["elements"][0]["action_id"]


def test_checking_leaves_the_given_blocks_alone() -> None:
    """Ids are added to a copy."""
    given = [_section("x")]
    check_blocks(given)
    assert given == [_section("x")]


def test_limits_hold_at_their_last_allowed_value() -> None:
    """What is exactly as long as Slack allows is taken."""
    check_blocks([_section("x" * MAX_SECTION_TEXT)])
    check_blocks([{"type": "divider"}] * MAX_BLOCKS)
    check_blocks([{"type": "markdown", "text": "x" * MAX_MARKDOWN_TOTAL}])


@pytest.mark.parametrize(
    "blocks",
    [
        pytest.param("text", id="no list"),
        pytest.param([1], id="no objects"),
        pytest.param([{"type": "divider"}] * (MAX_BLOCKS + 1), id="too many"),
        pytest.param([{"type": "carousel"}], id="unknown block"),
        pytest.param([{"type": "section"}], id="empty section"),
        pytest.param([_section("")], id="empty text"),
        pytest.param([_section("x" * (MAX_SECTION_TEXT + 1))], id="text too long"),
        pytest.param([{"type": "section", "text": "words"}], id="text is no object"),
        pytest.param([{"type": "section", "fields": [PLAIN] * 11}], id="too many fields"),
        pytest.param([{"type": "actions", "elements": []}], id="no elements"),
        pytest.param([{"type": "actions", "elements": [{"type": "orb"}]}], id="unknown element"),
        pytest.param([{"type": "actions", "elements": [BUTTON, BUTTON]}], id="action id twice"),
        pytest.param(
            [{"type": "divider", "block_id": "a"}, {"type": "divider", "block_id": "a"}],
            id="block id twice",
        ),
        pytest.param(
            [{"type": "actions", "elements": [BUTTON | {"url": "javascript:alert(1)"}]}],
            id="script URL",
        ),
        pytest.param(
            [{"type": "actions", "elements": [BUTTON | {"style": "loud"}]}], id="unknown style"
        ),
        pytest.param(
            [{"type": "actions", "elements": [SELECT | {"options": []}]}], id="no options"
        ),
        pytest.param(
            [
                {
                    "type": "actions",
                    "elements": [SELECT | {"initial_option": {"text": PLAIN, "value": "two"}}],
                }
            ],
            id="initial option is none of them",
        ),
        pytest.param(
            [{"type": "actions", "elements": [SELECT | {"option_groups": []}]}],
            id="options and groups",
        ),
        pytest.param(
            [{"type": "markdown", "text": "x" * 7000}, {"type": "markdown", "text": "x" * 7000}],
            id="markdown blocks together too long",
        ),
        pytest.param(
            [{"type": "input", "label": PLAIN, "element": {"type": "plain_text_input"}}],
            id="input outside a modal",
        ),
    ],
)
def test_what_slack_would_refuse_is_refused(blocks: Any) -> None:
    """A mistake in blocks is found here, not in production."""
    with pytest.raises(InvalidBlocks):
        check_blocks(blocks)


def test_modals_take_inputs_but_no_markdown_blocks() -> None:
    """A modal's blocks are another set than a message's."""
    field = {"type": "input", "label": PLAIN, "element": {"type": "plain_text_input"}}
    [kept] = check_view_blocks([field])
    assert kept["element"]["action_id"]
    with pytest.raises(InvalidBlocks):
        check_view_blocks([{"type": "markdown", "text": "x"}])


def test_usable_parts_are_found_wherever_a_block_keeps_them() -> None:
    """Elements, accessories and inputs can all be used."""
    assert elements_of({"type": "actions", "elements": [BUTTON]}) == [BUTTON]
    assert elements_of({"type": "section", "accessory": SELECT}) == [SELECT]
    assert elements_of({"type": "context", "elements": [PLAIN]}) == []


def test_options_are_listed_across_groups() -> None:
    """A grouped select offers the options of all its groups."""
    grouped = {"option_groups": [{"label": PLAIN, "options": [OPTION]}] * 2}
    assert options_of(grouped) == [OPTION, OPTION]
