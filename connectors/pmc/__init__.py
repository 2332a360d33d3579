"""Articles of PubMed Central, preprint servers and publishers: JATS XML with its figure files.

Read are folders and archives of this machine, and PMC's cloud bucket. The invariant: every figure of every article is
an item, with its picture or with the reason why there is none; an article without figures, or one that cannot be read,
is one item that says so.

>>> for partition in list_partitions("pmc", Params(root="/data/oa_package"), FileIndex(None)):
...     for item in read(partition, Params(root="/data/oa_package")):
...         print(item.id, item.error or [text.kind for text in item.texts])
PMC12419688.tar.gz#koaf197-F1 ['original_caption', 'mention']

What counts as a figure says jats.py; a table counts where the article gives an image of it. For buckets see bucket.py.
"""

from __future__ import annotations

from collections.abc import Iterator

from catalog.items import Item, Partition
from connectors.pmc import bucket, local
from connectors.pmc.params import Params
from infra.fileindex import FileIndex

__all__ = ["Params", "list_partitions", "read"]

NAME = "pmc"
VERSION = "2"
REQUIRES = {"lxml": "lxml"}


def list_partitions(source: str, params: Params, since: FileIndex) -> Iterator[Partition]:
    """Partitions of at most `capacity` articles. What `since` knows is not read again."""
    listing = bucket.list_partitions if params.in_bucket else local.list_partitions
    return listing(source, params, since)


def read(partition: Partition, params: Params) -> Iterator[Item]:
    """The items of a partition, those of an article one after the other."""
    return bucket.read(partition, params) if params.in_bucket else local.read(partition, params)
