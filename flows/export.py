"""An export: a selection written by an exporter, with the record that lets anyone repeat and check it.

    OUT/…              what the exporter wrote
    OUT/manifest.json  snapshot, condition, hash of the list of samples, counts, licences, what was refused and why
    OUT/CHECKSUMS      SHA-256 of every file, as sha256sum reads them
    OUT/ATTRIBUTIONS, OUT/KNOWN_ISSUES.json, and for rows without pixels OUT/pointers.jsonl, OUT/fetch.py
                       (catalog/exports/record.py)

The invariant: OUT is whole or absent. All is written to a folder beside it, which takes its name in the end; when that
was interrupted, the same command goes on after the last whole file, if the exporter can (`RESUMES`), else anew. The
same selection and parameters give the same bytes, interrupted or not.

Which rows may be written is a policy of licences: `open` unless told otherwise, so what is unknown, or not for every
use, stays out until somebody asks for it by name. `pixels: open` writes the pictures of open rows alone and pointers to
the rest, `pixels: none` pointers only.

>>> run_export(home, "modality = 'CT'", "webdataset", Path("ct"), None, [], licences="research", pixels="open")
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from catalog.builds import read_build
from catalog.exports import NO_CAPTION, Counts, progress, record
from catalog.exports.mixture import Mixed, Mixture
from catalog.licences import Policy
from catalog.selection import Row, Selection
from flows.recipe import checked
from flows.sending import export_to
from infra.disk import room, watched
from infra.errors import ConfigError
from infra.keys import sha256
from infra.plugins import load
from infra.storage import file_sha256, walk

REQUEST = ".request.json"
PIXELS = ("all", "open", "none")


def run_export(
    home: Path, where: str, format: str, out: Path | str, at: int | None, options: Sequence[str], *,
    licences: str = "open", pixels: str = "all", mixture: Path | None = None, anew: bool = True,
) -> str:
    """Write the selection to `out`, a folder or s3://BUCKET/PREFIX, whole or not at all; returns a line about it.

    Unless `anew`, an `out` that holds the same export stands, and one that holds another goes. Raises ConfigError when
    an option or the condition is wrong, nothing is picked, or `out` is not empty.
    """
    if isinstance(out, str) and out.startswith("s3://"):
        return export_to(home, out, lambda folder: run_export(
            home, where, format, folder, at, options, licences=licences, pixels=pixels, mixture=mixture, anew=False
        ))
    exporter = load("exporter", format)
    params = checked(exporter.Params, dict(map(_option, options)), f"exporter {format!r}")
    policy = Policy.of(licences)
    if pixels not in PIXELS:
        raise ConfigError(f"--pixels {pixels}: write one of {', '.join(PIXELS)}")
    selection = Selection(home, where, at, policy, volumes=getattr(exporter, "VOLUMES", False))
    mixed = Mixture.read(mixture) if mixture else None
    taken = mixed.of(selection) if mixed else selection
    base = taken.base if isinstance(taken, Mixed) else taken
    if len(base) == 0:
        raise ConfigError(_nothing(where, base, licences))
    shown, restricted = _split(taken, pixels)
    request = {
        "exporter": format, "parameters": params.model_dump(mode="json"), "snapshot": base.snapshot, "where": where,
        "licence_policy": licences, "pixels": pixels, "mixture": mixed.model_dump(mode="json") if mixed else None,
        "samples_sha256": taken.sha256,
    }
    out = Path(out).resolve()
    if not anew and (out / "manifest.json").exists():
        if _is_of(out, request):
            return f"written before to {out}"
        shutil.rmtree(out)
    room(out, 0 if shown is None else base.bytes, "this export")
    with watched(out, "the export"), _draft_of(out, request, exporter) as draft:
        before = progress.before(draft)
        wanted = len(shown) if shown is not None else 0
        counts = before
        if shown is not None and wanted:
            counts = exporter.write(_shown(shown, before.seen), draft, params)
        if counts.seen != wanted:
            raise RuntimeError(
                f"the exporter {format!r} was given {wanted} samples and accounts for {counts.written} written and "
                f"{counts.left_out.total()} left out; nothing stands at {out}: this is a bug of the exporter"
            )
        pointers = record.write_pointers(restricted, draft) if restricted is not None and len(restricted) else 0
        if counts.written + pointers == 0:
            raise ConfigError(f"{format!r} can use none of {len(taken)} samples ({_said(counts)}); nothing written")
        manifest = {
            **request, "picked": len(base) + base.refused.total(), "refused": dict(sorted(base.refused.items())),
            "parts_left_out": base.parts_left_out(), "written": counts.written, "pointers": pointers,
            "left_out": dict(sorted(counts.left_out.items())), "without_caption": counts.left_out[NO_CAPTION],
            "notes": dict(sorted((+counts.notes).items())),
            "licences": dict(sorted(counts.licences.items())), "built_by": _stages(home, base.snapshot),
            "known_issues": record.known_issues(base),
        }
        if hasattr(exporter, "finish"):
            exporter.finish(draft, manifest)
        _write_json(draft / "KNOWN_ISSUES.json", manifest.pop("known_issues"))
        with open(draft / "ATTRIBUTIONS", "w", encoding="utf-8") as file:
            file.writelines(record.attributions(base))
        _write_json(draft / "manifest.json", manifest)
        with open(draft / ".CHECKSUMS", "w", encoding="utf-8") as file:  # hidden: it is none of the files summed
            file.writelines(_checksums(draft))
        os.replace(draft / ".CHECKSUMS", draft / "CHECKSUMS")
        for hidden in (REQUEST, progress.FILE):
            (draft / hidden).unlink(missing_ok=True)
        draft.rename(out)
    return _line(counts, pointers, base, taken, out)


def _is_of(out: Path, request: dict[str, Any]) -> bool:
    said = json.loads((out / "manifest.json").read_bytes())
    return all(said.get(name) == asked for name, asked in json.loads(json.dumps(request)).items())


def _split(taken: Selection | Mixed, pixels: str) -> tuple[Selection | Mixed | None, Selection | None]:
    """What the exporter gets, and what is written as pointers."""
    if pixels == "all":
        return taken, None
    if isinstance(taken, Mixed):
        if pixels == "none":
            return None, taken.base
        return Mixed(replace(taken.whole, pixels=True), taken.mixture), replace(taken.base, pixels=False)
    return (None, taken) if pixels == "none" else (replace(taken, pixels=True), replace(taken, pixels=False))


def _nothing(where: str, base: Selection, licences: str) -> str:
    if not base.refused:
        return f"no sample meets {where!r} in snapshot {base.snapshot}; nothing was written"
    reasons = ", ".join(f"{n} for {reason}" for reason, n in sorted(base.refused.items()))
    return (
        f"--licences {licences} takes none of the {base.refused.total()} samples that {where!r} picks ({reasons}); "
        "nothing was written: name what you may use, such as --licences research, or all for everything"
    )


def _said(counts: Counts) -> str:
    return ", ".join(f"{n} left out: {reason}" for reason, n in sorted(counts.left_out.items()))


def _line(counts: Counts, pointers: int, base: Selection, taken: Selection | Mixed, out: Path) -> str:
    of = len(base) + base.refused.total() if taken is base else len(taken)
    parts = [f"{counts.written} of {of} samples of snapshot {base.snapshot} in {out}"]
    parts += [f"{pointers} as pointers (fetch.py)"] if pointers else []
    parts += [_said(counts)] if counts.left_out else []
    if base.refused:
        reasons = ", ".join(f"{n} for {reason}" for reason, n in sorted(base.refused.items()))
        parts.append(f"refused: {reasons} (--licences says what is taken)")
    if unknown := counts.licences["unknown"]:
        parts.append(f"{unknown} of them under an unknown licence: do not share those")
    return "; ".join(parts)


def _stages(home: Path, snapshot: int) -> dict[str, Any]:
    """The recipe of the snapshot, as far as it says what was done: names, connectors and stages, no places."""
    build = read_build(home, snapshot)
    recipe = build.recipe
    sources = [{"name": s.get("name"), "use": s.get("use")} for s in recipe.get("sources", ())]
    stages = sorted(recipe.get("stages") or ())
    return {"recipe": recipe.get("name"), "date": build.created_at[:10], "sources": sources, "stages": stages}


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _option(option: str) -> tuple[str, Any]:
    name, separator, value = option.partition("=")
    if not separator:
        raise ConfigError(f"--option {option}: write key=value, such as shard_mb=500")
    try:
        return name, yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"--option {option}: the value is not YAML: {error}") from None


@contextmanager
def _draft_of(out: Path, request: dict[str, Any], exporter: Any) -> Iterator[Path]:
    """A folder beside `out`, gone afterwards unless it was renamed or can be gone on with.

    It holds the whole files of the same export that was interrupted, where the exporter is one that resumes; anything
    else that a killed export left goes first.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} is not empty; name another --out, an export never mixes with what is there")
    code = getattr(exporter, "__file__", None)
    asked = json.dumps({**request, "code": sha256(Path(code).read_bytes()) if code else None}, sort_keys=True)
    draft = out.with_name(f".{out.name}.unfinished")
    draft.mkdir(parents=True, exist_ok=True)
    lock = os.open(draft, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # ends with its process, however that ends
        except BlockingIOError:
            raise ConfigError(f"another export is writing {out}; wait for it, or name another --out") from None
        left = draft / REQUEST
        if not (getattr(exporter, "RESUMES", False) and left.exists() and left.read_text("utf-8") == asked):
            for old in draft.iterdir():
                shutil.rmtree(old) if old.is_dir() else old.unlink()
        left.write_text(asked, encoding="utf-8")
        try:
            yield draft
        except ConfigError:
            shutil.rmtree(draft)
            raise
        finally:
            if not (draft / progress.FILE).exists():
                shutil.rmtree(draft, ignore_errors=True)
    finally:
        os.close(lock)


def _shown(taken: Selection | Mixed, skip: int) -> Iterator[Row]:
    from rich.progress import track

    rows, left = taken.rows(skip), len(taken) - skip
    yield from track(rows, "exporting", total=left, disable=not sys.stderr.isatty())


def _checksums(folder: Path) -> Iterator[str]:
    for path in walk(folder):
        yield f"{file_sha256(path)}  {path.relative_to(folder)}\n"
