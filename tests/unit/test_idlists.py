"""Lists of ids by shard: kept in a file, given back as they were, hashed in order."""

from __future__ import annotations

import gc
import hashlib
import os
from pathlib import Path

import pyarrow as pa

from catalog.idlists import IdLists, sha256_sorted


def test_lists_come_back_as_they_were_added() -> None:
    lists = IdLists()
    lists.add("b", pa.array(["z", "ä", ""]))
    lists.add("a", pa.array(["m", "k", "l"]).slice(1))
    lists.add("a", pa.array(["z"]))
    assert lists.counts == [("b", 3), ("a", 3)] and len(lists) == 6
    assert lists[1].to_pylist() == ["k", "l", "z"] and lists[0].to_pylist() == ["z", "ä", ""]
    assert [i for batch in lists.batches() for i in batch["sample_id"].to_pylist()] == ["z", "ä", "", "k", "l", "z"]


def test_the_hash_is_of_all_ids_sorted() -> None:
    names = [f"{n * 7919 % 50_021:x}" + "é" * (n % 3) for n in range(50_000)]
    first, second = IdLists(), IdLists()
    first.add("b", pa.array(names[:30_000]))
    first.add("a", pa.array(names[30_000:]))
    second.add("c", pa.array(["\U0001f600", "\uffee", *names[:7]]))
    told = sorted([*names, *names[:7], "\U0001f600", "\uffee"])
    assert sha256_sorted([first, second]) == hashlib.sha256("".join(f"{i}\n" for i in told).encode()).hexdigest()
    assert sha256_sorted([]) == sha256_sorted([IdLists()]) == hashlib.sha256().hexdigest()


def test_a_million_ids_take_no_memory_and_leave_no_file() -> None:
    before = {os.readlink(p) for p in Path("/proc/self/fd").iterdir() if p.is_symlink()}
    held = pa.total_allocated_bytes()
    lists = IdLists()
    for shard in range(100):
        lists.add(f"s{shard}", pa.array([f"{shard:024d}{n:06d}" for n in range(10_000)]))
    assert len(lists) == 1_000_000 and lists[99][9_999].as_py() == f"{99:024d}{9_999:06d}"
    assert pa.total_allocated_bytes() - held < 1_000_000
    del lists
    gc.collect()
    after = {os.readlink(p) for p in Path("/proc/self/fd").iterdir() if p.is_symlink()}
    assert not {path for path in after - before if "medloom-" in path or "(deleted)" in path}
