"""From a tree of files and what is stated about them to partitions, and from partitions back to items.

The invariant: every image, every entry without an image, every mask without an image and every file that nothing reads
is exactly one item, if need be one with an error; and a partition's key holds all that is stated about its items, so
that a changed label builds one partition again, while moving the folder builds none.

>>> refs = image_refs(tree, entries, rules, Own())      # one JSON object an item
>>> for partition in divided("source", refs, rules):
...     items = list(read_refs(partition, tree.root))
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from catalog.items import Box, Item, Label, Licences, Partition, Text
from connectors.images.rules import Rules
from connectors.images.stated import Stated
from connectors.images.tree import Mask, Tree
from infra.errors import Dropped, ItemError, Terminal, Transient
from infra.keys import key, sha256, split_by_key

ERRORS: Mapping[str, type[ItemError]] = {kind.__name__: kind for kind in (Terminal, Transient, Dropped)}
Ref = dict[str, Any]


@dataclass(frozen=True)
class Own:
    """What a layout adds."""

    listed_only: bool = True
    """an image of which no entry speaks is dropped"""
    labels: Callable[[str], Iterable[Label]] = lambda image: ()
    """what the path of an image says"""


def image_refs(tree: Tree, entries: Iterable[Stated], rules: Rules, own: Own) -> Iterator[Ref]:
    """One JSON object an item: all that `read_refs` needs and all that decides the item, without the root."""
    about: dict[str, list[Stated]] = {image: [] for image in tree.images}
    lost: dict[str, ItemError] = {}
    listed: set[str] = set()
    lists = ((entry, True) for entry in _split_entries(tree, rules))
    for entry, is_list in chain(((entry, False) for entry in entries), lists):
        try:
            image = tree.find(entry)
        except Terminal as error:
            lost.setdefault(entry.id, entry.error or error)
            continue
        about[image].append(entry)
        if not is_list:  # a list of a split says nothing of what is in the image
            listed.add(image)
    for image, said in about.items():
        try:
            if own.listed_only and image not in listed:
                raise Dropped("NO_METADATA_ROW", "no row or annotation speaks of it; add one, or exclude the image")
            yield _image_ref(tree, image, said, rules, own)
        except ItemError as error:
            yield refused_ref(image, error)
    for mask in tree.unused_masks:
        lost[mask] = Terminal("FILE_MISSING", "no image belongs to this mask; add the image, or remove the mask")
    for file in tree.unread:
        why = "no image, mask or annotation that this layout reads; exclude it to keep it out of the books"
        lost.setdefault(file, Dropped("NOT_READ", why))
    yield from (refused_ref(id, error) for id, error in lost.items())


def _split_entries(tree: Tree, rules: Rules) -> Iterator[Stated]:
    for split, name in rules.split_lists.items():
        try:
            lines = (tree.root / name).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeError) as error:
            why = f"{name} cannot be read: {getattr(error, 'strerror', error)}; correct split_lists"
            yield Stated(name, name, error=Terminal("ANNOTATION_UNREADABLE", why))
            continue
        tree.claim(name)
        for line in lines:
            if words := line.split():
                yield Stated(words[0], name, (words[0],), labels=(Label("split", split, "list:split"),))


def _image_ref(tree: Tree, image: str, entries: list[Stated], rules: Rules, own: Own) -> Ref:
    if error := next((entry.error for entry in entries if entry.error), None):
        raise error
    masks = tree.masks[image]
    files = {"main": image, **{mask.role: mask.file for mask in masks}}
    return {
        "id": image, "error": None,
        "files": {role: [name, tree.sha256(name)] for role, name in files.items()},
        **said_ref(entries, rules, image, masks, own.labels(image)),
    }


def said_ref(
    entries: list[Stated], rules: Rules, place: str, masks: Sequence[Mask] = (), labels: Iterable[Label] = ()
) -> Ref:
    """What entries say of the image at a place, in the recipe's words. Raises Terminal ROWS_DISAGREE."""
    outlines = [_outline(one, rules) for entry in entries for one in entry.outlines if _mapped(one["label"], rules)]
    boxes = [(_mapped(box.label, rules), list(box.xyxy)) for entry in entries for box in entry.boxes]
    found = [*labels, *(label for entry in entries for label in entry.labels)]
    return {
        "patient": agreed("patient", [entry.patient for entry in entries]) or _patient(place, rules),
        "labels": [[name, label.value, label.origin] for label in found if (name := _mapped(label.name, rules))],
        "boxes": [[name, xyxy, rules.roles.get(name, "region")] for name, xyxy in boxes if name],
        "texts": [text_json(text) for entry in entries for text in entry.texts],
        "facts": _facts(entries, masks, outlines, rules),
        "licence": agreed("licence", [list(entry.licence) if entry.licence else None for entry in entries]),
    }


def _facts(entries: list[Stated], masks: Sequence[Mask], outlines: list[Ref], rules: Rules) -> Ref:
    facts = {name: value for name in ("modality", "anatomy", "view") if (value := getattr(rules, name))}
    for fact in dict.fromkeys(fact for entry in entries for fact in entry.facts):
        value = agreed(fact, [entry.facts.get(fact) for entry in entries])
        facts[fact] = rules.fact_map.get(value, value) if isinstance(value, str) else value
    if roles := {label: rules.roles[label] for label in map(_label_of, masks) if label in rules.roles}:
        facts["roles"] = roles
    if raters := {mask.role: mask.rater for mask in masks if mask.rater}:
        facts["raters"] = raters
    if any(mask.role.startswith("classes") for mask in masks):
        labels = {value: _mapped(label, rules) for value, label in rules.classes.items()}
        facts["classes"] = labels
        facts["roles"] = {**facts.get("roles", {}), **{k: v for k, v in rules.roles.items() if k in labels.values()}}
    if outlines:
        facts["outlines"] = outlines
    if rules.annotated_fit != "same" and "annotated_size" in facts:
        facts["annotated_fit"] = rules.annotated_fit
    if rules.annotated_upright is not None:
        facts["annotated_upright"] = rules.annotated_upright
    return facts


def _outline(outline: Mapping[str, Any], rules: Rules) -> Ref:
    label = _mapped(outline["label"], rules)
    return {**outline, "label": label, "role": rules.roles.get(label, "region")}


def refused_ref(id: str, error: ItemError) -> Ref:
    """The ref of an item that cannot be read, or is left out."""
    return {"id": id, "files": {}, "patient": None, "error": [type(error).__name__, error.code, error.message]}


def divided(source: str, refs: Iterable[Ref], capacity: int) -> Iterator[Partition]:
    """Partitions of at most `capacity` items; those of a patient are never divided."""
    ordered = sorted(refs, key=lambda ref: str(ref["id"]))
    for name, part in split_by_key(ordered, lambda ref: ref["patient"] or ref["id"], capacity).items():
        yield Partition(source, name, tuple(part), tuple((ref["id"], key(ref)) for ref in part))


def read_refs(partition: Partition, root: Path) -> Iterator[Item]:
    """The items of a partition with the bytes of their images and masks, or the error met: now or while listing."""
    for ref in partition.refs:
        try:
            if ref["error"]:
                kind, code, message = ref["error"]
                raise ERRORS[kind](code, message)
            files = {role: _bytes(root, *file) for role, file in ref["files"].items()}
        except ItemError as error:
            yield Item(ref["id"], "image", ref["id"], {}, error=error)
            continue
        yield item_of(ref, files, {role: digest for role, (_, digest) in ref["files"].items()})


def item_of(ref: Mapping[str, Any], files: Mapping[str, bytes], hashes: Mapping[str, str]) -> Item:
    """The item of a ref, with the bytes of its files."""
    return Item(
        ref["id"], "image", ref["id"], files, ref["patient"],
        labels=tuple(Label(*label) for label in ref["labels"]),
        boxes=tuple(Box(label, (x0, y0, x1, y1), role) for label, (x0, y0, x1, y1), role in ref["boxes"]),
        texts=tuple(map(_text, ref["texts"])),
        licences=Licences(**_licences(ref["licence"])) if ref["licence"] else None,
        facts=ref["facts"], hashes=hashes,
    )


def _bytes(root: Path, path: str, expected: str) -> bytes:
    try:
        data = (root / path).read_bytes()
    except OSError as error:
        raise Transient("FILE_UNREADABLE", f"{path}: {error.strerror}; make it readable and run again") from error
    if sha256(data) != expected:
        raise Transient("SOURCE_CHANGED", f"{path} changed after it was listed; run again")
    return data


def text_json(text: Text) -> list[Any]:
    """A text as JSON; `_text` reads it back."""
    return [text.kind, text.text, text.language, *([text_json(text.about)] if text.about else [])]


def _text(said: list[Any]) -> Text:
    kind, words, language, *about = said
    return Text(kind, words, language, _text(about[0]) if about else None)


def _licences(stated: list[str]) -> dict[str, str]:
    """Code and evidence of the image; a third word says that the code holds for the texts too."""
    code, evidence, *texts = stated
    return {"image": code, "evidence": evidence, **({"text": code} if texts else {})}


def agreed(what: str, values: list[Any]) -> Any:
    """The one value that several rows of an image state, or None. Raises Terminal ROWS_DISAGREE."""
    found = [value for n, value in enumerate(values) if value is not None and value not in values[:n]]
    if len(found) > 1:
        raise Terminal("ROWS_DISAGREE", f"the rows of this image differ in {what}; make them agree")
    return found[0] if found else None


def _mapped(label: str, rules: Rules) -> str:
    return rules.label_map.get(label, label)


def _label_of(mask: Mask) -> str:
    name = mask.role.removeprefix("mask:")
    return name.rpartition("/")[0] or name


def folder_splits(image: str, rules: Rules) -> Iterator[Label]:
    """The splits that an image's folders name."""
    for folder in image.split("/")[:-1]:
        if folder in rules.splits:
            yield Label("split", folder, "folder:split")


def _patient(image: str, rules: Rules) -> str | None:
    found = re.search(rules.patient_pattern, image) if rules.patient_pattern else None
    return found[1 if found.re.groups else 0] if found else None
