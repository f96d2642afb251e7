"""Emoji as data sets: the laws of their splits, views and sheets, on a small made-up world of drawings."""

from __future__ import annotations

import io
import re
import shutil
from collections import Counter
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sharpscope.cli.main import main
from sharpscope.clip.datasets import emoji
from sharpscope.clip.datasets.dataset import Dataset
from sharpscope.clip.datasets.emoji import COLUMNS, TILE, VIEWS, Style, Thing, part_of, read_world, sheet_of
from sharpscope.clip.datasets.found import Found, Request
from sharpscope.clip.datasets.spec import _finder, load_dataset
from sharpscope.clip.model import ClipModel
from sharpscope.config.specs import LAYOUTS, read_spec
from sharpscope.errors import ConfigError, DatasetError
from sharpscope.finetuning.run import finetune

COUNT = 44  # two rows of a sheet, the second one nearly empty
STYLES = ("amber", "blue", "coral", "dune")
UNDRAWN = range(3, COUNT, 7)
"""The things that dune did not draw."""
GROUPS = ("bird", "tool", "", "fruit")
CODES = [f"1f3{i:02x}" for i in range(COUNT)]
NAMES = [f"{GROUPS[i % 4] or 'thing'} {i}" for i in range(COUNT)]
KINDS = ("emoji", "emoji-group")


def drawn(seed: int, count: int) -> np.ndarray:
    """``count`` drawings uint8 [count, 48, 48, 4]: a patch of noise each, elsewhere nothing."""
    rng = np.random.default_rng(seed)
    out = np.zeros((count, TILE, TILE, 4), np.uint8)
    for tile, (top, left) in zip(out, rng.integers(0, 20, (count, 2)), strict=True):
        tile[top : top + 24, left : left + 24] = rng.integers(1, 256, (24, 24, 4))
    return out


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with 44 things in four styles, of which dune drew some things only."""
    folder = tmp_path_factory.mktemp("root") / "emoji"
    folder.mkdir()
    lines = [f"{CODES[i]},{NAMES[i]},round|small,{GROUPS[i % 4]}" for i in range(COUNT)]
    (folder / "things.csv").write_text("\n".join(["code,name,keywords,group", *lines]))
    (folder / "styles.csv").write_text("\n".join(["style,family,things", *(f"{s},f,{COUNT}" for s in STYLES)]))
    for seed, style in enumerate(STYLES):
        drawings = drawn(seed, COUNT)
        if style == "dune":
            drawings[list(UNDRAWN)] = 0
        sheet_of(drawings).save(folder / f"{style}.webp", lossless=True)
    return folder.parent


def found(root: Path, spec: str) -> Found:
    asked = read_spec(spec)
    return _finder(LAYOUTS[asked.kind])(Request(spec, asked.kind, asked.rest, asked.split or "test", root=str(root)))


def drawings(root: Path, spec: str) -> dict[tuple[str, str], int]:
    """(style, code) of every drawing in the set -> its number of images."""
    parts = (re.fullmatch(r"(\w+)/(\w+)@\w+\[\d+\]", name) for name in names(found(root, spec)))
    return Counter((part[1], part[2]) for part in parts if part)


def things(root: Path, spec: str) -> set[str]:
    return {code for _, code in drawings(root, spec)}


def names(one: Found) -> list[str]:
    return [one.images.name(i) for i in range(len(one.images))]


def pixels(root: Path, spec: str) -> dict[str, bytes]:
    one = found(root, spec)
    return {name: one.images.open(i).tobytes() for i, name in enumerate(names(one))}


def pictures(dataset: Dataset) -> list[bytes]:
    return [image.numpy().tobytes() for batch, _ in dataset.batches(64) for image in batch]


# ---------------------------------------------------------------------- sheets and drawings
@pytest.mark.parametrize("count", [1, COLUMNS, COLUMNS + 1, 2 * COLUMNS + 1])
def test_a_sheet_gives_back_its_drawings(count: int, tmp_path: Path) -> None:
    world = emoji.EmojiWorld(
        tmp_path, tuple(Thing(str(i), str(i), (), "") for i in range(count)), {"x": Style("x", "x")}
    )
    sheet = sheet_of(drawn(count, count))
    assert sheet.size == (COLUMNS * TILE, -(-count // COLUMNS) * TILE)
    sheet.save(tmp_path / "x.webp", lossless=True)
    assert np.array_equal(world.drawings("x"), drawn(count, count))


def test_colours_that_cannot_be_seen_are_no_drawing(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root, tmp_path, dirs_exist_ok=True)
    hidden = np.full((COUNT, TILE, TILE, 4), (9, 99, 199, 0), np.uint8)
    hidden[1] = drawn(0, 1)[0]
    sheet_of(hidden).save(tmp_path / "emoji" / "dune.webp", lossless=True, exact=True)
    read = read_world(tmp_path).drawings("dune")
    assert np.array_equal(read[1], hidden[1] * (hidden[1, ..., 3:] > 0)) and not np.delete(read, 1, 0).any()


def test_the_tables_are_read(root: Path) -> None:
    world = read_world(root)
    assert world.things[4] == Thing(CODES[4], NAMES[4], ("round", "small"), "bird")
    assert list(world.styles) == list(STYLES) and world.styles["blue"] == Style("blue", "f")


def test_a_drawing_lies_on_a_pale_gradient() -> None:
    nothing = np.asarray(emoji.composed(np.zeros((TILE, TILE, 4), np.uint8), 3)).astype(int)
    assert nothing.shape == (TILE, TILE, 3) and nothing.min() >= 140
    second = np.diff(nothing, 2, axis=0)  # of a gradient: rounding alone
    assert np.abs(second).max() <= 2 and nothing.std((0, 1)).max() > 0
    whole = np.asarray(emoji.composed(np.full((TILE, TILE, 4), (10, 200, 30, 255), np.uint8), 3))
    assert (whole[8:-8, 8:-8] == (10, 200, 30)).all()


# ---------------------------------------------------------------------- splits
@pytest.mark.parametrize("kind", KINDS)
def test_a_code_falls_into_a_split_as_often_as_its_share_says(kind: str) -> None:
    n, shares = 10_000, emoji._PARTS[kind]
    count = Counter(part_of(f"{i:x}", kind) for i in range(n))
    assert set(count) == set(shares) and sum(shares.values()) == pytest.approx(1)
    for split, share in shares.items():
        assert abs(count[split] - n * share) < 4 * (n * share * (1 - share)) ** 0.5


def test_the_splits_of_a_study_stay_what_they_are() -> None:
    codes = ("1f347", "1f600", "2764", "1f9d1-200d-1f692", "1f697", "1f331")
    assert [part_of(code, "emoji") for code in codes] == ["test", "ood", "test", "val", "ood", "ood"]
    assert [part_of(code, "emoji-group") for code in codes] == ["train", "val", "train", "train", "ood", "ood"]


@pytest.mark.parametrize("styles", ["amber", "amber,blue,coral"])
@pytest.mark.parametrize("kind", KINDS)
def test_no_thing_is_in_two_splits(root: Path, kind: str, styles: str) -> None:
    splits = [things(root, f"{kind}:{styles}@{split}") for split in emoji._PARTS[kind]]
    assert all(splits) and not any(one & other for one, other in combinations(splits, 2))
    grouped = {code for i, code in enumerate(CODES) if kind == "emoji" or GROUPS[i % 4]}
    assert set.union(*splits) == grouped


def test_of_every_thing_one_drawing_is_held_out_and_val_and_test_hold_it(root: Path) -> None:
    train, val, test, ood = (set(drawings(root, f"emoji:amber,blue,coral@{s}")) for s in VIEWS)
    every = {(style, code) for style in STYLES[:3] for code in CODES}
    held = every - train
    assert train < every and Counter(code for _, code in held) == Counter(CODES)
    assert set(Counter(style for style, _ in held)) == set(STYLES[:3])  # each style in turn
    assert val | test < held and ood == {d for d in every if part_of(d[1], "emoji") == "ood"}
    assert all((d in val, d in test) == tuple(part_of(d[1], "emoji") == s for s in ("val", "test")) for d in held)


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_styles_says_nothing(root: Path, kind: str) -> None:
    for split in VIEWS:
        one, other = (found(root, f"{kind}:{styles}@{split}") for styles in ("coral,amber,blue", "amber,blue,coral"))
        assert names(one) == names(other) and one.labels.tolist() == other.labels.tolist()


def test_what_a_style_did_not_draw_gives_no_image(root: Path) -> None:
    lost = {CODES[i] for i in UNDRAWN}
    ood = {code for code in CODES if part_of(code, "emoji") == "ood"}
    assert lost & ood and things(root, "emoji:dune@ood") == ood - lost
    assert not {d for d in drawings(root, "emoji:amber,dune@train") if d[0] == "dune" and d[1] in lost}


# ---------------------------------------------------------------------- images and labels
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("split", VIEWS)
def test_every_drawing_has_its_views_and_each_is_another_picture(root: Path, kind: str, split: str) -> None:
    spec = f"{kind}:amber,dune@{split}"
    assert set(drawings(root, spec).values()) == {VIEWS[split]}
    assert len(set(pixels(root, spec).values())) == len(found(root, spec).labels)


def test_views_of_two_splits_are_other_pictures(root: Path) -> None:
    """The drawings that train and ood share (``emoji`` trains on all things) are not seen as they were trained on."""
    train, ood = (pixels(root, f"emoji:amber,blue@{split}") for split in ("train", "ood"))
    assert not set(train.values()) & set(ood.values())


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_depends_on_style_thing_view_and_split_alone(root: Path, kind: str) -> None:
    alone, beside = pixels(root, f"{kind}:blue@ood"), pixels(root, f"{kind}:blue,dune,amber@ood")
    assert alone == pixels(root, f"{kind}:blue@ood")
    assert alone == {name: image for name, image in beside.items() if name.startswith("blue/")}
    other = pixels(root, f"{'emoji' if kind == 'emoji-group' else 'emoji-group'}:blue@ood")
    assert alone.keys() & other.keys() and all(alone[name] == other[name] for name in alone.keys() & other.keys())


def test_a_limit_chooses_among_the_same_pictures(root: Path, tiny_model: ClipModel) -> None:
    whole, again, few = (
        load_dataset("emoji-group:blue,dune@ood", model=tiny_model, data_root=root, limit=limit)
        for limit in (None, None, 13)
    )
    assert pictures(whole) == pictures(again) and len(few) == 13
    labelled = set(zip(pictures(whole), whole.labels.tolist(), strict=True))
    assert set(zip(pictures(few), few.labels.tolist(), strict=True)) <= labelled


@pytest.mark.parametrize(("kind", "classes"), [("emoji", tuple(NAMES)), ("emoji-group", ("bird", "fruit", "tool"))])
def test_labels_index_names_that_are_the_same_in_every_style_and_split(
    root: Path, kind: str, classes: tuple[str, ...], tiny_model: ClipModel
) -> None:
    for spec in (f"{kind}:{styles}@{split}" for styles in ("amber,blue", "dune,coral") for split in VIEWS):
        one = found(root, spec)
        assert one.classes == classes and len(one.labels)
        for name, label in zip(names(one), one.labels, strict=True):
            thing = CODES.index(name.partition("/")[2].partition("@")[0])
            assert classes[label] == (NAMES[thing] if kind == "emoji" else GROUPS[thing % 4])
    dataset = load_dataset(f"{kind}:dune", model=tiny_model, data_root=root)
    assert dataset.classnames == classes and tuple(dataset.templates or ()) == emoji.TEMPLATES


# ---------------------------------------------------------------------- what is refused
def rewritten(name: str, old: str, new: str) -> Callable[[Path], None]:
    """A change of the text file ``name``: its first ``old`` becomes ``new``."""

    def change(folder: Path) -> None:
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new, 1))

    return change


def sheet(content: bytes | Image.Image, **how: object) -> Callable[[Path], object]:
    """A change of amber's sheet."""
    file = "amber.webp"
    return lambda f: (f / file).write_bytes(content) if isinstance(content, bytes) else content.save(f / file, **how)  # type: ignore[arg-type]


def undecodable(image: Image.Image) -> bytes:
    """A WebP file that tells its size, and whose pixels are rubbish."""
    file = io.BytesIO()
    image.save(file, "webp", lossless=True)
    return file.getvalue()[:40].ljust(len(file.getvalue()), b"\0")


WHOLE = Image.new("RGBA", (COLUMNS * TILE, 2 * TILE), (1, 2, 3, 255))
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1920 96\n%%EndComments\n"
"""A program of the right size, which PIL would have another program run."""
REFUSED = {
    "folder": (lambda f: shutil.rmtree(f), r"things\.csv: cannot be read \(No such file or directory\)\."),
    "styles": (lambda f: (f / "styles.csv").unlink(), r"styles\.csv: cannot be read \(No such file"),
    "no sheet": (lambda f: (f / "amber.webp").unlink(), r"amber\.webp: cannot be read as an image \(No such file"),
    "no image": (sheet(b"RIFF1234WEBPVP8L"), r"amber\.webp: cannot be read as an image \("),
    "rubbish": (
        sheet(undecodable(sheet_of(drawn(0, COUNT)))),
        r"amber\.webp: cannot be read as an image \(failed to",
    ),
    "wrong size": (  # and refused before it is decoded
        sheet(undecodable(Image.fromarray(np.hstack(drawn(0, 2))))),
        r"amber\.webp: is WEBP of 96 x 48 pixels, but a sheet of 44 things is WEBP of 1920 x 96\.",
    ),
    "another format": (sheet(WHOLE, format="png"), r"amber\.webp: is PNG of 1920 x 96 pixels"),
    "a program": (sheet(EPS), r"amber\.webp: cannot be read as an image \(it has none of the image formats"),
    "things removed": (sheet(WHOLE, format="webp"), r"amber\.webp: has drawings behind those of the 44 things\."),
    "no column": (rewritten("things.csv", ",keywords,group", ""), r"things\.csv: has no column keywords and no group"),
    "no family": (rewritten("styles.csv", "family", "kin"), r"styles\.csv: has no column family\."),
    "few fields": (rewritten("things.csv", ",round|small,tool", ""), r"things\.csv, line 3: has too few fields\."),
    "many fields": (rewritten("things.csv", "tool 1,", "tool, one,"), r"things\.csv, line 3: has too many fields\."),
    "huge field": (rewritten("things.csv", "round", "r" * 200_000), r"things\.csv: cannot be read \(field larger than"),
    "no UTF-8": (lambda f: (f / "things.csv").write_bytes(b"\xff\xfe"), r"things\.csv: cannot be read \(.*decode"),
    "one name": (rewritten("things.csv", "tool 1,", "Bird_0,"), r"things\.csv: two things have the name 'bird 0'\."),
    "one code": (rewritten("things.csv", CODES[1], CODES[0]), r"things\.csv: two things have the code '1f300'\."),
    "no name": (rewritten("things.csv", "tool 1,", ","), r"things\.csv: a thing has no name\."),
    "one style": (rewritten("styles.csv", "blue", "amber"), r"styles\.csv: two styles have the name 'amber'\."),
    "a path": (rewritten("styles.csv", "blue", "../blue"), r"styles\.csv: '\.\./blue' is no style's name"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_folder_that_does_not_fit_is_one_error(what: str, root: Path, tmp_path: Path, tiny_model: ClipModel) -> None:
    shutil.copytree(root, tmp_path, dirs_exist_ok=True)
    change, said = REFUSED[what]
    change(tmp_path / "emoji")
    with pytest.raises(DatasetError, match=f"^{re.escape(str(tmp_path))}.*{said}") as refused:
        load_dataset("emoji:amber@ood", model=tiny_model, data_root=tmp_path)
    assert "Remedy: python analyses/emoji/fetch.py --out DIR fills DIR/emoji" in str(refused.value)


@pytest.mark.parametrize(("spec", "error", "said"), [
    ("emoji:ambr@ood", DatasetError, "no style 'ambr'. Did you mean 'amber'? Known: amber, blue, coral, dune."),
    ("emoji-group:amber,", DatasetError, "there is no style ''."),
    ("emoji:amber,blue,amber", DatasetError, "the style 'amber' is named twice"),
    ("emoji:amber@train", DatasetError, "a single style has no other.\nRemedy: several styles"),
    ("emoji:amber@tset", ConfigError, "unknown split 'tset'. Did you mean 'test'? Known: train, val, test, ood."),
    ("emoji-group:amber@", ConfigError, "unknown split ''. Known: train, val, test, ood."),
    ("emoji@ood", ConfigError, "Did you mean 'emoji:STYLES'?"),
])  # fmt: skip
def test_a_spec_that_does_not_fit_is_one_error(
    spec: str, error: type[Exception], said: str, root: Path, tiny_model: ClipModel
) -> None:
    with pytest.raises(error, match=re.escape(said)):
        load_dataset(spec, model=tiny_model, data_root=root)


# ---------------------------------------------------------------------- in use
def test_a_model_is_tuned_on_styles_and_evaluated_on_another(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = "emoji:amber,blue,coral"
    tuned = finetune(
        "mini:zeroshot", train, "wise-ft", model="mini", val=train, data_root=root, out=tmp_path, steps=2,
        batch_size=8, shots=1, progress=False,
    )  # fmt: skip
    assert tuned.classnames == tuple(NAMES) and len(tuned.losses) == 2 and len(tuned.accuracies) == 1
    line = f"evaluate {tuned.path} --model mini --datasets emoji:dune@ood emoji:amber,blue,coral --data-root {root}"
    assert main(line.split()) == 0
    said = capsys.readouterr().out
    assert "emoji:dune@ood" in said and train in said
