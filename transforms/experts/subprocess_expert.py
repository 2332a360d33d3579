"""Expert: any program of another environment that reads a picture and writes label maps, masks or boxes.

The invariant: a program's answer has the size of the picture and only classes that the recipe names, or it is a
failure of this one picture: a crash, a timeout, a wrong size or an unreadable file costs its regions. It is run without
a shell, under limits, and told no more of the picture than modality, anatomy, view and spacing (adapters/commands.py).

    - use: ground
      experts: [command]
      options:
        command:
          command: ["$TOTALSEG/bin/python", "$TOTALSEG/run.py", "{image}", "{facts}", "{out}"]
          files: ["$TOTALSEG/run.py", "$TOTALSEG/weights"]
          output: label_map
          classes: {"1": {label: spleen, role: organ}, "2": {label: liver, role: organ}}

What the program writes into {out}, by `output`:

    label_map   labels.png: one channel of 8 or 16 bits (or a palette), 0 is background; `classes` by value
    masks       NAME.png for each name in `classes` that is there, not 0 where it is; masks may overlap
    boxes       boxes.json: [{"label": NAME, "box": [x0, y0, x1, y1], "score": 0.9}], pixels, half-open, score may lack

The command as it is written enters the key, so write places of this machine as $VARIABLES; so do the contents of
`files` and `version`, of which one at least must be given: they say when the program has changed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator, model_validator

from infra.errors import Terminal
from infra.storage import resolve
from transforms.adapters.commands import program_of, run
from transforms.adapters.folders import contents_sha256
from transforms.adapters.pictures import label_picture, written
from transforms.adapters.wanted import Named, Shown, card_of, refuse_others
from transforms.decoded import Pixels, Region
from transforms.experts.card import Card, Trust

NAME = "command"
VERSION = "1"
REQUIRES: Mapping[str, str] = {}
CARD = Card(
    family="label_map", trust="boundary", value_space="rgb8", licence_code="as the program says",
    licence_weights="as the program says", commercial=None,
)
TRUST = CARD.trust


class Params(Shown):
    """What a recipe may set for the command expert."""

    command: tuple[str, ...] = Field(
        min_length=1, description="program and arguments with {image}, {facts}, {out}; $VARIABLES are expanded"
    )
    output: Literal["label_map", "masks", "boxes"] = Field(description="what it writes into {out}")
    classes: Mapping[str, Named] = Field(
        min_length=1, description="value in the label map, or the program's name -> label and role"
    )
    version: str | None = Field(None, description="what to call this program and its weights; a new one runs it again")
    files: tuple[str, ...] = Field(
        (), exclude=True, description="files and folders whose contents decide what it says: code, weights"
    )
    environment: Mapping[str, str] = Field(
        default_factory=dict, description="variables it is given, $VARIABLES are expanded; of ours it gets PATH only"
    )
    seconds: float = Field(120, gt=0, exclude=True, description="time that one picture may take")
    memory_gb: float | None = Field(
        8, gt=0, exclude=True, description="address space it may have; null: no limit, for programs on a GPU reserve "
        "far more than they use",
    )
    trust: Trust | None = Field(None, description="how far to believe it; null: boundary for masks, box for boxes")

    @field_validator("command")
    @classmethod
    def _has_places(cls, command: tuple[str, ...]) -> tuple[str, ...]:
        for mark in ("{image}", "{out}"):
            if not any(mark in argument for argument in command[1:]):
                raise ValueError(f"no argument says {mark}; the program needs to know where that is")
        return command

    @model_validator(mode="after")
    def _is_whole(self) -> Params:
        if self.version is None and not self.files:
            raise ValueError("give `files` or `version`: without, nobody sees that the program has changed")
        if self.output == "boxes" and self.trust == "boundary":
            raise ValueError("boxes have no boundary to be trusted")
        if self.output == "label_map":
            for value in self.classes:
                if not value.isascii() or not value.isdigit() or not 0 < int(value) < 1 << 16:
                    raise ValueError(f"class {value!r}: a label map has values 1 to 65535")
        if self.output == "masks":
            for name in self.classes:
                if Path(name).name != name:
                    raise ValueError(f"class {name!r}: a mask's name is a file's name")
        return self


def card(params: Params) -> Card:
    """What it finds with these parameters."""
    number = int if params.output == "label_map" else lambda _: None
    return card_of(
        CARD, params, (named.as_class(number(key)) for key, named in params.classes.items()),
        trust=params.trust or ("box" if params.output == "boxes" else "boundary"),
        family="detector" if params.output == "boxes" else "label_map",
    )


def ingredients(params: Params) -> Mapping[str, str]:
    """The hash of its files. Raises ConfigError for a program or a file that is not there."""
    program_of(params.command)
    hashes = [contents_sha256(resolve(address)) for address in params.files]
    return {f"file:{number}": digest for number, digest in enumerate(hashes)}


def applies(image: Mapping[str, Any]) -> str | None:
    """None: which pictures it looks at is for the recipe to say, and `find` keeps to it."""
    return None


def find(pixels: Pixels, image: Mapping[str, Any], params: Params) -> list[Region]:
    """What the program says. Raises Dropped for a picture it is not to see, Terminal where it fails on this one."""
    refuse_others(card(params), image)
    read = {"label_map": _label_map, "masks": _masks, "boxes": _boxes}[params.output]
    return run(
        params.command, pixels, image, params.environment, seconds=params.seconds, memory_gb=params.memory_gb,
        read=partial(_all, read, params.classes, pixels.shape[:2]),
    )


def _all(read: Any, classes: Mapping[str, Named], size: tuple[int, int], out: Path) -> list[Region]:
    return list(read(out, classes, size))


def _label_map(out: Path, classes: Mapping[str, Named], size: tuple[int, int]) -> Iterator[Region]:
    values = label_picture(out / "labels.png", size)
    for value, named in sorted(classes.items(), key=lambda entry: int(entry[0])):
        if (mask := values == int(value)).any():
            yield Region(named.label, named.role, mask=mask, ontology_id=named.ontology_id)


def _masks(out: Path, classes: Mapping[str, Named], size: tuple[int, int]) -> Iterator[Region]:
    there = {path.stem for path in out.glob("*.png")}
    if there and not there & set(classes):
        raise Terminal("NO_KNOWN_CLASS", f"the program wrote {min(there)}.png, which `classes` does not name")
    for name, named in sorted(classes.items()):
        if name in there and (mask := label_picture(out / f"{name}.png", size) != 0).any():
            yield Region(named.label, named.role, mask=mask, ontology_id=named.ontology_id)


class _Box(BaseModel):
    """A box as a program writes it."""

    model_config = ConfigDict(frozen=True)

    label: str
    box: tuple[float, float, float, float]
    score: float | None = Field(None, ge=0, le=1)


def _boxes(out: Path, classes: Mapping[str, Named], size: tuple[int, int]) -> Iterator[Region]:
    try:
        found = TypeAdapter(list[_Box]).validate_json(written(out / "boxes.json").read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise Terminal("OUTPUT_UNREADABLE", f"boxes.json: {where}: {first['msg']}") from error
    height, width = size
    for one in found:
        x0, y0, x1, y1 = one.box
        if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
            raise Terminal("OUTPUT_SIZE", f"boxes.json: {one.box} is no box in a picture of {width} x {height}")
        if named := classes.get(one.label):
            score = None if one.score is None else round(one.score, 3)
            yield Region(named.label, named.role, box=one.box, ontology_id=named.ontology_id, score=score)
