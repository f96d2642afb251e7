"""The embedded world's tokenizer: open_clip's, cut down to the words that its captions and prompts need."""

from __future__ import annotations

import gzip
import importlib.util
import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from sharpscope.errors import ConfigError
from sharpscope.miniworld.world import CAPTIONS, CLASSES, COLOURS, STYLE_WORDS, TEMPLATES

__all__ = ["mini_bpe", "vocabulary"]

# Beyond the captions: words of ordinary prompts, which the merges keep whole for those who bring their own templates.
# The models never saw them.
_PROMPT_WORDS: Final = (
    "an and at background black drawing grey image in object on picture shape white with",
    "circles squares triangles stars crosses rings hearts arrows moons flowers houses trees cups keys",
)


def vocabulary() -> tuple[str, ...]:
    """Words that the small tokenizer splits as open_clip's full one: those of captions, prompts, and a few more."""
    names = {"s": " ".join(STYLE_WORDS.values()), "c": " ".join(COLOURS), "o": " ".join(CLASSES)}
    text = " ".join([*(c.format(**names) for c in CAPTIONS), *(t.format("") for t in TEMPLATES), *_PROMPT_WORDS])
    return tuple(sorted(set(text.split())))


def mini_bpe(words: Iterable[str]) -> bytes:
    """gzip file of those merges of open_clip's BPE that split ``words`` as the full list does.

    The world's own file is that of ``vocabulary()``.

    A merge is needed when byte-pair encoding (Sennrich et al. 2016, 1508.07909) of a word applies it; in the order of
    their ranks the needed ones give the same splits. Other words fall back to shorter pieces, single letters at worst.
    """
    lines = gzip.decompress(_open_clip_bpe().read_bytes()).decode("utf-8").split("\n")
    merges = [tuple(line.split()) for line in lines[1 : 49152 - 256 - 2 + 1]]  # as open_clip.SimpleTokenizer reads it
    rank = {merge: i for i, merge in enumerate(merges)}
    needed = sorted(set().union(*(_applied(w, rank) for w in words)), key=rank.__getitem__)
    # no newline at the end: SimpleTokenizer would take the empty line after it for a merge of its own
    return gzip.compress("\n".join([lines[0], *map(" ".join, needed)]).encode("utf-8"), mtime=0)


def _applied(word: str, rank: dict[tuple[str, ...], int]) -> set[tuple[str, ...]]:
    """The merges that byte-pair encoding applies to ``word``: again and again the pair of lowest rank."""
    parts = [*word[:-1], word[-1] + "</w>"]
    applied: set[tuple[str, ...]] = set()
    while pairs := [p for p in itertools.pairwise(parts) if p in rank]:
        best = min(pairs, key=rank.__getitem__)
        applied.add(best)
        merged: list[str] = []
        for part in parts:
            if merged and (merged[-1], part) == best:
                merged[-1] += part
            else:
                merged.append(part)
        parts = merged
    return applied


def _open_clip_bpe() -> Path:
    spec = importlib.util.find_spec("open_clip")  # found, not imported: that would cost seconds
    if spec is None or spec.origin is None:
        raise ConfigError("mini_bpe: open_clip is not installed; the small tokenizer is made from its merges.")
    return Path(spec.origin).parent / "bpe_simple_vocab_16e6.txt.gz"
