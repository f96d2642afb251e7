"""Where the drawings come from: styles, their npm packages with checksums and licences, and who plays which part."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Role = Literal["known", "id", "clean"]
"""known: every base was pretrained on it; id: what pairs are fine-tuned on; clean: no model was trained on it."""


@dataclass(frozen=True)
class Package:
    """An npm package at one version; ``sha256`` is that of the archive that ``npm pack`` writes."""

    name: str
    version: str
    sha256: str
    licence: str


@dataclass(frozen=True)
class Source:
    """One style: how a vendor draws things. Restylings of one design are one ``family``, and a family has one role."""

    style: str
    family: str
    role: Role
    package: Package


WORDS: Final = Package("emojilib", "4.0.3", "7f9a6b43cff31d18985b7d65d11faba5bd971cbcc60020cf6d09322fbaaaf303", "MIT")
"""Names and keywords of the things."""

SOURCES: Final = (
    Source("noto", "noto", "known", Package("@iconify-json/noto", "1.2.9", "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad", "Apache-2.0")),
    Source("noto1", "noto", "known", Package("@iconify-json/noto-v1", "1.2.5", "2bf62c26c2c2884aa99e90aec942cdaee17a5921f05690694f4978ad4b017c37", "Apache-2.0")),
    Source("fluent", "fluent", "known", Package("@iconify-json/fluent-emoji-flat", "1.2.6", "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175", "MIT")),
    Source("contrast", "fluent", "known", Package("@iconify-json/fluent-emoji-high-contrast", "1.2.6", "0b92d48c90d2200bd499e3cdd09a127ca6a8c8ddefd34c35eb5a1e4994012ae0", "MIT")),
    Source("fluent3d", "fluent", "known", Package("@lobehub/fluent-emoji-3d", "1.1.0", "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58", "MIT")),
    Source("fxemoji", "fxemoji", "known", Package("@iconify-json/fxemoji", "1.2.2", "f3e72b3c59d05e1db03b7e308d55c0d05bd7ba3f625a90da1b79313c12858eef", "Apache-2.0")),
    Source("apple", "apple", "id", Package("emoji-datasource-apple", "16.0.0", "b34d1665e136f163b0d4433318df151895b785186e8c729b2211b43017945075", "drawings not free")),
    Source("twemoji", "twemoji", "id", Package("@iconify-json/twemoji", "1.2.5", "19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7", "CC-BY-4.0")),
    Source("openmoji", "openmoji", "id", Package("@iconify-json/openmoji", "1.2.29", "03181e2c156cab35cf4a62f1f7886bd971d59212e75ac3f189d5a4cae3930fc5", "CC-BY-SA-4.0")),
    Source("facebook", "facebook", "clean", Package("emoji-datasource-facebook", "16.0.0", "017038cf5a4e7fcf03dd9133cbed43d4c281c4b3ce7b927c7160261b92b8821e", "drawings not free")),
    Source("emojitwo", "emojione", "clean", Package("@iconify-json/emojione", "1.2.3", "26a14f44284407e8bcde91799388dca2bfd91dbcd55a97f425524a1c5b73610e", "CC-BY-4.0")),
    Source("emojione1", "emojione", "clean", Package("@iconify-json/emojione-v1", "1.2.3", "6641d59d48a42823fdc2b84e7427e9f302944eb98d2c7d94d6e67c139e7b37b3", "CC-BY-SA-4.0")),
    Source("mono", "emojione", "clean", Package("@iconify-json/emojione-monotone", "1.2.1", "40b90004bafb406b59266155ef9b7e1dd67bf2947fc8db8d07388776f4d0d04e", "CC-BY-4.0")),
    Source("streamline", "streamline", "clean", Package("@iconify-json/streamline-emojis", "1.2.4", "5dac87c876b322500989828c5823143e0100d78881627a2e4081a4b897cbfdbc", "CC-BY-4.0")),
)  # fmt: skip
"""Every style of the study. The known ones are Apache-2.0 or MIT, so that the bases derive from free drawings alone."""

UNICODE: Final = next(s.package for s in SOURCES if s.style == "apple")
"""The package that holds Unicode's emoji list too (``emoji.json``, MIT)."""


def styles_of(role: Role) -> tuple[str, ...]:
    return tuple(s.style for s in SOURCES if s.role == role)
