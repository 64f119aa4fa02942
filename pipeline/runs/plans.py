"""What tells one plan of an output from another."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def plan_id(plan: dict[str, Any]) -> str:
    """sha256 of the plan as canonical JSON: equal plans give equal bytes."""
    return hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()


def _flat(plan: dict[str, Any]) -> dict[str, Any]:
    """A plan with the entries of its groups by names of their own, "raw bytes"."""
    found: dict[str, Any] = {}
    for name, value in plan.items():
        found |= (
            {f"{name} {key}": v for key, v in value.items()} if isinstance(value, dict) else {name: value}
        )
    return found


def plan_difference(before: Any, now: dict[str, Any]) -> str:
    """What differs between two plans, in words."""
    if not isinstance(before, dict):
        return "other settings or another input"
    if isinstance(before.get("settings"), dict) and isinstance(now.get("settings"), dict):
        before, now = (
            {k: v for k, v in (plan | plan["settings"]).items() if k != "settings"} for plan in (before, now)
        )
    before, now = _flat(before), _flat(now)
    names = [k for k in sorted(before | now) if k != "settings" and before.get(k) != now.get(k)]
    return "other settings or another input: " + "; ".join(
        f"{name} was {str(before.get(name))[:60]}, is {str(now.get(name))[:60]}" for name in names[:4]
    )
