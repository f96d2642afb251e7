"""Settings of heads and checkpoints that would change nothing: each is refused, or said, where that is known."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from sharpscope.clip.prompts import holds_prompts
from sharpscope.errors import ConfigError, did_you_mean, listing, shown
from sharpscope.vocabulary import ClassPosition
from sharpscope.weights.checkpoint import Checkpoint

__all__ = ["check_head_file", "check_position", "check_templates", "check_used", "unread_prompts"]


def check_templates(templates: object) -> None:
    """Raise ConfigError where ``templates`` were given although no head is made from text."""
    if templates is not None:
        raise ConfigError(
            "templates: the checkpoints hold heads of their own, so that no head is made from text and the templates "
            "would change nothing.\nRemedy: leave them out, or take --head zeroshot or text."
        )


def check_head_file(head: str) -> None:
    """Raise ConfigError where ``head``, the head mode, uses no stored head, so that a file with one is of no use."""
    if head not in ("auto", "stored"):
        raise ConfigError(f"head_file: it provides a stored head, which --head {shown(head)} does not use.")


def check_used(setting: str, used: Sequence[bool], sources: Sequence[str]) -> None:
    """Raise ConfigError where ``setting`` changes nothing for any of the files ``sources``, whose uses are ``used``."""
    if not any(used):
        why = {
            "base": "holds all of its weights, so that nothing is laid over the base",
            "head_file": "holds a head of its own, so that the file is not needed",
            "class_position": "holds no learnt prompts, so that there is no prompt with a class name in it",
        }[setting]
        raise ConfigError(f"{setting}: {listing(sources, 2)} {why}.\nRemedy: leave it out.")


def check_position(position: ClassPosition | None, end: Checkpoint) -> None:
    """Raise ConfigError for an unknown position of the class name, or one that no learnt prompts of ``end`` use."""
    if position is None:
        return
    if position not in (known := get_args(ClassPosition)):
        near = did_you_mean(str(position), known)
        raise ConfigError(f"class_position: '{shown(position)}' is none of {', '.join(known)}.{near}")
    if (end.facts.get("head") or {}).get("told_by") != "prompts":
        raise ConfigError(
            f"class_position: {shown(end.source, 200)} gives no head of learnt prompts, so that no class name stands "
            "in a prompt.\nRemedy: leave it out."
        )


def unread_prompts(end: Checkpoint, mode: str) -> list[str]:
    """One sentence where the fine-tuned file holds learnt prompts that the head of this ``mode`` does not use."""
    if mode == "stored" or not holds_prompts(end):
        return []
    return [
        f"{shown(Path(end.source).name, 100)} holds learnt prompts, which --head {mode} does not use (--head stored "
        "makes the head from them)."
    ]
