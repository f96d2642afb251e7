"""The eleven data sets of CoOp: their folders, split files and prompts. Text only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

__all__ = ["COOP", "CoopSet"]


@dataclass(frozen=True)
class CoopSet:
    """Where one of CoOp's sets lies below the data root, and the prompt that its authors wrote for it."""

    folder: str
    images: str
    """The folder of the images inside ``folder``; empty for ``folder`` itself."""
    template: str
    split_file: str = ""
    """The split file inside ``folder``; empty for the two sets that have lists or folders of their own."""


COOP: Final[Mapping[str, CoopSet]] = {
    "caltech101": CoopSet("caltech-101", "101_ObjectCategories", "a photo of a {}.", "split_zhou_Caltech101.json"),
    "pets": CoopSet("oxford_pets", "images", "a photo of a {}, a type of pet.", "split_zhou_OxfordPets.json"),
    "cars": CoopSet("stanford_cars", "", "a photo of a {}.", "split_zhou_StanfordCars.json"),
    "flowers": CoopSet("oxford_flowers", "jpg", "a photo of a {}, a type of flower.", "split_zhou_OxfordFlowers.json"),
    "food101": CoopSet("food-101", "images", "a photo of {}, a type of food.", "split_zhou_Food101.json"),
    "aircraft": CoopSet("fgvc_aircraft", "images", "a photo of a {}, a type of aircraft."),
    "sun397": CoopSet("sun397", "SUN397", "a photo of a {}.", "split_zhou_SUN397.json"),
    "dtd": CoopSet("dtd", "images", "{} texture.", "split_zhou_DescribableTextures.json"),
    "eurosat": CoopSet("eurosat", "2750", "a centered satellite photo of {}.", "split_zhou_EuroSAT.json"),
    "ucf101": CoopSet("ucf101", "UCF-101-midframes", "a photo of a person doing {}.", "split_zhou_UCF101.json"),
    "imagenet": CoopSet("imagenet", "images", "a photo of a {}."),
}
"""Name -> set. Source: github.com/KaiyangZhou/CoOp at commit ff61507: folders and split files from datasets/*.py, the
prompts from CUSTOM_TEMPLATES in trainers/zsclip.py (Zhou et al. 2022, arXiv 2109.01134)."""
