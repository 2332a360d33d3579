"""Image files from anywhere: what is decoded, what is stripped, what is refused."""

from __future__ import annotations

import io
import random
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps, PngImagePlugin

from infra.errors import ItemError, Terminal
from infra.keys import sha256
from transforms.pictures.imagefile import (
    MAX_PIXELS,
    encode_png,
    open_image,
    open_mask,
    phash,
    pixel_sha256,
    shrink,
    upright_box,
)

SECRET = b"DOE^JANE"
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/">' + SECRET + b"</x:xmpmeta>"
ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def picture(height: int = 60, width: int = 80, seed: int = 0) -> Image.Image:
    """Smooth colours, so that lossy codecs stay close, and no symmetry."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def saved(image: Image.Image, format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def shown(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image if image.mode in ("L", "RGB") else image.convert("RGB"))


def exif(orientation: int = 1) -> Image.Exif:
    block = Image.Exif()
    block[0x0112], block[0x010F], block[0x9286] = orientation, SECRET.decode(), SECRET.decode()
    return block


def segment(marker: int, payload: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(payload) + 2) + payload


def chunk(kind: bytes, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload)) + kind + payload + struct.pack(">I", zlib.crc32(kind + payload))


def refusal(data: bytes) -> Terminal:
    with pytest.raises(Terminal) as caught:
        open_image(data)
    return caught.value


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 2}, {"subsampling": 0}])
def test_jpeg_loses_what_identifies_and_keeps_every_pixel(options: dict[str, Any]) -> None:
    plain = saved(picture(), "JPEG", exif=exif(), comment=SECRET, icc_profile=ICC, **options)
    jfif_with_thumbnail = segment(0xE0, b"JFIF\0\1\2\0\0\1\0\1\1\1" + SECRET[:3])
    planted = (
        plain[:2] + jfif_with_thumbnail + segment(0xE0, b"JFXX\0" + SECRET)
        + segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + XMP)
        + segment(0xED, b"Photoshop 3.0\0" + SECRET) + segment(0xE2, b"MPF\0" + SECRET) + segment(0xE5, SECRET)
        + plain[2:-2] + segment(0xFE, SECRET) + b"\xff\xd9" + saved(picture(8, 8), "JPEG", comment=SECRET)
    )
    opened = open_image(planted)
    assert opened.encoded is not None and opened.format == "JPEG" and opened.lossy is True
    assert SECRET in planted and SECRET not in opened.encoded and SECRET[:3] not in opened.encoded
    assert np.array_equal(shown(opened.encoded), shown(plain)) and np.array_equal(opened.pixels, shown(plain))
    with Image.open(io.BytesIO(opened.encoded)) as image:
        assert image.info["icc_profile"] == ICC
        assert not {"exif", "comment", "xmp", "photoshop"} & set(image.info)


def test_png_loses_texts_times_and_exif() -> None:
    texts = PngImagePlugin.PngInfo()
    texts.add_text("Comment", SECRET.decode())
    texts.add_text("Raw profile type iptc", SECRET.decode(), zip=True)
    texts.add_itxt("XML:com.adobe.xmp", XMP.decode())
    texts.add(b"tIME", b"\x07\xe8\1\2\3\4\5")
    texts.add(b"prVt", SECRET)
    planted = saved(picture(), "PNG", pnginfo=texts, exif=exif(), icc_profile=ICC, dpi=(300, 300)) + SECRET
    opened = open_image(planted)
    assert opened.encoded is not None and opened.lossy is False
    assert np.array_equal(shown(opened.encoded), np.asarray(picture()))
    for gone in (SECRET, b"tEXt", b"zTXt", b"iTXt", b"tIME", b"eXIf", b"prVt"):
        assert gone in planted and gone not in opened.encoded
    with Image.open(io.BytesIO(opened.encoded)) as image:
        assert image.info["icc_profile"] == ICC


def test_a_text_chunk_that_inflates_to_gigabytes_is_never_inflated() -> None:
    plain = saved(picture(), "PNG")
    bomb = chunk(b"zTXt", b"Raw profile type xmp\0\0" + zlib.compress(bytes(50 << 20)))
    opened = open_image(plain[:33] + bomb + plain[33:])
    assert opened.encoded == plain


@pytest.mark.parametrize("lossless", [True, False])
def test_webp_loses_exif_and_xmp(lossless: bool) -> None:
    planted = saved(picture(), "WEBP", lossless=lossless, exif=exif(), xmp=XMP, icc_profile=ICC)
    opened = open_image(planted)
    assert opened.encoded is not None and opened.lossy is not lossless
    assert SECRET in planted and SECRET not in opened.encoded
    assert np.array_equal(shown(opened.encoded), shown(planted))
    with Image.open(io.BytesIO(opened.encoded)) as image:
        assert image.info["icc_profile"] == ICC and not {"exif", "xmp"} & set(image.info)


def test_gif_loses_comments() -> None:
    planted = saved(picture().quantize(32), "GIF", comment=SECRET)
    opened = open_image(planted)
    assert opened.encoded is not None and SECRET in planted and SECRET not in opened.encoded
    assert np.array_equal(shown(opened.encoded), shown(planted)) and np.array_equal(opened.pixels, shown(planted))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_once_and_boxes_turn_with_it(format: str, orientation: int) -> None:
    raw = np.zeros((48, 64), np.uint8)
    raw[8:16, 24:56] = 255
    data = saved(Image.fromarray(raw).convert("RGB"), format, exif=exif(orientation))
    opened = open_image(data)
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    assert np.array_equal(opened.pixels, expected)
    assert opened.orientation == orientation and opened.raw_size == (48, 64)
    assert (opened.encoded is None) == (orientation > 1 or format == "TIFF")
    x0, y0, x1, y1 = map(int, upright_box((24, 8, 56, 16), orientation, opened.raw_size))
    inside = np.zeros(opened.pixels.shape[:2], bool)
    inside[y0:y1, x0:x1] = True
    assert np.array_equal(opened.pixels[..., 0] > 127, inside)
    assert np.array_equal(open_mask(data).pixels > 0, inside)


def test_damaged_metadata_does_not_cost_the_picture() -> None:
    plain = saved(picture(), "JPEG")
    assert open_image(plain[:2] + segment(0xE1, b"Exif\0\0MM\0*\xff\xff") + plain[2:]).orientation == 1
    tiff = bytearray(saved(picture(), "TIFF", software="x" * 30))
    at = tiff.index(struct.pack("<HHI", 305, 2, 31))
    tiff[at + 4 : at + 12] = struct.pack("<II", 31, 0xFFFFFFF)
    assert np.array_equal(open_image(bytes(tiff)).pixels, np.asarray(picture()))


def test_content_decides_not_the_name() -> None:
    assert open_image(saved(picture().quantize(8), "GIF")).format == "GIF"
    assert open_image(saved(picture(), "JPEG2000")).lossy is None
    assert open_image(saved(picture(), "BMP")).encoded is None
    assert np.array_equal(open_image(b"P2\n# c\n2 1\n4\n0 4\n").pixels, [[0, 255]])


@pytest.mark.parametrize(("data", "hint"), [
    (b"", "empty"), (b"\xef\xbb\xbf<?xml version='1.0'?><svg xmlns='x'/>", "SVG"), (b"%PDF-1.7\n", "PDF"),
    (b" <!DOCTYPE html><html>404</html>", "HTML"), (b"patient,age\n1,2\n", "begins with"), (b"MZ\x90\0", "begins with"),
    (b"RIFF\4\0\0\0WAVE", "begins with"),
])
def test_other_files_are_no_images(data: bytes, hint: str) -> None:
    error = refusal(data)
    assert error.code == "NOT_IMAGE" and hint in error.message


@pytest.mark.parametrize("data", [b"8BPS\0\1", b"\0\0\0\x20ftypheic", b"\xff\x0a\0\0", b"%!PS-Adobe", b"\0\0\1\0\1\0"])
def test_image_formats_that_are_not_decoded_say_so(data: bytes) -> None:
    assert refusal(data).code == "IMAGE_UNSUPPORTED"


def test_floating_point_pixels_are_not_guessed_at() -> None:
    assert refusal(saved(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF")).code == "IMAGE_UNSUPPORTED"
    assert refusal(saved(Image.fromarray(np.full((4, 4), -5, np.int32)), "TIFF")).code == "IMAGE_UNSUPPORTED"


def test_bombs_are_refused_by_their_header() -> None:
    for side in (8001, 20_000, 60_000):
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
        png = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
        assert side * side > MAX_PIXELS and refusal(png).code == "IMAGE_BOMB"
    jpeg = bytearray(saved(picture(), "JPEG"))
    at = jpeg.index(b"\xff\xc0")
    jpeg[at + 5 : at + 9] = struct.pack(">HH", 65_000, 65_000)
    assert refusal(bytes(jpeg)).code == "IMAGE_BOMB"


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "JPEG2000", "PPM"])
def test_a_file_that_is_cut_short_is_never_padded(format: str) -> None:
    whole = saved(picture().quantize(64) if format == "GIF" else picture(), format)
    open_image(whole)
    for kept in (len(whole) - 1, len(whole) * 9 // 10, len(whole) // 2, len(whole) // 4):
        error = refusal(whole[:kept])
        assert error.code in ("IMAGE_TRUNCATED", "IMAGE_CORRUPT") and not error.retryable
        if format in ("JPEG", "PNG", "GIF", "WEBP"):
            assert error.code == "IMAGE_TRUNCATED"


def test_a_flipped_bit_in_a_png_is_found() -> None:
    data = bytearray(saved(picture(), "PNG"))
    data[len(data) // 2] ^= 1
    assert refusal(bytes(data)).code == "IMAGE_CORRUPT"


def test_damaged_files_raise_nothing_but_refusals() -> None:
    chance = random.Random(0)
    animated = [picture(seed=1)]
    files = [
        saved(picture(), "JPEG", exif=exif()),
        saved(picture().convert("CMYK"), "JPEG"),
        saved(picture(), "PNG", exif=exif()),
        saved(picture(), "PNG", save_all=True, append_images=animated),
        saved(picture().quantize(9), "GIF"),
        saved(picture(), "WEBP", save_all=True, append_images=animated),
        saved(picture(), "TIFF"),
        saved(picture(), "TIFF", exif=exif(6)),
        *(saved(picture(), format) for format in ("BMP", "JPEG2000", "PPM")),
    ]
    refused = 0
    for data in files:
        for _ in range(60):
            broken = bytearray(data)
            for _ in range(chance.choice((1, 4, 30))):
                broken[chance.randrange(min(len(broken), chance.choice((64, 10**9))))] = chance.randrange(256)
            for opener in (open_image, open_mask):
                try:
                    assert opener(bytes(broken)).pixels.dtype == np.uint8
                except ItemError:
                    refused += 1
    assert refused > 100


def test_grey_of_16_bits_is_scaled_by_its_depth() -> None:
    def grey(values: list[int], format: str = "PNG", **options: Any) -> Any:
        return open_image(saved(Image.fromarray(np.array([values], np.uint16)), format, **options))

    twelve = grey([0, 2048, 4095])
    assert twelve.pixels.tolist() == [[0, 128, 255]] and twelve.window == (0, 4095) and twelve.encoded is None
    assert grey([0, 100, 60_000]).window == (0, 65535)
    assert grey([3, 7]).pixels.tolist() == [[3, 7]]
    assert grey([0, 0]).pixels.tolist() == [[0, 0]]
    declared = grey([0, 1000], format="TIFF", tiffinfo={281: 2000})
    assert declared.window == (0, 2000) and declared.pixels.tolist() == [[0, 128]]
    inverted = grey([0, 4095], format="TIFF", tiffinfo={262: 0})
    assert inverted.pixels.tolist() == [[255, 0]] and inverted.window == (4095, 0)


def test_rgb_of_16_bits_is_not_stored_as_it_came() -> None:
    row = b"\0" + struct.pack(">6H", 0, 0x80FF, 0xFFFF, 1, 2, 3)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0))
    opened = open_image(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b""))
    assert opened.encoded is None and opened.pixels.tolist() == [[[0, 0x80, 0xFF], [0, 0, 0]]]


def test_modes_become_grey_or_rgb() -> None:
    grey = picture().convert("L")
    assert np.array_equal(open_image(saved(grey, "PNG")).pixels, np.asarray(grey))
    bilevel = open_image(saved(grey.convert("1"), "PNG"))
    assert bilevel.pixels.ndim == 2 and set(np.unique(bilevel.pixels)) == {0, 255} and bilevel.encoded is None
    few = picture().quantize(16)
    palette = open_image(saved(few, "PNG"))
    assert palette.encoded is not None and np.array_equal(palette.pixels, np.asarray(few.convert("RGB")))
    cmyk = open_image(saved(picture().convert("CMYK"), "JPEG", quality=95))
    assert cmyk.encoded is None and np.abs(cmyk.pixels.astype(int) - np.asarray(picture())).mean() < 8


@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_transparent_pixels_are_laid_on_white(format: str) -> None:
    image = picture().convert("RGBA")
    assert open_image(saved(image, format, lossless=True)).encoded is not None
    alpha = np.full((60, 80), 255, np.uint8)
    alpha[:30] = 0
    image.putalpha(Image.fromarray(alpha))
    opened = open_image(saved(image, format, lossless=True))
    assert opened.encoded is None and opened.pixels.shape == (60, 80, 3)
    assert (opened.pixels[:30] == 255).all() and np.array_equal(opened.pixels[30:], np.asarray(picture())[30:])
    faint = Image.merge("LA", [Image.new("L", (2, 2), 0), Image.new("L", (2, 2), 128)])
    assert open_image(saved(faint, "PNG")).pixels.tolist() == [[127, 127], [127, 127]]


def test_a_transparent_colour_counts_as_transparent() -> None:
    image = Image.fromarray(np.array([[7, 9]], np.uint8))
    assert open_image(saved(image, "PNG", transparency=7)).pixels.tolist() == [[255, 9]]
    palette = picture().quantize(8)
    opened = open_image(saved(palette, "PNG", transparency=bytes([0] * 8)))
    assert opened.encoded is None and (opened.pixels == 255).all()


@pytest.mark.parametrize("format", ["GIF", "TIFF", "PNG", "WEBP"])
def test_of_several_frames_the_first_is_taken_and_all_are_counted(format: str) -> None:
    options = {"lossless": True} if format == "WEBP" else {}
    frames = [picture(seed=n).quantize(64) if format == "GIF" else picture(seed=n) for n in range(3)]
    opened = open_image(saved(frames[0], format, save_all=True, append_images=frames[1:], **options))
    assert opened.frames == 3 and opened.encoded is None
    assert np.array_equal(opened.pixels, np.asarray(frames[0].convert("RGB")))


def test_masks_are_what_is_neither_black_nor_transparent() -> None:
    inside = np.zeros((16, 24), bool)
    inside[4:12, 6:18] = True
    grey = Image.fromarray((inside * 3).astype(np.uint8))
    ids = Image.fromarray((inside * 2000).astype(np.uint16))
    ids.putpixel((7, 5), 1)
    cut_out = Image.new("RGBA", (24, 16), (255, 255, 255, 0))
    cut_out.paste((200, 0, 0, 255), (6, 4, 18, 12))
    coloured = grey.point(lambda v: v and 1).convert("P")
    coloured.putpalette([0, 0, 0, 128, 0, 0])
    for data in (
        saved(grey, "PNG"), saved(ids, "PNG"), saved(cut_out, "PNG"), saved(coloured, "PNG"), saved(coloured, "GIF"),
        saved(Image.fromarray(inside), "PNG"), saved(Image.fromarray(inside), "TIFF"),
    ):
        assert np.array_equal(open_mask(data).pixels, inside * np.uint8(255))
    ringing = saved(Image.fromarray((inside * 255).astype(np.uint8)), "JPEG", quality=40)
    assert len(np.unique(shown(ringing))) > 2 and np.array_equal(open_mask(ringing).pixels > 0, inside)


def test_png_is_lossless_and_always_the_same() -> None:
    for pixels in (np.asarray(picture()), np.asarray(picture().convert("L")), np.asarray(picture())[::2, ::-1]):
        data = encode_png(pixels)
        assert np.array_equal(shown(data), pixels) and data == encode_png(pixels.copy())
        assert open_image(data).encoded == data


def test_pixel_hash_is_of_shape_and_pixels() -> None:
    pixels = np.arange(6, dtype=np.uint8).reshape(2, 3)
    assert pixel_sha256(pixels) == sha256(b"2x3x1\n" + bytes(range(6)))
    assert pixel_sha256(pixels) != pixel_sha256(pixels.reshape(3, 2))
    assert pixel_sha256(np.asarray(picture())) == sha256(b"60x80x3\n" + np.asarray(picture()).tobytes())


def distance(a: str, b: str) -> int:
    return (int(a, 16) ^ int(b, 16)).bit_count()


def test_phash_finds_near_duplicates_and_parts_others() -> None:
    image = picture(300, 400)
    own = phash(np.asarray(image))
    assert len(own) == 16 and phash(np.zeros((50, 50), np.uint8)) == "0" * 16
    assert phash(np.full((9, 2000, 3), 90, np.uint8)) == "8" + "0" * 15
    copies = (
        image.resize((133, 100)), image.convert("L"), image.point(lambda v: v // 2 + 40),
        Image.fromarray(shown(saved(image, "JPEG", quality=30))),
    )
    assert max(distance(own, phash(np.asarray(copy))) for copy in copies) <= 6
    others = [phash(np.asarray(picture(300, 400, seed))) for seed in range(1, 20)]
    assert min(distance(own, other) for other in others) >= 12


def test_shrinking_means_the_area() -> None:
    pixels = np.kron(np.array([[0, 100], [200, 50]], np.uint8), np.ones((8, 8), np.uint8))
    small, scale = shrink(pixels, 2)
    assert small.tolist() == [[0, 100], [200, 50]] and scale == 0.125
    checks = np.indices((64, 64)).sum(axis=0).astype(np.uint8) % 2 * 200
    assert (shrink(checks, 16)[0] == 100).all()
    colour, scale = shrink(np.asarray(picture(30, 100)), 33)
    assert colour.shape == (10, 33, 3) and scale == 0.33
    assert shrink(pixels, None) == (pixels, 1.0) and shrink(pixels, 16)[0] is pixels
    assert shrink(np.zeros((1, 500), np.uint8), 16)[0].shape == (1, 16)


def test_sample_data_decodes_as_pillow_decodes_it(sample_data: Path) -> None:
    folders = ("classification", "detection", "pmc/article_dirs")
    files = [path for folder in folders for path in sorted((sample_data / folder).rglob("*.*"))]
    paths = [path for path in files if path.suffix in (".png", ".jpg", ".tif")][::5]
    assert len(paths) > 40
    for path in paths:
        data = path.read_bytes()
        opened = open_image(data)
        if opened.encoded is not None:
            assert np.array_equal(opened.pixels, shown(data)), path
            assert np.array_equal(opened.pixels, shown(opened.encoded)), path
            for gone in (b"Exif\0", b"Photoshop", b"ns.adobe.com/xap", b"Raw profile"):
                assert gone not in opened.encoded, path
