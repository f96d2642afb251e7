"""Laws of the embedded world: rendering, captions, tokenizer."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from open_clip.tokenizer import SimpleTokenizer

from sharpscope.errors import ConfigError
from sharpscope.miniworld import world as miniworld
from sharpscope.miniworld.shapes import SDF, polygon
from sharpscope.miniworld.tokenizer import mini_bpe, vocabulary
from sharpscope.miniworld.world import CLASSES, DOMAINS, SHIFTS, STYLES, TEMPLATES, captions, make

REFERENCE = Path(__file__).with_name("miniworld_reference.npz")


# ---------------------------------------------------------------- rendering
@pytest.mark.parametrize("domain", DOMAINS)
def test_images_are_a_function_of_domain_n_and_seed(domain: str) -> None:
    first = make(domain, 40, 3)
    again = make(domain, 40, 3)
    assert first.images.shape == (40, 32, 32, 3) and first.images.dtype == np.uint8
    assert np.array_equal(first.images, again.images)
    assert np.array_equal(first.labels, again.labels) and np.array_equal(first.colours, again.colours)
    assert not np.array_equal(make(domain, 40, 4).images, first.images)


def test_domains_differ_also_where_seed_and_style_agree() -> None:
    images = [make(d, 16, 3).images.tobytes() for d in DOMAINS]
    assert len(set(images)) == len(DOMAINS) == 10


@pytest.mark.parametrize(("n", "counts"), [(160, {10}), (37, {2, 3}), (5, {0, 1})])
def test_labels_are_balanced_and_shuffled(n: int, counts: set[int]) -> None:
    labels = make("sketch", n, 0).labels
    assert set(np.bincount(labels, minlength=len(CLASSES))) == counts
    assert not np.array_equal(labels, np.arange(n) % len(CLASSES))


def test_rendering_is_that_of_the_shipped_checkpoints() -> None:
    """One image a domain, as it was then; another libm may move a grey level, and a threshold here and there."""
    with np.load(REFERENCE) as reference:
        for domain in DOMAINS:
            image = make(domain, 4, 12345).images[1].astype(int)
            off = np.abs(image - reference[domain].astype(int)) > 1
            assert off.mean() < 0.005, domain


def test_the_shift_changes_the_photo_as_its_name_says() -> None:
    def of(domain: str) -> np.ndarray:
        return make(domain, 320, 0).images.astype(float) / 255

    photo = of("photo")
    assert of("photo-dark").mean() < 0.6 * photo.mean()

    def grain(x: np.ndarray) -> float:
        return float(np.diff(x, axis=2).std())

    assert grain(of("photo-noise")) > 1.4 * grain(photo)
    assert of("photo-clutter").std() > 1.1 * photo.std()


@pytest.mark.parametrize(("style", "grey"), [("quickdraw", True), ("sketch", True), ("photo", False), ("neon", False)])
def test_pencil_styles_have_no_colour(style: str, grey: bool) -> None:
    images = make(style, 32, 0).images.astype(int)
    assert bool((np.ptp(images, axis=-1) == 0).all()) == grey


@pytest.mark.parametrize("domain", ["photos", "sketches", "mini:photo", ""])
def test_unknown_domains_are_named_with_the_known_ones(domain: str) -> None:
    with pytest.raises(ConfigError, match=r"unknown domain.*Known: photo, clipart"):
        make(domain, 4, 0)


# ---------------------------------------------------------------- shapes
INSIDE: dict[str, tuple[tuple[float, float], ...]] = {
    "circle": ((0, 0), (0.7, 0), (0, -0.7)),
    "square": ((0, 0), (0.65, 0.65), (-0.65, 0.65)),
    "triangle": ((0, 0), (0, -0.9), (0.7, 0.4)),
    "star": ((0, 0), (0, -0.9), (0.5, 0.7)),
    "cross": ((0, 0), (0, 0.85), (-0.85, 0)),
    "ring": ((0.65, 0), (0, -0.65)),
    "heart": ((0, 0.2), (0.4, -0.4), (-0.4, -0.4)),
    "arrow": ((0.9, 0), (-0.9, 0), (0.15, 0.5)),
    "moon": ((-0.6, 0), (-0.4, 0.5)),
    "flower": ((0, 0), (0, -0.8), (0.33, 0.44)),
    "house": ((0, -0.8), (0.55, 0.8), (-0.55, 0.8)),
    "tree": ((0, 0.9), (0, -0.9), (0.6, 0.45)),
    "fish": ((0, 0), (0.9, 0.4), (0.9, -0.4)),
    "cup": ((0, 0), (-0.6, -0.6), (0.8, -0.05)),
    "lightning": ((0, 0), (0.2, -0.9), (-0.25, 0.9)),
    "key": ((-0.55, 0.28), (0.9, 0), (0.5, 0.35)),
}
OUTSIDE: dict[str, tuple[tuple[float, float], ...]] = {
    "circle": ((0.6, 0.6),),
    "square": ((0.75, 0), (0, -0.75)),
    "triangle": ((0.6, -0.5), (0, 0.6)),
    "star": ((0.5, -0.7), (0, 0.6)),
    "cross": ((0.5, 0.5), (-0.5, 0.5)),
    "ring": ((0, 0), (0.9, 0)),
    "heart": ((0, -0.6), (0.7, 0.6)),
    "arrow": ((-0.5, 0.4), (0.8, 0.4)),
    "moon": ((0.3, 0), (0, 0)),
    "flower": ((0, 0.75), (0.6, -0.6)),
    "house": ((0.8, 0.3), (0.6, -0.6)),
    "tree": ((0.4, 0.8), (0.45, -0.45)),
    "fish": ((0.7, 0.45), (-0.7, 0.4)),
    "cup": ((0.42, -0.05), (0.85, 0.5)),
    "lightning": ((0.4, 0.5), (-0.5, -0.5)),
    "key": ((-0.55, 0), (0.69, 0.3)),
}


@pytest.mark.parametrize("name", CLASSES)
def test_signed_distances_are_negative_inside_and_positive_outside(name: str) -> None:
    def d(points: tuple[tuple[float, float], ...]) -> np.ndarray:
        x, y = np.array(points, np.float32).T
        return SDF[name](x, y)

    corners = ((1.2, 1.2), (-1.2, 1.2), (1.2, -1.2), (-1.2, -1.2))
    assert (d(INSIDE[name]) < 0).all() and (d(OUTSIDE[name] + corners) > 0).all()


@pytest.mark.parametrize("name", CLASSES)
def test_distances_do_not_grow_faster_than_one_walks(name: str) -> None:
    """|d(p) - d(q)| <= |p - q|, or the outlines would be thicker in one place than in another."""
    rng = np.random.default_rng(0)
    p, step = (rng.uniform(-1.2, 1.2, (2, 4000)).astype(np.float32) for _ in range(2))
    q = p + 0.02 * step
    rise = np.abs(SDF[name](*p) - SDF[name](*q)) / np.hypot(*(p - q))
    assert rise.max() < 1.02


def test_the_distance_to_a_square_is_the_closed_form() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.uniform(-2, 2, (2, 1000)).astype(np.float32)
    dx, dy = np.abs(x) - 0.7, np.abs(y) - 0.7
    closed = np.hypot(np.maximum(dx, 0), np.maximum(dy, 0)) + np.minimum(np.maximum(dx, dy), 0)
    np.testing.assert_allclose(polygon(x, y, [(-0.7, -0.7), (0.7, -0.7), (0.7, 0.7), (-0.7, 0.7)]), closed, atol=1e-5)


def test_every_two_classes_look_different() -> None:
    x, y = np.meshgrid(*[np.linspace(-1, 1, 64, dtype=np.float32)] * 2)
    masks = [SDF[c](x, y) < 0 for c in CLASSES]
    for i, a in enumerate(masks):
        assert 0.03 < a.mean() < 0.6
        for b in masks[:i]:
            assert (a ^ b).mean() > 0.05


# ---------------------------------------------------------------- captions
def _captions(noise: float, confuse: float, n: int = 8000) -> tuple[list[str], np.ndarray]:
    rng = np.random.default_rng(0)
    labels, colours = rng.integers(0, 16, n), rng.integers(0, 8, n)
    return captions(labels, "photo", colours, rng, noise, confuse), labels


def _named(caption: str) -> str | None:
    return next((w for w in caption.split() if w in CLASSES), None)


def test_captions_without_noise_name_the_class() -> None:
    texts, labels = _captions(0.0, 0.0, 500)
    assert [_named(t) for t in texts] == [CLASSES[i] for i in labels]


def test_captions_are_wrong_as_often_as_they_should_be() -> None:
    """45 % look-alikes, then 10 % noise, half of it without any object: within four standard errors."""
    swap = dict(miniworld.LOOKALIKES) | {b: a for a, b in miniworld.LOOKALIKES}
    assert set(swap) == set(CLASSES) and all(swap[swap[c]] == c for c in CLASSES)
    texts, labels = _captions(0.1, 0.45)
    kind = Counter(
        "none"
        if (word := _named(t)) is None
        else "right"
        if word == CLASSES[i]
        else "swap"
        if word == swap[CLASSES[i]]
        else "else"
        for t, i in zip(texts, labels, strict=True)
    )
    random = 0.05 / 16  # half of the noise names any of the 16
    expected = {"none": 0.05, "right": 0.9 * 0.55 + random, "swap": 0.9 * 0.45 + random, "else": 14 * random}
    for key, p in expected.items():
        assert abs(kind[key] / len(texts) - p) < 4 * (p * (1 - p) / len(texts)) ** 0.5, key


@pytest.mark.parametrize(("style", "word"), [("photo", "photo"), ("quickdraw", "doodle"), ("neon", "neon sign")])
def test_captions_name_the_style_and_colour(style: str, word: str) -> None:
    texts = captions(np.zeros(300, int), style, np.full(300, 2), np.random.default_rng(0), 0.0, 0.0)
    assert any(word in t for t in texts)
    coloured = [t for t in texts if "blue" in t]
    assert coloured and set(coloured) == {f"a {word} of a blue circle"}
    others = {w for w in ("photo", "clipart", "painting", "sketch", "doodle", "neon") if w not in word}
    assert not any(o in t for t in texts for o in others)


def test_captions_go_on_from_the_sample() -> None:
    def texts() -> list[str]:
        s = make("neon", 20, 0)
        return captions(s.labels, "neon", s.colours, s.rng)

    assert texts() == texts()


def test_prompts_have_one_place_for_the_name() -> None:
    assert len(TEMPLATES) == 7 and all(t.count("{}") == 1 for t in TEMPLATES)
    assert len(STYLES) == 6 and len(SHIFTS) == 4 and len(CLASSES) == 16


# ---------------------------------------------------------------- tokenizer
def _every_caption() -> list[str]:
    texts: set[str] = set()
    for style in STYLES:
        for colour in range(8):
            for label in range(16):
                rng = np.random.default_rng([label, colour])
                texts.update(captions([label] * 12, style, [colour] * 12, rng, 0.3, 0.0))
    return sorted(texts) + [t.format(c) for t in TEMPLATES for c in CLASSES]


def test_the_small_vocabulary_splits_every_caption_as_the_full_one() -> None:
    small, full = SimpleTokenizer(bpe_path=str(miniworld.tokenizer_path()), context_length=16), SimpleTokenizer()
    for text in _every_caption():
        pieces = [small.decoder[i] for i in small.encode(text)]
        assert pieces == [full.decoder[i] for i in full.encode(text)], text
        assert small.decode(small.encode(text)).strip() == text
        assert len(pieces) <= 14  # start and end fit beside it: nothing is cut off
    assert all(small.bpe(w) == full.bpe(w) for w in vocabulary())


def test_the_end_token_is_the_largest_id() -> None:
    """CLIP finds a text's feature at the argmax of its ids."""
    small = SimpleTokenizer(bpe_path=str(miniworld.tokenizer_path()), context_length=16)
    assert small.eot_token_id == small.vocab_size - 1 == 707
    ids = small(["a photo of a circle", "zebra"])
    assert ids.max(1).values.tolist() == [707, 707] and ids.shape == (2, 16)


def test_unknown_words_fall_back_to_pieces_that_spell_them() -> None:
    small = SimpleTokenizer(bpe_path=str(miniworld.tokenizer_path()), context_length=16)
    assert small.decode(small.encode("wyvern 7")).split() == ["wyvern", "7"]


def test_the_tokenizer_file_is_what_its_function_cuts() -> None:
    """The merges, not the compressed bytes: zlib versions differ in those."""
    shipped = gzip.decompress(miniworld.tokenizer_path().read_bytes())
    assert gzip.decompress(mini_bpe(vocabulary())) == shipped
    assert len(shipped.decode().split("\n")) == 1 + 194


def test_a_cut_for_other_words() -> None:
    lines = gzip.decompress(mini_bpe(["cat"])).decode().split("\n")
    assert lines[1:] == ["a t</w>", "c at</w>"]


def test_the_config_fits_the_tokenizer() -> None:
    config = json.loads(miniworld.config_path().read_text())
    assert config["model_cfg"]["text_cfg"]["vocab_size"] == 708
    assert config["preprocess_cfg"]["mean"] == config["preprocess_cfg"]["std"] == [0.5] * 3
