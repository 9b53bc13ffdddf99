"""Nango's bodies are read strictly, and what is wrong is said in Nango's words."""

from typing import Any

import pytest

from interlock_sandbox.nango.fields import Fields, end_user_tags, read_end_user
from interlock_sandbox.nango.limits import WINDOW_S, RateLimit
from interlock_sandbox.nango.refusals import Refusal


def _issues(fields: Fields) -> list[tuple[str, list[str]]]:
    """Return codes and paths of everything that is wrong."""
    fields.refuse_unknown()
    return [(each["code"], each["path"]) for each in fields.issues]


@pytest.mark.parametrize(
    ("tags", "issues"),
    [
        ({"tenantId": "x"}, []),
        ({"a/b.c-d_e": "x" * 255}, []),
        ({"": "x"}, [("invalid_key", ["tags", ""])]),
        ({"1a": "x"}, [("invalid_key", ["tags", "1a"])]),
        ({"a" * 65: "x"}, [("invalid_key", ["tags", "a" * 65])]),
        ({"a": ""}, [("too_small", ["tags", "a"])]),
        ({"a": "x" * 256}, [("too_big", ["tags", "a"])]),
        ({"a": None}, [("invalid_type", ["tags", "a"])]),
        ({f"k{number}": "v" for number in range(11)}, [("custom", ["tags"])]),
        (["a"], [("invalid_type", ["tags"])]),
    ],
)
def test_tags_keep_to_their_rules(tags: Any, issues: list[tuple[str, list[str]]]) -> None:
    """Ten tags at most, keys that start with a letter, values that are short texts."""
    fields = Fields({"tags": tags})
    fields.find_tags()
    assert _issues(fields) == issues


def test_tag_keys_are_lowered_and_values_kept() -> None:
    """A tenant's label is found under a lower-case name."""
    assert Fields({"tags": {"tenantId": "Tenant_1"}}).find_tags() == {"tenantid": "Tenant_1"}


@pytest.mark.parametrize(
    ("body", "issues"),
    [
        ({"end_user": {}}, [("invalid_type", ["end_user", "id"])]),
        ({"end_user": {"id": "a", "email": "x"}}, [("invalid_format", ["end_user", "email"])]),
        ({"end_user": {"id": "a", "age": 1}}, [("unrecognized_keys", ["end_user"])]),
        ({"end_user": {"id": "a"}, "organization": {}}, [("invalid_type", ["organization", "id"])]),
        ({"end_user": "a"}, [("invalid_type", ["end_user"])]),
        ({"more": 1, "most": 2}, [("unrecognized_keys", [])]),
    ],
)
def test_end_users_keep_to_their_rules(
    body: dict[str, Any], issues: list[tuple[str, list[str]]]
) -> None:
    """The deprecated fields are read as strictly as the others."""
    fields = Fields(body)
    read_end_user(fields)
    assert _issues(fields) == issues


def test_end_user_without_details_adds_only_its_id() -> None:
    """What was not given makes no tag."""
    assert end_user_tags(read_end_user(Fields({"end_user": {"id": "ada"}}))) == {
        "end_user_id": "ada"
    }
    assert end_user_tags(None) == {}


def test_queries_spell_flags_and_numbers_as_text() -> None:
    """All of Nango's words for yes and no are read; anything else is refused."""
    assert Fields({"flag": "YES"}).find_flag("flag")
    assert not Fields({"flag": "disabled"}).find_flag("flag")
    assert not Fields({}).find_flag("flag")
    fields = Fields({"flag": "2", "limit": "-1", "at": "noon"})
    fields.find_flag("flag")
    fields.find_number("limit", 10)
    fields.find_instant("at")
    assert [code for code, _ in _issues(fields)] == [
        "invalid_value",
        "invalid_type",
        "invalid_format",
    ]
    with pytest.raises(Refusal):
        fields.check("invalid_query_params")


def test_each_bucket_has_its_own_window() -> None:
    """A used-up bucket refuses until its window ends; others go on."""
    at = 1000.0
    limit = RateLimit(2, lambda: at)
    assert limit.take("key", "GET", "/")["X-RateLimit-Remaining"] == "1"
    assert limit.take("key", "GET", "/")["X-RateLimit-Remaining"] == "0"
    with pytest.raises(Refusal):
        limit.take("key", "GET", "/")
    assert limit.take("session", "GET", "/")["X-RateLimit-Remaining"] == "1"
    at += WINDOW_S
    assert limit.take("key", "GET", "/")["X-RateLimit-Remaining"] == "1"
