"""Stripe's form encoding: a[b][c]=v is nested, a[]=v and a[0]=v are lists."""

import re
from typing import Any

from sandbox.exchange import Items

PARTS = re.compile(r"([^\[\]]+)((?:\[[^\[\]]*\])*)")


def nested(items: Items) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, value in items:
        match = PARTS.fullmatch(name)
        keys = [match[1], *re.findall(r"\[([^\[\]]*)\]", match[2])] if match else [name]
        place = tree
        for key, following in zip(keys, [*keys[1:], None], strict=True):
            own = str(len(place)) if key == "" else key
            if following is None:
                place[own] = value
            else:
                place = place.setdefault(own, {})
                if not isinstance(place, dict):
                    break
    return {key: _with_lists(value) for key, value in tree.items()}


def _with_lists(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    inner = {key: _with_lists(item) for key, item in value.items()}
    return list(inner.values()) if inner and all(key.isdecimal() for key in inner) else inner


def value_at(tree: Any, *names: str) -> Any:
    """None where the path leaves the tables."""
    for name in names:
        tree = tree.get(name) if isinstance(tree, dict) else None
    return tree
